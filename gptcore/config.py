"""The typed configuration: every section, its defaults, its constraints, and its identity.

`gptcore.loader.load` reads files and command lines into a `Config`; this file knows nothing of files. Flat names of
nanoGPT and its forks live with the field they name (`flat=`); a field is its own flat name unless `flat=()` says so.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from .registry import KindConfig, Problem, Strict, impl, slot


def knob(
    default: Any, help: str, *, flat: tuple[str, ...] | None = None, cosmetic: bool = False, neutral: Any = None,
    **constraint: Any,
):  # fmt: skip
    """A field with documentation. `cosmetic` fields change nothing about the result and stay out of the identity.

    A value `neutral` means the same as the default as far as the identity is concerned.
    """
    extra: dict[str, Any] = {"cosmetic": True} if cosmetic else {}
    if neutral is not None:
        extra["neutral"] = neutral
    if flat is not None:
        extra["flat"] = list(flat)
    return Field(default, description=help, json_schema_extra=extra, **constraint)


class BitsConfig(Strict):
    """Stored width of each tensor role in the deployed model, read by the cost model."""

    weight: int = knob(16, "bits per weight", flat=("weight_bits",), ge=1, le=64)
    activation: int = knob(16, "bits per activation", flat=("activation_bits",), ge=1, le=64)
    kv: int = knob(16, "bits per cached key and value", flat=("kv_bits",), ge=1, le=64)


class LayerConfig(Strict):
    """One or more (`repeat`) equal layers. In a file only the differences from the model's own settings are written."""

    repeat: int = knob(1, "how many consecutive layers", flat=(), ge=1)
    attention: KindConfig = slot("attention", "causal")
    mlp: KindConfig = slot("mlp", "mlp")
    norm: KindConfig = slot("norm", "layernorm")
    block: KindConfig = slot("block", "sequential")


LAYER_FIELDS = ("attention", "mlp", "norm", "block")


@dataclass(frozen=True)
class Dims:
    """What a block needs to know about the model around it."""

    n_embd: int
    n_layer: int
    block_size: int
    bias: bool
    dropout: float


class GPTConfig(Strict):
    """The model. `attention`, `mlp`, `norm` and `block` hold for every layer unless `layers` says otherwise."""

    n_layer: int = knob(6, "number of layers", ge=1)
    n_embd: int = knob(384, "width of the residual stream", ge=1)
    block_size: int = knob(256, "longest context in tokens", ge=1)
    vocab_size: int | None = knob(None, "number of tokens; null: taken from the data set", ge=1)
    dropout: float = knob(0.0, "dropout probability on embeddings, attention weights and residual branches", ge=0, lt=1)
    bias: bool = knob(True, "biases in linear layers and layer norms")
    tie_embeddings: bool = knob(
        True, "share input embedding and output head", flat=("tie_embeddings", "wte_weight_tying")
    )
    attention: KindConfig = slot("attention", "causal", flat=("attention_variant",))
    mlp: KindConfig = slot("mlp", "mlp", flat=("mlp_variant",))
    norm: KindConfig = slot("norm", "layernorm", flat=("norm_variant_attn",))
    norm_output: KindConfig | None = slot("norm", None, flat=("norm_variant_output",))
    block: KindConfig = slot("block", "sequential", flat=("block_variant",))
    position: KindConfig = slot("position", "learned", flat=("position_variant",))
    layers: list[LayerConfig] = knob([], "schedule of layers that differ; repeats add up to n_layer", flat=())
    bits: BitsConfig = Field(default_factory=BitsConfig)

    def dims(self) -> Dims:
        return Dims(self.n_embd, self.n_layer, self.block_size, self.bias, self.dropout)

    def output_norm(self) -> KindConfig:
        """The norm before the head: `norm_output`, or the same as in the layers."""
        return self.norm_output or self.norm

    def layer_configs(self) -> list[LayerConfig]:
        """One configuration a layer, the schedule expanded."""
        if not self.layers:
            same = LayerConfig(**{name: getattr(self, name) for name in LAYER_FIELDS})
            return [same] * self.n_layer
        return [layer.model_copy(update={"repeat": 1}) for layer in self.layers for _ in range(layer.repeat)]

    def problems(self) -> Iterator[tuple[tuple, str]]:
        """(path below `model`, message) of every impossible combination of values that are valid one by one."""
        total = sum(layer.repeat for layer in self.layers)
        if self.layers and total != self.n_layer:
            yield ("layers",), f"repeats add up to {total} layers but n_layer is {self.n_layer}"
        dims = self.dims()
        if not self.layers:
            yield from _problems(self, dims, (), skip=())
        else:
            for i, layer in enumerate(self.layers):
                yield from _problems(layer, dims, ("layers", i), skip=())
            yield from _problems(self, dims, (), skip=LAYER_FIELDS)
        yield from _position_problems(self)


