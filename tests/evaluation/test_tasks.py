"""Tasks of lm-eval: known scores where the answer is known beforehand, refusals in words, and never the network."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from finetune.data.encoding import Encoded
from finetune.errors import DataError, FinetuneError, RecipeError
from finetune.evaluation.perplexity import score_windowed
from finetune.evaluation.tasks import TaskScore, _catalogue, check_tasks, run_tasks
from finetune.model.base import Base, assert_trainable_through, load_base
from finetune.model.lora import attach
from finetune.recipe import AdapterSection, BaseSection
from finetune.training.scoring import RowScore
from tests.conftest import TEXT

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra: pip install -e '.[tasks]'")

CHOICES = ["one cola", "two pizzas", "extra cheese", "no onions"]
QUESTIONS = [f"{word}?" for word in dict.fromkeys(TEXT.replace(".", "").split())][:16]
ANSWERS = [(n * n + n // 3) % len(CHOICES) for n in range(len(QUESTIONS))]
TEXTS = [
    TEXT[start:] * times for start, times in ((0, 1), (50, 5), (7, 2), (90, 1), (3, 9))
]  # two longer than the model

CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ANSWER = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["?"], max_gen_toks: 24}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list: [{name: stripped, filter: [{function: remove_whitespace}, {function: take_first}]}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""
SAMPLED = ANSWER.replace("max_gen_toks: 24", "max_gen_toks: 24, do_sample: true, temperature: 3.0") + (
    "num_fewshot: 2\nfewshot_split: test\n"
)
WriteTask = Callable[..., str]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is one."""
    monkeypatch.setattr("finetune.evaluation.harness.reachable", lambda: False)


@pytest.fixture
def write_task(tmp_path: Path) -> WriteTask:
    """Write a task file over a local file, whose data set is cached beside it, and return its path."""

    def write(name: str, body: str, rows: list[dict[str, object]] | None = None) -> str:
        questions = zip(QUESTIONS, ANSWERS, strict=True)
        rows = rows or [{"question": question, "choices": CHOICES, "answer": answer} for question, answer in questions]
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        where = f"{{data_files: {{test: {data}}}, cache_dir: {tmp_path / 'cache'}}}"
        head = (
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {where}\ntest_split: test\nmetadata: {{version: 2.1}}"
        )
        (tmp_path / f"{name}.yaml").write_text(head + body)
        return str(tmp_path / f"{name}.yaml")

    return write


@pytest.fixture(scope="module")
def base(model_folder: Path) -> Base:
    return load_base(BaseSection(model=str(model_folder), dtype="float32"), torch.device("cpu"))


