"""All keys of the recipe, walked out of the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from pydantic.fields import FieldInfo

from finetune.recipe.schema import Recipe, Section


class Key(NamedTuple):
    name: str  # such as data.mix[].weight or eval.gates.METRIC.at_least
    field: FieldInfo
    section: type[Section] | None  # behind it, if it has keys of its own
    inside: str  # what the names of those begin with


def walk(section: type[Section] = Recipe, prefix: str = "") -> Iterator[Key]:
    """Yield every key in the order of the schema, a section before its keys."""
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        inside = f"{prefix}{name}{_mark(field.annotation)}."
        yield Key(prefix + name, field, inner, inside)
        if inner is not None:
            yield from walk(inner, inside)


def value_keys() -> list[str]:
    """Every key that one has to know to write any recipe: all but the plain sections."""
    return [key.name for key in walk() if key.section is None or key.field.annotation is not key.section]


def all_keys() -> list[str]:
    """Every dotted key of the recipe, sections included; not those of list items and gates."""
    return [key.name for key in walk() if "[]" not in key.name and ".METRIC" not in key.name]


def _section_in(annotation: Any) -> type[Section] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _mark(annotation: Any) -> str:
    """What stands for the index of a list and the name in a mapping."""
    arguments = get_args(annotation)
    return "" if not arguments else "[]" if arguments[-1] is Ellipsis else ".METRIC"
