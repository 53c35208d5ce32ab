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
    switch: dict[str, Any] | None = None, values: dict[str, str] | None = None, **constraint: Any,
):  # fmt: skip
    """A field with documentation. `cosmetic` fields change nothing about the result and stay out of the identity.

    A value `neutral` means the same as the default as far as the identity is concerned. `switch` maps boolean flat
    names to the value that they stand for when true. `values` maps words of the forks to ours, for its flat names.
    """
    extra: dict[str, Any] = {"cosmetic": True} if cosmetic else {}
    if neutral is not None:
        extra["neutral"] = neutral
    if flat is not None:
        extra["flat"] = list(flat)
    if switch is not None:
        extra["switch"] = dict(switch)
    if values is not None:
        extra["values"] = dict(values)
    return Field(default, description=help, json_schema_extra=extra, **constraint)


class BitsConfig(Strict):
    """Stored width of each tensor role in the deployed model, read by the cost model."""

    weight: int = knob(16, "bits per weight", flat=("weight_bits",), ge=1, le=64)
    activation: int = knob(16, "bits per activation", flat=("activation_bits",), ge=1, le=64)
    kv: int = knob(16, "bits per cached key and value", flat=("kv_bits",), ge=1, le=64)


QUANT_METHODS = {"symmetric_quant": "symmetric", "affine_quant": "affine"}


class RoundingConfig(Strict):
    """How activations are rounded wherever an attention or mlp kind gives a place bits."""

    method: Literal["symmetric", "affine"] = knob(
        "symmetric", "codes around zero, or between the extremes", flat=("activations_quant_method",),
        values=QUANT_METHODS,
    )  # fmt: skip
    range: Literal["token", "learned"] = knob("token", "largest value of each token, or a learned step (LSQ)", flat=())


class EmbeddingConfig(Strict):
    """The token table and the head."""

    width: int | None = knob(None, "width of the table, projected to n_embd; null: n_embd", flat=("n_embd_wte",), ge=1)
    scale: Literal["none", "sqrt", "learned"] = knob("none", "factor on embeddings: sqrt(n_embd), or learned", flat=())
    init: Literal["gaussian", "hypersphere"] = knob("gaussian", "rows normal, or random unit vectors", flat=())
    init_std: float = knob(
        0.02, "standard deviation of gaussian rows", flat=("embedding_gaussian_std", "embedding_std_init"), gt=0
    )
    bits: int | None = knob(None, "bits of the table; null: not rounded", flat=("quantize_wte_bits",), ge=2, le=16)


class ShareConfig(Strict):
    """Parameters that several layers have in common."""

    attention: int = knob(1, "consecutive layers with one attention", flat=("shared_attn_size",), ge=1)
    attention_symmetric: bool = knob(False, "first and last layers share, and so on inwards", flat=("shared_attn_sym",))
    mlp: int = knob(1, "consecutive layers with one mlp", flat=("shared_mlp_size",), ge=1)
    mlp_symmetric: bool = knob(False, "first and last layers share, and so on inwards", flat=("shared_mlp_sym",))

    def owner(self, part: Literal["attention", "mlp"], layer: int, n_layer: int) -> int:
        """The first layer that has the parameters of this one."""
        if getattr(self, part + "_symmetric"):
            layer = min(layer, n_layer - 1 - layer)
        return layer - layer % getattr(self, part)


class LayerConfig(Strict):
    """One or more (`repeat`) equal layers. In a file only the differences from the model's own settings are written."""

    repeat: int = knob(1, "how many consecutive layers", flat=(), ge=1)
    attention: KindConfig = slot("attention", "causal")
    mlp: KindConfig = slot("mlp", "mlp")
    norm: KindConfig = slot("norm", "layernorm")
    block: KindConfig = slot("block", "sequential")


LAYER_FIELDS = ("attention", "mlp", "norm", "block")


@dataclass(frozen=True)
class Heads:
    """What position kinds see of an attention: query heads, and the width of what is rotated."""

    count: int
    width: int


