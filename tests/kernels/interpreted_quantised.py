"""Quantised kernels in Triton's interpreter against their definitions: equal, not close, wherever results are integers
or rounded by a rule. Run by test_interpreted.py."""

import math

import pytest
import quantised_cases as cases
import torch
from bf16_interpreter import patched
from quantised_cases import (
    FLOOR,
    check_activation,
    check_codes,
    check_halves,
    check_products,
    check_rounding,
    entries_of,
    equal,
    integers,
    lines_of,
    numbers,
    products,
    scales,
    small,
    turning_points,
)
from twins import faulty

from kernels import fake_quantise, fixed_point, int8_linear, quantised_launch, ternary_linear
from kernels import quantised_reference as reference

harsh = cases.harsh


@pytest.mark.parametrize("name", ["int8", "ternary"])
@pytest.mark.parametrize("M, N, K, splits", [(3, 35, 70, 0), (1, 20, 199, 3), (33, 10, 65, 0)])
def test_products_equal_their_definition(name, M, N, K, splits):
    check_products(name, M, N, K, splits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "ternary"])
@pytest.mark.parametrize("M", [1, 2, 16, 17, 32, 64, 100])
@pytest.mark.parametrize("N, K", [(1, 1), (16, 2), (31, 3), (64, 64), (50, 129), (40, 256)])
def test_products_of_many_shapes(name, M, N, K):
    check_products(name, M, N, K)


@pytest.mark.parametrize("M, x, w", [(2, -128, -128), (2, 127, -128), (33, -128, -128)])
def test_sums_of_extremes_are_exact(M, x, w):
    K = 100
    tokens = torch.full((M, K), x, dtype=torch.int8)
    with small():
        got = int8_linear.int8_linear(tokens, torch.full((5, K), w, dtype=torch.int8), out="int32")
        sign = 1 if w > 0 else -1
        packed = reference.pack_ternary(torch.full((5, K), sign, dtype=torch.int8))
        ternary = ternary_linear.ternary_linear(tokens, packed, K, out="int32")
    equal(got, torch.full((M, 5), x * w * K, dtype=torch.int32), "sums")
    equal(ternary, torch.full((M, 5), x * sign * K, dtype=torch.int32), "sums")


def test_rounded_results_saturate_and_round_ties_to_even():
    check_halves()


@pytest.mark.parametrize("name", ["int8", "ternary"])
def test_operands_of_any_stride_and_scales_of_any_kind(name):
    x, w, _ = products(name, 6, 12, 48)
    strided = torch.zeros(6, 2, 50, dtype=torch.int8)[:, 1, 1:49].copy_(x)
    numbers_only = {"int8": (0.5, 0.25), "ternary": (0.25, 0.5)}[name]
    want = reference.real(reference.sums(x, w), torch.tensor(0.5), torch.tensor(0.25), None)
    with small():
        if name == "int8":
            turned = w.T.contiguous().T
            got = int8_linear.int8_linear(strided.view(2, 3, 48), turned, *numbers_only, out="fp16")
        else:
            packed = reference.pack_ternary(w).T.contiguous().T
            scale, x_scale = numbers_only
            got = ternary_linear.ternary_linear(strided.view(2, 3, 48), packed, 48, scale, x_scale=x_scale, out="fp16")
    equal(got, want.half().view(2, 3, 12), "numbers")


@pytest.mark.parametrize("M, N", [(0, 5), (4, 0)])
def test_no_rows_or_outputs(M, N):
    x, w = integers(M, 20), integers(N, 20, low=-1, high=2)
    assert int8_linear.int8_linear(x, w).shape == (M, N)
    assert ternary_linear.ternary_linear(x, reference.pack_ternary(w), 20).shape == (M, N)
    assert fake_quantise.fake_quantise(torch.zeros(M, N), 8, dim=-1).shape == (M, N)
    assert fixed_point.lut_activation(
        torch.zeros(M, N), integers(256), "gelu", fraction_in=4, fraction_out=4
    ).shape == (M, N)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16])
