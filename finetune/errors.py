"""Every mistake a user can make, as one tree of exceptions.

FinetuneError            exit code 2: bad input
    RecipeError          the YAML recipe or an override
    DataError            a data file, a row, an example
    ModelError           the base model, its tokenizer or chat template
    AdapterError         an adapter folder
    DeviceError          the machine cannot do what was asked
    TrainingError        exit code 1: the run itself went wrong (a non-finite loss)
    Interrupted          exit code 130 or 143: a signal stopped the run, nothing is lost
"""

from __future__ import annotations


class FinetuneError(Exception):
    """A message for the user: what is wrong with which value, where it stands, what to do."""

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        located = f"{where}: {what}" if where else what
        super().__init__(f"{located}; {fix}" if fix else located)


class RecipeError(FinetuneError):
    pass


class DataError(FinetuneError):
    pass


class ModelError(FinetuneError):
    pass


class AdapterError(FinetuneError):
    pass


class DeviceError(FinetuneError):
    pass


class TrainingError(FinetuneError):
    exit_code = 1


class Interrupted(FinetuneError):
    """Stopped by a signal (number 2 or 15) after leaving a checkpoint."""

    def __init__(self, signal_number: int, what: str, *, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.exit_code = 128 + signal_number
