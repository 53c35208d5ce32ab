"""The MLP operators without an interpreter: definition, work model, launch table and gate."""

import itertools
from dataclasses import replace

import pytest
import torch
from counting import Bytes

pytest.importorskip("triton")

from gptcore.config import Dims, GPTConfig
from gptcore.registry import build
from kernels import gate, mlp_reference, mlp_rows, mlp_work
from kernels.gates import mlp as points
from kernels.mlp_reference import ACTIVATIONS

M, C, H = 6, 10, 14
BOTH = list(itertools.product(ACTIVATIONS, (False, True)))


def leaves(gated, dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)
    shapes = (M, C), (H * (1 + gated), C), (H * (1 + gated),), (C, H), (C,)
    found = [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]
    return found if bias else [found[0], found[1], None, found[3], None]


@pytest.mark.parametrize("kind, activation, name", [
    ("mlp", {"kind": "gelu"}, "gelu"), ("mlp", {"kind": "gelu", "approximate": "tanh"}, "gelu_tanh"),
    ("mlp", {"kind": "relu"}, "relu"), ("mlp", {"kind": "squared_relu"}, "relu2"), ("mlp", {"kind": "silu"}, "silu"),
    ("mlp", {"kind": "identity"}, "none"), ("swiglu", {"kind": "silu"}, "silu"), ("geglu", {"kind": "gelu"}, "gelu"),
    ("reglu", {"kind": "relu"}, "relu"),
])  # fmt: skip
def test_the_definition_is_that_of_the_model(kind, activation, name):
    config = GPTConfig.model_validate({"mlp": {"kind": kind, "hidden_size": H, "activation": activation}}).mlp
    module = build(config, Dims(n_embd=C, n_layer=1, block_size=8, bias=True, dropout=0.0)).double()
    generator = torch.Generator().manual_seed(0)
    for weight in module.parameters():  # which the model initialises
        torch.nn.init.normal_(weight, generator=generator)
    x = torch.randn(M, C, generator=generator, dtype=torch.float64)
    weights = module.c_fc.weight, module.c_fc.bias, module.c_proj.weight, module.c_proj.bias
    ours = mlp_reference.mlp(x, *weights, name, gated=kind != "mlp")
    assert torch.equal(ours, module(x))


@pytest.mark.parametrize("activation, gated", BOTH)
def test_gradients_of_the_definition(activation, gated):
    given = leaves(gated)
    assert torch.autograd.gradcheck(mlp_reference.mlp, (*given, activation, gated))
    if not gated:
        assert torch.autograd.gradcheck(mlp_reference.linear_activation, (*given[:3], activation))


def moved_and_saved(function, given, *settings):
    """Bytes of torch's operators, forward and backward, and those that autograd holds, weights aside."""
    held = {}
    weights = {x.data_ptr() for x in given[1:] if x is not None}

    def pack(x):
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with Bytes() as forward, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = function(*given, *settings)
    cotangent = torch.randn_like(out)
    with Bytes() as backward:
        torch.autograd.grad(out, [x for x in given if x is not None], cotangent)
    return forward.total, backward.total, sum(size for place, size in held.items() if place not in weights)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation, gated", BOTH)
def test_bytes_of_torchs_operators_are_those_counted(activation, gated, bias):
    given, shape = leaves(gated, torch.float32, bias), (M, C, H, activation, 4)
    forward, backward, saved = moved_and_saved(mlp_reference.mlp, given, activation, gated)
    options = {"gated": gated, "bias": bias, "fused": False}
    assert mlp_work.mlp_work("forward", *shape, **options).bytes == forward
    assert mlp_work.mlp_work("backward", *shape, **options).bytes == backward
    assert mlp_work.saved_bytes(*shape, gated=gated, fused=False) == saved
    if not gated:
        forward, backward, _ = moved_and_saved(mlp_reference.linear_activation, given[:3], activation)
        shape = (M, C, H, activation, 4)
        assert mlp_work.linear_activation_work("forward", *shape, bias=bias, fused=False).bytes == forward
        assert mlp_work.linear_activation_work("backward", *shape, bias=bias, fused=False).bytes == backward


def test_work_by_hand():
    x = y = M * C
    h, down = M * H, H * C
    work = mlp_work.mlp_work("forward", M, C, H, "relu2", 2, bias=False)
    assert (work.flops, work.exponentials) == (4 * M * C * H, 0)
    assert work.bytes == 2 * ((x + down + h) + (h + down + y))
    work = mlp_work.mlp_work("backward", M, C, H, "relu2", 2, bias=False)
    assert work.flops == 8 * M * C * H
    assert work.bytes == 2 * ((y + down + h + h) + (y + h + down) + (h + down + x) + (h + x + down))
    work = mlp_work.mlp_work("forward", M, C, H, "silu", 2, gated=True)
    assert (work.flops, work.exponentials) == (6 * M * C * H, h)
    assert work.bytes == 2 * ((x + 2 * down + 2 * H + h + 2 * h) + (h + down + C + y))
    work = mlp_work.mlp_work("backward", M, C, H, "silu", 2, gated=True, recompute=True)
    again = x + 2 * down + 2 * H + 2 * h
    product = y + down + 2 * h + 2 * h + h
    gradients = (2 * h + 2 * down + x) + (2 * h + x + 2 * down) + (y + h + down) + (C + y + 2 * H)
    assert work.flops == 2 * 6 * M * C * H + 4 * M * C * H
    assert work.bytes == 2 * (again + product + gradients)
    assert mlp_work.saved_bytes(M, C, H, "silu", 2, gated=True) == 2 * (x + 2 * h)
    assert mlp_work.saved_bytes(M, C, H, "silu", 2, gated=True, recompute=True) == 2 * x
    work = mlp_work.linear_activation_work("backward", M, C, H, "gelu", 2)
    assert work.bytes == 2 * (3 * h + (h + down + x) + (h + x + down) + H)
    for count in (mlp_work.mlp_work, mlp_work.linear_activation_work):
        with pytest.raises(ValueError, match="none of forward, backward"):
            count("decode", M, C, H, "gelu", 2)


