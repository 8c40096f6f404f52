"""docs/prompts.md, made from the checks themselves."""

from __future__ import annotations

import inspect

from finetune.evaluation.checks import CHECKS
from finetune.evaluation.checks.core import REQUIRED, Option, Spec
from finetune.evaluation.checks.normalize import STEPS_SAY
from finetune.evaluation.checks.texts import REFUSALS

EXAMPLE = "Example: "
_HEAD = """\
# Held-out prompts and checks

<!-- Made by `make docs` from finetune/evaluation/checks/: edit that. -->

`eval.prompts` of a recipe names a YAML file of prompts that are never trained on. `finetune eval` has the base
and the adapter answer every one, and runs its checks on both answers. A prompt passes if all its checks pass;
the report's pass rates and their paired difference are made of that.

```yaml
prompts:
- id: order-001                     # every id once
  prompt: "2 lg pepperoni thin crust plz"
  tags: [order, sloppy]             # optional: the report has a pass rate for each
  samples: 4                        # optional: answered so often; needs generation.temperature
  checks:
  - {contains: two large thin-crust pepperoni pizzas, ignore_case: true}
  - {stops: true}
- id: change-of-mind
  system: Be brief.                 # optional: instead of data.system; "" for none
  messages:                         # instead of prompt; ends with a user turn
  - {role: user, content: Hi}
  - {role: assistant, content: "Hello! What may I bring you?"}
  - {role: user, content: "One margherita. No, two."}
  checks:
  - {number: 2}
```

Every mistake in the file is named with its line and column before anything is loaded: an unknown check or
option, an option of another check, a value of the wrong type, a bad pattern or schema, a function that cannot
be imported.

## Checks

A check is one function in `finetune/evaluation/checks/`; this table is made of their docstrings and signatures.
Options with a default may be left out.
"""
_TAIL = """\
## Prompts that find regressions

- **One prompt, one thing.** A prompt that fails should say what broke. Several checks on one prompt are fine if
  they are one demand seen from several sides: the order is repeated (`contains`), nothing is invented
  (`not_contains`), the turn ends (`stops`).
- **Check what must hold, not how it is said.** `equals` a whole sentence fails with every rewording and soon
  means nothing. Name the words that carry the fact, and allow forms with `any_of` or `regex`.
- **Let every check fail once.** Read the base's answers in the report: a check that the base passes without
  training measures nothing, unless it guards what must not be lost. For a new check write one answer that must
  fail it.
- **Guard both sides.** Beside prompts that should be answered put some that should not (`refusal: true`, or a
  `regex` for your way of saying no), or an adapter that does either always looks perfect.
- **Write them as people do**: misspelt, terse, in two sentences, with a change of mind. Prompts made from the
  templates of the training rows measure memory; `finetune check` reports those that stand in them.
- **Keep what once went wrong.** Every bad answer that somebody reports becomes a prompt, with a tag.
- **Have enough.** With n prompts the 95 % interval of a pass rate is about 1/√n wide to either side: 100
  prompts tell 80 % from 90 %, 20 do not. Repetitions of one prompt are not more prompts.
- **Prefer checks that compute.** `contains`, `number` and `json_schema` say the same tomorrow. Keep the
  nearness checks for free text, set their bound by looking at scores of good and bad answers, and a judge for
  what no rule can say; a judge is a model, so read some of its reasons, and never change it and the adapter
  between two reports that you compare.
"""


def render_checks() -> str:
    """Return docs/prompts.md."""
    lines = [_HEAD, "| check | value | options | passes if | example |", "| --- | --- | --- | --- | --- |"]
    lines += [_row(name, spec) for name, spec in sorted(CHECKS.items())]
    lines += ["", "## Normalisation", ""]
    lines += [
        "Text is compared as the model wrote it. `normalize` lists what is done to the answer and to the values first; "
        "whatever the order of the list, in this order:",
        "",
        *(f"- `{name}`: {says}" for name, says in STEPS_SAY.items()),
        "",
        "`ignore_case: true` is the short way to write `normalize: [case]`; for `regex` it is a flag of the pattern.",
        "",
        "## Phrases of a refusal",
        "",
        ", ".join(f"“{phrase}”" for phrase in REFUSALS) + ".",
        "",
        _TAIL.rstrip("\n"),
    ]
    return "\n".join(lines) + "\n"


def example_of(spec: Spec) -> str:
    """Return a check's example, as it stands in a prompts file."""
    return _documented(spec).partition(EXAMPLE)[2].strip()


def _row(name: str, spec: Spec) -> str:
    text = " ".join(_documented(spec).partition(EXAMPLE)[0].split())
    options = "; ".join(_option(key, option) for key, option in spec.options.items()) or "none"
    cells = (f"`{name}`", spec.value.says, options, text, f"`{example_of(spec)}`")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _option(name: str, option: Option) -> str:
    if option.default is REQUIRED:
        return f"`{name}`: {option.kind.says} (required)"
    empty = option.default in ("", (), "{}")
    default = (
        "" if empty else f" (default {str(option.default).lower() if option.default is False else option.default})"
    )
    return f"`{name}`: {option.kind.says}{default}"


def _documented(spec: Spec) -> str:
    return inspect.getdoc(spec.call) or ""
