"""bf16 in Triton's interpreter, which keeps it as raw uint16: products multiply the bits, casts cut instead of round.

`patched` repairs those two, all that the attention kernels do with bf16. Other arithmetic on bf16 stays wrong; kernels
must widen first. It patches names that Triton keeps private: to be looked at with a new version.
"""

from contextlib import contextmanager

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def widened(handle):
    """The fp32 values that bf16 bits stand for."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = torch.from_numpy(np.ascontiguousarray(handle.data).astype(np.int32))
    return interpreter.TensorHandle((bits << 16).view(torch.float32).numpy(), tl.float32)


def rounded(handle):
    """bf16 bits of fp32 values, rounded as torch rounds."""
    values = torch.from_numpy(np.array(handle.data, dtype=np.float32))
    return interpreter.TensorHandle(values.bfloat16().view(torch.uint16).numpy(), tl.bfloat16)


@contextmanager
def patched(monkeypatch):
    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self, a, b, d, *rest):
        return dot(self, widened(a), widened(b), d, *rest)

    def cast_impl(self, source, kind):
        narrows = source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16
        return rounded(source) if narrows else cast(self, source, kind)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "create_dot", create_dot)
        patch.setattr(builder, "cast_impl", cast_impl)
        yield
