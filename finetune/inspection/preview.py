"""What the model will see of an example, token by token."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from finetune.data.encoding import Encoded, control_ids, encode
from finetune.data.examples import Example, read_examples, training_sources
from finetune.errors import DataError
from finetune.model.tokenizer import load_chat_template
from finetune.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_CHARACTER = 4  # tokens that one character may need, one for each of its bytes
CONTINUED = "\u22ef"  # stands for a token that ends a character begun before


class Token(NamedTuple):
    id: int
    text: str
    trained: bool
    control: bool


class Preview(NamedTuple):
    where: str
    tokens: tuple[Token, ...]

    @property
    def trained(self) -> int:
        return sum(token.trained for token in self.tokens)


def preview(recipe: Recipe, count: int) -> list[Preview]:
    """Return the first training examples of a recipe as tokens. Raises DataError, ModelError."""
    template = load_chat_template(recipe.base)
    special = control_ids(template.tokenizer)
    shown = []
    for made in islice(read_examples(training_sources(recipe.data)[0]), count):
        if not isinstance(made, Example):
            raise DataError(made.problem, where=made.where, fix="finetune check lists every such row")
        shown.append(_preview(encode(made, template), template.tokenizer, special))
    if not shown:
        raise DataError("holds no rows", where=recipe.data.path)
    return shown


def _preview(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, special: set[int]) -> Preview:
    texts = _texts(encoded.ids, tokenizer)
    rows = zip(encoded.ids, texts, encoded.loss_mask, strict=True)
    return Preview(encoded.where, tuple(Token(i, text, bool(trained), i in special) for i, text, trained in rows))


def _texts(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token; a character of several tokens stands at its first one."""
    texts: list[str] = []
    while len(texts) < len(ids):
        at = len(texts)
        for size in range(1, LONGEST_CHARACTER + 1):
            text = str(tokenizer.decode(ids[at : at + size], clean_up_tokenization_spaces=False))
            if "\ufffd" not in text:
                texts += [text, *[CONTINUED] * (size - 1)][: len(ids) - at]
                break
        else:
            texts.append(str(tokenizer.convert_ids_to_tokens(ids[at])))
    return texts
