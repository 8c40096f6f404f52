"""Events of a run -> a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from finetune.training.telemetry import Event, HeldoutEvent, NoticeEvent, StepEvent

PLAIN_LINES = 20  # progress lines of a whole run where the output is no terminal


class RunDisplay:
    """Shows training events; `with RunDisplay(console) as show: train(recipe, emit=show)`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._heldout: dict[str, str] = {}  # by run, as are the bars
        self._tasks: dict[str, TaskID] = {}
        self._bar = Progress(
            TextColumn("{task.description}step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> RunDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):
            self.console.print(event.text, highlight=False, markup=False, soft_wrap=True)
        elif isinstance(event, HeldoutEvent):
            self._heldout[event.run] = f" · held-out {event.heldout_loss:.3f}"
            line = f"{_named(event)}step {event.step}: held-out loss {event.heldout_loss:.4f}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif self.console.is_terminal:
            self._show_bar(event)
        elif event.step % max(1, event.steps // PLAIN_LINES) == 0 or event.step in (1, event.steps):
            self.console.print(plain_line(event), highlight=False, markup=False, soft_wrap=True)

    def _show_bar(self, event: StepEvent) -> None:
        facts = facts_of(event) + self._heldout.get(event.run, "")
        if event.run not in self._tasks:
            self._bar.start()
            # Starting at the first step done keeps the remaining time right after a resume.
            task = self._bar.add_task(escape(_named(event)), total=event.steps, completed=event.step, facts=facts)
            self._tasks[event.run] = task
        self._bar.update(self._tasks[event.run], completed=event.step, facts=facts)


def _named(event: StepEvent | HeldoutEvent) -> str:
    return f"{event.run}: " if event.run else ""


def facts_of(event: StepEvent) -> str:
    return f"loss {event.loss:.3f} · {event.tokens_per_second:,.0f} tokens/s · {event.memory_bytes / 1024**3:.1f} GiB"


def plain_line(event: StepEvent) -> str:
    """One line with step, loss, learning rate, gradient norm, tokens/s, memory and time left."""
    left = (event.steps - event.step) * event.seconds / max(1, event.step)
    return (
        f"{_named(event)}step {event.step}/{event.steps} · loss {event.loss:.4f} · lr {event.learning_rate:.2e} · "
        f"grad {event.grad_norm:.2f} · {event.tokens_per_second:,.0f} tokens/s · "
        f"{event.memory_bytes / 1024**3:.1f} GiB · {left:,.0f} s left"
    )
