"""The model card that goes with an adapter, in the Hub's form: its metadata hold what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from finetune.store.folders import Card

_HUB_TYPES = {
    "perplexity.heldout": "perplexity",
    "perplexity.general": "perplexity",
    "prompts.pass_rate": "accuracy",
}  # those of our metrics that the Hub has a name for
_WORD = re.compile(r"[A-Za-z][\w./-]*")
_USE = """```python
from finetune import Assistant, load_recipe

recipe = load_recipe("recipe.yaml")
bot = Assistant(recipe.base, adapters=["."])
```
"""


def render_readme(card: Card) -> str:
    """Markdown with the Hub's metadata, `model-index` included; everything comes from the card alone."""
    base = f"`{card.base.model}`" + (f" at revision `{card.base.revision}`" if card.base.revision else "")
    unverified = "" if card.base.verified else " (named by whoever imported it; no training recorded it)"
    origin = "trained with [finetune](recipe.yaml)" if card.source is None else _origin(card)
    lines = [
        *_metadata(card),
        "",
        f"# {card.name}",
        "",
        f"A {card.method} adapter (r = {card.r}, alpha = {card.alpha:g}) for {base}{unverified},",
        f"{origin} on a base in {'4-bit NF4' if card.base.quantization == 'nf4' else '16/32 bits'}.",
        "",
        *_table("", dict(_facts(card))),
        *_table("measured (95% interval)", {name: _interval(metric) for name, metric in card.metrics.items()}),
    ]
    if card.source is None:
        lines += ["`recipe.yaml` holds every setting, `log.jsonl` every step, `card.json` the hashes of base and data."]
        lines += ["", _USE]
    else:
        lines += ["`card.json` holds the hashes of base, files and data, as far as they are known."]
    return "\n".join(lines).rstrip() + "\n"


def _origin(card: Card) -> str:
    assert card.source is not None
    at = f" at `{card.source.revision}`" if card.source.revision else ""
    return {
        "import": f"imported from `{card.source.place}`, used",
        "hub": f"from `{card.source.place}`{at} on the Hub, used",
    }.get(card.source.kind, f"made of `{card.source.place}`, used")


def _facts(card: Card) -> Iterator[tuple[str, str]]:
    if card.train_rows is not None:
        yield "training rows an epoch", f"{card.train_rows:,}"
    if card.steps is not None:
        yield "optimizer steps", f"{card.steps:,}"
    if card.trained_tokens is not None:
        yield "trained tokens", f"{card.trained_tokens:,}"
    if "trained" in card.parameters:
        whole = f" of {card.parameters['total']:,}" if "total" in card.parameters else ""
        yield "trained parameters", f"{card.parameters['trained']:,}{whole}"
    if card.source is None:
        heldout = card.loss.get("heldout")
        yield "final held-out loss", "not measured" if heldout is None else f"{heldout:.4f} nats per token"
    if card.seconds is not None:
        yield "time", f"{card.seconds:,.0f} s"


def _interval(metric: dict[str, float]) -> str:
    return f"{metric['value']:.4g} ({metric['low']:.4g} to {metric['high']:.4g})"


def _table(heading: str, rows: dict[str, str]) -> list[str]:
    if not rows:
        return []
    return [f"| {heading} | |" if heading else "| | |", "|---|---|", *(f"| {n} | {v} |" for n, v in rows.items()), ""]


def _metadata(card: Card) -> list[str]:
    """The Hub's metadata; JSON is YAML, so no text of a card can break out of its line."""
    lines = ["---", f"base_model: {_yaml(card.base.model)}", "library_name: peft", "tags: [lora, finetune]"]
    if card.base.licence:
        lines.append(f"license: {_yaml(card.base.licence)}")
    if card.metrics:
        index = [{"name": card.name, "results": list(_results(card))}]
        lines.append(f"model-index: {json.dumps(index)}")
    return [*lines, "---"]


def _results(card: Card) -> Iterator[dict[str, object]]:
    """As https://huggingface.co/docs/hub/model-cards: one task and data set, and all metrics."""
    yield {
        "task": {"type": "text-generation"},
        "dataset": {"name": f"{card.name}, held out", "type": card.name},
        "metrics": [
            {
                "type": _HUB_TYPES.get(name, name),
                "name": f"{name} (95% interval {metric['low']:.4g} to {metric['high']:.4g})",
                "value": metric["value"],
            }
            for name, metric in card.metrics.items()
        ],
    }


def _yaml(text: str) -> str:
    """Plain if it is a plain word, else quoted."""
    return text if _WORD.fullmatch(text) else json.dumps(text)