def test_ternary_products_of_numbers(dtype, monkeypatch):
    x, w = numbers(18, 70).to(dtype), integers(33, 70, low=-1, high=2)
    scale, bias = scales(18, 33)[1:]
    truth = (x.double() @ w.double().T) * scale.double() + bias.double()
    out = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    with small(), patched(monkeypatch):
        got = ternary_linear.ternary_linear(x, reference.pack_ternary(w), 70, scale, bias, out=out)

    def error(y):
        return ((y.double() - truth).norm() / truth.norm()).item()

    plain = torch.nn.functional.linear(x, w.to(dtype)) * scale.to(dtype) + bias.to(dtype)
    assert error(got) <= (2e-6 if dtype == torch.float32 else max(2 * error(plain), FLOOR[dtype]))


@pytest.mark.parametrize("method", fake_quantise.METHODS)
@pytest.mark.parametrize("dim", [-1, None])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16])
def test_fake_quantise_equals_its_definition(method, dim, dtype, monkeypatch):
    x = (numbers(3, 7, 50) * 3 + 0.5).to(dtype)
    with patched(monkeypatch):
        cases = (8, 1.0), (2, torch.tensor(0.3)), (16, torch.tensor(0.0)), (4, 0.7)
        for bits, strength in cases if dim == -1 else cases[:2]:
            check_rounding(x, bits, method, dim, strength)
        check_rounding(x.transpose(0, 2), 8, method, dim)


@pytest.mark.parametrize("method", fake_quantise.METHODS)
@pytest.mark.parametrize("dim", [-1, None])
def test_fake_quantise_of_zeros_ties_and_values_that_are_none(method, dim):
    rows = torch.tensor([
        [0.0, -0.0, 0.0], [127.0, 0.5, -1.5], [1e-42, -1e-42, 0.0], [3e38, -3e38, 1.0], [-1.0, -2.0, -3.0],
        [1.0, 2.0, 3.0], [math.nan, 1.0, 2.0], [-math.nan, 1.0, 2.0], [math.inf, 1.0, 2.0], [-math.inf, 1.0, -2.0],
    ])  # fmt: skip
    if dim is None:
        for row in rows:
            check_rounding(row, 8, method, dim)
    else:
        check_rounding(rows, 8, method, dim)


@pytest.mark.slow
@pytest.mark.parametrize("method", fake_quantise.METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 16), (2, 1000), (3, 16384), (2, 40_000), (70, 3)])
@pytest.mark.parametrize("dim", [-1, None])
def test_fake_quantise_of_many_shapes(method, shape, dim):
    check_rounding(numbers(*shape), 8, method, dim)


def test_quotients_of_scales_of_any_size():
    check_rounding(turning_points(-126, 114), 8, "symmetric", -1)


@pytest.mark.parametrize("bits", [2, 8])
def test_codes_of_rows(bits, monkeypatch):
    check_codes(turning_points(-126, 114), bits)
    check_codes(torch.tensor([[0.0, -0.0], [math.nan, 1.0], [math.inf, 1.0], [1e-42, 0.0]]), bits)
    with patched(monkeypatch):
        check_codes(numbers(3, 7, 50).bfloat16().transpose(0, 2), bits)


def test_rows_longer_than_a_block(monkeypatch):
    monkeypatch.setattr(quantised_launch, "row_block", lambda N, itemsize: quantised_launch.Block(64, 4))
    check_codes(numbers(40, 150))
    for method in fake_quantise.METHODS:
        check_rounding(numbers(40, 150) + 2, 8, method, -1)


SPECIAL = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-40, -0.0])


@pytest.mark.parametrize("function", fixed_point.FUNCTIONS)
@pytest.mark.parametrize("fractions", [(6, 5), (4, 7)])  # inputs saturate, and results do
def test_tables_of_every_code(function, fractions):
    quarters = torch.arange(-140 * 4, 140 * 4) / 4 / 2 ** fractions[0]  # ties between codes too
    check_activation(torch.cat([quarters, SPECIAL]), function, "lut", fractions=fractions)


@pytest.mark.parametrize("function", ["gelu", "tanh"])
def test_lines_of_codes(function):
    check_activation(torch.cat([torch.arange(-32768, 32768, 13) / 4096, numbers(700) * 4, SPECIAL]), function, "pwl")


@pytest.mark.slow
@pytest.mark.parametrize("function", ["gelu", "silu", "tanh"])
def test_lines_of_every_code(function):
    check_activation(torch.arange(-65540, 65540) / 8192, function, "pwl")


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16])
def test_activations_of_narrow_types_and_strides(dtype, monkeypatch):
    x = (numbers(9, 70) * 3).to(dtype).T
    with patched(monkeypatch):
        check_activation(x, "gelu", "lut")
        check_activation(x, "silu", "pwl")