@dataclass(frozen=True)
class Dims:
    """What a block needs to know about the model around it."""

    n_embd: int
    n_layer: int
    block_size: int
    bias: bool
    dropout: float
    rounding: RoundingConfig = RoundingConfig.model_construct()
    layer: int = 0


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
    norm_embedding: KindConfig | None = slot("norm", None, flat=("norm_variant_wte",))
    softmax_output: KindConfig | None = slot("softmax", None, flat=("softmax_variant_output",))
    embedding: EmbeddingConfig = Field(default_factory=EmbeddingConfig)
    share: ShareConfig = Field(default_factory=ShareConfig)
    rounding: RoundingConfig = Field(default_factory=RoundingConfig)
    layers: list[LayerConfig] = knob([], "schedule of layers that differ; repeats add up to n_layer", flat=())
    bits: BitsConfig = Field(default_factory=BitsConfig)

    def dims(self) -> Dims:
        return Dims(self.n_embd, self.n_layer, self.block_size, self.bias, self.dropout, self.rounding)

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
        if self.rounding.method == "affine" and self.rounding.range == "learned":
            yield ("rounding", "method"), "a learned range is symmetric; affine takes range: token"
        if self.softmax_output is not None and not impl(self.softmax_output).as_output:
            kind = self.softmax_output.kind  # type: ignore[attr-defined]
            yield ("softmax_output", "kind"), f"{kind} can give a token no weight at all, so it is no distribution"
        if total == self.n_layer or not self.layers:
            yield from _sharing_problems(self)
        yield from _position_problems(self)


def _sharing_problems(model: GPTConfig) -> Iterator[tuple[tuple, str]]:
    layers = model.layer_configs()
    parts: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")
    for part in parts:
        for i, layer in enumerate(layers):
            owner = model.share.owner(part, i, model.n_layer)
            if getattr(layer, part) != getattr(layers[owner], part):
                yield ("share", part), f"layers {owner} and {i} share their {part}, but are configured differently"
                break


def _position_problems(model: GPTConfig) -> Iterator[tuple[tuple, str]]:
    dims, position = model.dims(), impl(model.position)
    attentions = [layer.attention for layer in model.layer_configs()]
    heads = [impl(attention).heads(attention, dims) for attention in attentions]
    seen = set()
    for head in heads:
        for problem in position.check_heads(model.position, head) if head and head not in seen else ():
            yield ("position", *problem.field.split(".")), problem.message
        seen.add(head)
    acts_on = position.acts_on(model.position)
    kind = model.position.kind  # type: ignore[attr-defined]
    if "rotation" in acts_on and not any(heads):
        yield ("position", "kind"), f"{kind} turns queries and keys, but no layer has any"
    if "bias" in acts_on and not all(impl(a).takes_bias or h is None for a, h in zip(attentions, heads, strict=True)):
        yield ("position", "kind"), f"{kind} adds to attention scores, and an attention kind of this model has none"
    if "bias" in acts_on and not any(heads):
        yield ("position", "kind"), f"{kind} adds to attention scores, but no layer has any"


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


Kernel = Literal["auto", "triton", "reference"]


class KernelsConfig(Strict):
    """What computes single parts of the model; null: train.kernel."""

    attention: Kernel | None = knob(None, "scores, weights and weighted values", flat=())
    mlp: Kernel | None = knob(None, "the whole mlp", flat=())
    norm: Kernel | None = knob(None, "norms, with the residual sum before them", flat=())
    position: Kernel | None = knob(None, "rotation of queries and keys", flat=())
    rounding: Kernel | None = knob(None, "rounding of activations and weights, activations in integers", flat=())
    loss: Kernel | None = knob(None, "head and cross entropy, without the logits of all tokens", flat=())
    recompute_mlp: bool = knob(False, "the mlp's kernel keeps its input alone for the backward pass", flat=())


