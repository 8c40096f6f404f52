"""adapter_config.json as PEFT writes it: read with bounds, and what it says about each linear layer.

Patterns of the file (`target_modules` as text, keys of `rank_pattern` and `alpha_pattern`, ...) are matched
as PEFT matches them, but by the `regex` library, which can be stopped.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import regex as regex_library
from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.errors import AdapterError
from finetune.store.folders import CONFIG
from finetune.store.places import opened

MAX_CONFIG = 1 << 20  # bytes
MAX_RANK = 8192
_SECONDS = 0.03  # for all patterns of a file
_PATTERNS, _PATTERN_LENGTH = 64, 500
_PLAIN = re.compile(r"[\w.-]*")
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")  # the first number in a module's name
_MOVES_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
_HEADS = ("lm_head", "embed_out", "output")

Named = str | list[str] | None


class AdapterConfig(BaseModel):
    """The part of PEFT's LoraConfig that decides what an adapter computes; the rest is passed over, as PEFT does."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    peft_type: str
    base_model_name_or_path: str | None = None
    r: int = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    target_modules: Named = None
    exclude_modules: Named = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Named = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str | None = True
    bias: str = "none"
    fan_in_fan_out: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    target_parameters: list[str] | None = None
    trainable_token_indices: Any = None
    layer_replication: Any = None
    alora_invocation_tokens: Any = None
    use_qalora: bool = False
    use_bdlora: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    monteclora_config: Any = None
    velora_config: Any = None
    megatron_config: Any = None


class Branch(NamedTuple):
    """What the configuration says about one linear layer."""

    r: int
    scale: float


_KINDS = {
    "use_dora": "DoRA",
    "lora_bias": "biases in its branches (lora_bias)",
    "modules_to_save": "whole trained modules (modules_to_save)",
    "target_parameters": "branches on parameters (target_parameters)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "megatron_config": "Megatron",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
}


def read_config(folder: Path) -> AdapterConfig:
    """Read adapter_config.json. Raises AdapterError naming the key that is wrong."""
    where = str(folder / CONFIG)
    with opened(folder, CONFIG) as file:
        text = file.read(MAX_CONFIG + 1)
    if len(text) > MAX_CONFIG:
        raise AdapterError(f"is larger than {MAX_CONFIG:,} bytes", where=where)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"is no JSON ({' '.join(str(error).split())[:80]})", where=where) from None
    try:
        config = AdapterConfig.model_validate(found)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "is nested too deep"}
        key = ".".join(str(part)[:80] for part in first["loc"]) or "it"
        raise AdapterError(f"{key}: {first['msg']}", where=where) from None
    _check(config, where)
    return config


def kind_of(config: AdapterConfig) -> str:
    """What makes an adapter more than plain low-rank branches on linear layers, for a person; '' if nothing does."""
    if config.peft_type != "LORA":
        return f"the PEFT type {config.peft_type}"
    if config.init_lora_weights == "mica":
        return "MiCA"
    if config.bias != "none":
        return f"trained biases of the base (bias: {config.bias})"
    return next((kind for key, kind in _KINDS.items() if getattr(config, key)), "")


def branches(config: AdapterConfig, linears: Iterable[str], where: str) -> dict[str, Branch]:
    """Rank and scale of every linear layer that the configuration names. Raises AdapterError.

    `linears`: full names of the base's linear layers.
    """
    match, names = _Matcher(where), list(linears)
    ends = {end for name in names for end in _ends(name)}
    ranks, alphas = _Pattern(config.rank_pattern, ends, match), _Pattern(config.alpha_pattern, ends, match)
    found = {}
    for name in names:
        if not _is_excluded(config, name, match) and _is_targeted(config, name, match):
            r, alpha = ranks.of(name, config.r), alphas.of(name, config.lora_alpha)
            found[name] = Branch(int(r), alpha / (math.sqrt(r) if config.use_rslora else r))
    return found


def may_lack(config: AdapterConfig, name: str) -> bool:
    """Whether PEFT leaves a layer out although it is named: all-linear spares the output head."""
    return config.target_modules == "all-linear" and name.rpartition(".")[2] in _HEADS


