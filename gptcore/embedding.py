"""The two ends of the model: the token table, and the head that turns the stream into one number a token.

Both may be narrower than the stream (ALBERT, arXiv 1909.11942), stored in few bits, or one and the same matrix.
Legend: B sequences, T tokens, C width of the stream, W width of the table, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EmbeddingConfig
from .ops import Graph
from .ops import Tensor as OpTensor
from .quantize import Rounding, fake_quantize


class RoundTable(Rounding):
    """Rows rounded to `bits`, each by its own largest magnitude."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def forward(self, rows: Tensor) -> Tensor:
        return fake_quantize(rows, self.bits, dim=-1, strength=self.strength.to(rows.dtype))


def fill_rows(weight: Tensor, config: EmbeddingConfig) -> None:
    """Rows at random: normal, or vectors of one length, that of a normal vector on average."""
    nn.init.normal_(weight, std=config.init_std)
    if config.init == "hypersphere":
        weight.copy_(F.normalize(weight, dim=-1) * (config.init_std * math.sqrt(weight.shape[-1])))


class TokenEmbedding(nn.Embedding):
    """table[token], projected to the width of the stream, times a factor."""

    def __init__(self, vocab_size: int, n_embd: int, config: EmbeddingConfig):
        super().__init__(vocab_size, config.width or n_embd)
        self.config = config
        if config.width is not None:
            self.up = nn.Linear(config.width, n_embd, bias=False)
        if config.scale == "learned":
            self.factor = nn.Parameter(torch.ones(1))
        elif config.scale == "sqrt":
            self.root = math.sqrt(n_embd)
        self.round = RoundTable(config.bits) if config.bits else None

    def init_weights(self, std: float) -> None:
        fill_rows(self.weight, self.config)
        if self.config.width is not None:  # keeps the size of a row
            nn.init.normal_(self.up.weight, std=1 / math.sqrt(self.config.width))

    def forward(self, idx_BT: Tensor) -> Tensor:
        x = F.embedding(idx_BT, self.weight)
        if self.round is not None:
            x = self.round(x)
        if self.config.width is not None:
            x = self.up(x)
        if self.config.scale == "none":
            return x
        return x * (self.factor.to(x.dtype) if self.config.scale == "learned" else self.root)

    @staticmethod
    def declare(config: EmbeddingConfig, g: Graph, tokens: OpTensor, V: int, C: int) -> OpTensor:
        """Records the lookup; the scope is the module's name."""
        (B, T), W = tokens.shape, config.width or C
        x = g.gather("rows", g.weight("weight", V, W, bits=config.bits), tokens, B, T, W)
        if config.bits:
            x = g.pointwise("rescale", x, mul=1)
        if config.width is not None:
            x = g.matmul("up", x, g.weight("up.weight", C, W), (B, T, C), m=B * T, k=W, n=C)
        if config.scale != "none":
            x = g.pointwise("scale", x, *([g.weight("factor", 1)] if config.scale == "learned" else []), mul=1)
        return x


class Head(nn.Linear):
    """Logits: the stream, projected to the width of the table, times the table."""

    def __init__(self, vocab_size: int, n_embd: int, config: EmbeddingConfig):
        super().__init__(config.width or n_embd, vocab_size, bias=False)
        self.config = config
        if config.width is not None:
            self.down = nn.Linear(n_embd, config.width, bias=False)
        self.round = RoundTable(config.bits) if config.bits else None

    def init_weights(self, std: float) -> None:
        fill_rows(self.weight, self.config)
        if self.config.width is not None:
            nn.init.normal_(self.down.weight, std=1 / math.sqrt(self.down.in_features))

    def table(self) -> Tensor:
        """The matrix that is multiplied with: (V, W)."""
        return self.weight if self.round is None else self.round(self.weight)

    def narrowed(self, x_BTC: Tensor) -> Tensor:
        """The stream in the width of the table."""
        return x_BTC if self.config.width is None else self.down(x_BTC)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return F.linear(self.narrowed(x_BTC), self.table())

    @staticmethod
    def declare(config: EmbeddingConfig, g: Graph, x: OpTensor, table: OpTensor | None, V: int) -> OpTensor:
        """Records the logits; `table` is that of the embedding when it is shared. The scope is the module's name."""
        B, T, C = x.shape
        W = config.width or C
        if config.width is not None:
            x = g.matmul("down", x, g.weight("down.weight", W, C), (B, T, W), m=B * T, k=C, n=W)
        table = table or g.weight("weight", V, W, bits=config.bits)
        logits = g.matmul("matmul", x, table, (B, T, V), m=B * T, k=W, n=V)
        return g.pointwise("rescale", logits, mul=1) if config.bits else logits
