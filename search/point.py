"""A point of the search space: a configuration, and the machine that it is priced on.

Also what points need to be told apart quickly, and schedules of layers in their shortest form. Layers count from 0.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

from gptcore.config import LAYER_FIELDS, Config, GPTConfig, LayerConfig, canonical
from gptcore.registry import Strict
from ppa.alike import Numbers
from ppa.estimate import uniform_layer
from ppa.machine import Machine


@dataclass(frozen=True, eq=False)
class Point:
    """A configuration and a machine. Two points are the same when what is trained and what is priced is the same."""

    config: Config
    machine: Machine

    @cached_property
    def identity(self) -> str:
        """That of the configuration (gptcore.config.identity): what training depends on. A machine changes nothing."""
        return identity_of(self.config)

    @cached_property
    def key(self) -> str:
        return f"{self.identity}-{machine_key(self.machine)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


REMEMBERED = 1 << 15
_OF_LAYERS = (*LAYER_FIELDS, "layers", "norm_output")
_OF_MODEL = tuple(name for name in GPTConfig.model_fields if name not in _OF_LAYERS)
_number = Numbers(REMEMBERED)  # of layers, and of what they are made of
_texts: dict[tuple[int, ...], str] = {}
_repeated: dict[tuple[int, int], LayerConfig] = {}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def parts_of(layer: LayerConfig) -> tuple[int, ...]:
    """Numbers of what a layer is made of; two layers have the same ones when nothing but `repeat` differs."""
    return tuple([_number(getattr(layer, name)) for name in LAYER_FIELDS])


def _of_layer(layer: LayerConfig) -> str:
    """The canonical form of a layer, as JSON."""
    key = parts_of(layer)
    text = _texts.get(key)
    if text is None:
        if len(_texts) >= REMEMBERED:
            _texts.clear()
        text = _texts[key] = _json(canonical(layer.model_copy(update={"repeat": 1})))
    return text


@lru_cache(maxsize=1 << 14)
def _of_model(name: str, value: Any) -> str | None:
    """What one setting of the model that is none of its layers adds to the canonical form of it."""
    plain = GPTConfig()
    whole = canonical(plain.model_copy(update={name: value, "layers": [uniform_layer(plain)]}))
    return _json(whole[name]) if name in whole else None


@lru_cache(maxsize=1 << 14)
def _of_section(section: Strict) -> str:
    return _json(canonical(section))


def identity_of(config: Config) -> str:
    """`gptcore.config.identity`, some twenty times as fast for one of many similar configurations: it remembers."""
    model = config.model
    layers: list[str] = []
    for layer in model.layers or [uniform_layer(model, model.n_layer)]:
        layers += [_of_layer(layer)] * layer.repeat
    fields = {name: text for name in _OF_MODEL if (text := _of_model(name, getattr(model, name))) is not None}
    fields |= {"layers": f"[{','.join(layers)}]", "norm_output": _of_section(model.output_norm())}
    whole = {name: text for name in ("data", "train") if (text := _of_section(getattr(config, name))) != "{}"}
    return hashlib.sha256(_object(whole | {"model": _object(fields)}).encode()).hexdigest()


def _object(fields: dict[str, str]) -> str:
    return "{" + ",".join([f'"{name}":{fields[name]}' for name in sorted(fields)]) + "}"


@lru_cache(maxsize=1 << 14)
def machine_key(machine: Machine) -> str:
    """A hash of everything about a machine that a cost can depend on: not of titles, sources and grades."""

    def bare(value: Any) -> Any:
        return {k: bare(v) for k, v in value.items() if k not in ("title", "source", "grade")} if isinstance(
            value, dict
        ) else value  # fmt: skip

    text = json.dumps(bare(machine.model_dump(mode="json")), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def layer_of(layer: LayerConfig, repeat: int = 1) -> LayerConfig:
    """An entry of a schedule that holds `repeat` such layers; equal ones are one object, and so quickly compared."""
    key = _number(layer), repeat
    found = _repeated.get(key)
    if found is None:
        if len(_repeated) >= REMEMBERED:
            _repeated.clear()
        found = _repeated[key] = layer.model_copy(update={"repeat": repeat})
    return found


def layers_of(model: GPTConfig) -> list[LayerConfig]:
    """One entry a layer."""
    entries = model.layers or [uniform_layer(model, model.n_layer)]
    return [one for entry in entries for one in [_single(entry)] * entry.repeat]


def _single(entry: LayerConfig) -> LayerConfig:
    return entry if entry.repeat == 1 else layer_of(entry)


def with_layers(model: GPTConfig, layers: list[LayerConfig]) -> GPTConfig:
    """The model with these layers, written as short as can be: equal neighbours as one entry, equal layers without."""
    runs = [(same[0], len(same)) for same in (list(group) for _, group in groupby(layers, key=_number))]
    entries = [layer if repeat == 1 else layer_of(layer, repeat) for layer, repeat in runs]
    update: dict[str, Any] = {"n_layer": len(layers), "layers": entries}
    # The norm before the head is that of the model unless it has its own: it must not change with the layers' norm.
    if len(entries) == 1 and (model.norm_output is not None or layers[0].norm == model.norm):
        update |= {name: getattr(layers[0], name) for name in LAYER_FIELDS} | {"layers": []}
    return model.model_copy(update=update)


__all__ = ["Point", "identity_of", "layers_of", "machine_key", "parts_of", "with_layers"]