def _position_problems(model: GPTConfig) -> Iterator[tuple[tuple, str]]:
    widths = {impl(layer.attention).head_width(layer.attention, model.dims()) for layer in model.layer_configs()}
    for width in sorted(w for w in widths if w):
        for problem in impl(model.position).check_layer(model.position, width):
            yield ("position", problem.field), problem.message


def _problems(config: Strict, dims: Dims, path: tuple, skip: tuple[str, ...]) -> Iterator[tuple[tuple, str]]:
    check = getattr(impl(config), "check", None) if isinstance(config, KindConfig) else None
    if check:
        problem: Problem
        for problem in check(config, dims):
            yield (*path, problem.field), problem.message
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name not in skip and isinstance(value, KindConfig):
            yield from _problems(value, dims, (*path, name), skip=())


class DataConfig(Strict):
    """The text to train on."""

    dataset: str = knob("shakespeare_char", "folder below data/, or a path to a prepared folder")


class TrainConfig(Strict):
    """One training run."""

    init_from: str = knob(
        "scratch", "scratch, resume, gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder of weights", neutral="resume"
    )
    seed: int = knob(1337, "seed of weights, data order and dropout", ge=0)
    batch_size: int = knob(12, "sequences per micro-batch", ge=1)
    gradient_accumulation_steps: int = knob(1, "micro-batches per step, over all processes", ge=1)
    max_iters: int = knob(2000, "optimizer steps", ge=0)
    learning_rate: float = knob(1e-3, "peak learning rate", gt=0)
    schedule: Literal["cosine", "constant"] = knob("cosine", "learning rate after the warm-up")
    warmup_iters: int = knob(100, "steps of linear warm-up", ge=0)
    lr_decay_iters: int | None = knob(None, "step at which the cosine reaches min_lr; null: max_iters", ge=1)
    min_lr: float | None = knob(None, "learning rate at the end of the cosine; null: a tenth of the peak", ge=0)
    weight_decay: float = knob(0.1, "AdamW decay of matrices; vectors are never decayed", ge=0)
    beta1: float = knob(0.9, "AdamW first moment", ge=0, lt=1)
    beta2: float = knob(0.99, "AdamW second moment", ge=0, lt=1)
    grad_clip: float = knob(1.0, "largest gradient norm; 0 turns clipping off", ge=0)
    dtype: Literal["float32", "bfloat16", "float16"] = knob("float32", "arithmetic of the forward pass (autocast)")
    eval_interval: int = knob(250, "steps between evaluations and checkpoints", ge=1)
    eval_iters: int = knob(100, "validation batches, the same at each evaluation", ge=1)
    patience: int = knob(0, "stop after this many evaluations without a better loss; 0: never", ge=0)
    diverge_factor: float = knob(3.0, "stop when the loss exceeds this many times that of a uniform guess", gt=1)
    max_seconds: float | None = knob(None, "stop after this much training time", gt=0)
    max_tokens: int | None = knob(None, "stop after this many tokens", gt=0)
    out_dir: str | None = knob(None, "run folder; null: out/<name>-<identity>", cosmetic=True)
    device: str = knob("auto", "cpu, cuda, cuda:N, or auto", cosmetic=True)
    compile: bool = knob(False, "torch.compile the model", cosmetic=True)
    parallel: Literal["ddp", "fsdp"] = knob("ddp", "how several processes share the work (torchrun)", cosmetic=True)
    log_interval: int = knob(10, "steps between rows of metrics.csv", ge=1, cosmetic=True)
    tensorboard: bool = knob(False, "also write TensorBoard events", cosmetic=True)
    sample_start: str = knob("\n", "prompt of the samples printed at checkpoints", cosmetic=True)
    sample_tokens: int = knob(0, "tokens sampled at each checkpoint; 0: none", ge=0, cosmetic=True)


