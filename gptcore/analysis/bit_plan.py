"""From measured bits to a configuration that rounds so: a file with `base:` the run's own, ready for `gptcore train`.

Activations: `rounding` of attention and mlp, a width for each place, ranges of single tokens. Weights: the linear kind
that rounds channels, and `embedding.bits`. A place has the same width in all layers that the configuration says in one
breath (all of them, or an entry of `layers`): that of the layer which needs most, as one unit computes them all. Each
width was measured on its own; what they do together is for `loss_with` to say, or for training.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Config, GPTConfig, difference, flatten
from ..data import Batch
from ..files import write_atomically
from ..linear.linear import Dense
from ..model import GPT
from ..quantize import Method
from ..registry import KindConfig, impl, kinds, slot_of
from ..yamlfile import dump
from .measure import Measured, Source
from .ptq import mean_loss
from .rounding import matrices_of

PARTS = {"attn": "attention", "mlp": "mlp"}
# Matrix of an attention or mlp -> the field that says of what kind it is; where there is none, `linear` does.
LINEAR = {
    "attention": {"c_attn_q": "linear_q", "c_attn_k": "linear_k", "c_attn_v": "linear_v", "c_proj": "linear_proj"},
    "mlp": {"c_fc": "linear_up", "c_proj": "linear_down"},
}


@dataclass(frozen=True)
class BitPlan:
    """A model that rounds, and what it could not be told to round, with the reason."""

    model: GPTConfig
    left: list[str] = field(default_factory=list)


def plan_activations(model: GPTConfig, measured: Sequence[Measured], method: Method, target_db: float) -> BitPlan:
    """Bits for every place of `rounding` that has none yet."""
    left, layers = [], dict(_groups(model))
    own = any(m.own_bits is not None for m in measured)
    if own and model.rounding.range == "learned":
        return BitPlan(model, ["everything: the model's own places have learned steps, others would begin without"])
    for index, members in layers.items():
        for part, name in PARTS.items():
            config: Any = getattr(_at(model, index), name)
            places: Any = config.rounding if "rounding" in type(config).model_fields else None
            wanted: dict[str, list[int | None]] = {}
            for m in measured:
                prefix, _, point = m.place.label.partition(".")
                if m.place.layer in members and prefix == part and m.own_bits is None:
                    wanted.setdefault(point, []).append(m.statistics.bits_group(target_db))
            bits = {}
            for point, needed in wanted.items():
                if places is None or point not in type(places).model_fields:
                    left.append(f"{part}.{point}: {config.kind} has no place for it")
                elif None in needed:
                    left.append(f"{part}.{point}: more than 16 bits")
                else:
                    bits[point] = max(n for n in needed if n is not None)
            if bits:
                changed = config.model_copy(update={"rounding": places.model_copy(update=bits)})
                model = _with(model, index, name, changed)
    if not own:
        rounding = model.rounding.model_copy(update={"method": method, "range": "token"})
        model = model.model_copy(update={"rounding": rounding})
    return BitPlan(model, list(dict.fromkeys(left)))


def plan_weights(model: GPTConfig, measured: Sequence[Measured], target_db: float) -> BitPlan:
    """Bits for every matrix of an attention, an mlp and the token table that is not rounded yet."""
    before = matrices_of(model)
    needed = {str(m.place): m.statistics.bits_group(target_db) for m in measured}
    for index, members in _groups(model):
        for part, name in PARTS.items():
            config: Any = getattr(_at(model, index), name)
            bits: dict[str, list[int | None]] = {}
            for matrix in before:
                layer, _, rest = matrix.short.removeprefix("h.").partition(".")
                prefix, _, own = rest.partition(".")
                if matrix.short.startswith("h.") and int(layer) in members and prefix == part:
                    chosen = LINEAR[name].get(own, "linear")
                    chosen = chosen if chosen in type(config).model_fields else "linear"
                    bits.setdefault(chosen, []).append(needed[matrix.short])
            model = _with(model, index, name, _rounding_linear(config, bits))
    table = [needed[m.short] for m in before if m.part == "embedding" and m.own_bits is None]
    if table and None not in table and model.embedding.bits is None:
        embedding = model.embedding.model_copy(update={"bits": max(n for n in table if n is not None)})
        model = model.model_copy(update={"embedding": embedding})
    after = {m.name: m.own_bits for m in matrices_of(model)}
    left = [f"{m.short}: {_why(needed[m.short])}" for m in before if after.get(m.name) is None]
    return BitPlan(model, left)


def _why(bits: int | None) -> str:
    return "no setting rounds it" if bits is not None and bits <= _rounding_kind()[1] else f"{bits or 'over 16'} bits"


def _rounding_linear(config: Any, bits: dict[str, list[int | None]]) -> KindConfig:
    """The kind with its plain linear layers replaced by ones that round; those that cannot stay what they are."""
    kind, most = _rounding_kind()
    fields = {name for name, info in type(config).model_fields.items() if (s := slot_of(info)) and s.name == "linear"}
    if "linear" not in fields:
        return config
    # Said of each field, as what says nothing follows `linear`, which changes; separate projections stay joined.
    used = {name: getattr(config, name) or config.linear for name in fields & (bits.keys() | {"linear"})}
    update: dict[str, Any] = dict(used)
    for name, needed in bits.items():
        known = [n for n in needed if n is not None and n <= most]
        if len(known) == len(needed) and impl(used[name]) is Dense:
            update[name] = kind(bits=max(known), per="channel")
    return config.model_copy(update=update)


def _rounding_kind() -> tuple[Any, int]:
    """The linear kind with a width and a range for each channel, and its largest width."""
    for cls in kinds("linear").values():
        fields = cls.Config.model_fields
        if {"bits", "method", "per"} <= fields.keys():
            return cls.Config, next(rule.le for rule in fields["bits"].metadata if hasattr(rule, "le"))
    raise LookupError("no linear kind rounds its weights")


def _groups(model: GPTConfig) -> Iterator[tuple[int | None, range]]:
    """Entry of `layers`, or None for the model's own settings, and the layers that it is about."""
    if not model.layers:
        yield None, range(model.n_layer)
    first = 0
    for index, layer in enumerate(model.layers):
        yield index, range(first, first + layer.repeat)
        first += layer.repeat


