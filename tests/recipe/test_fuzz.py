"""Whatever stands in a recipe, it is a recipe or a RecipeError, soon and in little memory.

FUZZ_CASES sets how many cases the ordinary suite tries; `make slow` tries 50,000.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe import dump_recipe, load_recipe, resolve_recipe, show_recipe
from tests.recipe.hostile import MAIN, MAKERS, Case, make_case

SECONDS = 1.0
KIBIBYTES = 200 * 1024  # more than the process had before
CASES = int(os.environ.get("FUZZ_CASES", "2500"))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux


def survives(case: Case, folder: Path) -> bool:
    """Say whether the case is a recipe; anything but a RecipeError in words gets out."""
    try:
        resolved = resolve_recipe(folder / MAIN, case.overrides)
    except RecipeError as error:
        message = str(error)
        assert all(line.isprintable() for line in message.split("\n")), message
        assert len(message) < 60_000
        return False
    (folder / "shown.yaml").write_text(show_recipe(resolved), encoding="utf-8")
    # Compared as texts: a bound may be .nan, which equals nothing.
    assert dump_recipe(load_recipe(folder / "shown.yaml")) == dump_recipe(resolved.recipe)
    return True


def place(case: Case, folder: Path) -> None:
    for old in folder.rglob("*.yaml"):
        old.unlink()
    for name, data in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def try_all(numbers: range, folder: Path) -> int:
    """Try cases and count the recipes among them."""
    recipes, before = 0, peak()
    for number in numbers:
        case = make_case(number)
        place(case, folder)
        try:
            start = time.process_time()  # not the clock on the wall: another process may have the processor
            recipes += survives(case, folder)
            assert time.process_time() - start < SECONDS, "takes too long"
            assert peak() - before < KIBIBYTES, "takes too much memory"
        except BaseException as error:
            error.add_note(f"case {number}: {case}"[:3000])
            raise
    return recipes


def test_nothing_but_a_recipe_error_gets_out(tmp_path: Path) -> None:
    recipes = try_all(range(CASES), tmp_path)
    assert recipes > CASES / 100, "some cases should be recipes, or the others are too coarse"


def test_every_kind_of_case_is_among_the_first(tmp_path: Path) -> None:
    kinds = {make_case(number).files[MAIN] for number in range(200)}
    assert len(kinds) > 150
    assert len(MAKERS) == 12


@pytest.mark.slow
def test_nothing_but_a_recipe_error_gets_out_of_50_000_cases(tmp_path: Path) -> None:
    try_all(range(1_000_000, 1_050_000), tmp_path)