class Config(Strict):
    """Everything about one experiment."""

    model: GPTConfig = Field(default_factory=GPTConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    hardware: str | None = knob(None, "hardware description for the cost report", cosmetic=True)

    def problems(self) -> Iterator[tuple[tuple, str]]:
        for path, message in self.model.problems():
            yield ("model", *path), message
        if self.train.min_lr is not None and self.train.min_lr > self.train.learning_rate:
            yield ("train", "min_lr"), f"min_lr {self.train.min_lr} exceeds learning_rate {self.train.learning_rate}"

    def with_vocab(self, vocab_size: int) -> "Config":
        """A copy whose vocabulary size is known; a size already stated (a padded vocabulary) is kept."""
        if self.model.vocab_size is not None:
            return self
        return self.model_copy(update={"model": self.model.model_copy(update={"vocab_size": vocab_size})})


def canonical(config: Strict) -> dict[str, Any]:
    """Only what differs from a default and matters to the result, the layer schedule expanded.

    Leaving out defaults keeps an identity stable when a later version adds a field; so defaults never change.
    """
    fields: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        extra: Any = info.json_schema_extra or {}
        if extra.get("cosmetic") or name == "layers" or value == extra.get("neutral", ...):
            continue
        if isinstance(value, Strict) and not isinstance(value, KindConfig):
            if section := canonical(value):
                fields[name] = section
        elif name == "kind" or value != info.get_default(call_default_factory=True):  # type: ignore[call-arg]
            fields[name] = canonical(value) if isinstance(value, Strict) else value
    if isinstance(config, GPTConfig):
        # What the settings of all layers come to; `norm` lives on in the norm before the head.
        layers = [canonical(layer) for layer in config.layer_configs()]
        fields = {name: value for name, value in fields.items() if name not in LAYER_FIELDS}
        fields |= {"layers": layers, "norm_output": canonical(config.output_norm())}
    return fields


def identity(config: Strict) -> str:
    """SHA-256 of the canonical JSON, equal for two ways of writing the same experiment.

    Order, names, base files, defaults spelled out and layer schedules make no difference. A null that stands for a
    derived value (min_lr, n_kv_head, ...) and that value spelled out do.
    """
    text = json.dumps(canonical(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(value: Any, path: tuple = ()) -> dict[str, Any]:
    """Dotted path -> leaf value of a configuration or its dump; lists by index."""
    if isinstance(value, Strict):
        value = value.model_dump(mode="json")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items and value not in ({}, []):
        return {".".join(map(str, path)): value}
    return {k: v for key, child in items for k, v in flatten(child, (*path, key)).items()}


def difference(old: Strict, new: Strict) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old, new) of every leaf that differs; `None` where one side has no such field."""
    a, b = flatten(old), flatten(new)
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


__all__ = [
    "BitsConfig", "Config", "DataConfig", "Dims", "GPTConfig", "LayerConfig", "TrainConfig",
    "canonical", "difference", "flatten", "identity", "knob",
]  # fmt: skip
