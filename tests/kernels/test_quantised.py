"""Definitions of the quantised kernels against gptcore and the circuits, the packing, the work model and the table."""

import numpy as np
import pytest
import torch
from counting import Bytes

from gptcore.activation.lut_int import LutInt
from gptcore.activation.piecewise_int import PiecewiseInt
from gptcore.quantize import fake_quantize, quantize
from gptcore.softmax import consmax_quan
from kernels import fixed_point_reference, quantised_launch, quantised_reference, quantised_work
from kernels.gates import quantised as gate
from ppa.rtl.exp_lut import ExpLut
from ppa.rtl.lut_activation import LutActivation
from ppa.rtl.mac_ternary import MacTernary
from ppa.rtl.pwl_activation import PwlActivation
from ppa.rtl.quantiser import Quantiser

ELEMENTS = 4096


def bits(x):
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["symmetric", "affine"])
@pytest.mark.parametrize("dim", [-1, None])
def test_fake_quantise_is_that_of_the_model(dtype, method, dim):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(6, 50, generator=generator) * 3 + 1).to(dtype)
    x[0] = torch.zeros(50)
    for bit in (2, 5, 8, 16):
        for strength in (1.0, 0.3, torch.tensor(0.3, dtype=dtype), torch.tensor(0.0, dtype=dtype)):
            want = fake_quantize(x, bit, method, dim, strength)
            got = fixed_point_reference.fake_quantise(x, bit, method, dim, strength)
            assert torch.equal(bits(got), bits(want))


def test_codes_of_rows_are_those_of_the_model():
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    for bit in (2, 8):
        codes, scale = fixed_point_reference.quantise_rows(x, bit)
        want, want_scale, _ = quantize(x.float(), bit, "symmetric", -1)
        assert torch.equal(codes.float(), want) and torch.equal(scale, want_scale)


def outcome(function, x):
    x = x.detach().requires_grad_()
    y = function(x)
    return y.detach(), *torch.autograd.grad(y, x, torch.linspace(-1, 2, x.numel()).view_as(x).to(x.dtype))


