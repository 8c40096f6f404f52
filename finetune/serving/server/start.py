"""What `finetune serve` does before it listens: load base and adapters, start the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune.errors import AdapterError
from finetune.model.base import load_base
from finetune.model.device import pick_device, releasing_workers
from finetune.serving.bank import AdapterBank
from finetune.serving.choice import Choice
from finetune.serving.engine import Engine
from finetune.serving.limits import EngineLimits
from finetune.serving.server.app import App, create_app
from finetune.serving.server.catalogue import public_name
from finetune.serving.server.options import Options
from finetune.store.folders import check_base


def load(choice: Choice, *, store: Path, limits: EngineLimits, options: Options, warn: Callable[[str], None]) -> App:
    """Load base and adapters and start the engine. Raises FinetuneError."""
    with releasing_workers():
        bank = _loaded(choice, store, warn)
    engine = Engine(bank.base, bank, limits)
    engine.start()
    return create_app(engine, store=store, options=options)


def _loaded(choice: Choice, store: Path, warn: Callable[[str], None]) -> AdapterBank:
    base = load_base(choice.base, pick_device())
    bank = AdapterBank(base, store=store)
    for error in choice.unreadable:
        warn(f"not served: {error}")
    for adapter in choice.adapters:
        try:
            if adapter.name == public_name(base.name):
                raise AdapterError(f"{adapter.name!r} is the base's id, too", fix="finetune rename it")
            if lost := check_base(adapter, base.fingerprint, base.name, base.revision, force=choice.force):
                warn(f"--force: {lost}")
            bank.load(adapter.folder, force=choice.force)
        except AdapterError as error:
            if choice.asked:
                raise
            warn(f"not served: {error}")
    return bank
