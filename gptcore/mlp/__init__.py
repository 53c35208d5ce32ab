"""Slot `mlp`: the position-wise network of a block. A kind is built with (config, dims)."""

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from ..config import Dims, knob
from ..kernel_choice import Kernelled, Part, working_type
from ..linear.linear import Dense
from ..ops import Graph
from ..ops import Tensor as OpTensor
from ..quantize import Points, declare_point
from ..registry import KindConfig, Problem, Strict, build, impl, slot


class MLP(Kernelled, nn.Module):
    """Base of every kind: (B, T, C) -> (B, T, C). `residual` names the projection back to the residual stream."""

    part: Part = "mlp"
    residual: tuple[str, ...] = ()
    recompute = False  # whether a kernel keeps nothing but the input for the backward pass
    # What a kind adds to the training loss, set by `forward` in training mode and taken away by the model.
    auxiliary: Tensor | None = None

    def __init__(self, config: KindConfig, dims: Dims):
        super().__init__()
        self.config: Any = config

    def forward(self, x_BTC: Tensor) -> Tensor:
        raise NotImplementedError

    def kernel_obstacle(self, dropout: float = 0.0) -> str | None:
        return f"no kernel for mlp {self.config.kind}"

    @staticmethod
    def declare(config: KindConfig, g: Graph, x: OpTensor, dims: Dims) -> OpTensor:
        raise NotImplementedError


class MLPBits(Strict):
    """Bits at every place of an mlp where hardware would round; null: not rounded."""

    every: int | None = knob(None, "all places that say nothing", flat=("quantize_mlp_act_bits",), ge=2, le=16)
    input: int | None = knob(None, "what the mlp reads", flat=("quantize_mlp_act_input_bits",), ge=2, le=16)
    activation_input: int | None = knob(
        None, "what the activation reads", flat=("quantize_mlp_act_activation_input_bits",), ge=2, le=16
    )
    activation_output: int | None = knob(
        None, "what the activation writes", flat=("quantize_mlp_act_activation_output_bits",), ge=2, le=16
    )
    output: int | None = knob(None, "what the mlp writes", flat=("quantize_mlp_act_output_bits",), ge=2, le=16)


class DenseConfig(KindConfig):
    """Knobs of every mlp that projects up, applies an activation, and projects down."""

    expansion_factor: float = knob(4.0, "hidden width over model width", flat=("mlp_expansion_factor",), gt=0)
    hidden_size: int | None = knob(None, "hidden width itself, instead of the factor", flat=("mlp_size",), ge=1)
    activation: KindConfig = slot("activation", "gelu", flat=("activation_variant",))
    linear: KindConfig = slot("linear", "linear", flat=("linear_variant_mlp",))
    linear_up: KindConfig | None = slot("linear", None, flat=("linear_variant_mlp_up",))
    linear_down: KindConfig | None = slot("linear", None, flat=("linear_variant_mlp_down",))
    bias_up: bool | None = knob(None, "bias of the projection up; null: model.bias", flat=("mlp_up_bias",))
    bias_down: bool | None = knob(None, "bias of the projection down; null: model.bias", flat=("mlp_down_bias",))
    rounding: MLPBits = Field(default_factory=MLPBits)

    def width(self, n_embd: int) -> int:
        return self.hidden_size or max(1, round(self.expansion_factor * n_embd))

    def up(self) -> Any:
        return self.linear_up or self.linear

    def down(self) -> Any:
        return self.linear_down or self.linear

    def biases(self, dims: Dims) -> tuple[bool, bool]:
        """Whether there is one (up, down)."""
        up, down = self.bias_up, self.bias_down
        return dims.bias if up is None else up, dims.bias if down is None else down