@pytest.mark.parametrize("name", list(LutActivation.points))
def test_tables_are_those_of_the_model_and_of_the_circuit(name):
    settings = LutActivation.points[name]
    function = settings["function"]
    model, fractions = LutInt(LutInt.Config(**settings)), {n: v for n, v in settings.items() if n != "function"}

    def ours(x):
        return fixed_point_reference.lut_activation(x, model.table, function, **fractions)

    codes = torch.arange(-128, 128)
    y = ours(codes / 2 ** settings["fraction_in"]) * 2 ** settings["fraction_out"]
    circuit = LutActivation(**settings).step({"x": codes.numpy() & 255})["y"]
    np.testing.assert_array_equal(y.numpy().astype(np.int64) & 255, circuit)
    x = torch.cat([torch.arange(-2000, 2000) / 256, torch.tensor([torch.inf, -torch.inf, 1e30])])
    for dtype in (torch.float32, torch.bfloat16):
        for got, want in zip(outcome(ours, x.to(dtype)), outcome(model, x.to(dtype)), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("name", list(PwlActivation.points))
def test_lines_are_those_of_the_model_and_of_the_circuit(name):
    settings = PwlActivation.points[name]
    model = PiecewiseInt(PiecewiseInt.Config(function=settings["function"]))

    def ours(x):
        return fixed_point_reference.pwl_activation(x, model.start, model.rise, settings["function"])

    codes = torch.arange(-(1 << 15), 1 << 15)
    circuit = PwlActivation(**settings).step({"x": codes.numpy() & 65535})["y"]
    np.testing.assert_array_equal((ours(codes / 4096) * 4096).numpy().astype(np.int64) & 65535, circuit)
    x = torch.cat([torch.arange(-9000, 9000) / 1000, torch.tensor([torch.inf, -torch.inf, 1e30])])
    for dtype in (torch.float32, torch.bfloat16):
        for got, want in zip(outcome(ours, x.to(dtype)), outcome(model, x.to(dtype)), strict=True):
            assert torch.equal(got, want)


def test_exponentials_are_those_of_the_model_and_of_the_circuit():
    config = consmax_quan.ConSmaxQuan.Config(table="full")
    entries = torch.tensor(consmax_quan.table(config))
    scores = torch.arange(-128, 128) / 16
    found = entries[fixed_point_reference.codes(scores, 16.0, 8) + 128].bfloat16()
    patterns = ExpLut(8).step({"code": np.arange(-128, 128) & 255})["y"]
    np.testing.assert_array_equal(found.view(torch.int16).numpy().astype(np.int64) & 65535, patterns)


def test_requantised_results_are_those_of_the_circuit():
    """Of the stimulus of the circuit's own test."""
    unit = Quantiser(**Quantiser.points["requant_int32_int8"])
    rng, streams = np.random.default_rng(0), 3000
    unit.reset(streams)
    for cycle in range(4):
        x = unit.stimulus(rng, streams, cycle)
        unit.step(x)
        circuit = torch.from_numpy(unit.step(x)["y"])
        acc = torch.from_numpy(((x["acc"] & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000)
        factor, shift = (torch.from_numpy(np.asarray(x[name])) for name in ("factor", "shift"))
        ours = quantised_reference.fixed(acc[None, :], factor, shift, None)[0]
        assert torch.equal(ours.long() & 255, circuit)
        assert len(ours.unique()) > 200


def test_packed_weights_are_the_codes_of_the_circuit():
    for K in (1, 2, 3, 4, 5, 63, 64, 130):
        w = torch.randint(-1, 2, (7, K), generator=torch.Generator().manual_seed(K))
        packed = quantised_reference.pack_ternary(w)
        J = -(-K // 4)
        assert packed.shape == (7, J) and packed.stride(0) % 16 == 0 and packed.dtype == torch.uint8
        for k in range(K):
            code = packed[:, k % J].numpy().astype(np.int64) >> 2 * (k // J) & 3
            product = MacTernary(**MacTernary.points["mac_ternary"]).product({"w": code, "a": np.full(7, 100)})
            np.testing.assert_array_equal(product, 100 * w[:, k].numpy())
        assert torch.equal(quantised_reference.unpack_ternary(packed, K).long(), w)
    unused = torch.full((1, 4), 0b10101010, dtype=torch.uint8)
    assert not quantised_reference.unpack_ternary(unused, 16).any()


@pytest.mark.parametrize("wrong", [2.0, 0.5, -128.0, float("nan")])
def test_only_ternary_weights_are_packed(wrong):
    with pytest.raises(ValueError, match="not all -1, 0 or 1"):
        quantised_reference.pack_ternary(torch.tensor([[1.0, wrong]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_of_the_chains_are_what_the_model_moves(dtype):
    x = torch.randn(64, 64, dtype=dtype).requires_grad_()
    for method in ("symmetric", "affine"):
        with Bytes(ELEMENTS) as chain:
            fake_quantize(x, 8, method, -1, torch.ones((), dtype=dtype))
        assert chain.total == ELEMENTS * quantised_work.CHAINS[method][dtype.itemsize]
    for name, module in (("lut", LutInt(LutInt.Config())), ("pwl", PiecewiseInt(PiecewiseInt.Config()))):
        with Bytes(ELEMENTS) as chain:
            y = module(x)
        assert chain.total == ELEMENTS * quantised_work.CHAINS[name][dtype.itemsize]
        with Bytes(ELEMENTS) as chain:
            torch.autograd.grad(y, x, torch.ones_like(x))
        ones = ELEMENTS * dtype.itemsize  # of the cotangent
        assert chain.total - ones == ELEMENTS * quantised_work.CHAINS["backward"][dtype.itemsize]


@pytest.mark.parametrize("out, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.int8)])
def test_bytes_of_the_chain_of_a_linear_layer(out, dtype):
    acc, token, scale = torch.ones(64, 64, dtype=torch.int32), torch.ones(64), torch.ones(64)
    with Bytes(ELEMENTS) as chain:
        y = quantised_reference.real(acc, token, scale, None)
        y = quantised_reference.steps(y, 0.5) if out == "int8" else y.to(dtype)
    product = 64 * 96 + 64 * 96 + 4 * ELEMENTS
    assert quantised_work.int8_linear_chain_bytes(64, 64, 96, out) == product + chain.total


def test_work_by_hand():
    work = quantised_work.int8_linear_work(2, 3, 5)
    assert (work.flops, work.bytes) == (60, 10 + 15 + 12)
    work = quantised_work.ternary_linear_work(2, 3, 5, "fp32")
    assert (work.flops, work.bytes) == (60, 10 + 3 * 2 + 24)
    assert quantised_work.ternary_linear_work(1, 4096, 4096).bytes == 4096 * 4096 // 4 + 3 * 4096
    assert quantised_work.fake_quantise_work(10, 2, -1).bytes == 40
    assert quantised_work.fake_quantise_work(10, 4, None).bytes == 120
    assert quantised_work.quantise_rows_work(10, 2).bytes == 30
    backward = quantised_work.fixed_point_work(10, 2, "backward", "gelu")
    assert (backward.bytes, backward.exponentials) == (60, 20)
    with pytest.raises(ValueError, match="neither forward nor backward"):
        quantised_work.fixed_point_work(10, 2, "decode")


def test_exponentials_of_the_gradient_are_those_that_were_compiled():
    golden = gate.FAMILY.read_golden()
    if not golden:
        pytest.skip("no golden file of this Triton")
    row = quantised_launch.BLOCKS["element"]
    elements = row.BLOCK // (32 * row.num_warps)  # of a thread
    for function in ("gelu", "silu", "tanh", "sigmoid"):
        counted = golden[f"sm_90 d_input bf16 {function}"]["loop"]["EX2"]
        assert counted == elements * quantised_work.fixed_point_work(1, 2, "backward", function).exponentials


def test_every_row_of_the_table_is_compiled():
    points = gate.points()
    assert len({p.name for p in points}) == len(points)
    compiled = {(p.arch, tuple(sorted(p.launch.items()))) for p in points}
    rows = [(*key, row) for key, row in quantised_launch.ROWS.items()]
    rows += [(arch, op, row) for op, row in quantised_launch.BLOCKS.items() for arch in (90, 80)]
    for arch, op, row in rows:
        assert (arch, tuple(sorted(vars(row).items()))) in compiled, op
