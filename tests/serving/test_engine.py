"""The engine: what a request is answered with depends on the request alone, whatever runs beside it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.errors import AdapterError, ModelError
from finetune.model.base import Base, load_base
from finetune.recipe import BaseSection
from finetune.serving import engine as engine_module
from finetune.serving.bank import AdapterBank
from finetune.serving.engine import Engine
from finetune.serving.forward import SERVED
from finetune.serving.generation import generate
from finetune.serving.lanes import PaddedLane
from finetune.serving.limits import ContextTooLong, EngineLimits, EngineStopped, QueueFull
from finetune.serving.requests import Event, Failure, Finish, Piece, Request
from finetune.serving.settings import SamplingSettings
from tests.serving.making import write_adapter

VOICES = (None, "a", "b", "a+0.5*b")
SETTINGS = (
    SamplingSettings(max_new_tokens=20),
    SamplingSettings(max_new_tokens=12, temperature=0.8, top_p=0.9),
    SamplingSettings(max_new_tokens=16, temperature=1.2, top_k=20, min_p=0.05, repetition_penalty=1.2),
    SamplingSettings(max_new_tokens=9, frequency_penalty=0.7, presence_penalty=0.3, stop=("e", "lo")),
)
SHARED = [(11 * n) % 370 + 6 for n in range(40)]  # as a system prompt would be


@pytest.fixture(scope="module")
def base(model_folder: Path) -> Base:
    return load_base(BaseSection(model=str(model_folder), quantization="none", dtype="float32"), torch.device("cpu"))


@pytest.fixture(scope="module")
def bank(base: Base, tmp_path_factory: pytest.TempPathFactory) -> AdapterBank:
    store = tmp_path_factory.mktemp("store")
    bank = AdapterBank(base, store=store)
    for seed, name in enumerate(("a", "b", "huge"), 1):
        write_adapter(store / name, base, seed, size=1e30 if name == "huge" else 0.1)
        bank.load(name)
    return bank


def make_requests(count: int, seed: int = 0, settings: Sequence[SamplingSettings] = SETTINGS) -> list[Request]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        prompt = [rng.randrange(6, 380) for _ in range(rng.choice((1, 3, 9, 30, 70)))]
        prompt = SHARED + prompt if rng.random() < 0.3 else prompt
        found.append(Request(tuple(prompt), rng.choice(VOICES), rng.choice(settings), seed=number))
    return found


_answered: dict[Request, Finish] = {}


def alone(base: Base, bank: AdapterBank, request: Request) -> Finish:
    """The same by `generate`, one prompt at a time."""
    if request not in _answered:
        _answered[request] = _ask(base, bank, request)
    return _answered[request]


def _ask(base: Base, bank: AdapterBank, request: Request) -> Finish:
    with bank.lease(request.voice) as lease, bank.routed([lease.slot]):
        (answer,) = generate(
            base.model,
            base.tokenizer,
            [request.prompt],
            stop_ids=base.template.stop_ids,
            settings=request.settings,
            seed=request.seed,
        )
    reason = "stop" if answer.stopped else "length"
    return Finish(reason, answer.text, len(request.prompt), 0, answer.tokens)  # type: ignore[arg-type]


def uncached(finish: Finish) -> Finish:
    return replace(finish, cached_tokens=0)


@pytest.fixture
def running(base: Base, bank: AdapterBank) -> Iterator[Engine]:
    engine = Engine(base, bank, EngineLimits(max_rows=4))
    engine.start()
    yield engine
    engine.stop(0)


LONG = SamplingSettings(max_new_tokens=200, stop=())


def slowly(request: Request) -> Request:
    """One that goes on for a while."""
    return replace(request, settings=LONG)


@pytest.mark.parametrize(
    ("limits", "part"),
    [
        (EngineLimits(), 512),
        (EngineLimits(max_rows=3, prefix_bytes=0), 7),
        (EngineLimits(max_rows=5, cache_tokens=300), 64),
        (EngineLimits(max_rows=1), 1),
    ],
    ids=["usual", "short parts", "rows sent back to wait", "one at a time"],
)
def test_an_answer_is_the_same_alone_in_a_batch_and_through_the_engine(
    base: Base, bank: AdapterBank, limits: EngineLimits, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine_module.PART, "cpu", part)
    requests = make_requests(14)
    expected = [alone(base, bank, request) for request in requests]
    assert len({finish.text for finish in expected}) > 10
    assert [uncached(finish) for finish in Engine(base, bank, limits).run(requests)] == expected


def test_models_without_a_row_cache_are_served_too(
    base: Base, bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = make_requests(10)
    expected = [alone(base, bank, request) for request in requests]
    monkeypatch.setitem(base.model.__dict__, SERVED, False)
    engine = Engine(base, bank, EngineLimits(max_rows=4, cache_tokens=400))
    tickets = [engine.submit(request) for request in requests]
    while any(ticket.end is None for ticket in tickets):
        engine._turn()
        assert all(isinstance(lane, PaddedLane) for lane in engine._scheduler.lanes)
    assert [ticket.end for ticket in tickets] == expected


def test_adapters_that_run_by_themselves_take_turns_with_the_others(base: Base, bank: AdapterBank) -> None:
    write_adapter(bank.store / "dora", base, 5, size=0.1, use_dora=True)
    bank.load("dora")
    rng = random.Random(0)
    requests = [replace(request, voice=rng.choice(("dora", "a", None))) for request in make_requests(9, seed=9)]
    expected = [_ask(base, bank, request) for request in requests]
    engine = Engine(base, bank)
    tickets, most = [engine.submit(request) for request in requests], 0
    while any(ticket.end is None for ticket in tickets):
        engine._turn()
        most = max(most, len(engine._scheduler.lanes))
    assert most == 2
    for ticket, finish in zip(tickets, expected, strict=True):
        assert isinstance(ticket.end, Finish)
        assert uncached(ticket.end) == finish
    bank.unload("dora")


@pytest.mark.parametrize("trials", [2, pytest.param(300, marks=pytest.mark.slow)])
def test_requests_that_come_and_go_at_any_step_do_not_disturb_the_others(
    base: Base, bank: AdapterBank, trials: int
) -> None:
    requests = make_requests(12, seed=1)
    expected = [alone(base, bank, request) for request in requests]
    for trial in range(trials):
        rng = random.Random(trial)
        limits = EngineLimits(max_rows=rng.choice((2, 4, 12)), cache_tokens=rng.choice((200, 500, 4000)))
        engine = Engine(base, bank, limits)
        left, tickets = rng.sample(range(len(requests)), len(requests)), {}
        cancelled = set(rng.sample(left, 3))
        while left or any(ticket.end is None for ticket in tickets.values()):
            while left and rng.random() < 0.3:
                number = left.pop()
                tickets[number] = engine.submit(requests[number])
            for number in cancelled & set(tickets):
                if rng.random() < 0.1:
                    tickets[number].cancel()
            engine._turn()
        for number, ticket in tickets.items():
            end = ticket.end
            assert isinstance(end, Finish)
            if end.reason == "cancelled":
                assert number in cancelled
                assert end.completion_tokens <= expected[number].completion_tokens
            else:
                assert uncached(end) == expected[number], (trial, number)
            pieces = [event for event in ticket.events() if isinstance(event, Piece)]
            assert "".join(piece.text for piece in pieces) == end.text
        assert engine.stats.running == engine.stats.waiting == 0


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_32_threads_get_what_one_would(base: Base, bank: AdapterBank, count: int) -> None:
    requests = make_requests(count, seed=2, settings=SETTINGS[:1])
    expected = {request: alone(base, bank, request) for request in requests}
    engine = Engine(base, bank, EngineLimits(max_waiting=count))
    engine.start()
    wrong: list[object] = []

    def client(number: int) -> None:
        for request in requests[number::32]:
            end = list(engine.submit(request).events())[-1]
            if not isinstance(end, Finish) or uncached(end) != expected[request]:
                wrong.append((request, end))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.stop(60)
    assert wrong == []


def test_log_probabilities_come_with_the_text(base: Base, bank: AdapterBank) -> None:
    request = replace(make_requests(1)[0], settings=SETTINGS[0], logprobs=3)
    engine = Engine(base, bank)
    ticket, beside = engine.submit(request), engine.submit(replace(request, logprobs=None))
    while ticket.end is None or beside.end is None:
        engine._turn()
    tokens = [token for event in ticket.events() if isinstance(event, Piece) for token in event.tokens]
    end = ticket.end
    assert isinstance(end, Finish)
    assert len(tokens) == end.completion_tokens - (end.reason == "stop")
    assert all(len(token.top) == 3 and token.id == token.top[0].id for token in tokens)  # greedy
    assert base.tokenizer.decode([token.id for token in tokens], skip_special_tokens=True) == end.text
    with bank.lease(request.voice) as lease, bank.routed([lease.slot]), torch.no_grad():
        ids = torch.tensor([[*request.prompt, *(token.id for token in tokens)]])
        scores = torch.log_softmax(base.model(input_ids=ids).logits[0], dim=-1)[len(request.prompt) - 1 :]
    for token, row in zip(tokens, scores, strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
    assert not any(event.tokens for event in beside.events() if isinstance(event, Piece))


def test_tokens_behind_a_stop_string_are_not_reported(base: Base, bank: AdapterBank) -> None:
    plain = Request(tuple(SHARED), None, SamplingSettings(max_new_tokens=30))
    (whole,) = Engine(base, bank).run([plain])
    stop = whole.text[12:15]
    request = replace(plain, settings=SamplingSettings(max_new_tokens=30, stop=(stop,)), logprobs=0)
    engine = Engine(base, bank)
    ticket = engine.submit(request)
    while ticket.end is None:
        engine._turn()
    tokens = [token for event in ticket.events() if isinstance(event, Piece) for token in event.tokens]
    end = ticket.end
    assert isinstance(end, Finish)
    assert (end.reason, end.text) == ("stop", whole.text[: whole.text.index(stop)])
    shown = "".join(token.text for token in tokens)
    assert shown.startswith(end.text)
    assert "".join(token.text for token in tokens[:-1]) != shown or not tokens
    assert len(shown) < len(whole.text)


def test_an_adapter_that_gives_nan_fails_alone(base: Base, bank: AdapterBank) -> None:
    requests = make_requests(6, seed=3)
    expected = [alone(base, bank, request) for request in requests]
    engine = Engine(base, bank, EngineLimits(max_rows=4))
    tickets = [engine.submit(request) for request in requests[:3]]
    broken = [engine.submit(replace(request, voice="huge")) for request in requests[:2]]
    tickets += [engine.submit(request) for request in requests[3:]]  # they take over the lines of the broken ones
    while any(ticket.end is None for ticket in (*tickets, *broken)):
        engine._turn()
    for ticket in broken:
        assert isinstance(ticket.end, Failure)
        assert isinstance(ticket.end.error, ModelError)
        assert "adapter 'huge' gives NaN or infinite logits at token 1" in str(ticket.end.error)
    for ticket, finish in zip(tickets, expected, strict=True):
        assert isinstance(ticket.end, Finish)
        assert uncached(ticket.end) == finish
    assert engine.stats.failed == 2


def test_a_step_that_fails_ends_what_runs_and_the_engine_goes_on(
    base: Base, bank: AdapterBank, running: Engine
) -> None:
    requests = make_requests(3, seed=4)
    expected = alone(base, bank, requests[2])

    def fail(*_: object) -> None:
        raise RuntimeError("the cable fell out")

    with base.model.get_submodule("model.layers.1").register_forward_pre_hook(fail):
        ends = [list(running.submit(request).events())[-1] for request in requests[:2]]
    for end in ends:
        assert isinstance(end, Failure)
        assert "a step of the engine failed: RuntimeError: the cable fell out" in str(end.error)
    end = list(running.submit(requests[2]).events())[-1]
    assert isinstance(end, Finish)
    assert uncached(end) == expected


def test_a_cancelled_request_ends_where_it_is_and_frees_its_place(base: Base, running: Engine) -> None:
    ticket = running.submit(slowly(make_requests(1)[0]))
    events = ticket.events()
    first = next(events)
    assert isinstance(first, Piece)
    ticket.cancel()
    end = list(events)[-1]
    assert isinstance(end, Finish)
    assert end.reason == "cancelled"
    assert end.text.startswith(first.text)
    assert end.completion_tokens < 200
    ticket.cancel()  # once more does nothing
    assert list(ticket.events())[-1] is end
    assert running.stats.running == 0
    assert running.stats.cancelled == 1


def test_the_queue_has_an_end(base: Base, bank: AdapterBank) -> None:
    engine = Engine(base, bank, EngineLimits(max_rows=2, max_waiting=3))
    requests = make_requests(3)
    tickets = [engine.submit(request) for request in requests]
    begun = time.perf_counter()
    with pytest.raises(QueueFull, match="3 requests are waiting already") as caught:
        engine.submit(requests[0])
    assert time.perf_counter() - begun < 1
    assert caught.value.retry_after >= 1
    engine._turn()  # two of them begin
    tickets += [engine.submit(request) for request in requests[:2]]
    with pytest.raises(QueueFull):
        engine.submit(requests[0])
    while any(ticket.end is None for ticket in tickets):
        engine._turn()
    assert engine.stats.finished == 5


def test_what_cannot_be_answered_is_refused_at_once(base: Base, bank: AdapterBank) -> None:
    engine = Engine(base, bank)
    with pytest.raises(ContextTooLong, match="the prompt has 256 tokens, the model's context has 256"):
        engine.submit(Request((7,) * 256))
    with pytest.raises(ModelError, match="is empty"):
        engine.submit(Request(()))
    with pytest.raises(ModelError, match="outside the model's"):
        engine.run([Request((7,)), Request((384,))])
    with pytest.raises(AdapterError, match="'nobody' is not loaded"):
        engine.submit(Request((7,), "nobody"))
    with pytest.raises(AdapterError, match="no adapter 'a': the base alone is loaded"):
        Engine(base, None).submit(Request((7,), "a"))
    (end,) = Engine(base, None).run([Request((7,) * 250, settings=LONG)])
    assert (end.reason, end.completion_tokens) == ("length", 6)
    assert engine.stats.waiting == 0


def test_listeners_hear_everything_and_a_broken_one_ends_its_request_alone(running: Engine) -> None:
    requests = make_requests(2, seed=5, settings=SETTINGS[:1])
    heard: list[Event] = []
    done = threading.Event()

    def late(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Finish):
            done.set()

    def broken(event: Event) -> None:
        raise RuntimeError("the loop is closed")

    ticket, other = running.submit(requests[0]), running.submit(slowly(requests[1]))
    other.listen(broken)
    events = list(ticket.events())
    ticket.listen(late)
    assert done.wait(10)
    assert heard == events
    end = list(other.events())[-1]
    assert isinstance(end, Finish)
    assert end.reason == "cancelled"


def test_stop_drains_and_then_cancels(base: Base, bank: AdapterBank) -> None:
    before = set(threading.enumerate())  # a server of other tests may still be up
    engine = Engine(base, bank, EngineLimits(max_rows=2))
    engine.start()
    tickets = [engine.submit(request) for request in make_requests(5, seed=6)]
    assert engine.stop(60)
    assert all(isinstance(ticket.end, Finish) and ticket.end.reason != "cancelled" for ticket in tickets)
    with pytest.raises(EngineStopped):
        engine.submit(make_requests(1)[0])
    engine.start()
    tickets = [engine.submit(slowly(request)) for request in make_requests(6, seed=7)]
    next(tickets[0].events())
    assert not engine.stop(0)
    assert {ticket.end.reason for ticket in tickets if isinstance(ticket.end, Finish)} == {"cancelled"}
    assert not [t for t in threading.enumerate() if t.name == "finetune-engine" and t not in before]


def test_an_idle_engine_does_nothing(running: Engine) -> None:
    list(running.submit(make_requests(1)[0]).events())
    before, busy = running.stats.steps, time.thread_time()
    cpu = time.process_time()
    time.sleep(0.2)
    assert running.stats.steps == before
    assert time.process_time() - cpu < 0.1
    assert time.thread_time() - busy < 0.1


def test_run_works_beside_the_thread(base: Base, bank: AdapterBank, running: Engine) -> None:
    requests = make_requests(6, seed=8)
    assert [uncached(end) for end in running.run(requests)] == [alone(base, bank, request) for request in requests]


def test_what_was_leased_is_given_back(base: Base, tmp_path: Path) -> None:
    bank = AdapterBank(base, store=tmp_path)
    write_adapter(tmp_path / "gone", base, 9, size=0.1)
    bank.load("gone")
    engine = Engine(base, bank)
    ticket = engine.submit(Request((7, 8, 9), "gone"))
    expected = _ask(base, bank, ticket.request)
    bank.unload("gone")
    with pytest.raises(AdapterError):
        engine.submit(ticket.request)
    while ticket.end is None:
        engine._turn()
    assert isinstance(ticket.end, Finish)
    assert uncached(ticket.end) == expected  # it ended with what it began with
    assert bank.memory()["adapters"] == 0
