"""What a step really keeps, byte by byte."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.data.batches import MicroBatch, pack
from finetune.data.encoding import Encoded
from finetune.model.fitting import make_lean_layers
from finetune.model.lean import make_lean
from finetune.training.loss import Head, trained_nll

ANSWER = 20  # trained tokens of an example


def llama(dtype: torch.dtype, **shape: int) -> LlamaForCausalLM:
    """A frozen random Llama as `load_base` would prepare it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **shape)).to(dtype)
    model.requires_grad_(False)
    make_lean(model)
    make_lean_layers(model)
    return model


def a_row(examples: int, length: int) -> MicroBatch:
    """One packed row of examples of one length."""
    mask = [0] * (length - ANSWER) + [1] * ANSWER
    ids = [1 + number % 100 for number in range(length)]
    return pack([Encoded(ids, mask, f"rows:{n}", ANSWER) for n in range(examples)], examples * length)[0]


def saved_by(model: PeftModel, head: Head, batch: MicroBatch) -> int:
    """Bytes of the tensors that a forward keeps for its backward."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        trained_nll(model.get_base_model(), head, batch, 1.0)  # type: ignore[arg-type]
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