def _at(model: GPTConfig, index: int | None) -> Any:
    return model if index is None else model.layers[index]


def _with(model: GPTConfig, index: int | None, name: str, config: KindConfig) -> GPTConfig:
    if index is None:
        return model.model_copy(update={name: config})
    layers = list(model.layers)
    layers[index] = layers[index].model_copy(update={name: config})
    return model.model_copy(update={"layers": layers})


def loss_with(source: Source, model: GPTConfig, batches: Sequence[Batch]) -> float:
    """Mean cross entropy in nats of the run's weights in `model`, without any training."""
    device = source.loaded.model.lm_head.weight.device
    rounded = GPT(model).to(device).eval()
    rounded.load_state_dict(source.loaded.model.state_dict())
    return mean_loss(rounded, batches, source.config.train.dtype)


def overlay(before: GPTConfig, after: GPTConfig) -> dict[str, Any]:
    """What a configuration file has to say to make the one out of the other; `layers` replace as a whole."""
    result: dict[str, Any] = {}
    changed = difference(before, after)
    for path, value in sorted(flatten(after).items(), key=lambda item: not item[0].endswith(".kind")):
        if path in changed and not path.startswith("layers."):
            *above, last = path.split(".")
            node = result
            for key in above:
                node = node.setdefault(key, {})
            node[last] = value
    if before.layers != after.layers:
        result["layers"] = after.model_dump(mode="json")["layers"]
    return result


def write_plan(path: Path, config: Config, plan: BitPlan, folder: Path, remarks: Sequence[str]) -> None:
    """Writes a configuration that `gptcore train` takes as it is, next to a run folder that holds config.yaml."""
    content: dict[str, Any] = {"base": os.path.relpath(folder / "config.yaml", path.parent)}
    own = plan.model.model_copy(update={"vocab_size": config.model.vocab_size})
    if changes := overlay(config.model, own):
        content["model"] = changes
    if config.train.out_dir is not None:
        content["train"] = {"out_dir": None}  # that of the run is taken
    lines = "".join(f"# {line}\n" for line in remarks)
    write_atomically(path, f"{lines}{dump(content)}".encode())
