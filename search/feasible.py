"""Impossible combinations of values, found without looking at every layer of every candidate again.

Layers of a model go together as long as each goes with the rest of it: a combination is impossible for one layer (its
heads and the width), or for what all layers have in common. So a model is sound when, for each of its distinct layers,
the model of nothing but such layers is; and that is remembered. Models that share parameters between layers, where
layers must fit each other, and all that are not sound this way are left to `Config.problems`, which has the words.
"""

from collections.abc import Iterable
from typing import Any

from gptcore.config import LAYER_FIELDS, Config, GPTConfig, LayerConfig, ShareConfig
from gptcore.registry import Strict
from ppa.alike import Numbers
from ppa.estimate import uniform_layer

from .point import parts_of

REMEMBERED = 1 << 15
_REST = tuple(name for name in GPTConfig.model_fields if name not in (*LAYER_FIELDS, "layers"))
_NOT_SHARED = ShareConfig()
_number = Numbers(REMEMBERED)
_sound: dict[Any, bool] = {}


def problems(config: Config) -> Iterable[tuple[tuple, str]]:
    """As `Config.problems`: (path, message) of every impossible combination."""
    model = config.model
    layers = model.layers or [uniform_layer(model, model.n_layer)]
    if model.share == _NOT_SHARED and sum(layer.repeat for layer in layers) == model.n_layer:
        rest = tuple([_number(v) if isinstance(v := getattr(model, name), Strict) else v for name in _REST])
        if all([_is_sound(config, rest, layer) for layer in layers]):
            return ()
    return config.problems()


def _is_sound(config: Config, rest: tuple, layer: LayerConfig) -> bool:
    key = _number(config.train), rest, parts_of(layer)
    known = _sound.get(key)
    if known is None:
        if len(_sound) >= REMEMBERED:
            _sound.clear()
        own = {name: getattr(layer, name) for name in LAYER_FIELDS}
        uniform = config.model_copy(update={"model": config.model.model_copy(update={**own, "layers": []})})
        known = _sound[key] = next(iter(uniform.problems()), None) is None
    return known
