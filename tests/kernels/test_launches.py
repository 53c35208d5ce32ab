"""Launches of the operators on a GPU that is not there: their code is what the gate compiled, or at least a program."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from launches import recorded

from benchmarks.gpu import block_plan, block_step
from gptcore import kernel_choice
from gptcore.model import GPT
from kernels import (
    aot,
    attention,
    cross_entropy,
    fake_quantise,
    fixed_point,
    int8_linear,
    linear_cross_entropy,
    mlp,
    norms,
    rotary,
    rotary_normed,
    ternary_linear,
)
from kernels.attention_reference import Weighting
from kernels.launch_table import Launch, forced

BF16 = torch.bfloat16
POINTS = [point for name in aot.NAMES for point in aot.family(name).points()]


def step(point):
    """Forward and backward pass of a model that GPUs are to train, on few tokens, all parts by kernels."""
    sizes = dict(point.sizes) | {"B": 2, "T": 32, "layers": 2, "V": 8208}  # whose rows are launched as all wider ones
    with mock.patch.object(kernel_choice, "_platform", lambda device, dtype: (None, "recorded")):
        model = GPT(block_step.configuration(replace(point, sizes=block_plan.sized(**sizes))))
        kernel_choice.use_kernels(model, lambda part: "triton", torch.device("cpu"), BF16)
        tokens = torch.zeros(2, 32, dtype=torch.long)
        with torch.autocast("cpu", dtype=BF16):
            loss = model(tokens, tokens)[1]
        loss.backward()


def uncovered(launches):
    return sorted({l.name for l in launches if not any(l.covered_by(point) for point in POINTS)})


@pytest.mark.parametrize("point", block_plan.step(), ids=lambda point: f"{point.variant} {' '.join(point.options)}")
def test_a_training_step_launches_what_the_gate_compiled(point):
    with recorded(multiprocessors=2) as found:  # so few that tiles fill all of them, as many tokens do on a GPU
        step(point)
    assert len({launch.name for launch in found}) >= 9
    assert uncovered(found) == []


def test_code_that_the_gate_did_not_compile_is_noticed():
    with recorded(multiprocessors=2) as found, forced(d_keys=Launch(64, 32, 8, 2)):
        step(block_plan.step()[0])
    assert uncovered(found) == ["kernels.attention_backward.d_keys"]
    narrow = next(launch for launch in found if launch.name.endswith("forward"))
    point = next(point for point in POINTS if narrow.covered_by(point))
    assert not replace(narrow, multiples=narrow.multiples - point.multiples).covered_by(point)


def drawn(*shape, dtype=BF16):
    return torch.ones(shape, dtype=dtype).requires_grad_(dtype.is_floating_point)


def back(*outputs):
    outputs = [out for out in outputs if out.requires_grad]
    torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])


def attend(kind, B, H, K, T, S, D, E, **options):
    constants = {"beta_H": drawn(H, dtype=torch.float32), "gamma_H": drawn(H, dtype=torch.float32)}
    w = Weighting(kind, clamp=1.0) if kind == "consmax" else Weighting(kind, log_keys=kind == "sigmoid")
    q, k, v = drawn(B, H, T, D), drawn(B, K, S, D), drawn(B, K, S, E)
    named = options | (constants if kind == "consmax" else {})
    back(attention.attention(q, k, v, w, 1.0, **named))
    with torch.no_grad():
        attention.attention_decode(q[:, :, :1], k, v, w, 1.0, **named)


def attention_calls():
    for kind in ("softmax", "consmax", "sigmoid"):
        attend(kind, 1, 1, 1, 1, 1, 1, 1, softcap=1.0, window=1)
        attend(kind, 3, 5, 1, 17, 33, 20, 40)
    attend("softmax", 1, 1, 1, 1, 1, 16, 16, bias_HTS=drawn(1, 1, 1, dtype=torch.float32))
    attend("softmax", 1, 1, 1, 1, 1, 16, 16, slopes_H=torch.ones(1))


def mlp_calls():
    for M, C, H in ((1, 1, 1), (3, 5, 7), (1, 16, 8)):
        for gated in (False, True):
            tensors = drawn(M, C), drawn(H * (1 + gated), C), drawn(H * (1 + gated)), drawn(C, H), drawn(C)
            back(mlp.mlp(*tensors, "gelu", gated))
            back(mlp.mlp(*tensors, "relu", gated, recompute=True))
        back(mlp.linear_activation(drawn(M, C), drawn(H, C), drawn(H), "silu"))


def norm_calls():
    for shape in ((1, 1, 1), (3, 1), (1, 2, 3, 5), (1, 17000), (2, 17000)):
        x, y, w = drawn(*shape, dtype=torch.float32), drawn(*shape), drawn(shape[-1], dtype=torch.float32)
        back(*norms.add_layer_norm(x, y, w, w, 1e-5, BF16))
        back(norms.rms_norm(x, None, 1e-5))


def rotary_calls():
    for B, H, K, T, D in ((1, 1, 1, 1, 2), (2, 3, 1, 5, 10), (1, 1, 1, 1, 1200)):
        q, k, table = drawn(B, H, T, D), drawn(B, K, T, D), torch.ones(T, D)
        w = drawn(D, dtype=torch.float32)
        back(*rotary.rotary(q, k, table, table, 0, D))
        back(*rotary_normed.rms_norm_rotary(q, k, w, w, table, table, 0, 1e-5))
    rotary.rotary(drawn(1, 1, 1, 3), drawn(1, 1, 1, 3), table[:, :2], table[:, :2], 0, 2)
    back(rotary.rotary_projection_(drawn(1, 1, 6) * 1, 1, 1, 2, table[:, :2], table[:, :2], 0, 2))


def loss_calls():
    for N, V in ((1, 1), (3, 1), (1, 16), (2, 50257)):
        targets = torch.zeros(N, dtype=torch.long)
        for terms in ({}, {"smoothing": 0.1, "gamma": 2.0, "z": 1e-4}):
            back(cross_entropy.cross_entropy(drawn(N, V) * 1, targets, **terms))
            back(linear_cross_entropy.linear_cross_entropy(drawn(N, 1), drawn(V, 1), targets, **terms))


def quantised_calls():
    for M, N, K in ((1, 1, 1), (33, 1, 1), (2, 3, 5), (40, 5, 64), (1, 1, 1024)):
        x, w = torch.ones(M, K, dtype=torch.int8), torch.ones(N, K, dtype=torch.int8)
        packed, whole = ternary_linear.pack_ternary(w), torch.ones(N, dtype=torch.int32)
        for splits in (0, 3):
            int8_linear.int8_linear(x, w, 1.0, torch.ones(N), torch.ones(N), splits=splits)
            int8_linear.int8_linear_fixed(x, w, whole, whole, whole, splits=splits)
            ternary_linear.ternary_linear(x, packed, K, 1.0, x_scale=torch.ones(M), splits=splits)
        ternary_linear.ternary_linear(x.to(BF16), packed, K, 1.0)
    for shape in ((1, 1), (3, 1), (1, 20000)):
        x = drawn(*shape)
        for dim in (None, -1):
            fake_quantise.fake_quantise(x, 8, "affine", dim, torch.tensor(0.5))
        fake_quantise.quantise_rows(x)
        back(fixed_point.lut_activation(x, torch.ones(256, dtype=torch.int8), "gelu", fraction_in=4, fraction_out=4))
        back(fixed_point.pwl_activation(x, torch.ones(16).int(), torch.ones(16).int(), "silu"))


CALLS = (attention_calls, mlp_calls, norm_calls, rotary_calls, loss_calls, quantised_calls)


@pytest.mark.parametrize("calls", CALLS)
def test_sizes_of_one_are_programs_too(calls):
    """Triton makes constants of arguments that are 1, which its interpreter does not."""
    with recorded() as found:
        calls()
    programs = {launch.program: launch for launch in found}
    assert sum(1 in launch.constants.values() for launch in programs.values()) > len(programs) / 3
    for launch in programs.values():
        launch.frontend()


@pytest.mark.parametrize("calls", CALLS)
def test_kernels_are_launched_on_the_device_of_their_tensors(calls):
    with recorded() as found:
        calls()
    assert found and all(launch.guarded for launch in found)
