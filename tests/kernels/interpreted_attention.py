"""The attention kernels in Triton's interpreter against their fp64 definition, in fp32; run by test_attention.py."""

import itertools

import attention_cases as cases
import pytest
import torch
from attention_cases import KINDS, SHAPES, check, check_decode, error, inputs, outcome, small

from kernels import attention, attention_reference, launch_table
from kernels.launch_table import Launch

dirty_memory = cases.dirty_memory
FAST = [
    ("softmax", "wide_window", "bias"), ("softermax", "full", "alibi"), ("lobo", "empty_rows", ""),
    ("consmax", "window", "bias+alibi"), ("clamped", "odd", ""), ("sigmoid", "odd", "alibi"), ("relu", "full", ""),
    ("relu2", "short_window", ""), ("polymax", "empty_rows", ""), ("softplus", "odd", ""),
]  # fmt: skip
ALL = [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
       for case in itertools.product(KINDS, SHAPES, ("", "bias", "alibi", "bias+alibi"))]  # fmt: skip


@pytest.mark.parametrize("kind, shape, extras", ALL)
def test_fp32(kind, shape, extras):
    check(kind, SHAPES[shape], extras)


@pytest.mark.parametrize("kind", ["consmax", pytest.param("softmax", marks=pytest.mark.slow)])
def test_parameters_behind_a_bias_get_their_gradients(kind):
    """The bias of FIRE (arXiv 2310.04418): a small network of the distance of query and key."""
    H, T, S = 2, 17, 20
    shape = (H, 1, T, S, 16, 16, {})
    named = inputs(kind, shape, batch=2)
    distance_TS = (torch.arange(T)[:, None] + (S - T) - torch.arange(S)).clamp_min(0).double()
    start = torch.linspace(-1, 1, 8 * (H + 2) + 1, dtype=torch.float64)

    def gradients(function, dtype):
        theta = start.clone().requires_grad_()
        hidden = torch.relu(torch.log1p(theta[-1].abs() * distance_TS)[..., None] * theta[:8] + theta[8:16])
        bias = (hidden @ theta[16:-1].view(8, H)).movedim(-1, 0).to(dtype)
        leaves = {name: x.to(dtype) for name, x in named.items()}
        qkv = [leaves.pop(name) for name in "qkv"]
        out = function(*qkv, KINDS[kind], 0.25, bias_HTS=bias, **leaves)
        return torch.autograd.grad(out.square().sum(), theta)[0]

    with small():
        got = gradients(attention.attention, torch.float32)
    assert error(got, gradients(attention_reference.attention, torch.float64)) <= cases.FP32["gradient"]


@pytest.mark.parametrize("kind", ["consmax", pytest.param("softmax", marks=pytest.mark.slow)])
def test_strides_make_no_difference(kind):
    """Heads inside tokens, as projections leave them, and rows that no descriptor can address."""
    shape = (2, 1, 20, 20, 18, 18, {})
    named = inputs(kind, shape)
    with small():
        plain = outcome(attention.attention, kind, shape, named)
        other = {n: x.transpose(1, 2).contiguous().transpose(1, 2) if n in "qkv" else x for n, x in named.items()}
        moved = outcome(attention.attention, kind, shape, other)
    assert all(torch.equal(plain[name], moved[name]) for name in plain)


@pytest.mark.parametrize("kind, shape, extras", [
    ("softmax", (4, 2, 1, 70, 20, 8, {}), "alibi"), ("consmax", (4, 2, 1, 70, 20, 8, {}), ""),
    pytest.param("lobo", (4, 1, 3, 50, 16, 16, {"window": 9}), "", marks=pytest.mark.slow),
    pytest.param("clamped", (4, 1, 3, 50, 16, 16, {"window": 30}), "bias+alibi", marks=pytest.mark.slow),
    pytest.param("sigmoid", (4, 1, 3, 50, 16, 16, {"softcap": 2.0}), "alibi", marks=pytest.mark.slow),
    pytest.param("relu", (4, 1, 3, 50, 16, 16, {"causal": False}), "alibi", marks=pytest.mark.slow),
])  # fmt: skip
def test_decode_with_any_number_of_splits(kind, shape, extras):
    whole = check_decode(kind, shape, 1, extras)
    parts = [check_decode(kind, shape, splits, extras) for splits in (2, 5, 5)]
    assert max(error(part, whole) for part in parts) <= 1e-6
    assert torch.equal(parts[1], parts[2])


@pytest.mark.parametrize("kind, T, window", [
    ("softmax", 1, None), pytest.param("consmax", 3, 9, marks=pytest.mark.slow),
    pytest.param("relu", 3, None, marks=pytest.mark.slow),
])  # fmt: skip
def test_decode_with_a_length_for_every_sequence(kind, T, window):
    """As one decode for every sequence with a cache of its own length, whatever lies behind it."""
    lengths = [50, 3, 17, 1]
    named = inputs(kind, (4, 2, T, 50, 16, 16, {}), "alibi", batch=4)
    qkv = [named.pop(name) for name in "qkv"]
    options = {"window": window, **named}
    doubles = {n: x.double() if isinstance(x, torch.Tensor) else x for n, x in options.items()}
    truth = []
    for b, length in enumerate(lengths):
        q, k, v = (x[b : b + 1].double() for x in qkv)
        truth.append(attention_reference.attention(q, k[:, :, :length], v[:, :, :length], KINDS[kind], 0.4, **doubles))
        qkv[1][b, :, length:] = qkv[2][b, :, length:] = torch.nan
    with small():
        got = attention.attention_decode(*qkv, KINDS[kind], 0.4, splits=3, lengths_B=torch.tensor(lengths), **options)
    assert error(got, torch.cat(truth)) <= cases.FP32["out"]


def test_one_graph_and_opcheck():
    shape = (2, 1, 17, 17, 16, 16, {})
    named = inputs("consmax", shape, "alibi", batch=1)
    rest = named["beta_H"], named["gamma_H"], None, None, named["slopes_H"]
    flat = attention._flat(named["q"], KINDS["consmax"], 0.3, True, None, None, *rest)
    leaves = [x.requires_grad_() for x in (named["q"], named["k"], named["v"])]
    with launch_table.forced(**{op: Launch(32, 32, 4, 1) for op in launch_table.OPS}):
        torch.library.opcheck(attention.attention_forward_op, (*leaves, *flat))
        torch.library.opcheck(attention.attention_decode_op, (*leaves, *flat, 2), test_utils="test_faketensor")
        compiled = torch.compile(attention.attention, fullgraph=True, backend="aot_eager")
        eager = outcome(attention.attention, "consmax", shape, named)
        traced = outcome(compiled, "consmax", shape, named)
    assert all(torch.equal(eager[name], traced[name]) for name in eager)


@pytest.mark.slow
def test_inductor_compiles_what_stands_around_the_kernels():
    shape = (2, 1, 17, 17, 16, 16, {})
    named = inputs("consmax", shape, batch=1)
    with launch_table.forced(**{op: Launch(32, 32, 4, 1) for op in launch_table.OPS}):
        eager = outcome(attention.attention, "consmax", shape, named)
        compiled = outcome(torch.compile(attention.attention, fullgraph=True), "consmax", shape, named)
    for name, want in eager.items():
        torch.testing.assert_close(compiled[name], want, rtol=1e-5, atol=1e-6, msg=name)


def test_trained_slopes_are_refused():
    named = inputs("softmax", SHAPES["odd"])
    slopes = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="bias_HTS"):
        attention.attention(named["q"], named["k"], named["v"], KINDS["softmax"], 0.25, slopes_H=slopes)