def test_table_of_exponentials(monkeypatch):
    entries = torch.exp(torch.arange(-128, 128) / 16).bfloat16()
    scores = numbers(11, 60) * 5
    with small():
        got = fixed_point.exp_lut(scores, entries, fraction_in=4)
    equal(got, entries.float()[(scores * 16).round().clamp(-128, 127).long() + 128], "exponentials")


def arguments():
    x, w, packed = integers(3, 40), integers(8, 40), reference.pack_ternary(integers(8, 40, low=-1, high=2))
    token, scale, bias = scales(3, 8)
    rest = (token, scale, bias, None, "real", torch.float32, 1.0, 0)
    leaf = numbers(4, 20).requires_grad_()
    start, rise = lines_of("gelu")
    return {
        "int8": (int8_linear.int8_linear_op, (x, w, *rest)),
        "ternary": (ternary_linear.ternary_linear_op, (x, packed, *rest)),
        "rounding": (fake_quantise.fake_quantise_op, (leaf, torch.tensor(0.5), 8, "affine", True, 1.0)),
        "codes": (fake_quantise.quantise_rows_op, (numbers(3, 20), 8)),
        "lut": (fixed_point.lut_activation_op, (leaf, entries_of("gelu", 4, 5), "gelu", 4, 5)),
        "pwl": (fixed_point.pwl_activation_op, (leaf, start, rise, "gelu")),
    }


@pytest.mark.parametrize("name", ["int8", "ternary", "rounding", "lut"])
def test_operators_are_what_torch_expects(name):
    op, given = arguments()[name]
    tests = ["test_schema", "test_faketensor"] + (["test_autograd_registration"] if name == "rounding" else [])
    with small():
        torch.library.opcheck(op, given, test_utils=tests)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "ternary", "rounding", "codes", "lut", "pwl"])
def test_operators_trace_with_symbolic_shapes(name):
    op, given = arguments()[name]
    with small():
        torch.library.opcheck(op, given)


def test_a_layer_compiles_to_one_graph():
    w, entries = integers(12, 24), entries_of("gelu", 4, 5)

    def layer(x):
        rounded = fake_quantise.fake_quantise(x, 8, "symmetric", -1)
        codes = (rounded * 16).clamp(-128, 127).to(torch.int8)
        y = int8_linear.int8_linear(codes, w, 1 / 16, 0.01, out="fp32")
        return fixed_point.lut_activation(y + rounded.sum(), entries, "gelu", fraction_in=4, fraction_out=5)

    x = numbers(5, 24).requires_grad_()
    with small():
        want = layer(x)
        (d_want,) = torch.autograd.grad(want.sum(), x)
        got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        (d_got,) = torch.autograd.grad(got.sum(), x)
    equal(got.detach(), want.detach(), "values")
    equal(d_got, d_want, "gradient")


