"""Ways to spoil an adapter, each with the words that its refusal must have."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from finetune.store.folders import CONFIG, WEIGHTS
from tests.store.adapters import (
    A,
    B,
    Spoil,
    change_tensors,
    config,
    config_text,
    cut,
    drop,
    header,
    rename,
    replace_by_link,
    set_number,
    set_tensor,
    write_raw,
    zeros,
)


def cancelling(folder: Path) -> None:
    """Two ranks that take each other back."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, tensor in tensors.items():
            if "lora_A" in name:
                tensor[2:] = tensor[:2]
            else:
                tensor[:, 2:] = -tensor[:, :2]
        return tensors

    change_tensors(folder, change)


def disjoint(folder: Path) -> None:
    """A fills ranks that B leaves out."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, tensor in tensors.items():
            (tensor[:2] if "lora_A" in name else tensor[:, 2:]).zero_()
        return tensors

    change_tensors(folder, change)


def smaller_base(folder: Path) -> None:
    change_tensors(
        folder, lambda ts: {n: t[:, :32].contiguous() if "lora_A" in n else t[:32].contiguous() for n, t in ts.items()}
    )


def larger_base(folder: Path) -> None:
    change_tensors(folder, lambda ts: {n: torch.cat([t, t], 1 if "lora_A" in n else 0) for n, t in ts.items()})


def another_layer(folder: Path) -> None:
    change_tensors(folder, lambda ts: {n.replace("layers.1.", "layers.7."): t for n, t in ts.items()})


def as_pickle(folder: Path) -> None:
    torch.save({}, folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def pickle_in_disguise(folder: Path) -> None:
    torch.save({"a": torch.ones(3)}, folder / WEIGHTS)


def old_pickle_in_disguise(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x02}q\x00." + b" " * 60)


def pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def a_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def link_in_a_circle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / WEIGHTS)


def large_header(folder: Path) -> None:
    """100 MB that are never read: a file with a hole."""
    with (folder / WEIGHTS).open("wb") as file:
        file.write((100 << 20).to_bytes(8, "little"))
        file.truncate((100 << 20) + 8)


# Repeats that refer to themselves keep the regex library busy as well; simpler bombs are none for it.
BOMB = r"(.+)(.+)(.+)(.+)(.+)(.+)(.+)\3\4\5"
FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"  # in the header's order

CORPUS: dict[str, tuple[Spoil, str]] = {
    # shapes, names
    "of a smaller base": (smaller_base, r"is 4 x 32, this base and adapter_config.json need 4 x"),
    "of a larger base": (larger_base, r"need 4 x .*another base"),
    "a layer the base has not": (another_layer, r"layers\.7\..*is for a layer that this base has not \(4"),
    "one tensor transposed": (set_tensor(A, lambda t: t.T), r"is 64 x 4, .* need 4 x 64"),
    "one tensor flat": (set_tensor(A, lambda t: t.reshape(-1)), r"is 256, .* need 4 x 64"),
    "one tensor with three axes": (set_tensor(A, lambda t: t[None]), r"is 1 x 4 x 64"),
    "one tensor empty": (set_tensor(A, lambda t: t[:0]), r"is 0 x 64"),
    "a single number": (set_tensor(B, lambda t: t[0, 0].clone()), r"is a single number"),
    "other rank in one tensor": (set_tensor(A, lambda t: t[:3]), r"is 3 x 64, .* need 4 x 64"),
    "names without PEFT's beginning": (rename("base_model.model.", ""), r"is not of the form|is for a layer"),
    "names with the adapter's name": (rename("lora_A.weight", "lora_A.default.weight"), r"not of the form"),
    "names of another library": (rename("lora_A.weight", "lora_down.weight"), r"not of the form"),
    "one name twice prefixed": (rename("base_model.model.model", "base_model.model.base_model.model.model"), "has not"),
    "A is missing everywhere": (drop("lora_A"), r"has no .*lora_A.weight.* \(4 missing\)"),
    "B is missing somewhere": (drop("layers.0.self_attn.q_proj.lora_B"), r"has no .*q_proj.lora_B.weight"),
    "a layer is missing": (drop("layers.1.mlp"), r"has no .*layers.1.mlp.down_proj.lora_A.weight.*\(2 missing\)"),
    "no tensor at all": (drop("base_model"), r"holds no tensor"),
    "a layer that is not targeted": (config(target_modules=["q_proj"]), r"does not name, so PEFT would not use it"),
    "an excluded layer": (config(exclude_modules=["down_proj"]), r"does not name"),
    "a layer outside layers_to_transform": (config(layers_to_transform=[0]), r"layers.1.*does not name"),
    "another tensor": (lambda f: change_tensors(f, lambda ts: {**ts, "evil": torch.ones(2)}), r"'evil' is not of the"),
    "a bias too many": (
        lambda f: change_tensors(f, lambda ts: {**ts, B.replace("weight", "bias"): torch.ones(64)}),
        r"lora_B.bias' is not of the form",
    ),
    # numbers
    "NaN": (set_number(A, float("nan")), r"q_proj.lora_A.weight' holds NaN or infinity"),
    "infinity": (set_number(B, float("inf")), r"holds NaN or infinity"),
    "minus infinity": (set_number(FIRST, float("-inf")), r"holds NaN or infinity"),
    "all B zero": (zeros("lora_B"), r"changes nothing"),
    "all A zero": (zeros("lora_A"), r"changes nothing"),
    "all zero": (zeros("lora"), r"changes nothing"),
    "alpha zero": (config(lora_alpha=0), r"changes nothing"),
    "ranks that take each other back": (cancelling, r"changes nothing"),
    "A and B in different ranks": (disjoint, r"changes nothing"),
    "float64": (set_tensor(A, lambda t: t.double()), r"is 'F64'; an adapter's tensors are F32, F16 or BF16"),
    "int8": (set_tensor(A, lambda t: t.to(torch.int8)), r"is 'I8'"),
    "bool": (set_tensor(A, lambda t: t > 0), r"is 'BOOL'"),
    "float8": (set_tensor(A, lambda t: t.to(torch.float8_e4m3fn)), r"is 'F8_E4M3'"),
    # the configuration
    "r is not the tensors'": (config(r=8), r"is 4 x .* need 8 x"),
    "r is 0": (config(r=0), r"has the rank 0"),
    "r is negative": (config(r=-4), r"has the rank -4"),
    "r is 1e9": (config(r=10**9), r"has the rank 1000000000; a rank is 1 to"),
    "r is huge in a pattern": (config(rank_pattern={"q_proj": 10**12}), r"has the rank 1000000000000"),
    "r is a text": (config(r="4"), r"r: Input should be a valid integer"),
    "r is a bool": (config(r=True), r"r: Input should be a valid integer"),
    "rank_pattern is not the tensors'": (config(rank_pattern={"q_proj": 2}), r"q_proj.* is 4 x 64, .* need 2 x 64"),
    "alpha is infinite": (config_text('{"peft_type": "LORA", "target_modules": ["q_proj"], "lora_alpha": 1e999}'),
                          r"has the alpha inf"),
    "alpha is NaN": (config(lora_alpha=float("nan")), r"has the alpha nan"),
    "alpha is a list": (config(lora_alpha=[1]), r"lora_alpha: Input should be a valid number"),
    "unknown peft_type": (config(peft_type="SHINY"), r"has the peft_type 'SHINY', which PEFT does not know"),
    "no peft_type": (config(peft_type=None), r"peft_type: Input should be a valid string"),
    "no target": (config(target_modules=[]), r"target_modules names no layer"),
    "targets of the wrong type": (config(target_modules=[["q_proj"]]), r"target_modules"),
    "a bomb in target_modules": (config(target_modules=BOMB), r"takes too long"),
    "a bomb in rank_pattern": (config(rank_pattern={BOMB: 4}), r"takes too long"),
    "a bomb in alpha_pattern": (config(alpha_pattern={BOMB: 4.0}), r"takes too long"),
    "a bomb in exclude_modules": (config(exclude_modules=BOMB), r"takes too long"),
    "a bomb in layers_pattern": (config(layers_to_transform=[0, 1], layers_pattern=BOMB), r"takes too long"),
    "a bomb in modules_to_save": (config(modules_to_save=["(a|a)*b"]), r"only plain names"),
    "no pattern": (config(target_modules="("), r"is no pattern"),
    "a long pattern": (config(target_modules="q" * 501), r"more than 64 patterns, or one of more than 500"),
    "many patterns": (config(rank_pattern={f"({n})": 4 for n in range(80)}), r"more than 64 patterns"),
    "the base was changed: pissa": (config(init_lora_weights="pissa_niter_4"), r"changed at the start .* save it as"),
    "the base was changed: olora": (config(init_lora_weights="olora"), r"init_lora_weights is 'olora'"),
    "the base was changed: loftq": (config(init_lora_weights="loftq"), r"init_lora_weights is 'loftq'"),
    "another model out of the base": (config(layer_replication=[[0, 2], [1, 2]]), r"layer_replication"),
    "a configuration that is no JSON": (config_text("{"), r"adapter_config.json: is no JSON"),
    "a configuration that is a list": (config_text("[]"), r"adapter_config.json: it: Input should be a valid dict"),
    "a configuration that is deep": (config_text("[" * 100_000), r"is no JSON"),
    "a configuration that is large": (config_text(" " * (2 << 20)), r"is larger than 1,048,576 bytes"),
    "a configuration that is no text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), r"is no JSON"),
    "no configuration": (lambda f: (f / CONFIG).unlink(), r"adapter_config.json: cannot be read"),
    # the file
    "a pickle": (as_pickle, r"adapter_model.bin: is a pickle, which could run code"),
    "a pickle by another name": (pickle_in_disguise, r"is a zip of pickles, not safetensors"),
    "an old pickle by another name": (old_pickle_in_disguise, r"is a pickle, not safetensors"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"adapter_model.safetensors: cannot be read"),
    "a named pipe": (pipe, r"is no ordinary file"),
    "a folder": (a_folder, r"is no ordinary file"),
    "an empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), r"is cut off or no safetensors file: 0 bytes"),
    "four bytes": (lambda f: (f / WEIGHTS).write_bytes(b"abcd"), r"is cut off or no safetensors file: 4 bytes"),
    "a header of 100 MB": (large_header, r"has a header of 104,857,600 bytes, more than the 4,194,304"),
    "a header longer than the file": (write_raw(b"{}", length=1 << 60), r"the header alone says 1152921504606846976"),
    "a header that is no JSON": (write_raw(b"{not json}"), r"has a header that is no JSON"),
    "a header that is a list": (write_raw(b"[]"), r"no JSON object"),
    "a header that is deep": (write_raw(b'{"a":' * 50_000), r"has a header that is no JSON"),
    "a header with a name twice": (
        write_raw(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":1}'), r"a name stands in it twice"
    ),
    "a tensor without offsets": (header(lambda h: h[A].pop("data_offsets")), r"is not described by"),
    "a dtype that is a number": (header(lambda h: h[A].update(dtype=5)), r"is '5'; an adapter's tensors"),
    "a negative shape": (header(lambda h: h[A].update(shape=[-4, -64])), r"has the shape \[-4, -64\]"),
    "a shape beyond all bounds": (header(lambda h: h[A].update(shape=[2**62, 4])), r"has the shape"),
    "a shape that overflows": (header(lambda h: h[A].update(shape=[2**33, 2**33])), r"does not fill bytes"),
    "a shape of fractions": (header(lambda h: h[A].update(shape=[4.0, 64.0])), r"has the shape"),
    "offsets backwards": (header(lambda h: h[A]["data_offsets"].reverse()), r"has the offsets"),
    "offsets behind the file": (
        header(lambda h: h[A].update(data_offsets=[n + (1 << 40) for n in h[A]["data_offsets"]])), r"ends at byte"
    ),
    "overlapping tensors": (header(lambda h: h[B].update(data_offsets=h[A]["data_offsets"])), r"begins at|ends at"),
    "bytes behind the tensors": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"x" * 64), r"bytes of tensors, its header"
    ),
    "weights outside": (replace_by_link(WEIGHTS), r"is a link that leads out of"),
    "configuration outside": (replace_by_link(CONFIG), r"is a link that leads out of"),
    "a link in a circle": (link_in_a_circle, r"cannot be resolved|cannot be read"),
}  # fmt: skip
CORPUS |= {f"cut off at {n}/40": (cut(n / 40), r"is cut off|holds .* bytes of tensors") for n in range(1, 40, 3)}
