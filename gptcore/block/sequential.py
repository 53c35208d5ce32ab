"""The block of GPT-2: attention, then the mlp, each with a norm and a residual."""

from ..config import knob
from ..registry import build, register
from . import Block, BlockConfig, Placement, declare_before, declare_join, declare_parts


@register("block", "sequential")
class SequentialBlock(Block):
    """x + attention(norm(x)), then x + mlp(norm(x)); other placements of the norms and other residuals by choice."""

    class Config(BlockConfig):
        placement_attn: Placement | None = knob(
            None, "of the attention's norm; null: placement", flat=(),
            switch={"use_pre_ln_attn": "pre", "use_post_ln_attn": "post", "use_peri_ln_attn": "peri"},
        )  # fmt: skip
        placement_mlp: Placement | None = knob(
            None, "of the mlp's norm; null: placement", flat=(),
            switch={"use_pre_ln_mlp": "pre", "use_post_ln_mlp": "post", "use_peri_ln_mlp": "peri"},
        )  # fmt: skip

        def placements(self) -> tuple[Placement, Placement]:
            return self.placement_attn or self.placement, self.placement_mlp or self.placement

    def __init__(self, config, layer, dims):
        super().__init__(config, layer, dims)
        self.placements = first, second = config.placements()
        self.add_norms("ln_1", first, layer.norm, dims)
        self.attn = build(layer.attention, dims)
        self.residual_1 = build(config.residual, dims)
        self.add_norms("ln_2", second, layer.norm, dims)
        self.mlp = build(layer.mlp, dims)
        self.residual_2 = build(config.residual, dims)

    def forward(self, x, position, start, cache=None, apart=False):
        x_BTC, y = self.before(x, "ln_1")
        y = self.attn(y, position, start, cache)
        x = self.join(x_BTC, y, "ln_1", self.residual_1, self.takes_sum(x_BTC, "ln_2"))
        x_BTC, y = self.before(x, "ln_2")
        return self.join(x_BTC, self.mlp(y), "ln_2", self.residual_2, apart)

    @staticmethod
    def declare(config, g, x, layer, dims, position):
        parts = zip(("attn", "mlp"), config.placements(), (1, 2), strict=True)
        for part, placement, number in parts:
            name = f"ln_{number}"
            y = declare_before(g, name, placement, layer.norm, x, dims)
            y = declare_parts(g, layer, dims, position, part, y)
            x = declare_join(g, x, y, name, placement, layer.norm, config.residual, number, dims)
        return x
