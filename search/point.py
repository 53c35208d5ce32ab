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


_OF_LAYERS = (*LAYER_FIELDS, "layers", "norm_output")
_OF_MODEL = tuple(name for name in GPTConfig.model_fields if name not in _OF_LAYERS)
_canonical = lru_cache(maxsize=1 << 14)(canonical)


@lru_cache(maxsize=1 << 14)
def _of_layer(name: str, value: Any) -> dict[str, Any]:
    """What one setting of a layer adds to the canonical form of it."""
    whole = canonical(LayerConfig().model_copy(update={name: value}))
    return {name: whole[name]} if name in whole else {}


@lru_cache(maxsize=1 << 14)
def _of_model(name: str, value: Any) -> dict[str, Any]:
    """The same for a setting of the model that is none of its layers."""
    plain = GPTConfig()
    whole = canonical(plain.model_copy(update={name: value, "layers": [uniform_layer(plain)]}))
    return {name: whole[name]} if name in whole else {}


def identity_of(config: Config) -> str:
    """`gptcore.config.identity`, some twenty times as fast for one of many similar configurations: it remembers."""
    model = config.model
    layers: list[Any] = []
    for layer in model.layers or [uniform_layer(model, model.n_layer)]:
        said = {key: text for name in LAYER_FIELDS for key, text in _of_layer(name, getattr(layer, name)).items()}
        layers += [said] * layer.repeat
    fields: dict[str, Any] = {"layers": layers, "norm_output": _canonical(model.output_norm())}
    for name in _OF_MODEL:
        fields |= _of_model(name, getattr(model, name))
    fields = {"model": fields}
    fields |= {name: part for name in ("data", "train") if (part := _canonical(getattr(config, name)))}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@lru_cache(maxsize=1 << 14)
def machine_key(machine: Machine) -> str:
    """A hash of everything about a machine that a cost can depend on: not of titles, sources and grades."""

    def bare(value: Any) -> Any:
        return {k: bare(v) for k, v in value.items() if k not in ("title", "source", "grade")} if isinstance(
            value, dict
        ) else value  # fmt: skip

    text = json.dumps(bare(machine.model_dump(mode="json")), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def uniform_layer(model: GPTConfig, repeat: int = 1) -> LayerConfig:
    """All layers of a model without a schedule, as one entry of it."""
    return LayerConfig.model_construct(
        repeat=repeat, attention=model.attention, mlp=model.mlp, norm=model.norm, block=model.block
    )


@lru_cache(maxsize=1 << 14)
def layer_of(layer: LayerConfig, repeat: int = 1) -> LayerConfig:
    """An entry of a schedule that holds `repeat` such layers; equal ones are one object, and so quickly compared."""
    return layer.model_copy(update={"repeat": repeat})


def layers_of(model: GPTConfig) -> list[LayerConfig]:
    """One entry a layer."""
    entries = model.layers or [uniform_layer(model, model.n_layer)]
    return [one for entry in entries for one in [_single(entry)] * entry.repeat]


def _single(entry: LayerConfig) -> LayerConfig:
    return entry if entry.repeat == 1 else layer_of(entry)


def with_layers(model: GPTConfig, layers: list[LayerConfig]) -> GPTConfig:
    """The model with these layers, written as short as can be: equal neighbours as one entry, equal layers without."""
    runs = [(layer, len(list(same))) for layer, same in groupby(layers)]
    entries = [layer if repeat == 1 else layer_of(layer, repeat) for layer, repeat in runs]
    update: dict[str, Any] = {"n_layer": len(layers), "layers": entries}
    # The norm before the head is that of the model unless it has its own: it must not change with the layers' norm.
    if len(entries) == 1 and (model.norm_output is not None or layers[0].norm == model.norm):
        update |= {name: getattr(layers[0], name) for name in LAYER_FIELDS} | {"layers": []}
    return model.model_copy(update=update)


__all__ = ["Point", "identity_of", "layers_of", "machine_key", "uniform_layer", "with_layers"]