CHECKS = {
    "int8": ("int8_linear", lambda m: check_products("int8", 3, 20, 200, 3, m)),
    "halves": ("int8_linear", check_halves),
    "ternary": ("ternary_linear", lambda m: check_products("ternary", 3, 20, 70, 1, m)),
    "many ternary": ("ternary_linear", lambda m: check_products("ternary", 33, 10, 70, 1, m)),
    "rows": ("fake_quantise", lambda m: check_rounding(numbers(5, 40) + 1, 8, "affine", -1, module=m)),
    "nothing": ("fake_quantise", lambda m: check_rounding(torch.tensor([1.0, math.nan, -1.0]), 8, "symmetric", -1,
                                                          module=m)),
    "tensor": ("fake_quantise", lambda m: check_rounding(torch.linspace(0, 9, 600), 8, "symmetric", None, module=m)),
    "ties": ("fake_quantise", lambda m: check_rounding(torch.tensor([127.0, 0.5, 2.5]), 8, "symmetric", -1, module=m)),
    "turns": ("fake_quantise", lambda m: check_rounding(turning_points(0, 40), 8, "symmetric", -1, module=m)),
    "codes": ("fake_quantise", lambda m: check_codes(numbers(5, 40), module=m)),
    "faded": ("fake_quantise", lambda m: check_rounding(numbers(50), 4, "affine", -1, torch.tensor(0.7), m)),
    "lut": ("fixed_point", lambda m: check_activation(torch.arange(-600, 600) / 64, "tanh", "lut", m)),
    "pwl": ("fixed_point", lambda m: check_activation(numbers(900) * 4, "gelu", "pwl", m)),
}  # fmt: skip
# name: file, text, text with the fault, the check that must see it
FAULTS = {
    "ties of the shift go up": ("quantised_products", "((kept & 1) == 1)", "(half > 0)", "halves"),
    "a part of the sum is dropped": ("quantised_products", "tl.range(parts)", "tl.range(parts - 1)", "int8"),
    "scale of the first token": ("quantised_products", "token_ptr + rows * token_s", "token_ptr + rows * 0", "int8"),
    "no saturation": ("quantised_numbers", "(1 << (BITS - 1)) - 1)", "(1 << BITS) - 1)", "int8"),
    "a plane is shifted too little": ("quantised_products", "(sum2 >> 4)", "(sum2 >> 3)", "ternary"),
    "planes keep their offset": ("quantised_products", "(sum3 >> 6) - added", "(sum3 >> 6)", "ternary"),
    "planes in the wrong order": ("quantised_products", "m0, n0, M, J, 2, BM, BK) >> 2",
                                  "m0, n0, M, J, 1, BM, BK) >> 2", "many ternary"),
    "offset of two planes": ("quantised_products", "tl.static_range(3)", "tl.static_range(2)", "many ternary"),
    "zero point is not rounded": ("fake_quantise", "zero = nearest(quotient(0.0 - bottom, scale))",
                                  "zero = quotient(0.0 - bottom, scale)", "rows"),
    "range of the first parts": ("fake_quantise", "i < parts, LOWEST", "i < parts - 1, LOWEST", "tensor"),
    "maximum without NaN": ("fake_quantise", "tl.where(live, bits & 0x7FFFFFFF, 0)",
                            "tl.where(live & (x == x), bits & 0x7FFFFFFF, 0)", "nothing"),
    "quotients are not corrected": ("quantised_numbers", "tl.fma(-q, y, x)", "x * 0.0", "turns"),
    "scale of a neighbour": ("fake_quantise", "scale_ptr + rows[:, None]", "scale_ptr + (rows ^ 1)[:, None]", "codes"),
    "ties go up": ("quantised_numbers", "(x + TO_INTEGER) - TO_INTEGER", "tl.floor(x + 0.5)", "ties"),
    "strength from the wrong end": ("fake_quantise", "tl.where(near, w, w - 1.0)", "tl.where(near, w, 1.0 - w)",
                                    "faded"),
    "codes are cut": ("fixed_point", "0.0), BITS)).to(tl.int32)", "0.0) - 0.5, BITS)).to(tl.int32)", "lut"),
    "gradient beyond the last code": ("fixed_point", "(x <= (half - 1) * unit_in)", "(x == x)", "lut"),
    "lines are cut": ("fixed_point", "tl.constexpr(1 << 10)", "tl.constexpr(0)", "pwl"),
    "no tail": ("fixed_point", "tl.maximum(code - (EDGE - 1), 0)", "tl.minimum(code - (EDGE - 1), 0)", "pwl"),
}  # fmt: skip
QUICK = ("ties of the shift go up", "a plane is shifted too little", "planes keep their offset", "ties go up",
         "range of the first parts", "maximum without NaN", "lines are cut")  # fmt: skip


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAULTS])
def test_seeded_faults_are_seen(name, tmp_path, monkeypatch):
    file, right, wrong, check = FAULTS[name]
    module, run = CHECKS[check]
    twin = faulty(tmp_path, monkeypatch, module, file, right, wrong)
    with pytest.raises(AssertionError, match="error of"):
        run(twin)


@pytest.mark.parametrize("check", ["int8", pytest.param("many ternary", marks=pytest.mark.slow)])
def test_a_faithful_copy_passes(check, tmp_path, monkeypatch):
    module, run = CHECKS[check]
    run(faulty(tmp_path, monkeypatch, module, "quantised_numbers", "TO_INTEGER", "TO_INTEGER"))


@pytest.mark.parametrize(
    "check", [pytest.param(c, marks=pytest.mark.slow) if CHECKS[c][0].endswith("linear") else c for c in CHECKS]
)
def test_the_kernels_pass_what_faults_fail(check):
    module, run = CHECKS[check]
    run({"int8_linear": int8_linear, "ternary_linear": ternary_linear, "fake_quantise": fake_quantise}.get(
        module, fixed_point))  # fmt: skip
