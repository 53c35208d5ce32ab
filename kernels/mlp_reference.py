"""A linear layer with its activation, and a whole MLP, in plain torch, differentiated by autograd: the truth for the
kernels. Any floating type.

Legend: C width of the model, H hidden width, K and N widths of the input and output of a linear layer.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu2": lambda z: F.relu(z).square(),
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}


def linear_activation(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None, activation: str) -> Tensor:
    """act(x W^T + b)."""
    return ACTIVATIONS[activation](F.linear(x, weight_NK, bias_N))


def mlp(
    x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down_CH: Tensor, b_down_C: Tensor | None, activation: str,
    gated: bool = False,
) -> Tensor:  # fmt: skip
    """W_down act(W_up x + b_up) + b_down; gated: W_down (act(g) u) + b_down, g and u the halves of W_up x + b_up."""
    z = F.linear(x, w_up, b_up)
    if gated:
        gate, up = z.chunk(2, -1)
        h = ACTIVATIONS[activation](gate) * up
    else:
        h = ACTIVATIONS[activation](z)
    return F.linear(h, w_down_CH, b_down_C)