@pytest.fixture(scope="module")
def model(base: Base, tokenizer: PreTrainedTokenizerFast) -> Iterator[PeftModel]:
    """The 4-bit base with an adapter that has learned the answers by heart, to a probability of 99 %."""
    adapted = attach(base, AdapterSection(r=8, alpha=16.0), seed=0)
    rows, prompts = [], []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        prompts.append(len(tokenizer(question)["input_ids"]))
        rows.append([*tokenizer(f"{question} {CHOICES[answer]}")["input_ids"], tokenizer.eos_token_id])
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor(
        [[-100] * skip + row[skip:] + [-100] * (longest - len(row)) for row, skip in zip(rows, prompts, strict=True)]
    )
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=2e-2)
    loss = torch.tensor(math.inf)
    while loss.item() > 0.01:
        loss = base.model(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.requires_grad_(False)
    yield adapted


Models = Mapping[str | None, Callable[[], AbstractContextManager[object]]]


@pytest.fixture(scope="module")
def models(model: PeftModel) -> Models:
    return {None: model.disable_adapter, "learned": nullcontext}


def test_an_adapter_that_knows_the_answers_scores_one_and_the_base_what_single_forward_passes_say(
    base: Base, models: Models, model: PeftModel, write_task: WriteTask, capfd: pytest.CaptureFixture[str]
) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    files = [write_task("choice", CHOICE), write_task("answer", ANSWER)]
    check_tasks(files)
    scores = run_tasks(base, models, files, seed=1, budget=300)
    choice, answer = scores["learned"]
    with model.disable_adapter():
        right = [by_hand(base, q) == a for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    share = sum(right) / len(right)
    assert share < 0.5
    assert choice.model_dump(exclude={"stderr_base", "difference"}) == {
        "task": "choice", "metric": "acc", "base": share, "adapter": 1.0, "stderr_adapter": 0.0, "samples": 16,
        "shots": 0, "truncated": 0, "version": "2.1", "higher_is_better": True,
    }  # fmt: skip
    assert choice.stderr_base == pytest.approx(math.sqrt(share * (1 - share) / 15))
    assert choice.difference is not None
    assert 0 < choice.difference.low < choice.difference.value == 1 - share < choice.difference.high <= 1
    assert (answer.metric, answer.base, answer.adapter) == ("exact_match,stripped", 0.0, 1.0)
    assert TaskScore.model_validate_json(choice.model_dump_json()) == choice
    assert_trainable_through(base.model)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert capfd.readouterr() == ("", "")


@torch.no_grad()
def by_hand(base: Base, question: str) -> int:
    """The likeliest choice, each in a forward pass of its own."""
    likelihoods = []
    start = len(base.tokenizer(question)["input_ids"])
    for choice in CHOICES:
        ids = torch.tensor([base.tokenizer(f"{question} {choice}")["input_ids"]])
        logs = base.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        likelihoods.append(sum(logs[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1])))
    return likelihoods.index(max(likelihoods))


def test_perplexity_tasks_of_lm_eval_agree_with_our_own_perplexity(
    base: Base, models: Models, model: PeftModel, write_task: WriteTask
) -> None:
    file = write_task("rolling", ROLLING, [{"text": text} for text in TEXTS])
    rows = run_tasks(base, models, [file], seed=1, budget=1000)["learned"]
    found = {row.metric: row for row in rows}
    words = sum(len(re.split(r"\s+", text)) for text in TEXTS)  # as lm-eval counts
    size = sum(len(text.encode()) for text in TEXTS)
    with model.disable_adapter():
        before = total(base)
    after = total(base)
    assert found["word_perplexity"].base == pytest.approx(math.exp(before / words), rel=1e-5)
    assert found["byte_perplexity"].base == pytest.approx(math.exp(before / size), rel=1e-5)
    assert found["bits_per_byte"].base == pytest.approx(before / size / math.log(2), rel=1e-5)
    assert found["bits_per_byte"].adapter == pytest.approx(after / size / math.log(2), rel=1e-5)
    assert before != after
    assert all(row.difference is None and row.higher_is_better is False for row in rows)


def total(base: Base) -> float:
    """Sum of NLL over windows as lm-eval cuts them: the model's length, with one token of context."""
    rows = []
    for text in TEXTS:
        ids = base.tokenizer(text)["input_ids"]
        rows.append(Encoded([base.tokenizer.bos_token_id, *ids], [0] + [1] * len(ids), "", 0))
    assert max(len(row.ids) for row in rows) > 257 > min(len(row.ids) for row in rows)
    scores: list[RowScore] = score_windowed(base.model, rows, 1000, 257, 256, isolate=base.packs)
    return math.fsum(score.nll for score in scores)


def test_equal_seeds_give_equal_scores_and_the_budget_moves_nothing(
    base: Base, models: Models, write_task: WriteTask
) -> None:
    sampled, choice = write_task("sampled", SAMPLED), write_task("choice", CHOICE)
    first, again = (run_tasks(base, models, [sampled], seed=3, budget=200, limit=5) for _ in range(2))
    assert first == again
    assert [(row.samples, row.shots) for row in first["learned"]] == [(5, 2)]
    narrow, wide = (run_tasks(base, models, [choice], seed=3, budget=budget) for budget in (1, 100_000))
    assert narrow == wide


def test_several_adapters_and_a_group_of_own_tasks(
    base: Base, models: Models, write_task: WriteTask, tmp_path: Path
) -> None:
    write_task("easy", CHOICE)
    write_task("hard", CHOICE, [{"question": "Hello", "choices": CHOICES, "answer": n} for n in range(4)])
    metric = "{metric: acc, aggregation: mean, weight_by_size: true}"
    (tmp_path / "all.yaml").write_text(f"group: all_of_them\ntask: [easy, hard]\naggregate_metric_list: [{metric}]\n")
    scores = run_tasks(base, {**models, "other": models[None]}, [str(tmp_path / "all.yaml")], seed=0, budget=500)
    learned = {row.task: row for row in scores["learned"]}
    assert list(learned) == ["all_of_them", "easy", "hard"]
    assert learned["hard"].adapter == 0.25  # one answer to a question asked four times
    assert learned["all_of_them"].samples == 20
    assert learned["all_of_them"].adapter == (16 + 1) / 20
    difference = learned["all_of_them"].difference
    assert difference is not None
    assert difference.value == pytest.approx(learned["all_of_them"].adapter - learned["all_of_them"].base)
    for row in scores["other"]:
        assert row.base == row.adapter
        assert row.difference is not None
        assert (row.difference.low, row.difference.high) == (0, 0)


def test_prompts_that_do_not_fit_the_model_are_counted(base: Base, models: Models, write_task: WriteTask) -> None:
    long = [{"question": TEXT * times, "choices": CHOICES, "answer": 0} for times in (1, 3, 9)]
    files = [write_task("choice", CHOICE, long), write_task("answer", ANSWER, long)]
    choice, answer = run_tasks(base, models, files, seed=0, budget=600)["learned"]
    assert (choice.truncated, answer.truncated) == (8, 2)  # of four choices each, and of one prompt


def refusal(base: Base, models: Models, name: str) -> FinetuneError:
    with pytest.raises(FinetuneError) as caught:
        run_tasks(base, models, [name], seed=0, budget=500)
    assert caught.value.exit_code == 2
    return caught.value


def test_data_that_cannot_be_had_is_a_data_error_that_names_the_task(
    base: Base, models: Models, write_task: WriteTask, tmp_path: Path
) -> None:
    error = refusal(base, models, "arc_easy")
    assert isinstance(error, DataError)
    assert "task 'arc_easy' cannot be loaded: its data set is not in the local cache" in str(error)
    file = Path(write_task("gone", CHOICE))
    (tmp_path / "gone.jsonl").unlink()
    error = refusal(base, models, str(file))
    assert isinstance(error, DataError)
    assert "task 'gone' cannot be loaded: FileNotFoundError" in str(error)
    assert "gone.jsonl" in str(error)


def test_what_a_tasks_own_code_raises_is_told(
    base: Base, models: Models, write_task: WriteTask, tmp_path: Path
) -> None:
    (tmp_path / "own_scoring.py").write_text("def grade(doc, results):\n    raise KeyError('no such column')\n")
    file = write_task("broken", CHOICE + "process_results: !function own_scoring.grade\n")
    assert "task 'broken' cannot be scored: KeyError: 'no such column'" in str(refusal(base, models, file))
    (tmp_path / "own_scoring.py").write_text("def grade(doc, results):\n    return {'acc': float('nan')}\n")
    assert "task 'broken': acc is nan for the base and nan for the adapter" in str(refusal(base, models, file))
    unsafe = write_task("unsafe", CHOICE + "unsafe_code: true\n")
    assert "runs code that the model writes" in str(refusal(base, models, unsafe))


def test_a_task_that_two_names_hold_is_refused(
    base: Base, models: Models, write_task: WriteTask, tmp_path: Path
) -> None:
    choice = write_task("choice", CHOICE)
    (tmp_path / "both.yaml").write_text("group: both\ntask: [choice]\n")
    with pytest.raises(RecipeError, match="'choice' is part of both 'choice' and 'both'; drop one of them"):
        run_tasks(base, models, [choice, str(tmp_path / "both.yaml")], seed=0, budget=500)


def test_every_mistake_in_the_names_is_told_at_once(write_task: WriteTask, tmp_path: Path) -> None:
    choice = write_task("choice", CHOICE)
    (tmp_path / "broken.yaml").write_text("task: [unclosed\n")
    (tmp_path / "recipe.yaml").write_text("base: tiny\n")
    check_tasks(["arc_easy", "mmlu", "ai2_arc", choice])  # a task, a group, a tag and a file
    names = [
        "arc_eazy",
        "zzzzqqqq",
        choice,
        choice,
        *(str(tmp_path / f"{name}.yaml") for name in ("broken", "recipe", "none")),
    ]
    with pytest.raises(RecipeError) as caught:
        check_tasks(names)
    mistakes = str(caught.value).split("\n")
    assert mistakes[0] == "eval.tasks: lm-eval has no task 'arc_eazy'; did you mean 'arc_easy'?"
    assert mistakes[1].startswith("eval.tasks: lm-eval has no task 'zzzzqqqq'; `lm-eval ls tasks`")
    assert mistakes[2] == "eval.tasks: 'choice' is named twice"
    assert mistakes[3].startswith(f"eval.tasks: {tmp_path}/broken.yaml is no task file: while parsing")
    assert mistakes[4].startswith(f"eval.tasks: {tmp_path}/recipe.yaml is no task file: it has neither `task: NAME`")
    assert mistakes[5].startswith(f"eval.tasks: no such file: {tmp_path}/none.yaml")
    assert len(mistakes) == 6


@pytest.mark.slow
def test_the_quick_list_of_names_has_all_that_lm_eval_indexes() -> None:
    from lm_eval.tasks import TaskManager

    manager, quick = TaskManager(), _catalogue()
    assert set(manager.all_tasks) <= set(quick)
    assert len(quick) <= len(manager.all_tasks) + 10
    for name in manager.all_subtasks:
        assert manager.task_index[name].yaml_path in quick[name]


def test_without_the_extra_a_task_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"] or ["lm_eval.evaluator"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "finetune.evaluation.harness", raising=False)
    monkeypatch.delattr("finetune.evaluation.harness", raising=False)
    with pytest.raises(RecipeError, match=r"needs lm-eval: 'lm_eval' is missing; pip install 'finetune\[tasks\]'"):
        check_tasks(["arc_easy"])


def test_the_module_is_imported_without_torch_and_without_lm_eval() -> None:
    heavy = {"torch", "lm_eval", "datasets", "transformers"}
    code = f"import finetune.evaluation.tasks, sys; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
