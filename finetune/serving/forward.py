"""A causal model's forward pass, with whichever arguments its architecture takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from finetune.errors import ModelError
from finetune.model.dense import dense_kept
from finetune.serving.cache import RowCache
from finetune.training.budget import free_bytes

SERVED = "finetune_rows"  # attribute of a model that was tried: whether each row may have a length of its own
_TOLERANCE = 0.05  # bf16 rounding gives 0.01; one token too many or too few far more


@dataclass
class Padded:
    """What a forward pass of a batch needs beside the new tokens; the first dimension of all is the running rows."""

    mask: Tensor  # (B, longest prompt + longest answer), 1 = token, 0 = padding on the left
    positions: Tensor  # (B, new tokens)
    seen: int = 0  # columns of the mask already in the cache
    cache: DynamicCache | None = None

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        index = torch.tensor(rows, device=self.mask.device)
        self.mask, self.positions = self.mask[index], self.positions[index]
        if self.cache is not None:
            # Not batch_select_indices: it leaves out the state of recurrent and convolution layers.
            self.cache.reorder_cache(cast(torch.LongTensor, index))


class Forward:
    """Logits of a model's next tokens: of rows that start together, or of rows that come and go."""

    def __init__(self, model: nn.Module) -> None:
        # The wrapper is called (some adapters act there), but only the base says what it accepts.
        base = cast(PreTrainedModel, model.get_base_model() if hasattr(model, "get_base_model") else model)  # type: ignore[operator]
        self.model, self.device = model, base.device
        self._base = base
        self.vocabulary = cast(nn.Embedding, base.get_input_embeddings()).weight.shape[0]
        self._config = base.config.get_text_config(decoder=True)
        self.context: int | None = getattr(self._config, "max_position_embeddings", None)  # ALiBi and RNNs have none
        self._accepts = frozenset(inspect.signature(base.forward).parameters)
        self._cache_name = "past_key_values" if "past_key_values" in self._accepts else "cache_params"
        if self._cache_name not in self._accepts:
            raise ModelError(f"{type(base).__name__} takes no key-value cache", fix="use another base to generate text")

    def room(self, prompt: Sequence[int], wanted: int) -> int:
        """Return how many tokens the answer to a prompt may have."""
        return wanted if self.context is None else min(wanted, self.context - len(prompt))

    def padded(self, ids: Tensor, state: Padded) -> Tensor:
        """Run ids (B, T) and move the state on; return the logits after the last of them, (B, V)."""
        prefill = state.cache is None
        if state.cache is None:
            state.cache = DynamicCache(config=self._config)
        state.seen += ids.shape[1]
        mask = None
        if self._cache_name == "past_key_values" or prefill:  # recurrent models would mask the state itself
            mask = state.mask[:, : state.seen]
        logits = self._run(ids, state.positions, mask, state.cache)
        state.positions = state.positions[:, -1:] + 1
        return logits

    def rows(self, ids: Tensor, cache: RowCache, first: int, starts: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Run ids (B, T) of the cache's rows from `first` on; return the logits after the last of them, (B, V).

        Row i has `starts[i]` tokens in the cache and adds the last `counts[i]` of its T columns.
        """
        positions, mask = cache.begin(first, starts, counts, self.device)
        return self._run(ids, positions, mask, cache)

    def new_row_cache(self) -> RowCache:
        return RowCache(len(DynamicCache(config=self._config).layers))

    @torch.no_grad()  # not inference_mode: its tensors could not take part in later training
    def _run(self, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
        arguments: dict[str, Any] = {
            "position_ids": positions,
            "attention_mask": mask,
            "logits_to_keep": 1,
            "use_cache": True,
            self._cache_name: cache,
        }
        accepted = {name: value for name, value in arguments.items() if name in self._accepts}
        return cast(Tensor, self.model(input_ids=ids, **accepted).logits)[:, -1]

    def serves_rows(self) -> bool:
        """Tell whether rows of different lengths may share a RowCache: tried out once per model, in evaluation mode.

        Not where a layer keeps a window or a state, or where tokens are placed by anything but their position.
        """
        known = self._base.__dict__.get(SERVED)
        if known is None:
            known = self._might_serve_rows() and self._try_rows()
            if known is not None:  # None: not finite, so nothing was learnt
                self._base.__dict__[SERVED] = known
        return bool(known)

    def _might_serve_rows(self) -> bool:
        if not {"attention_mask", "position_ids", "past_key_values"} <= self._accepts:
            return False
        layers = DynamicCache(config=self._config).layers
        return self._config._attn_implementation == "sdpa" and all(type(layer) is DynamicLayer for layer in layers)

    def _try_rows(self) -> bool | None:
        """Compare two rows, one of them in two parts, with each of them alone; None if the logits are not finite."""
        generator = torch.Generator().manual_seed(0)
        long, short = (torch.randint(0, self.vocabulary, (1, n), generator=generator).to(self.device) for n in (12, 7))
        try:
            alone = torch.cat([self._alone(long), self._alone(short)])
            cache = self.new_row_cache()
            self.rows(long[:, :5], cache, 0, [0], [5])
            rest = torch.cat([long[:, 5:11], short.new_zeros(1, 6)])
            rest[1] = short[0, :6]
            self.rows(rest, cache, 0, [5, 0], [6, 6])
            together = self.rows(torch.cat([long[:, -1:], short[:, -1:]]), cache, 0, [11, 6], [1, 1])
        except (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError):
            return False
        if not (torch.isfinite(alone).all() and torch.isfinite(together).all()):
            return None
        alone, together = (x.float() - x.float().mean(-1, keepdim=True) for x in (alone, together))
        return bool(((together - alone).norm(dim=-1) < _TOLERANCE * alone.norm(dim=-1)).all())

    def _alone(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        return self.padded(ids, Padded(torch.ones_like(ids), positions))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off, then back on in exactly those modules that had it on.

    On a CPU 4-bit weights are dequantised once for all that runs inside, where memory allows.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with dense_kept(model, spare_bytes):
            yield
    finally:
        for module in training:
            module.training = True


def spare_bytes(device: torch.device) -> int:
    """Bytes for dequantised weights: half of what is free, for caches grow and adapters are loaded."""
    return free_bytes(device) // 2 if device.type == "cpu" else 0
