"""Promises about the code as a whole: who may import whom, what is loaded when, and how long things are."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import finetune

PACKAGE = Path(finetune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# A module imports from its own folder and from what stands to its left; one group may not import itself.
ORDER = (
    {"errors"},
    {"files", "hubs", "journal"},
    {"provenance"},
    {"recipe"},
    {"data"},
    {"model"},
    {"store"},
    {"training"},
    {"evaluation"},
    {"serving"},
    {"comparison", "export", "inspection", "planning", "records"},
    {"jobs"},
    {"pipeline"},
    {"terminal"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, group in enumerate(ORDER) for name in group}
EXEMPT = {"__init__"}  # finetune/__init__.py names everybody's home and loads nobody
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "scipy", "matplotlib", "jinja2")


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for file in FILES:
        yield file, ast.parse(file.read_text(encoding="utf-8"), str(file))


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every dotted module that is imported anywhere, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full"
            names = [alias.name for alias in node.names] if node.module == "finetune" else [""]
            yield from ((f"{node.module}.{name}".rstrip("."), node.lineno) for name in names)


def breaches(part: str, tree: ast.AST) -> list[tuple[str, int]]:
    """Imports that go to the right, or sideways out of the own folder."""
    targets = [(name.split(".")[1], line) for name, line in imported(tree) if name.startswith("finetune.")]
    return [(name, line) for name, line in targets if name != part and RANK.get(name, len(ORDER)) >= RANK[part]]


def test_every_part_of_the_package_has_its_place() -> None:
    assert {part_of(file) for file in FILES} - EXEMPT == set(RANK)


def test_imports_go_to_the_left_only() -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)}:{line} imports {name}"
        for file, tree in trees()
        if part_of(file) not in EXEMPT
        for name, line in breaches(part_of(file), tree)
    ]
    assert wrong == []


def test_the_import_rule_sees_what_hides() -> None:
    inside = ["from finetune.cli import app", "import finetune.model.base", "from finetune import pipeline"]
    hidden = "\n    ".join(["def f():", *inside])
    assert breaches("data", ast.parse(hidden)) == [("cli", 2), ("model", 3), ("pipeline", 4)]
    assert breaches("files", ast.parse("import finetune.provenance")) == [("provenance", 1)]
    assert breaches("model", ast.parse("from finetune.model.lora import attach\nfrom finetune.errors import X")) == []


def loaded(code: str, *arguments: str) -> list[str]:
    """Heavy packages that a fresh interpreter has loaded after running the code."""
    report = f"; import json; print('LOADED' + json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}{report}", *arguments], capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout.rpartition("LOADED")[2])
    return found


RUN = """
from finetune.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
import sys"""


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("import finetune; dir(finetune)", ()),
        (RUN, ("--help",)),
        (RUN, ("train", "--help")),
        (RUN, ("list", "--store", str(PACKAGE / "nowhere"))),
        (RUN, ("recipe", "--help")),
        (RUN, ("recipe", "show", "recipes/pizza.yaml", "train.epochs=1")),
        (RUN, ("recipe", "schema")),
    ],
    ids=["import", "--help", "train --help", "list", "recipe --help", "recipe show", "recipe schema"],
)
def test_what_should_be_instant_loads_nothing_heavy(code: str, arguments: tuple[str, ...]) -> None:
    assert loaded(code, *arguments) == []


@pytest.mark.parametrize("command", [("check",), ("show",)])
def test_what_needs_the_tokenizer_alone_loads_no_weights_and_no_torch(command: tuple[str, ...]) -> None:
    recipe = PACKAGE.parent / "recipes" / "cheerful.yaml"
    code = f"import os; os.chdir({str(PACKAGE.parent)!r})\n{RUN}"
    assert set(loaded(code, *command, str(recipe))) <= {"transformers", "scipy", "jinja2", "datasets"}


def test_public_names_resolve_on_first_use() -> None:
    assert finetune.__all__ == sorted(finetune.__all__, key=lambda n: (n.islower(), n))
    for name in finetune.__all__:
        value = getattr(finetune, name)
        assert callable(value)
        assert value.__doc__
        assert value.__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = finetune.nothing


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300


def lengths() -> dict[str, int]:
    """Lines of every function, without docstring and decorators."""
    found = {}
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if ast.get_docstring(node):
                    lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
                found[f"{file.relative_to(PACKAGE)}:{node.lineno} {node.name}"] = lines
    return found


def test_functions_are_short() -> None:
    found = lengths()
    assert {name: lines for name, lines in found.items() if lines > 60} == {}
    short = [name for name, lines in found.items() if lines <= 25]
    longest = sorted(found.items(), key=lambda item: -item[1])[:20]
    assert len(short) >= 0.85 * len(found), longest
