"""A Modelfile's template writes what the chat template writes."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from finetune.data.messages import Message
from finetune.data.probing import load_template
from finetune.data.template import ChatTemplate, render
from finetune.errors import ModelError
from finetune.export.modelfile import render_modelfile

CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
BRACES = CHATML.replace("'<|'", "'{' ~ '{ ' + '<|'").replace("{{ '<|assistant|>", "{{ '{' ~ '{ ' + '<|assistant|>")
GREETING = CHATML.replace("{{ '<|' + m", "{% if loop.first %}Hello. {% endif %}{{ '<|' + m")
TALKS = (("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"))


def template(tokenizer: PreTrainedTokenizerFast, text: str) -> ChatTemplate:
    made = copy.deepcopy(tokenizer)
    made.chat_template = text
    return load_template(made, "test")


def run(modelfile: str, talk: Sequence[Message]) -> str:
    """The little of Go's text/template that a Modelfile here uses."""
    source = re.search(r'TEMPLATE """(.*?)"""', modelfile, re.DOTALL)
    assert source is not None
    quoted = source[1].replace('{{ "{{" }}', "\0")
    start, body, end = re.split(r"\{\{ range \.Messages \}\}|(?<=\{\{ end \}\})\{\{ end \}\}", quoted)
    turns = dict(re.findall(r'\{\{ if eq \.Role "(\w+)" \}\}(.*?)\{\{ end \}\}', body, re.DOTALL))
    said = "".join(turns[m.role].replace("{{ .Content }}", m.content) for m in talk)
    return f"{start}{said}{end}".replace("\0", "{{")


@pytest.mark.parametrize("kind", ["of the tests", "chatml", "braces"])
def test_the_template_writes_the_same_text(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    text = {"chatml": CHATML, "braces": BRACES}.get(kind, str(tokenizer.chat_template))
    made = template(tokenizer, text)
    modelfile = render_modelfile("x.gguf", None, made, None, adds_bos=False)
    for roles in TALKS:
        talk = [Message(role, f"text {n}") for n, role in enumerate(roles)]
        assert run(modelfile, talk) == render(made.tokenizer, talk, generation_prompt=True)


def test_the_start_token_is_written_once(tokenizer: PreTrainedTokenizerFast) -> None:
    made = template(tokenizer, str(tokenizer.chat_template))
    talk = [Message("user", "hello")]
    alone = run(render_modelfile("x.gguf", None, made, None, adds_bos=False), talk)
    added = run(render_modelfile("x.gguf", None, made, None, adds_bos=True), talk)
    assert alone == "<|begin|>" + added
    assert not added.startswith("<|begin|>")


def test_a_template_that_does_more_gets_none(tokenizer: PreTrainedTokenizerFast) -> None:
    modelfile = render_modelfile("x.gguf", "a.gguf", template(tokenizer, GREETING), "Be short.", adds_bos=False)
    assert 'TEMPLATE """' not in modelfile
    assert modelfile.splitlines()[:2] == ["FROM ./x.gguf", "ADAPTER ./a.gguf"]
    assert 'SYSTEM """Be short."""\nPARAMETER stop "<|end|>"\n' in modelfile


def test_a_system_prompt_that_a_modelfile_cannot_hold_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="cannot express"):
        render_modelfile("x.gguf", None, template(tokenizer, CHATML), 'say """', adds_bos=False)
