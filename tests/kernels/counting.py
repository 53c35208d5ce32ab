"""Bytes that torch's operators move, for comparison with the closed forms of the work models."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
MAKERS = (aten.new_zeros, aten.new_empty, aten.new_full, aten.zeros_like, aten.empty_like, aten.ones_like)


class Bytes(TorchDispatchMode):
    """While entered: what operators read and write, views aside; with `elements`, of tensors of that size alone."""

    def __init__(self, elements: int | None = None):
        super().__init__()
        self.elements, self.total = elements, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        if not operator.is_view and operator is not aten.detach.default:
            named = out if operator.overloadpacket in MAKERS else (args, kwargs, out)  # what they are like is not read
            tensors = (t for t in tree_leaves(named) if isinstance(t, torch.Tensor))
            self.total += sum(t.nbytes for t in tensors if self.elements in (None, t.numel()))
        return out
