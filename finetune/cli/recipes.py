"""recipe show and recipe schema."""

from __future__ import annotations

import typer

from finetune.cli.app import Overrides, RecipePath, app

recipe_app = typer.Typer(no_args_is_help=True, help="Look at a recipe as it is resolved, and at what may stand in one.")
app.add_typer(recipe_app, name="recipe")


@recipe_app.command()
def show(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Print a recipe with every value and where it comes from; the output is a recipe, too."""
    from finetune.recipe import resolve_recipe, show_recipe

    typer.echo(show_recipe(resolve_recipe(recipe, overrides or [])), nl=False)


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from finetune.recipe.reference import render_schema

    typer.echo(render_schema(), nl=False)