class TrainConfig(Strict):
    """One training run."""

    init_from: str = knob(
        "scratch", "scratch, resume, gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder of weights", neutral="resume"
    )
    seed: int = knob(1337, "seed of weights, data order and dropout", ge=0)
    batch_size: int = knob(12, "sequences per micro-batch", ge=1)
    gradient_accumulation_steps: int = knob(1, "micro-batches per step, over all processes", ge=1)
    max_iters: int = knob(2000, "optimizer steps", ge=0)
    optimizer: Literal["adamw", "muon", "lion", "adafactor"] = knob(
        "adamw",
        "muon: matrices of the blocks, AdamW the rest; rates of adafactor are relative to a parameter (0.03)",
    )
    learning_rate: float = knob(1e-3, "peak learning rate", gt=0)
    muon_learning_rate: float = knob(0.02, "peak rate of Muon's matrices; follows the same schedule", gt=0)
    schedule: Literal["cosine", "linear", "wsd", "constant"] = knob(
        "cosine", "learning rate after the warm-up; wsd: constant, then a decay at the end"
    )
    warmup_iters: int = knob(100, "steps of linear warm-up", ge=0)
    lr_decay_iters: int | None = knob(None, "step at which the schedule reaches min_lr; null: max_iters", ge=1)
    min_lr: float | None = knob(None, "learning rate at the end of the schedule; null: a tenth of the peak", ge=0)
    wsd_decay_fraction: float = knob(0.2, "part of all steps in which wsd decays", gt=0, le=1)
    wsd_decay_shape: Literal["linear", "cosine", "sqrt"] = knob("linear", "decay of wsd; sqrt: 1 - sqrt(progress)")
    weight_decay: float = knob(
        0.1, "decay of matrices; vectors are never decayed", flat=("weight_decay", "adamw_weight_decay"), ge=0
    )
    beta1: float = knob(0.9, "first moment of AdamW and Lion", ge=0, lt=1)
    beta2: float = knob(0.99, "second moment of AdamW, momentum of Lion", ge=0, lt=1)
    grad_clip: float = knob(1.0, "largest gradient norm; 0 turns clipping off", ge=0)
    label_smoothing: float = knob(0.0, "share of the target that is spread over all tokens", ge=0, lt=1)
    focal_gamma: float = knob(0.0, "weights each token's loss by (1 - p)^gamma; 0: off", ge=0)
    z_loss: float = knob(0.0, "weight of the squared log of the softmax's denominator; 0: off", ge=0)
    distill_from: str | None = knob(
        None, "run folder of a teacher; null: none", flat=("distill_from", "distillation_teacher_ckpt")
    )
    distill_weight: float = knob(0.5, "w of (1 - w) loss + w T^2 KL(teacher || student)", ge=0, le=1)
    distill_temperature: float = knob(
        2.0, "T: both distributions are softened by it", flat=("distill_temperature", "distillation_temperature"), gt=0
    )
    quant_scheduler: Literal["static", "linear"] = knob(
        "static", "rounding while training: full, or growing; it is full in every evaluation"
    )
    start_quant_level: float = knob(0.0, "strength of rounding at step 0 (linear)", ge=0, le=1)
    full_quant_iteration: int | None = knob(None, "step at which rounding is full (linear); null: max_iters", ge=1)
    import_wte_npy: str | None = knob(None, "token table to start with: a .npy file of (vocab_size, width)")
    import_wte_freeze: bool = knob(False, "leave the imported token table as it is")
    dtype: Literal["float32", "bfloat16", "float16"] = knob("float32", "arithmetic of the forward pass (autocast)")
    eval_interval: int = knob(250, "steps between evaluations and checkpoints", ge=1)
    eval_iters: int = knob(100, "validation batches, the same at each evaluation", ge=1)
    patience: int = knob(0, "stop after this many evaluations without a better loss; 0: never", ge=0)
    diverge_factor: float = knob(3.0, "stop when the loss exceeds this many times that of a uniform guess", gt=1)
    max_seconds: float | None = knob(None, "stop after this much training time", gt=0)
    max_tokens: int | None = knob(None, "stop after this many tokens", gt=0)
    pause_at: int | None = knob(
        None, "end after this step, to go on when asked again without it; null: do not", cosmetic=True, ge=1
    )
    out_dir: str | None = knob(None, "run folder; null: out/<name>-<identity>", cosmetic=True)
    device: str = knob("auto", "cpu, cuda, cuda:N, or auto", cosmetic=True)
    compile: bool = knob(False, "torch.compile the model", cosmetic=True)
    kernel: Kernel = knob(
        "auto", "Triton kernels (auto: on a GPU, where one computes the variant) or plain torch", cosmetic=True
    )
    kernels: KernelsConfig = Field(default_factory=KernelsConfig, json_schema_extra={"cosmetic": True})
    parallel: Literal["ddp", "fsdp"] = knob("ddp", "how several processes share the work (torchrun)", cosmetic=True)
    export_wte_npy: str | None = knob(None, "write the token table there with each checkpoint", cosmetic=True)
    log_interval: int = knob(10, "steps between rows of metrics.csv", ge=1, cosmetic=True)
    tensorboard: bool = knob(
        False, "also write TensorBoard events", flat=("tensorboard", "tensorboard_log"), cosmetic=True
    )
    sample_start: str = knob(
        "\n", "prompt of the samples printed at checkpoints", flat=("sample_start", "sample_start_tokens"),
        cosmetic=True,
    )  # fmt: skip
    sample_tokens: int = knob(
        0, "tokens sampled at each checkpoint; 0: none", flat=("sample_tokens", "max_sample_tokens"), ge=0,
        cosmetic=True,
    )  # fmt: skip

    def kernel_of(self, part: str) -> Kernel:
        """What computes a part of the model."""
        return getattr(self.kernels, part) or self.kernel

    @property
    def decay_end(self) -> int:
        """The step at which the learning rate is at its lowest."""
        return self.lr_decay_iters or self.max_iters

    @property
    def decay_start(self) -> int:
        """The step at which the decay of wsd begins."""
        return self.decay_end - max(1, round(self.wsd_decay_fraction * self.decay_end))

    def problems(self) -> Iterator[tuple[tuple, str]]:
        """(path below `train`, message) of values that contradict each other or would have no effect."""
        if self.min_lr is not None and self.min_lr > self.learning_rate:
            yield ("min_lr",), f"min_lr {self.min_lr} exceeds learning_rate {self.learning_rate}"
        if self.schedule == "wsd" and self.decay_start < self.warmup_iters:
            yield (
                ("wsd_decay_fraction",),
                f"the decay would begin at step {self.decay_start}, before the warm-up ends at {self.warmup_iters}",
            )
        applies = {
            "optimizer: muon": (self.optimizer == "muon", ("muon_learning_rate",)),
            "schedule: wsd": (self.schedule == "wsd", ("wsd_decay_fraction", "wsd_decay_shape")),
            "distill_from": (self.distill_from is not None, ("distill_weight", "distill_temperature")),
            "quant_scheduler: linear": (
                self.quant_scheduler == "linear", ("start_quant_level", "full_quant_iteration"),
            ),
            "import_wte_npy": (self.import_wte_npy is not None, ("import_wte_freeze",)),
        }  # fmt: skip
        for needed, (given, names) in applies.items():
            for name in names:
                if not given and getattr(self, name) != type(self).model_fields[name].default:
                    yield (name,), f"has no effect without {needed}"


class Config(Strict):
    """Everything about one experiment."""

    model: GPTConfig = Field(default_factory=GPTConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    hardware: str | None = knob(None, "hardware description for the cost report", cosmetic=True)

    def problems(self) -> Iterator[tuple[tuple, str]]:
        for path, message in self.model.problems():
            yield ("model", *path), message
        for path, message in self.train.problems():
            yield ("train", *path), message

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
    "BitsConfig", "Config", "DataConfig", "Dims", "EmbeddingConfig", "GPTConfig", "Heads", "LayerConfig",
    "RoundingConfig", "ShareConfig", "TrainConfig",
    "canonical", "difference", "flatten", "identity", "knob",
]  # fmt: skip
