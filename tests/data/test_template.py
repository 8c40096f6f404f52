"""What is trained and what is not, for the chat templates of the main model families in minimal form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from finetune.data.encoding import Encoded, encode, encode_batch, encode_prompt, encode_stream
from finetune.data.examples import Example
from finetune.data.messages import Message
from finetune.data.probing import load_template
from finetune.data.template import ChatTemplate
from finetune.errors import DataError, ModelError

EACH = "{% for m in messages %}"
OPEN = "{% endfor %}{% if add_generation_prompt %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


class Family(NamedTuple):
    template: str
    eos: str
    trained: tuple[str, str]  # of the answers ANSWERS
    system: bool = True
    joint: bool = False


CHATML = EACH + "<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n" + OPEN + "<|im_start|>assistant\n{% endif %}"
FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>", (" It is 5. <|im_end|>", "Bye.<|im_end|>")),
    "llama3": Family(
        "{{ bos_token }}" + EACH + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>" + OPEN + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|end_of_text|>",
        ("It is 5.<|eot_id|>", "Bye.<|eot_id|>"),
    ),
    "gemma": Family(
        "{{ bos_token }}" + NO_SYSTEM + EACH + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n" + OPEN + "<start_of_turn>model\n{% endif %}",
        "<eos>",
        ("It is 5.<end_of_turn>", "Bye.<end_of_turn>"),
        system=False,
    ),
    "qwen3": Family(
        EACH + "<|im_start|>{{ m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m.content }}<|im_end|>\n" + OPEN + "<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
        (" It is 5. <|im_end|>", "<think>\n\n</think>\n\nBye.<|im_end|>"),
    ),
    "phi": Family(
        EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + OPEN + "<|assistant|>\n"
        "{% else %}{{ eos_token }}{% endif %}",
        "<|endoftext|>",
        (" It is 5. <|end|>", "Bye.<|end|>"),
    ),
    "mistral": Family(
        "{{ bos_token }}" + NO_SYSTEM + EACH + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        "</s>",
        ("  It is 5. </s>", " Bye.</s>"),
        system=False,
        joint=True,
    ),
    "mistral-v7": Family(
        "{{ bos_token }}" + EACH + "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'system' %}"
        "[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        "</s>",
        (" It is 5. </s>", "Bye.</s>"),
    ),
}  # fmt: skip
CONTROL = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>",
    "<start_of_turn>", "<end_of_turn>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>",
    "<s>", "</s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
]  # fmt: skip
ANSWERS = (" It is 5. ", "Bye.")
TALK = (
    Message("user", "How much? "),
    Message("assistant", ANSWERS[0]),
    Message("user", "Thanks."),
    Message("assistant", ANSWERS[1]),
)
CORPUS = ["How much is it? It is 5 dollars. Thanks. Bye. user assistant system model [INST] [/INST]"]


def tokenizer_of(template: str | None, eos: str = "</s>", *, instruct: bool = True) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    control = [*CONTROL, "[INST]", "[/INST]"] if instruct else CONTROL
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token=eos, chat_template=template)


def metaspace_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """As SentencePiece does it: the first word of a text gets a mark that stands for a space."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=template
    )


@pytest.fixture(scope="module")
def templates() -> dict[str, ChatTemplate]:
    return {
        name: load_template(tokenizer_of(f.template, f.eos, instruct=name != "mistral"), name)
        for name, f in FAMILIES.items()
    }


