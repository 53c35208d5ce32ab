"""What the GPU checks and the timing path say of the kernels beside attention, right and made wrong, on tiny tensors in
Triton's interpreter; a part of `interpreted_worker`."""

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from triton.runtime import interpreter

from benchmarks.gpu import block_checks, block_losses, worker
from benchmarks.gpu.block_plan import BlockPoint, sized
from kernels import cross_entropy, int8_linear, mlp, norms, rotary
from tests.kernels.quantised_cases import rounded_once


def at(op: str, variant: str = "", contestants=("triton",), mode="both", part="block_correctness", dtype="fp16",
       options=(), **sizes: int) -> BlockPoint:  # fmt: skip
    return BlockPoint(part, op, contestants, sized(**sizes), mode, variant, dtype, options)


MLP = at("mlp", "silu gated", ("triton", "triton!recompute"), M=20, C=24, H=36)
NORM = at("add_rms_norm", options=("mixed",), M=5, N=40)
TURN = at("rotary", "", ("triton", "triton!in-place", "triton!projection"), B=2, H=2, K=1, T=5, D=16, R=16)
LOSS = at("cross_entropy", "plain", N=9, V=100)
INTEGERS = at("int8_linear", "int8", mode="forward", M=5, N=33, K=45)
RIGHT = (
    MLP, NORM, TURN, LOSS, INTEGERS, at("linear", "relu2", options=("no bias",), M=20, K=24, N=36, dtype="fp32"),
    at("layer_norm", options=("strided",), M=5, N=40), at("rms_norm_rotary", B=1, H=2, K=1, T=5, D=16),
    at("linear_cross_entropy", "shaped", options=("fp32 weight", "bias"), N=9, C=24, V=100),
    at("int8_linear", "fixed", mode="forward", M=40, N=33, K=45),
    at("ternary_linear", "fp32", mode="forward", M=5, N=33, K=45), at("ternary_wide", mode="forward", M=5, N=33, K=45),
    at("fake_quantise", "affine", M=5, N=100), at("fake_quantise", "symmetric", options=("whole",), M=5, N=100),
    at("quantise_rows", mode="forward", M=5, N=100), at("lut", "gelu", M=5, N=100), at("pwl", "silu", M=5, N=100),
    at("exp_lut", mode="forward", M=5, N=100),
    replace(NORM, part="block_determinism"),
)  # fmt: skip
STEP = at("step", "consmax", part="step", dtype="fp32", B=2, T=8, layers=1, C=16, heads=2, V=40)


def fma(self, x, y, z):
    return interpreter.TensorHandle(rounded_once(x.data, y.data, z.data), z.dtype.scalar)


def rows(point: BlockPoint) -> list[dict]:
    return list(worker.checked(point, "cpu", 3))


def said(clock: type) -> dict[str, Any]:
    def timed(point: BlockPoint, red=frozenset()) -> list[dict]:
        return list(worker.timed(point, "cpu", 3, set(red), clock(), 4))

    def with_fault(module, name: str, wrong, *points: BlockPoint, run=rows) -> list[dict]:
        with mock.patch.object(module, name, wrong):
            return [row for point in points for row in run(point)]

    found: dict[str, Any] = {}
    with mock.patch.object(interpreter.InterpreterBuilder, "create_fma", fma):
        found["right"] = [row for point in RIGHT for row in rows(point)]
        with mock.patch.object(block_checks, "PART", 3 * 100):  # three rows at a time, and the sums of all
            found["by parts"] = [row for point in (LOSS, MLP, NORM) for row in rows(point)]
        with mock.patch.multiple(block_checks, FEW=0, ENDS=2):
            found["ends"] = rows(INTEGERS)

    backward, forward, launch = mlp.mlp_backward_op, norms.norm_forward_op, rotary._launch
    product, unsteady = int8_linear.int8_linear_op, iter(range(1000))

    def one_wrong(*args):
        out = product(*args)
        out[-1, -1] += 1
        return out

    slope = lambda *args: tuple(1.05 * x for x in backward(*args))  # noqa: E731
    found["slope"] = with_fault(mlp, "mlp_backward_op", slope, MLP)
    unkept = lambda *args: (forward(*args)[0], torch.empty(5, 40), *forward(*args)[2:])  # noqa: E731
    found["unwritten"] = with_fault(norms, "norm_forward_op", unkept, replace(NORM, mode="forward"))
    turned = lambda *args: launch(*args[:-1], not args[-1])  # noqa: E731
    found["turned back"] = with_fault(rotary, "_launch", turned, TURN)
    found["logits for a gradient"] = with_fault(cross_entropy, "_backward", lambda *args: None, LOSS)
    found["one element"] = with_fault(int8_linear, "int8_linear_op", one_wrong, INTEGERS)
    shaken = lambda *args: (forward(*args)[0] + next(unsteady), *forward(*args)[1:])  # noqa: E731
    found["unsteady"] = with_fault(norms, "norm_forward_op", shaken, replace(NORM, part="block_determinism"))

    product_point = at("linear", "none", ("triton", "mm", "flex"), "forward", "products", options=("no bias",), M=20,
                       K=24, N=36)  # fmt: skip
    found["timed"] = timed(product_point)
    found["timed backward"] = timed(replace(NORM, mode="backward", part="norms"))
    found["timed in place"] = timed(replace(TURN, mode="forward", part="rotary", contestants=("triton!in-place",)))
    found["red before"] = timed(product_point, {product_point.kernel})
    found["wrong, timed"] = with_fault(mlp, "mlp_backward_op", slope, replace(MLP, part="mlp"), run=timed)
    found["step"] = timed(STEP)
    found["wrong step"] = with_fault(mlp, "mlp_backward_op", slope, STEP, run=timed)
    named = block_checks.new_tensors(LOSS, 3, "cpu")
    logits = named["logits"].requires_grad_()
    loss = block_losses.ce_own(LOSS, "")(**named)
    (gradient,) = torch.autograd.grad(loss, logits)
    found["gradient over logits"] = gradient.data_ptr() == logits.data_ptr()
    return found
