"""Attention and mlp side by side on the same normalised input (GPT-J; PaLM, arXiv 2204.02311)."""

from typing import Literal

from ..config import knob
from ..registry import build, register
from . import Block, BlockConfig, declare_before, declare_join, declare_parts


@register("block", "parallel", on=("use_parallel_mlp",))
class ParallelBlock(Block):
    """x + attention(norm(x)) + mlp(norm(x)): both read the stream at once, so a machine may run them together."""

    class Config(BlockConfig):
        norms: Literal["one", "two"] = knob("one", "one norm for both (GPT-J), or one for each (GPT-NeoX)", flat=())

    def __init__(self, config, layer, dims):
        super().__init__(config, layer, dims)
        self.two = config.norms == "two" and config.placement in ("pre", "peri")
        self.add_norms("ln_1", config.placement, layer.norm, dims)
        if self.two:
            self.ln_2 = build(layer.norm, dims.n_embd, dims)
            self.ln_2.narrow = True
        self.attn = build(layer.attention, dims)
        self.mlp = build(layer.mlp, dims)
        self.residual_1 = build(config.residual, dims)

    def forward(self, x, position, start, cache=None, apart=False):
        x_BTC, normed = self.before(x, "ln_1")
        second = self.ln_2(x_BTC) if self.two else normed
        y = self.attn(normed, position, start, cache) + self.mlp(second)
        return self.join(x_BTC, y, "ln_1", self.residual_1, apart)

    @staticmethod
    def declare(config, g, x, layer, dims, position):
        placement = config.placement
        first = second = declare_before(g, "ln_1", placement, layer.norm, x, dims)
        if config.norms == "two" and placement in ("pre", "peri"):
            second = declare_before(g, "ln_2", "pre", layer.norm, x, dims)
        a = declare_parts(g, layer, dims, position, "attn", first)
        b = declare_parts(g, layer, dims, position, "mlp", second)
        y = g.pointwise("sum", a, b, add=1)
        return declare_join(g, x, y, "ln_1", placement, layer.norm, config.residual, 1, dims)
