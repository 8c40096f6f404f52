"""A chat in the terminal: streaming answers, adapters swapped while the base stays loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pydantic import ValidationError
from rich.console import Console
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune.data.messages import Message
from finetune.errors import FinetuneError
from finetune.serving.assistant import Assistant
from finetune.serving.settings import SamplingSettings
from finetune.store.folders import list_adapters

HELP = """/adapter NAME    answer with this adapter      /base           answer with the base alone
/adapters        list what there is            /system TEXT    set the system prompt (empty: none)
/reset           forget the conversation       /settings        show the sampling settings
/temperature X  /top_p X  /top_k N  /min_p X  /max_new_tokens N  /stop TEXT  /seed N
/repetition_penalty X  /frequency_penalty X  /presence_penalty X
/help            this                          /quit            leave (also Ctrl-D)"""


class Chat:
    """State of one conversation; `handle` takes a line, so it can be driven without a terminal."""

    def __init__(
        self, bot: Assistant, console: Console, *, adapter: str | None, settings: SamplingSettings, seed: int
    ) -> None:
        self.bot, self.console, self.adapter = bot, console, adapter
        self.settings, self.seed = settings, seed
        self.system: str | None = None
        self.turns: list[Message] = []

    def run(self, lines: Iterable[str]) -> None:
        """Answer lines until they end or one says /quit."""
        self._say(f"base {self.bot.base.name}, adapter {self.adapter or 'none'}. /help lists the commands.")
        for line in lines:
            if not self.handle(line.strip()):
                return

    def handle(self, line: str) -> bool:
        """Run a command or answer a message; False ends the chat."""
        if line in ("/quit", "/exit"):
            return False
        try:
            if line.startswith("/"):
                self._command(*line[1:].partition(" ")[::2])
            elif line:
                self._answer(line)
        except FinetuneError as error:
            self._say(str(error), style="red")
        return True

    def _answer(self, text: str) -> None:
        turns = [*self.turns, Message("user", text)]
        conversation = [Message("system", self.system), *turns] if self.system else turns
        answer = ""
        try:
            for piece in self.bot.stream(conversation, self.adapter, self.settings, self.seed):
                self.console.print(piece, end="", highlight=False, markup=False, soft_wrap=True)
                answer += piece
        except KeyboardInterrupt:
            self._say(" [stopped]", style="dim")
        self.console.print()
        self.turns = [*turns, Message("assistant", answer)]

    def _command(self, name: str, value: str) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "adapter": self._use,
            "base": lambda _: self._use(""),
            "adapters": lambda _: self._list(),
            "system": self._set_system,
            "reset": lambda _: self._reset(),
            "settings": lambda _: self._say(f"{self.settings.model_dump()} seed {self.seed}"),
            "help": lambda _: self._say(HELP),
            "seed": self._set_seed,
        }
        if name in commands:
            commands[name](value.strip())
        elif name in SamplingSettings.model_fields:
            self._set(name, value.strip())
        else:
            self._say(f"unknown command /{name}; /help lists them", style="red")

    def _use(self, name: str) -> None:
        if name:
            self.adapter = self.bot.load(name)
            self._say(f"now answering with {self.adapter}")
        else:
            self.adapter = None
            self._say("now answering with the base alone")

    def _list(self) -> None:
        for stored in list_adapters(self.bot.store):
            state = "active" if stored.name == self.adapter else "loaded" if stored.name in self.bot.loaded else ""
            self._say(f"{stored.name}  (base {stored.card.base.model}) {state}")

    def _set_system(self, text: str) -> None:
        self.system = text or None
        self._reset()

    def _reset(self) -> None:
        self.turns = []
        self._say("the conversation starts anew")

    def _set_seed(self, value: str) -> None:
        if value.isdigit():
            self.seed = int(value)
        else:
            self._say(f"/seed takes a whole number, not {value!r}", style="red")

    def _set(self, name: str, value: str) -> None:
        try:
            parsed = (value,) if name == "stop" else YAML(typ="safe", pure=True).load(value)
            changed = {**self.settings.model_dump(), name: () if parsed == ("",) else parsed}
            self.settings = SamplingSettings.model_validate(changed)
        except (ValidationError, YAMLError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not a number"
            self._say(f"/{name} {value}: {reason}", style="red")

    def _say(self, text: str, style: str = "cyan") -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
