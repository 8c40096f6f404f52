"""Starts of A and B, layers by number, modules trained in full: what a fresh adapter looks like."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune.data.batches import TrainingRows
from finetune.data.examples import Example
from finetune.errors import AdapterError, DataError
from finetune.model.attention import hidden_states, packed_attention
from finetune.model.base import Base, load_base, weights_sha256
from finetune.model.lora import attach, count_parameters, trained_parameters
from finetune.recipe import AdapterSection, BaseSection
from tests.conftest import MakeBase
from tests.training.helpers import encoded

IDS = torch.randint(6, 300, (1, 40), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def output(base: Base) -> Tensor:
    with packed_attention(base.model):
        return hidden_states(base.model, IDS, torch.arange(40)[None], [(0, 40)])


def rows_of(base: Base, examples: tuple[Example, ...]) -> TrainingRows:
    return TrainingRows(encoded(base, examples))


def start_of(layer: nn.Module, part: str = "lora_A") -> nn.Parameter:
    weight = layer.get_submodule(f"{part}.default").weight
    assert isinstance(weight, nn.Parameter)
    return weight


def layer_of(model: nn.Module, name: str) -> nn.Module:
    return next(module for full, module in model.named_modules() if full.endswith(name) and hasattr(module, "lora_A"))


@pytest.mark.parametrize(
    "method", ["lora", "rslora", "dora", "pissa", "olora", "eva", ("rslora", "pissa"), ("dora", "olora")]
)
def test_training_begins_with_the_function_of_the_base_whose_bytes_stay(
    base: Base, examples: tuple[Example, ...], method: str
) -> None:
    before, digest = output(base), weights_sha256(base.model)
    section = AdapterSection(method=method, r=4, alpha=8.0)  # type: ignore[arg-type]
    model = attach(base, section, seed=0, rows=rows_of(base, examples))
    torch.testing.assert_close(output(base), before, rtol=1e-4, atol=1e-4)
    assert weights_sha256(base.model) == digest
    assert {parameter.dtype for parameter in trained_parameters(model).values()} == {torch.float32}


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_a_start_in_the_weight_is_its_main_part_and_half_of_it_frozen(plain_base: Base, method: str) -> None:
    model = attach(plain_base, AdapterSection(method=method, r=4, alpha=8.0), seed=0)  # type: ignore[arg-type]
    layer = layer_of(model, "layers.1.mlp.up_proj")
    a, b = start_of(layer), start_of(layer, "lora_B")
    assert a.shape == (8, 64)
    assert torch.equal(a[:4], a[4:])
    assert torch.equal(b[:, :4], -b[:, 4:])
    assert layer.scaling["default"] == 2.0  # type: ignore[index,union-attr]
    weight, start = layer.get_base_layer().weight, (2.0 * b[:, :4] @ a[:4]).detach()  # type: ignore[operator,union-attr]
    sizes = torch.linalg.svdvals(weight)
    if method == "pissa":
        assert float((weight - start).norm()) < 1.01 * float(sizes[4:].norm())  # no rank of 4 leaves less
    else:
        torch.testing.assert_close(b[:, :4].t() @ b[:, :4], torch.eye(4), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(start / 2, b[:, :4] @ b[:, :4].t() @ weight, rtol=1e-3, atol=1e-3)
    (a.sum() + b.sum()).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert bool((a.grad[4:] == 0).all() and (a.grad[:4] == 1).all())
    assert bool((b.grad[:, 4:] == 0).all() and (b.grad[:, :4] == 1).all())
    numbers = sum(parameter.numel() for parameter in trained_parameters(model).values())
    assert count_parameters(model).trained * 2 == numbers


def test_loftq_starts_closer_to_the_weights_on_the_disk(base: Base, plain_base: Base) -> None:
    model = attach(base, AdapterSection(method="loftq", r=16, alpha=64.0), seed=0)
    layer = layer_of(model, "layers.0.mlp.down_proj")
    a, b = start_of(layer), start_of(layer, "lora_B")
    true = plain_base.model.get_submodule("model.layers.0.mlp.down_proj").weight
    quantised = layer.get_base_layer()  # type: ignore[operator]
    with torch.no_grad():
        lost = true - quantised(torch.eye(128)).t()
        left = float((lost - 4.0 * b @ a).norm())
    assert left < 0.75 * float(lost.norm())  # type: ignore[arg-type]
    # No rank of 16 leaves less than the singular values from the 17th on.
    assert left < 1.05 * float(torch.linalg.svdvals(lost)[16:].norm())


def test_eva_looks_along_what_the_layers_see(base: Base, examples: tuple[Example, ...]) -> None:
    model = attach(base, AdapterSection(method="eva", r=4, alpha=8.0), 0, rows_of(base, examples))
    seen: list[Tensor] = []
    layer = layer_of(model, "layers.0.self_attn.o_proj")
    attention = "layers.1.self_attn"
    query, value = (start_of(layer_of(model, f"{attention}.{name}")) for name in ("q_proj", "v_proj"))
    assert torch.equal(query, value)
    a = start_of(layer).detach()
    torch.testing.assert_close(a @ a.t(), torch.eye(4), rtol=1e-4, atol=1e-4)
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].float()))
    with torch.no_grad():
        for row in encoded(base, examples):
            base.model(input_ids=torch.tensor([row.ids]), use_cache=False)
    handle.remove()
    inputs = torch.cat(seen)
    inputs = inputs - inputs.mean(dim=0)
    best = torch.linalg.svdvals(inputs)[:4].square().sum()
    assert float((inputs @ a.t()).square().sum() / best) > 0.9
    again = attach(base_like(base), AdapterSection(method="eva", r=4, alpha=8.0), 0, rows_of(base, examples))
    assert torch.equal(start_of(layer_of(again, "layers.0.self_attn.o_proj")), a)


def base_like(base: Base) -> Base:
    return load_base(BaseSection(model=base.name, dtype="float32"), torch.device("cpu"))


def test_eva_needs_rows_and_enough_of_them(make_base: MakeBase, examples: tuple[Example, ...]) -> None:
    section = AdapterSection(method="eva", r=4, alpha=8.0)
    with pytest.raises(AdapterError, match="eva needs training rows"):
        attach(make_base(), section, seed=0)
    base = make_base()
    with pytest.raises(DataError, match=r"no micro-batch has the 128 tokens that eva needs for adapter.r 64"):
        attach(base, section.model_copy(update={"r": 64}), 0, rows_of(base, examples[:2]))


@pytest.mark.parametrize("method", ["pissa", "olora", "eva", "loftq"])
def test_a_rank_above_the_layers_is_refused_where_it_has_no_start(base: Base, method: str) -> None:
    section = AdapterSection(method=method, r=65, alpha=8.0)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=f"adapter.r 65 is more than the .* and {method} has no more directions"):
        attach(base, section, seed=0)


def adapted(model: nn.Module) -> set[str]:
    names = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {name.removeprefix("base_model.model.model.layers.") for name in names}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("layers.1.q_proj",), {"1.self_attn.q_proj"}),
        (("layers.0-1.q_proj", "up_proj"), {f"{n}.{m}" for n in (0, 1) for m in ("self_attn.q_proj", "mlp.up_proj")}),
        (("q_proj",), {"0.self_attn.q_proj", "1.self_attn.q_proj"}),
    ],
)
def test_targets_name_layers_by_number(base: Base, targets: tuple[str, ...], expected: set[str]) -> None:
    assert adapted(attach(base, AdapterSection(r=4, target_modules=targets), seed=0)) == expected


def test_all_linear_layers_of_some_decoder_layers(base: Base) -> None:
    found = adapted(attach(base, AdapterSection(r=4, target_modules=("layers.1",)), seed=0))
    assert len(found) == 7
    assert all(name.startswith("1.") for name in found)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("layers.1-2",), r"'layers.1-2': this model has decoder layers 0 to 1"),
        (("layers.0.qproj",), r"'layers.0.qproj' matches no linear layer; there are \['down_proj', "),
        (("qproj", "layers.0"), r"\['qproj'\] match no linear layer; this model has \['down_proj', "),
    ],
)
def test_targets_that_are_not_there_are_refused_with_those_that_are(
    base: Base, targets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        attach(base, AdapterSection(target_modules=targets), seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lm_head", "is the output head, which stays frozen"),
        ("q_proj", "is a linear layer; embeddings and norms alone are trained in full; name it in adapter.target_mod"),
        ("wte", r"'wte' matches no embedding or norm; this model has \['embed_tokens', 'input_layernorm', 'norm', "),
    ],
)
def test_what_cannot_be_trained_in_full_is_refused(base: Base, name: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        attach(base, AdapterSection(modules_to_save=(name,)), seed=0)


def test_embeddings_that_are_tied_to_the_head_are_refused() -> None:
    base = load_base(BaseSection(model="tiny"), torch.device("cpu"))
    with pytest.raises(AdapterError, match="'embed_tokens': this model ties it to its output head"):
        attach(base, AdapterSection(modules_to_save=("embed_tokens",)), seed=0)


@pytest.mark.parametrize("name", ["embed_tokens", "norm", "input_layernorm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_modules_trained_in_full_get_a_gradient_in_fp32_and_leave_the_base_alone(
    model_folder: Path, name: str, dtype: str
) -> None:
    base = load_base(BaseSection(model=str(model_folder), dtype=dtype), torch.device("cpu"))  # type: ignore[arg-type]
    before, digest = output(base), weights_sha256(base.model)
    model = attach(base, AdapterSection(r=4, modules_to_save=(name,)), seed=0).train()
    torch.testing.assert_close(output(base), before, rtol=0.02, atol=0.05 if dtype == "bfloat16" else 1e-4)
    copies = {n: p for n, p in model.named_parameters() if ".modules_to_save." in n}
    assert len(copies) == (2 if name == "input_layernorm" else 1)
    with packed_attention(base.model):
        hidden_states(base.model, IDS, torch.arange(40)[None], [(0, 40)]).float().square().sum().backward()
    for parameter in copies.values():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert float(parameter.grad.norm()) > 0
        with torch.no_grad():
            parameter += 0.5
    assert weights_sha256(base.model) == digest
    assert float((output(base) - before).norm()) > 0.01 * float(before.norm())