def test_which_row_a_product_gets():
    def size(M, N, K, capability=90, itemsize=2):
        row = mlp_rows.launch(capability, "forward", "smooth", M, N, K, itemsize, 132)
        return next((key[-1] for key, other in mlp_rows.ROWS.items() if other is row), "wide")

    assert size(16384, 3072, 768) == "short" == size(16384, 4096, 1024)
    assert size(16384, 8192, 2048) == "long"
    # 131 tiles of 128 x 128, then 132; 128 x 256
    assert [size(128, 128 * n, 768) for n in (131, 132)] == ["few", "short"]
    assert [size(128, 256 * n, 4096) for n in (131, 132)] == ["few", "long"]
    assert size(16384, 3072, 768, capability=89) == "any" and size(1, 1, 1, itemsize=4) == "wide"
    with_rows = {key[:3] for key in mlp_rows.ROWS}
    assert with_rows == set(itertools.product((90, 80), ("forward", "backward"), ("sign", "smooth", "gated")))


def test_what_ends_a_tile_takes_as_long_as_is_said():
    """The reason of the rows: the share of time without products, were one program alone, of K = 768."""
    golden = points.FAMILY.read_golden()
    if not golden:
        pytest.skip("no golden file for this Triton")
    shares = []
    for case in points.cases():
        if (case.arch, case.size, case.dtype, case.flag) == (90, "short", "bf16", ""):
            row, loop = case.launch, golden[points.point_of(case).name]["loop"]
            products = 768 * row.BM * row.BN * (1 + (case.gated and case.direction == "forward"))
            # clocks: 4 schedulers of an instruction each; 2048 multiplications
            shares.append((loop["all"] * row.num_warps / 4) / (products / 2048))
    assert 0.1 < min(shares) < 0.15 and 0.8 < max(shares) < 0.9


def test_the_gate_goes_red():
    case = next(c for c in points.cases() if c.name == "sm_90 backward gelu short bf16")
    point = points.point_of(case)
    loop = dict.fromkeys(point.counted, 0) | {"HGMMA": 8, "UTMALDG": 4, "EX2": 64, "MUFU": 130, "STG": 2, "all": 2045}
    good = gate.Figures(128, 0, 90152, 4, True, loop)
    assert gate.broken(point, good) == []
    faults = {
        "spills": replace(good, loop=loop | {"STL": 1}),
        "shared memory": replace(good, shared_bytes=232_449),
        "programs of a multiprocessor": replace(good, shared_bytes=115_713),
        "one exponential an element": replace(good, loop=loop | {"EX2": 128}),
        "no division": replace(good, loop=loop | {"MUFU": 194}),
        "tile loads through descriptors": replace(good, loop=loop | {"UTMALDG": 1}),
        "products of warp groups": replace(good, loop=loop | {"HMMA": 1}),
    }
    for rule, figures in faults.items():
        assert rule in gate.broken(point, figures)
    assert "programs of a multiprocessor" in gate.broken(
        points.point_of(replace(case, launch=replace(case.launch, programs=4))), replace(good, registers=129)
    )
    case = next(c for c in points.cases() if c.name == "sm_80 backward gelu any bf16")
    point = points.point_of(case)
    loop = dict.fromkeys(point.counted, 0) | {"HMMA": 16, "LDGSTS": 3, "EX2": 32, "MUFU": 66, "STG": 9, "STG128": 8}
    good = gate.Figures(175, 0, 57344, 8, True, loop | {"all": 1272})
    assert gate.broken(point, good) == []
    faults = {
        "shared memory": replace(good, shared_bytes=101_377),
        "loads past registers": replace(good, loop=good.loop | {"LDGSTS": 0}),
        "stores of 16 bytes": replace(good, loop=good.loop | {"STG": 16}),
        "tensor cores": replace(good, loop=good.loop | {"HMMA": 0}),
    }
    for rule, figures in faults.items():
        assert gate.broken(point, figures) == [rule]
    slopes = next(p for p in points.FAMILY.points() if p.name == "sm_90 slopes gelu bf16")
    loop = dict.fromkeys(slopes.counted, 0) | {"LDG": 8, "LDG128": 8, "STG": 5, "STG128": 4, "all": 800}
    good = gate.Figures(98, 0, 4096, 8, True, loop)
    assert gate.broken(slopes, good) == []
    assert gate.broken(slopes, replace(good, loop=loop | {"LDG128": 7})) == ["loads of 16 bytes"]
    assert gate.broken(slopes, replace(good, loop=loop | {"STG128": 3})) == ["stores of 16 bytes"]
