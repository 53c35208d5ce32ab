"""The two-layer perceptron of GPT-2."""

from ..config import knob
from ..registry import KindConfig, build, impl, register, slot
from . import MLP


@register("mlp", "mlp")
class TwoLayer(MLP):
    """W2 activation(W1 x)."""

    residual = ("c_proj",)

    class Config(KindConfig):
        expansion_factor: float = knob(4.0, "hidden width over model width", flat=("mlp_expansion_factor",), gt=0)
        hidden_size: int | None = knob(None, "hidden width itself, instead of the factor", flat=("mlp_size",), ge=1)
        activation: KindConfig = slot("activation", "gelu", flat=("activation_variant",))
        linear: KindConfig = slot("linear", "linear", flat=("linear_variant_mlp",))

        def width(self, n_embd: int) -> int:
            return self.hidden_size or max(1, round(self.expansion_factor * n_embd))

    def __init__(self, config, dims):
        super().__init__(config, dims)
        hidden = config.width(dims.n_embd)
        self.c_fc = build(config.linear, dims.n_embd, hidden, bias=dims.bias)
        self.activation = build(config.activation)
        self.c_proj = build(config.linear, hidden, dims.n_embd, bias=dims.bias)

    def forward(self, x_BTC):
        return self.c_proj(self.activation(self.c_fc(x_BTC)))

    @staticmethod
    def declare(config, g, x, dims):
        linear = impl(config.linear)
        with g.at("c_fc", slot="linear", kind=config.linear.kind):
            h = linear.declare(config.linear, g, x, config.width(dims.n_embd), bias=dims.bias)
        with g.at("activation", slot="activation", kind=config.activation.kind):
            h = impl(config.activation).declare(config.activation, g, h)
        with g.at("c_proj", slot="linear", kind=config.linear.kind):
            return linear.declare(config.linear, g, h, dims.n_embd, bias=dims.bias)