def _check(config: AdapterConfig, where: str) -> None:
    ranks = [config.r, *(config.rank_pattern or {}).values()]
    if wrong := [r for r in ranks if not 1 <= r <= MAX_RANK]:
        _refuse(where, f"has the rank {str(wrong[0])[:30]}; a rank is 1 to {MAX_RANK}")
    alphas = [config.lora_alpha, *(config.alpha_pattern or {}).values()]
    if extreme := [alpha for alpha in alphas if not math.isfinite(alpha) or abs(alpha) > 1e6]:
        _refuse(where, f"has the alpha {extreme[0]}; it should be a number of at most 1,000,000")
    if str(config.init_lora_weights).lower().startswith(_MOVES_THE_BASE):
        raise AdapterError(
            f"init_lora_weights is {config.init_lora_weights!r}: such an adapter is made for a base whose weights were "
            "changed at the start of its training, and would be wrong on the base itself",
            where=where,
            fix="save it as LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    if config.layer_replication:
        _refuse(where, "layer_replication builds another model out of the base; this is not supported")
    if config.peft_type == "LORA" and not config.target_modules and not config.target_parameters:
        _refuse(where, "target_modules names no layer")
    # What only PEFT runs is matched by PEFT, which nobody could stop.
    unbounded = [*(config.modules_to_save or ()), *(_patterns(config) if config.peft_type != "LORA" else ())]
    if strange := [name for name in unbounded if not _PLAIN.fullmatch(name)]:
        _refuse(where, f"names modules by the pattern {strange[0][:80]!r}; only plain names are taken here")


def _patterns(config: AdapterConfig) -> list[str]:
    texts = [config.target_modules, config.exclude_modules, config.layers_pattern]
    keys = [*(config.rank_pattern or ()), *(config.alpha_pattern or ())]
    return keys + [text for value in texts for text in ([value] if isinstance(value, str) else value or ())]


class _Matcher:
    """Matches patterns of a file against names, for a bounded time in all."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._left = _SECONDS
        self._compiled: dict[str, regex_library.Pattern[str]] = {}

    def fullmatch(self, pattern: str, text: str) -> Any:
        """As re.fullmatch. Raises AdapterError for what is no pattern, or keeps the machine busy."""
        begin = time.perf_counter()
        try:
            return self._compile(pattern).fullmatch(text, timeout=max(self._left, 1e-4))
        except TimeoutError:
            _refuse(self.where, f"the pattern {pattern[:80]!r} takes too long to match")
        finally:
            self._left -= time.perf_counter() - begin

    def _compile(self, pattern: str) -> regex_library.Pattern[str]:
        if pattern not in self._compiled:
            if len(pattern) > _PATTERN_LENGTH or len(self._compiled) == _PATTERNS:
                what = f"more than {_PATTERNS} patterns, or one of more than {_PATTERN_LENGTH} characters"
                _refuse(self.where, f"has {what}: {pattern[:80]!r}")
            try:
                self._compiled[pattern] = regex_library.compile(pattern)
            except (regex_library.error, ValueError, RecursionError, OverflowError) as error:
                _refuse(self.where, f"{pattern[:80]!r} is no pattern ({str(error)[:80]})")
        return self._compiled[pattern]


class _Pattern:
    """rank_pattern or alpha_pattern: the first key that matches the end of a module's name counts."""

    def __init__(self, values: Mapping[str, float] | None, ends: set[str], match: _Matcher) -> None:
        self._values: list[tuple[str, float]] = list((values or {}).items())
        self._match = match
        # A dot stands for any character; where a name ends like that literally, it is meant.
        self._plain = {
            key: place
            for place, (key, _) in enumerate(self._values)
            if _PLAIN.fullmatch(key) and ("." not in key or key in ends)
        }
        self._others = [place for place, (key, _) in enumerate(self._values) if key not in self._plain]

    def of(self, name: str, default: float) -> float:
        """The value for a module, else the default."""
        places = [self._plain[end] for end in _ends(name) if end in self._plain]
        for place in self._others:
            if places and min(places) < place:
                break
            if self._match.fullmatch(rf"(.*\.)?({self._values[place][0]})", name):
                places.append(place)
                break
        return self._values[min(places)][1] if places else default


def _is_excluded(config: AdapterConfig, name: str, match: _Matcher) -> bool:
    kept = set(config.modules_to_save or ())  # PEFT trains what is inside of them, too
    if any(not kept.isdisjoint(_ends(part)) for part in _beginnings(name)):
        return True
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        return bool(match.fullmatch(excluded, name))
    return bool(excluded) and not set(_ends(name)).isdisjoint(excluded or ())


def _is_targeted(config: AdapterConfig, name: str, match: _Matcher) -> bool:
    wanted = config.target_modules
    if wanted == "all-linear":
        return True
    if isinstance(wanted, str):
        return bool(match.fullmatch(wanted, name))
    ends = _ends(name)
    if name in (wanted or ()):  # a full name; PEFT goes on to look at the layer's number only behind an end
        return True
    if set(ends).isdisjoint(wanted or ()):
        return False
    layers = config.layers_to_transform
    if layers is None or layers == []:
        return True
    number = _layer_number(config, name, match)
    return number is not None and (number == layers if isinstance(layers, int) else number in layers)


def _layer_number(config: AdapterConfig, name: str, match: _Matcher) -> int | None:
    patterns = config.layers_pattern or []
    if not patterns:
        found = _LAYER.match(name)
        return int(found[1]) if found else None
    for pattern in patterns if isinstance(patterns, list) else [patterns]:
        if inside := match.fullmatch(rf"(?:|.*?\.){pattern}\.(?P<idx>\d+)\..*", name):
            return int(inside["idx"])
    return None


def _ends(name: str) -> list[str]:
    """a.b.c -> a.b.c, b.c, c."""
    parts = name.split(".")
    return [".".join(parts[place:]) for place in range(len(parts))]


def _beginnings(name: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: place + 1]) for place in range(len(parts))]


def _refuse(where: str, what: str) -> NoReturn:
    raise AdapterError(what, where=where)
