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
        self.placements = config.placements()
        self.add_norms("ln_1", self.placements[0], layer.norm, dims)
        self.attn = build(layer.attention, dims)
        self.residual_1 = build(config.residual, dims)
        self.add_norms("ln_2", self.placements[1], layer.norm, dims)
        self.mlp = build(layer.mlp, dims)
        self.residual_2 = build(config.residual, dims)
        first, second = self.placements
        self.norm_takes_sum = first != "post" and second in ("pre", "peri") and self.residual_1.is_sum

    def forward(self, x_BTC, position, start, cache=None):
        first, second = self.placements
        y = self.attn(self.before(x_BTC, "ln_1", first), position, start, cache)
        if self.norm_takes_sum:
            x_BTC, y = self.ln_2.of_sum(x_BTC, self._branch(y, "ln_1", first))
        else:
            x_BTC = self.join(x_BTC, y, "ln_1", first, self.residual_1)
            y = self.before(x_BTC, "ln_2", second)
        y = self.mlp(y)
        return self.join(x_BTC, y, "ln_2", second, self.residual_2)

    @staticmethod
    def declare(config, g, x, layer, dims, position):
        parts = zip(("attn", "mlp"), config.placements(), (1, 2), strict=True)
        for part, placement, number in parts:
            name = f"ln_{number}"
            y = declare_before(g, name, placement, layer.norm, x, dims)
            y = declare_parts(g, layer, dims, position, part, y)
            x = declare_join(g, x, y, name, placement, layer.norm, config.residual, number, dims)
        return x
