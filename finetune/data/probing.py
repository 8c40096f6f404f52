"""Find out about a tokenizer's chat template what encoding needs to know, and refuse one that
cannot be trained on faithfully."""

from __future__ import annotations

from dataclasses import replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune.data.encoding import control_ids, encode, encode_prompt
from finetune.data.examples import Example
from finetune.data.messages import Message
from finetune.data.template import ChatTemplate, render
from finetune.errors import DataError, ModelError

PROBE = (Message("user", "How much is it?"), Message("assistant", "It is 5 dollars."))


def load_template(tokenizer: PreTrainedTokenizerBase, name: str) -> ChatTemplate:
    """Probe a tokenizer's chat template. Raises ModelError if it cannot be trained on faithfully."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "has no chat template, so conversations cannot be put into its form",
            where=name,
            fix="use the model's chat ('Instruct') variant, or put a chat_template.jinja beside its tokenizer",
        )
    try:
        template = _probe(tokenizer)
        _prove_prefix(template)
    except (TemplateError, DataError) as error:
        reason = error.what if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"chat template cannot be trained on: {reason}", where=name) from None
    except ModelError as error:
        raise ModelError(f"chat template cannot be trained on: {error.what}", where=name, fix=error.fix) from None
    return template


def _probe(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    end = _end_of_turn(tokenizer)
    template = ChatTemplate(
        tokenizer,
        _generation_prompt(tokenizer),
        end,
        frozenset({end, *_ids_of(tokenizer.eos_token_id)}),
        " x " not in render(tokenizer, (Message("user", " x "),), generation_prompt=True),
        joint=False,
    )
    return template if _same_as_whole(template) else replace(template, joint=True)


def _generation_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """Find what opens an answer.

    Some templates need no opening, the end of the user's turn says it ([INST] ... [/INST]); some close
    the text where no answer is to come. For both it is all that stands behind the user's words.
    """
    user = render(tokenizer, PROBE[:1], generation_prompt=False)
    opened = render(tokenizer, PROBE[:1], generation_prompt=True)
    if opened.startswith(user) and opened != user:
        return opened[len(user) :]
    whole = render(tokenizer, PROBE, generation_prompt=False)
    question, answer = (message.content for message in PROBE)
    closing = opened[opened.rfind(question) + len(question) :]
    gap = whole[len(opened) : whole.rfind(answer)]
    if closing.strip() and whole.startswith(opened) and (opened != user or not gap.strip()):
        return closing
    raise ModelError(
        "it has no generation prompt (add_generation_prompt changes nothing)",
        fix="the model could not know when to answer; use another chat template",
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Find the control token that closes an assistant turn."""
    rendered = render(tokenizer, PROBE, generation_prompt=False)
    tail = rendered[rendered.rfind(PROBE[1].content) + len(PROBE[1].content) :]
    control = control_ids(tokenizer)
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in control:
            return int(token)
    raise ModelError(
        "it puts no end-of-turn token behind an answer, so the model would not learn to stop",
        fix="use a chat template that ends assistant turns, for example with eos_token",
    )


def _same_as_whole(template: ChatTemplate) -> bool:
    """Whether tokenising piece by piece gives what tokenising the whole text gives."""
    text = render(template.tokenizer, PROBE, generation_prompt=False)
    whole: list[int] = template.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = encode(Example(PROBE, "probe"), template).ids
    return whole[: len(pieces)] == pieces


def _prove_prefix(template: ChatTemplate) -> None:
    encoded = encode(Example(PROBE, "probe"), template)
    prompt = encode_prompt(PROBE[:1], template)
    if encoded.ids[: len(prompt)] != prompt or any(encoded.loss_mask[: len(prompt)]):
        raise ModelError("the prompt's tokens are no prefix of the conversation's")


def _ids_of(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
