"""The model card that goes with an adapter, in the Hub's form."""

from __future__ import annotations

from finetune.model.store import Card

_TEMPLATE = """---
base_model: {base}
library_name: peft
tags: [lora, finetune]
---

# {name}

A {method} adapter (r = {r}, alpha = {alpha:g}) for `{base}`{revision}, trained with
[finetune](recipe.yaml) on a base in {quantization}.

| | |
|---|---|
| training rows an epoch | {train_rows:,} |
| optimizer steps | {steps:,} |
| trained tokens | {trained_tokens:,} |
| trained parameters | {trained:,} of {total:,} |
| final held-out loss | {heldout} |
| time | {seconds:,.0f} s |
{metrics}
`recipe.yaml` holds every setting, `log.jsonl` every step, `card.json` the hashes of base and data.

```python
from finetune import Assistant, load_recipe

recipe = load_recipe("recipe.yaml")
bot = Assistant(recipe.base, adapters=["."])
```
"""


def render_readme(card: Card) -> str:
    """Markdown with the Hub's metadata; numbers come from the card alone."""
    heldout = card.loss.get("heldout")
    return _TEMPLATE.format(
        base=card.base.model,
        revision=f" at revision `{card.base.revision}`" if card.base.revision else "",
        quantization="4-bit NF4" if card.base.quantization == "nf4" else "16/32 bits",
        name=card.name,
        method=card.method,
        r=card.r,
        alpha=card.alpha,
        train_rows=card.train_rows,
        steps=card.steps,
        trained_tokens=card.trained_tokens,
        trained=card.parameters["trained"],
        total=card.parameters["total"],
        heldout="not measured" if heldout is None else f"{heldout:.4f} nats per token",
        seconds=card.seconds,
        metrics=_metrics(card),
    )


def _metrics(card: Card) -> str:
    if not card.metrics:
        return ""
    lines = [f"| {name} | {m['value']:.4g} ({m['low']:.4g} to {m['high']:.4g}) |" for name, m in card.metrics.items()]
    return "\n| measured (95% interval) | |\n|---|---|\n" + "\n".join(lines) + "\n"
