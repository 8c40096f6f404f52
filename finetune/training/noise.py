"""NEFTune: noise on the embeddings while training (Jain et al., 2023, arXiv 2310.05914)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ALPHA = 5.0  # the paper's usual one, and the default of TRL


class EmbeddingNoise:
    """Adds uniform noise of at most alpha / sqrt(L d) to each example of L tokens, in training mode alone.

    An example's noise follows from seed, step and its own tokens: a resumed run draws the same, and so does one that
    cuts the step into other rows or shares it among more processes.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.step = seed, 0
        self._segments: tuple[tuple[int, int], ...] = ()

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Add the noise inside this block; `step` is set by the loop."""
        backbone = getattr(model, model.base_model_prefix)
        handles = [
            backbone.register_forward_pre_hook(self._note, with_kwargs=True),
            model.get_input_embeddings().register_forward_hook(self._add),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, backbone: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Remember where the examples lie in the rows."""
        self._segments = named["segments"] if backbone.training else ()

    def _add(self, embedding: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self._segments:
            return output
        ids, noise = arguments[0].flatten().tolist(), torch.zeros_like(output).flatten(0, 1)
        for start, end in self._segments:
            noise[start:end] = self._draw(ids[start:end], output)
        return output + noise.view_as(output)

    def _draw(self, ids: list[int], like: Tensor) -> Tensor:
        """Noise (L, d) of one example."""
        text = f"{self.seed}:{self.step}:{','.join(map(str, ids))}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        generator = torch.Generator(like.device).manual_seed(number)
        uniform = torch.rand(len(ids), like.shape[-1], generator=generator, device=like.device)
        bound = ALPHA / (len(ids) * like.shape[-1]) ** 0.5
        return uniform.mul_(2).sub_(1).mul_(bound).to(like.dtype)
