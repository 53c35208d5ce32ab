"""Configurations for the contract tests: one for each registered kind, and random ones over everything registered."""

import random
import types
import typing

from pydantic import ValidationError

from gptcore.config import Config, GPTConfig, LayerConfig, TrainConfig
from gptcore.registry import SLOTS, Strict, kinds, slot_of

SMALL = {"n_layer": 2, "n_embd": 32, "block_size": 16, "vocab_size": 29, "attention": {"n_head": 4}}


def kind_ids() -> list[tuple[str, str]]:
    """(slot, kind) of everything registered."""
    return [(slot, kind) for slot in SLOTS for kind in kinds(slot)]


def config_for(slot: str, kind: str) -> GPTConfig:
    """A small model in which every place for this slot that takes this kind holds it, everything else as by default."""
    values = dict(SMALL)
    for name, info in GPTConfig.model_fields.items():
        found = slot_of(info)
        if found and found.name == slot and kind in found.choices():
            values[name] = {**(values.get(name, {}) if kind == "causal" else {}), "kind": kind}
    for parent in ("attention", "mlp", "block"):
        for name, info in kinds(parent)[_kind(values, parent)].Config.model_fields.items():
            found = slot_of(info)
            if found and found.name == slot and kind in found.choices():
                values[parent] = {**values.get(parent, {}), name: {"kind": kind}}
    refused = {path[0] for path, _ in GPTConfig.model_validate(values).problems()}
    return GPTConfig.model_validate({name: value for name, value in values.items() if name not in refused})


def _kind(values: dict, field: str) -> str:
    return values.get(field, {}).get("kind", slot_of(GPTConfig.model_fields[field]).default)


# Sizes that keep a model small; any other number is drawn around its default.
SIZES = {
    "n_layer": [1, 2], "n_embd": [24, 32, 48], "block_size": [12, 16], "vocab_size": [29], "n_head": [1, 2, 3, 4],
    "n_kv_head": [None, 1, 2, 3], "window": [None, 1, 3, 7, 40], "repeat": [1], "hidden_size": [None, 20],
    "dropout": [0.0, 0.1], "layers": [[]], "initial_gamma": [100.0, 3.0], "n_qk_head_dim": [8, 12],
    "n_v_head_dim": [8, 10], "n_cproj": [1, 2], "depth_power": [0.0, 0.5], "width": [None, 20], "init_std": [0.02],
    # Rounded places have tests of their own: a value on the edge of two codes may fall to either side in another pass.
    **dict.fromkeys(("input", "q", "k", "scores", "weights", "v", "heads", "output"), [None]),
    "activation_input": [None], "activation_output": [None], "every": [None, None, None],
    "activation_bits": [None], "quantize": ["none"],
    "kv_latent": [None, 9], "q_latent": [None, 10], "nope_width": [None, 5], "rope_width": [None, 2, 4],
    "chunk": [4, 5, 64],  # several in a sequence, the last one whole or in part
    "threshold": [0.001, 0.01],  # a dead zone wider than what a fresh model computes leaves nothing to test
    "attention_symmetric": [False, True], "mlp_symmetric": [False, True],
}  # fmt: skip


def _draw(rng: random.Random, cls: type[Strict]) -> dict:
    values = {}
    for name, info in cls.model_fields.items():
        slot = slot_of(info)
        default = info.get_default(call_default_factory=True)
        if name == "kind":
            values[name] = default
        elif name in SIZES and (None not in SIZES[name] or type(None) in typing.get_args(info.annotation)):
            values[name] = rng.choice(SIZES[name])
        elif slot:
            if slot.default is None and rng.random() < 0.7:  # an optional slot is mostly empty
                continue
            choices = slot.choices()
            values[name] = _draw(rng, choices[rng.choice(sorted(choices))].Config)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, Strict):
            values[name] = _draw(rng, info.annotation)
        else:
            values[name] = rng.choice(_candidates(info, default))
    return values


def _candidates(info, default) -> list:
    annotation, options = info.annotation, typing.get_args(info.annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return list(options)
    if annotation is bool:
        return [True, False]
    bounds = [getattr(m, name, 1) for m in info.metadata for name in ("ge", "multiple_of")]
    least = max([1, *bounds])
    if isinstance(annotation, types.UnionType) and type(None) in options:
        choices = next((typing.get_args(o) for o in options if typing.get_origin(o) is typing.Literal), None)
        some = default or (least if int in options else 1.5)
        return [None, *(choices or ([True, False] if bool in options else [some]))]
    if isinstance(default, int):
        return [default, max(least, default // 2)]
    return [default, default * 1.5] if isinstance(default, float) else [default]


def random_models(count: int, seed: int) -> list[GPTConfig]:
    """Valid random models, every second one with a schedule of two different layers."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        values = _draw(rng, GPTConfig)
        if len(found) % 2 and values["n_layer"] > 1:
            layers = [_draw(rng, LayerConfig), _draw(rng, LayerConfig)]
            layers[1]["repeat"] = values["n_layer"] - 1
            values["layers"] = layers
        try:
            model = GPTConfig.model_validate(values)
        except ValidationError:
            continue
        if not list(model.problems()):
            found.append(model)
    return found


def random_config(model: GPTConfig, seed: int) -> Config:
    rng = random.Random(seed)
    train = TrainConfig(
        seed=rng.randrange(10),
        learning_rate=rng.choice([1e-3, 3e-4, 5e-5]),
        schedule=rng.choice(["cosine", "constant"]),
        max_iters=rng.choice([7, 9]),
    )
    return Config(model=model, train=train)
