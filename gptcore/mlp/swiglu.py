"""Gated perceptron (GLU variants, arXiv 2002.05202)."""

from ..config import knob
from ..registry import KindConfig, build, impl, register, slot
from . import MLP


@register("mlp", "swiglu")
class SwiGLU(MLP):
    """W2 (activation(Wg x) * Wu x).

    `expansion_factor` means the parameters of a plain mlp with that factor: the hidden width is 2/3 of it, rounded to
    a multiple of 8, so that swapping mlp and swiglu compares like with like.
    """

    residual = ("c_proj",)

    class Config(KindConfig):
        expansion_factor: float = knob(4.0, "of a plain mlp of equal size", flat=("mlp_expansion_factor",), gt=0)
        hidden_size: int | None = knob(None, "hidden width itself, instead of the factor", flat=("mlp_size",), ge=1)
        activation: KindConfig = slot("activation", "silu", flat=("activation_variant",))
        linear: KindConfig = slot("linear", "linear", flat=("linear_variant_mlp",))

        def width(self, n_embd: int) -> int:
            return self.hidden_size or max(8, round(self.expansion_factor * n_embd * 2 / 3 / 8) * 8)

    def __init__(self, config, dims):
        super().__init__(config, dims)
        hidden = config.width(dims.n_embd)
        self.c_fc = build(config.linear, dims.n_embd, 2 * hidden, bias=dims.bias)  # gate and up in one product
        self.activation = build(config.activation)
        self.c_proj = build(config.linear, hidden, dims.n_embd, bias=dims.bias)

    def forward(self, x_BTC):
        gate, up = self.c_fc(x_BTC).chunk(2, dim=-1)
        return self.c_proj(self.activation(gate) * up)

    @staticmethod
    def declare(config, g, x, dims):
        hidden, linear = config.width(dims.n_embd), impl(config.linear)
        with g.at("c_fc", slot="linear", kind=config.linear.kind):
            both = linear.declare(config.linear, g, x, 2 * hidden, bias=dims.bias)
        gate, up = g.split(both, hidden, hidden)
        with g.at("activation", slot="activation", kind=config.activation.kind):
            gate = impl(config.activation).declare(config.activation, g, gate)
        h = g.pointwise("gate", gate, up, mul=1)
        with g.at("c_proj", slot="linear", kind=config.linear.kind):
            return linear.declare(config.linear, g, h, dims.n_embd, bias=dims.bias)
