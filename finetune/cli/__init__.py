"""The command line: each command is one public function plus printing."""

# Each module adds its commands to the app when it is imported; the order is that of --help.
from finetune.cli import data, plan, recipes, runs, talk, serve, adapters, blend, merge  # noqa: F401, I001
from finetune.cli.app import main

__all__ = ["main"]
