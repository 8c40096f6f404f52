"""Answers that follow a JSON schema: before each token, which ones can still lead there (llguidance)."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetune.errors import FinetuneError

KEPT = 64  # compiled schemas
# Bounded, so that a model cannot go on with spaces for ever: one space, or a new line and its indentation.
SPACE = r"( |\n {0,16})?"


class SchemaError(FinetuneError):
    """A JSON schema that cannot be followed."""


class JsonConstraint:
    """Where one answer stands in its schema."""

    def __init__(self, matcher: Any, stop_ids: Collection[int]) -> None:
        self._matcher, self._stop_ids = matcher, sorted(stop_ids)
        self.error: str | None = None  # why the answer cannot go on

    def allowed(self, vocabulary: int) -> Tensor:
        """Return which tokens may come next, (V,); once something went wrong, those that end the answer."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        found = torch.from_numpy(np.unpackbits(bits, bitorder="little")[:vocabulary].astype(bool))
        allowed[: len(found)] = found
        if self._matcher.is_error() or not bool(allowed.any()):
            self.error = self._matcher.get_error() or "no token of the tokenizer continues it"
            allowed[self._stop_ids or slice(None)] = True
        return allowed

    def accept(self, token: int) -> bool:
        """Go on by one token; return whether the answer is complete and nothing can follow."""
        if self.error is None and not self._matcher.consume_token(token):
            self.error = self._matcher.get_error()
        return self.error is not None or bool(self._matcher.is_stopped())


class Grammars:
    """JSON schemas -> constraints for one tokenizer; compiled once each. Any thread."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_ids: Collection[int]) -> None:
        self._source, self._vocabulary, self._stop_ids = tokenizer, vocabulary, sorted(stop_ids)
        self._tokenizer: Any = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()

    def constraint(self, schema: Mapping[str, Any]) -> JsonConstraint:
        """Return a new constraint. Raises SchemaError for a schema that llguidance cannot follow."""
        key = json.dumps(schema)  # the order of the keys counts: it is the order in the answer
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._compile(schema)
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return JsonConstraint(self._compiled[key].deep_copy(), self._stop_ids)

    def _compile(self, schema: Mapping[str, Any]) -> Any:
        library = _library("llguidance")
        if self._tokenizer is None:
            self._tokenizer = self._wrap()
        try:
            grammar = library.LLMatcher.grammar_from_json_schema(dict(schema), overrides={"whitespace_pattern": SPACE})
            matcher = library.LLMatcher(self._tokenizer, grammar, log_level=0)
        except ValueError as error:
            raise SchemaError(f"the JSON schema cannot be read ({error})") from None
        if matcher.is_error():
            why = " ".join(str(matcher.get_error()).split())
            raise SchemaError(f"the JSON schema cannot be followed: {why[:400]}", fix="use plainer keywords")
        return matcher

    def _wrap(self) -> Any:
        if not isinstance(self._source, PreTrainedTokenizerFast):
            raise SchemaError("the base's tokenizer is not a fast one: its answers cannot follow a JSON schema")
        size = max(self._vocabulary, len(self._source))
        return _library("llguidance.hf").from_tokenizer(self._source, n_vocab=size, eos_token=self._stop_ids or None)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        what = "answers that follow a JSON schema need the package llguidance"
        raise SchemaError(what, fix="pip install 'finetune[serve]'") from None