class DenseMLP(MLP):
    """Base of the kinds with one projection up (`c_fc`), one activation, and one projection down (`c_proj`)."""

    residual: tuple[str, ...] = ("c_proj",)
    kind: str
    branches = 1  # hidden vectors that c_fc makes in one product
    Config: Any = DenseConfig

    @classmethod
    def check(cls, config, dims):
        narrowing = impl(config.activation).narrowing
        if cls.branches > 1 and narrowing > 1:
            yield Problem("activation", f"{config.activation.kind} is a gate itself, and cannot stand in {cls.kind}")
        elif config.width(dims.n_embd) % narrowing:
            yield Problem("hidden_size", f"{config.activation.kind} needs an even hidden width")

    def __init__(self, config, dims):
        super().__init__(config, dims)
        hidden, (bias_up, bias_down) = config.width(dims.n_embd), config.biases(dims)
        self.c_fc = build(config.up(), dims.n_embd, self.branches * hidden, bias=bias_up)
        self.activation = build(config.activation)
        self.c_proj = build(config.down(), hidden // self.activation.narrowing, dims.n_embd, bias=bias_down)
        self.points = Points(config.rounding, dims.rounding)

    def combine(self, h: Tensor) -> Tensor:
        """From the projection up to what is projected down."""
        return self.points("activation_output", self.activation(self.points("activation_input", h)))

    def kernel_obstacle(self, dropout=0.0):
        if type(self).combine not in (DenseMLP.combine, GatedMLP.combine):
            return super().kernel_obstacle(dropout)
        for linear in (self.c_fc, self.c_proj):
            if type(linear) is not Dense:
                return f"no kernel for an mlp of {linear.config.kind}"
        if self.activation.kernel_name() is None:
            return f"no kernel for an mlp with {self.activation.config.kind}"
        return "no kernel rounds inside of an mlp" if self.points.rounders else None

    def _by_kernel(self, x_BTC):
        from kernels.mlp import mlp

        dtype, name = working_type(x_BTC), self.activation.kernel_name()
        (w_up, b_up), (w_down, b_down) = (
            (linear.weight.to(dtype), None if linear.bias is None else linear.bias.to(dtype))
            for linear in (self.c_fc, self.c_proj)
        )
        return mlp(x_BTC.to(dtype), w_up, b_up, w_down, b_down, name, self.branches > 1, self.recompute)

    def forward(self, x_BTC):
        if self.runs_kernel(x_BTC):
            return self._by_kernel(x_BTC)
        points = self.points
        return points("output", self.c_proj(self.combine(self.c_fc(points("input", x_BTC)))))

    @staticmethod
    def declare_activation(config, g: Graph, h: OpTensor, dims: Dims) -> OpTensor:
        h = declare_point(config.rounding, dims.rounding, g, "activation_input", h)
        with g.at("activation", slot="activation", kind=config.activation.kind):
            h = impl(config.activation).declare(config.activation, g, h)
        return declare_point(config.rounding, dims.rounding, g, "activation_output", h)

    @classmethod
    def declare_combine(cls, config, g: Graph, h: OpTensor, dims: Dims) -> OpTensor:
        return cls.declare_activation(config, g, h, dims)

    @classmethod
    def declare(cls, config, g, x, dims):
        hidden, (bias_up, bias_down) = config.width(dims.n_embd), config.biases(dims)
        x = declare_point(config.rounding, dims.rounding, g, "input", x)
        with g.at("c_fc", slot="linear", kind=config.up().kind):
            h = impl(config.up()).declare(config.up(), g, x, cls.branches * hidden, bias=bias_up)
        h = cls.declare_combine(config, g, h, dims)
        with g.at("c_proj", slot="linear", kind=config.down().kind):
            y = impl(config.down()).declare(config.down(), g, h, dims.n_embd, bias=bias_down)
        return declare_point(config.rounding, dims.rounding, g, "output", y)


class GatedConfig(DenseConfig):
    """`expansion_factor` means the parameters of a plain mlp with that factor.

    The hidden width is 2/3 of it, rounded to a multiple of 8, so that swapping plain and gated compares like with like.
    """

    expansion_factor: float = knob(4.0, "of a plain mlp of equal size", flat=("mlp_expansion_factor",), gt=0)

    def width(self, n_embd: int) -> int:
        return self.hidden_size or max(8, round(self.expansion_factor * n_embd * 2 / 3 / 8) * 8)


class GatedMLP(DenseMLP):
    """Base of the gated kinds: W2 (activation(Wg x) * Wu x), gate and up in one product."""

    branches = 2
    Config: Any = GatedConfig

    def combine(self, h):
        gate, up = h.chunk(2, dim=-1)
        return super().combine(gate) * up

    @classmethod
    def declare_combine(cls, config, g, h, dims):
        hidden = config.width(dims.n_embd)
        gate, up = g.split(h, hidden, hidden)
        return g.pointwise("gate", cls.declare_activation(config, g, gate, dims), up, mul=1)