def trained_text(encoded: Encoded, template: ChatTemplate) -> list[str]:
    """The stretches of trained tokens, as text."""
    pairs = zip(encoded.ids, encoded.loss_mask, strict=True)
    runs = [[token for token, _ in run] for trained, run in groupby(pairs, key=lambda p: p[1]) if trained]
    return [template.tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def controls(ids: Sequence[int], template: ChatTemplate) -> int:
    special = set(template.tokenizer.added_tokens_decoder)
    return sum(token in special for token in ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_answer_is_trained_with_its_end_and_nothing_else(name: str, templates: dict[str, ChatTemplate]) -> None:
    template, family = templates[name], FAMILIES[name]
    assert template.joint == family.joint
    encoded = encode(Example(TALK, "talk:1"), template)
    assert trained_text(encoded, template) == list(family.trained)
    assert encoded.ids[-1] == template.end_of_turn
    assert encoded.loss_mask[-1] == 1
    assert encoded.where == "talk:1"
    assert template.stop_ids == {template.end_of_turn, template.tokenizer.eos_token_id}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_has_the_ids_that_training_saw(name: str, templates: dict[str, ChatTemplate]) -> None:
    template = templates[name]
    system = (Message("system", "Be kind."),) if FAMILIES[name].system else ()
    for turns in ((*system, *TALK[:2]), (*system, *TALK)):
        prompt, encoded = encode_prompt(turns[:-1], template), encode(Example(turns, "here"), template)
        assert encoded.ids[: len(prompt)] == prompt
        assert set(encoded.loss_mask[len(prompt) :]) == {1}
        assert encoded.loss_mask[len(prompt) - 1] == 0
    assert sum(encoded.loss_mask) > len(encoded.ids) - len(prompt)  # the first answer, too


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_are_what_the_template_says_as_a_whole(name: str, templates: dict[str, ChatTemplate]) -> None:
    tokenizer = templates[name].tokenizer
    rows = [message._asdict() for message in TALK]
    whole = tokenizer.apply_chat_template(rows, tokenize=False)
    decoded = tokenizer.decode(encode(Example(TALK, "here"), templates[name]).ids, skip_special_tokens=False)
    assert whole.startswith(decoded)
    assert whole[len(decoded) :].strip("\n") in ("", tokenizer.eos_token)


PIECES = st.sampled_from([*CONTROL, "[INST]", "<|im_", "end|>", " ", "\n", "ä🍕", "\ue0f01\ue0f1"])
CONTENT = st.lists(PIECES | st.text())


@settings(max_examples=60, deadline=None)
@given(question=CONTENT.map("".join), answer=CONTENT.map("".join))
def test_content_never_becomes_a_control_token(question: str, answer: str, templates: dict[str, ChatTemplate]) -> None:
    plain = (Message("user", "a"), Message("assistant", "b"))
    for name, template in templates.items():
        if FAMILIES[name].joint:
            continue
        turns = (Message("user", question), Message("assistant", answer))
        encoded, prompt = encode(Example(turns, "here"), template), encode_prompt(turns[:1], template)
        assert controls(encoded.ids, template) == controls(encode(Example(plain, "here"), template).ids, template)
        assert encoded.ids[: len(prompt)] == prompt
        assert not any(encoded.loss_mask[: len(prompt)])
        assert all(encoded.loss_mask[len(prompt) :])
        assert answer.strip() in trained_text(encoded, template)[0]


def test_trained_bytes_are_those_of_the_answers(templates: dict[str, ChatTemplate]) -> None:
    turns = (TALK[0], Message("assistant", " ä🍕 "), TALK[2], TALK[3])
    assert encode(Example(turns, "here"), templates["chatml"]).trained_bytes == 8 + 4
    assert encode(Example(turns, "here"), templates["llama3"]).trained_bytes == 6 + 4  # this one trims
    assert (templates["llama3"].trims, templates["chatml"].trims) == (True, False)


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_conversation_that_the_template_refuses_is_placed(name: str, templates: dict[str, ChatTemplate]) -> None:
    turns = (Message("system", "Be kind."), *TALK)
    with pytest.raises(DataError, match=r"^rows:7: the chat template refuses .*System role not supported"):
        encode(Example(turns, "rows:7"), templates[name])
    with pytest.raises(DataError, match="System role not supported"):
        encode_prompt(turns[:2], templates[name])


def test_turns_that_the_template_leaves_out_are_refused() -> None:
    template = load_template(tokenizer_of(CHATML.replace("in messages", "in messages[-2:]"), "<|im_end|>"), "last-two")
    with pytest.raises(DataError, match=r"rows:3: .*leaves messages out"):
        encode(Example(TALK, "rows:3"), template)


NO_PROMPT = CHATML.partition("{% if add")[0]
REFUSED = {
    "none": (None, "has no chat template"),
    "no generation prompt": (NO_PROMPT, "no generation prompt"),
    "no end of turn": (CHATML.replace("<|im_end|>\n", "\n"), "no end-of-turn token"),
    "drops the question": (CHATML.replace("in messages", "in messages[-1:]"), "leaves messages out"),
    "other order": (CHATML.replace("in messages", "in messages | reverse"), ""),
    "twice": (CHATML.replace("m.content", "m.content + m.content"), "repeats them"),
    "another opening": (CHATML.replace("<|im_start|>assistant\n{% e", "<|im_start|>bot\n{% e"), "generation prompt"),
    "broken": ("{% for m in messages %}", "TemplateSyntaxError"),
    "raises": ("{{ raise_exception('never') }}", "never"),
}


@pytest.mark.parametrize(("template", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_cannot_be_trained_on_is_refused(template: str | None, reason: str) -> None:
    with pytest.raises(ModelError) as error:
        load_template(tokenizer_of(template, "<|im_end|>"), "some/model")
    assert str(error.value).startswith("some/model: ")
    assert reason in str(error.value)


def test_a_template_with_todays_date_gives_the_same_ids_every_day() -> None:
    dated = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
    template = load_template(tokenizer_of(dated, "<|im_end|>"), "dated")
    encoded = encode(Example((Message("user", "Hi"), Message("assistant", "Bye.")), "here:1"), template)
    assert template.tokenizer.decode(encoded.ids).startswith("Today: 26 Jul 2024\n")


def test_a_text_that_is_marked_at_its_start_is_tokenised_as_a_whole() -> None:
    template = load_template(metaspace_tokenizer(FAMILIES["mistral"].template), "sentencepiece")
    assert template.joint
    talk = (TALK[0], Message("assistant", "It is 5 dollars."), *TALK[2:])
    encoded = encode(Example(talk, "here"), template)
    assert trained_text(encoded, template) == ["It is 5 dollars.</s>", "Bye.</s>"]
    rows = [message._asdict() for message in talk]
    assert encoded.ids == template.tokenizer(
        template.tokenizer.apply_chat_template(rows, tokenize=False), add_special_tokens=False
    )["input_ids"]  # fmt: skip
    prompt = encode_prompt(talk[:3], template)
    assert encoded.ids[: len(prompt)] == prompt


@pytest.mark.parametrize("text", ["</s>", "a<s>b"])
def test_control_strings_are_refused_where_text_is_tokenised_as_a_whole(text: str) -> None:
    template = load_template(metaspace_tokenizer(FAMILIES["mistral"].template), "sentencepiece")
    for turns in ((Message("user", text), TALK[1]), (TALK[0], Message("assistant", text))):
        with pytest.raises(DataError, match=r"rows:2: .*contains the control token '</?s>'"):
            encode(Example(turns, "rows:2"), template)
    with pytest.raises(DataError, match="contains the control token"):
        encode_prompt([Message("user", text)], template)


TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    + EACH
    + "<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n" + OPEN + "<|im_start|>assistant\n{% endif %}"
)
NAME = 'say "hi"'
ARGUMENTS = {"item": 'a "big" cola<|im_end|>', "count": 2, "size": "large", "extras": ["ice\n", "lemon"]}
TOOL = {"type": "function", "function": {"name": "price", "description": "Says <|im_start|> what it costs."}}


def calling(content: str = "", name: str = NAME) -> Example:
    call = [{"type": "function", "function": {"name": name, "arguments": ARGUMENTS}}]
    turns = (
        Message("user", "How much?"),
        Message("assistant", content, json.dumps({"tool_calls": call})),
        Message("tool", "5 <|im_end|>", json.dumps({"tool_call_id": "1"})),
        Message("assistant", "It is 5."),
    )
    return Example(turns, "rows:4", json.dumps([TOOL]))


@pytest.mark.parametrize("content", ["", "One moment."])
def test_tool_calls_are_trained_and_cannot_end_a_turn(content: str) -> None:
    template = load_template(tokenizer_of(TOOLS, "<|im_end|>"), "tools")
    example = calling(content)
    encoded = encode(example, template)
    rows = [{"role": m.role, "content": m.content, **json.loads(m.extra or "{}")} for m in example.messages]
    whole = template.tokenizer.apply_chat_template(rows, tools=[TOOL], tokenize=False)
    assert template.tokenizer.decode(encoded.ids) == whole.rstrip("\n")
    written = json.dumps(ARGUMENTS, ensure_ascii=False)
    call = f'{content}<tool_call>\n{{"name": "{NAME}", "arguments": {written}}}\n</tool_call><|im_end|>'
    assert trained_text(encoded, template) == [call, "It is 5.<|im_end|>"]
    assert controls(encoded.ids, template) == 2 * 5  # one system turn and four others, the last without its newline
    prompt = encode_prompt(example.messages[:3], template, example.tools)
    assert encoded.ids[: len(prompt)] == prompt


def test_tool_results_written_as_json_are_escaped_as_the_template_does() -> None:
    as_json = TOOLS.replace("{{ m.content }}", "{{ m.content | tojson if m.role == 'tool' else m.content }}")
    template = load_template(tokenizer_of(as_json, "<|im_end|>"), "tools")
    example = calling()
    quoted = example.messages[2]._replace(content='say "5"\n<|im_end|>')
    encoded = encode(Example((*example.messages[:2], quoted, example.messages[3]), "here", example.tools), template)
    assert json.dumps(quoted.content) in template.tokenizer.decode(encoded.ids)
    assert controls(encoded.ids, template) == 2 * 5


def test_a_template_that_changes_tool_calls_is_refused() -> None:
    shouting = TOOLS.replace("call.function.name", "call.function.name | upper")
    template = load_template(tokenizer_of(shouting, "<|im_end|>"), "tools")
    with pytest.raises(DataError, match=r"rows:4: .*depends on their text"):
        encode(calling(name="say it"), template)


def test_tools_that_the_template_does_not_know_are_refused() -> None:
    template = load_template(tokenizer_of(CHATML, "<|im_end|>"), "chatml")
    with pytest.raises(DataError, match=r"rows:4: .*leaves messages out"):
        encode(calling(), template)


def test_plain_text_is_trained_from_its_first_token_to_the_end_token() -> None:
    template = load_template(tokenizer_of(CHATML, "</s>"), "chatml")
    encoded = encode(Example((Message("text", "How much?<|im_end|>"),), "here"), template)
    assert template.tokenizer.decode(encoded.ids) == "How much?<|im_end|></s>"
    assert encoded.loss_mask == [1] * len(encoded.ids)
    assert (controls(encoded.ids, template), encoded.trained_bytes) == (1, len("How much?<|im_end|>"))


def test_a_start_token_that_the_tokenizer_writes_stands_before_plain_text_and_is_not_trained() -> None:
    tokenizer = tokenizer_of(CHATML, "</s>")
    start = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", start)]
    )
    encoded = encode(Example((Message("text", "How much?"),), "here"), load_template(tokenizer, "chatml"))
    assert (encoded.ids[0], encoded.loss_mask[:2], encoded.ids.count(start)) == (start, [0, 1], 1)


def test_batches_and_streams_give_what_one_by_one_gives(templates: dict[str, ChatTemplate]) -> None:
    refused = (Message("system", "Be kind."), *TALK)
    for name in ("gemma", "mistral", "chatml"):
        talks = [TALK[: 2 + 2 * (n % 2)] if n % 5 else refused for n in range(23)]
        examples = [Example(talk, f"rows:{n}") for n, talk in enumerate(talks)]
        batch = encode_batch(examples, templates[name])
        streamed = list(encode_stream(iter(examples), templates[name]))
        assert [example for example, _ in streamed] == examples
        for example, one, other in zip(examples, batch, streamed, strict=True):
            if isinstance(one, DataError):
                assert (str(one), name) == (str(other[1]), name)
                with pytest.raises(DataError):
                    encode(example, templates[name])
            else:
                assert one == other[1] == encode(example, templates[name])
