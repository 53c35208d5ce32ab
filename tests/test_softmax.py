"""Every softmax kind against plain arithmetic on one row, under masks, in narrow types, and its gradients.

Legend as in gptcore.softmax: B batch, H heads, T queries, S keys.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from gptcore.config import Dims
from gptcore.masking import CausalMask
from gptcore.registry import kinds
from gptcore.softmax import Scoring
from gptcore.softmax.relumax import ReLUMax
from gptcore.softmax.strongermax import Strongermax

DIMS = Dims(8, 1, 16, True, 0.0)
EPS = torch.finfo(torch.float64).eps
KINDS = list(kinds("softmax"))
NOT_SMOOTH = {"ste_argmax", "consmax_quan", "softermax_int"}  # backward is not the derivative of forward
each = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, heads: int = 2, **knobs):
    cls = kinds("softmax")[kind]
    return cls(cls.Config(**knobs), DIMS, heads)


def scores_and_mask(dtype=torch.float64, magnitude=1.0, T=7, S=9, window=None, seed=0):
    """(2, 2, T, S) scores of which the last T of S tokens ask; row 2 sees nothing."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 2, T, S, generator=generator, dtype=torch.float64) * magnitude
    live = CausalMask(T, S, window).live_TS(torch.device("cpu"))
    live[2] = False
    return scores.to(dtype), live


# What one row of live scores weighs, in plain Python. s: the scores, n: how many.


def over_sum(numerators, extra=0.0):
    total = sum(numerators) + extra
    return [x / total for x in numerators]


def interpolated(knots, values):
    def curve(s):
        s = min(max(s, knots[0]), knots[-1])
        i = max(i for i in range(len(knots) - 1) if knots[i] <= s)
        t = (s - knots[i]) / (knots[i + 1] - knots[i])
        return (1 - t) * values[i] + t * values[i + 1]

    return curve


def pfla(density, mode, count=30, left=-10.0, right=10.0):
    places = [2 * i / (count + 1) - 1 for i in range(count + 2)]
    if density == "quad":
        places = [math.copysign(t * t, t) for t in places]
    if density == "exp":
        places = [math.copysign((math.exp(abs(t)) - 1) / (math.e - 1), t) for t in places]
    knots = [left + (right - left) * (t + 1) / 2 for t in places]
    if mode == "linear":
        return interpolated(knots, [math.exp(x) for x in knots])
    root = interpolated(knots, [math.exp(x / 2) for x in knots])
    return lambda s: root(s) ** 2


def polymax(x0, y, power):
    return lambda s: 0.0 if s < x0 else (y - y / x0 * s if s <= 0 else s**power + y)


def vpolymax(x0, y, power):
    return lambda s: 0.0 if s < x0 else (y + y / x0 * s if s <= 0 else s**power + y)


def exppolymax(base, power):
    # The slope of (s + x)^power at 0 is that of base^s: power x^(power - 1) = ln(base), here by bisection.
    low, high = 0.0, 100.0
    for _ in range(200):
        x = (low + high) / 2
        low, high = (x, high) if power * x ** (power - 1) < math.log(base) else (low, x)
    return lambda s: base**s if s < 0 else (s + x) ** power - x**power + 1


def softplus(s):
    return math.log1p(math.exp(s))


def shrink(x, threshold):
    return math.copysign(max(abs(x) - threshold, 0.0), x)


def mean_of(curve, divisor=1.0):
    return lambda s: [curve(x) / divisor / len(s) for x in s]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


FORMULAS = [
    ("softmax", {}, lambda s: over_sum([math.exp(x) for x in s])),
    ("softmax", {"lobo": "fixed", "lobo_init": 0.7}, lambda s: over_sum([math.exp(x) for x in s], math.exp(0.7))),
    ("softermax", {}, lambda s: over_sum([2**x for x in s])),
    ("softermax", {"use_xmax": False}, lambda s: over_sum([2**x for x in s])),
    ("softermax", {"lobo": "fixed", "lobo_init": -0.3}, lambda s: over_sum([2**x for x in s], math.exp(-0.3))),
    ("softermax", {"lobo": "learned", "use_xmax": False}, lambda s: over_sum([2**x for x in s], 1.0)),
    ("consmax", {}, lambda s: [math.exp(x - 2.5) / 100 for x in s]),
    ("consmax", {"base": "2", "clamp": -2.0}, lambda s: [2 ** min(x - 2.5, -2.0) / 100 for x in s]),
    ("consmax_v2", {"initial_beta": 2.0, "initial_gamma": 5.0}, lambda s: [math.exp(x - 2.0) / 5 for x in s]),
    ("consmax_v2", {"clamp_value": -2.0, "per_head": False}, lambda s: [math.exp(min(x - 2.5, -2)) / 100 for x in s]),
    ("saturatingconsmax", {"saturation": -2.0}, lambda s: [math.exp(min(x - 2.5, -2.0)) / 100 for x in s]),
    ("saturatingconsmax", {"div_by_seq_len": True, "learnable_beta": False, "initial_gamma": 1.0},
     mean_of(lambda x: math.exp(x - 2.5))),
    ("polymax", {}, mean_of(polymax(-100, 1, 2))),
    ("polymax", {"x_intercept": -0.5, "y_intercept": 2.0, "power": 1.5, "divisor": 3.0},
     mean_of(polymax(-0.5, 2, 1.5), 3)),
    ("vpolymax", {"x_intercept": -0.5, "y_intercept": 2.0, "power": 3.0}, mean_of(vpolymax(-0.5, 2, 3))),
    ("exppolymax", {}, mean_of(exppolymax(math.e, 2))),
    ("exppolymax", {"base": 4.0, "power": 3.0, "divisor": 2.0}, mean_of(exppolymax(4, 3), 2)),
    ("exppolymax", {"power": 1.0}, mean_of(lambda s: math.exp(s) if s < 0 else 1 + s)),
    ("strongermax", {}, lambda s: over_sum([math.exp(x) for x in s])),
    ("strongermax", {"strength": 3.0, "temperature_factor": 2.0, "obo": 1.0, "divisor": 4.0},
     lambda s: [x / 4 for x in over_sum([3 ** (x / 2) for x in s], 1)]),
    ("strongermax", {"use_learned_obo_per_head": True, "obo": 0.5, "xmax_guess": 1.0},
     lambda s: over_sum([math.exp(x) for x in s], 0.5)),
    ("strongermax", {"xmax_guess": 0.3, "overflow_recompute": True, "overflow_recompute_value": 0.5, "obo": 2.0},
     lambda s: over_sum([math.exp(x) for x in s], 2.0)),
    ("strongermax", {"div_by_sum_of_terms": False, "clamping": True, "clamp_value": 0.4},
     lambda s: [math.exp(min(x, 0.4) - min(max(s), 0.4)) for x in s]),
    ("strongermax", {"div_by_sum_of_terms": False, "use_xmax": False, "div_by_seq_len": True}, mean_of(math.exp)),
    ("strongermax", {"div_by_sum_of_terms": False, "xmax_guess": 1.0, "use_learned_temperature_factor": True},
     lambda s: [math.exp(x - 1) for x in s]),
    ("sigsoftmax", {}, lambda s: over_sum([math.exp(x) * sigmoid(x) for x in s])),
    ("sigsoftmax", {"base": 2.0}, lambda s: over_sum([2**x / (1 + 2**-x) for x in s])),
    ("sigmoidmax", {}, lambda s: [sigmoid(x - math.log(len(s))) for x in s]),
    ("sigmoidmax", {"bias": "none", "divisor": 256.0}, lambda s: [sigmoid(x) / 256 for x in s]),
    ("sigmoidmax", {"bias": "none", "div_by_seq_len": True}, mean_of(sigmoid)),
    ("relumax", {}, mean_of(lambda x: max(x + 1, 0))),
    ("relumax", {"shift": 0.0, "divisor": 256.0, "div_by_seq_len": False}, lambda s: [max(x, 0) / 256 for x in s]),
    ("relu2max", {}, mean_of(lambda x: max(x + 1, 0) ** 2)),
    ("gelumax", {}, mean_of(lambda x: (x + 1) * (1 + math.erf((x + 1) / math.sqrt(2))) / 2)),
    ("softshrink", {}, mean_of(lambda x: shrink(x + 1.5, 0.5))),
    ("softshrink", {"shift": 0.0, "divisor": 64.0}, mean_of(lambda x: shrink(x, 0.5), 64)),
    ("softplus", {}, mean_of(softplus, math.log(2))),
    ("softplus2max", {"divisor": 2.0}, mean_of(lambda x: softplus(x) ** 2, 2)),
    ("squareplus", {}, mean_of(lambda x: (x + math.sqrt(x * x + 4 * math.log(2) ** 2)) / 2, math.log(2))),
    ("pfla", {}, lambda s: over_sum([pfla("linear", "linear")(x) for x in s])),
    ("pfla", {"density": "quad", "mode": "quadratic", "obo": 0.6},
     lambda s: over_sum([pfla("quad", "quadratic")(x) for x in s], 0.6)),
    ("pfla", {"density": "exp", "learn_x": True, "num_points": 5, "left_bound": -1.0, "right_bound": 0.5},
     lambda s: over_sum([pfla("exp", "linear", 5, -1.0, 0.5)(x) for x in s])),
    ("pfla", {"use_learned_divisor": True, "gamma_init": 2.0}, mean_of(pfla("linear", "linear"), 2)),
    ("ste_argmax", {}, lambda s: [float(x == max(s)) for x in s]),
]  # fmt: skip


@pytest.mark.parametrize("kind, knobs, formula", FORMULAS, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(FORMULAS)])
def test_weights_equal_their_formula(kind, knobs, formula):
    # knobs of a fresh module pass through fp32, the type of its parameters
    module, (scores, live) = make(kind, **knobs).double(), scores_and_mask(magnitude=1.5, window=5)
    weights = module.weights(scores, live)
    for b, h, t in [(0, 0, 0), (0, 1, 1), (1, 0, 4), (1, 1, 6)]:
        row = formula(scores[b, h, t][live[t]].tolist())
        expected = torch.zeros(scores.shape[-1], dtype=torch.float64)
        expected[live[t]] = torch.tensor(row, dtype=torch.float64)
        tolerance = 64 * (EPS if not list(module.parameters()) else torch.finfo(torch.float32).eps)
        assert (weights[b, h, t] - expected).abs().max() <= tolerance * max(1e-2, expected.abs().max().item())


def test_every_kind_has_a_formula():
    # Those in integers: test_consmax_quan.py, ppa/test_hardware_forward.py.
    assert {kind for kind, _, _ in FORMULAS} == set(KINDS) - {"consmax_quan", "softermax_int"}


def test_a_wrong_curve_is_noticed(monkeypatch):
    monkeypatch.setattr(ReLUMax, "curve", lambda self, scores: F.relu(scores + self.config.shift) * (1 + 1e-12))
    with pytest.raises(AssertionError):
        test_weights_equal_their_formula(*next(case for case in FORMULAS if case[0] == "relumax"))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", ["fp32", "same"])
def test_large_scores_and_masked_rows(kind, dtype, parameters):
    """Scores of +-80, masked ones not even numbers: zeros where masked, no NaN, gradients finite where they fit."""
    module = make(kind).to(dtype if parameters == "same" else torch.float32)
    scores, live = scores_and_mask(dtype, 80)
    scores = scores.clamp(-80, 80)
    scores[..., 0], scores[..., 1] = 80, -80
    results = []
    for leaf in (scores.masked_fill(~live, float("nan")), scores.masked_fill(~live, float("inf")), scores.double()):
        module.zero_grad()
        leaf.requires_grad_()
        weights = module.double().weights(leaf, live) if leaf.dtype == torch.float64 else module.weights(leaf, live)
        signs = torch.ones_like(weights)
        signs[..., ::2] = -0.5
        (weights * signs).sum().backward()
        results.append((weights, leaf.grad, *(p.grad.clone() for p in module.parameters())))
    wide = results.pop()
    for weights, d_scores, *d_parameters in results:
        assert torch.isfinite(weights).all()
        assert (weights[~live.expand_as(weights)] == 0).all() and (weights[:, :, 2] == 0).all()
        assert (d_scores[~live.expand_as(d_scores)] == 0).all()
        for got, reference in zip((d_scores, *d_parameters), wide[1:], strict=True):
            assert not got.isnan().any()
            assert torch.isfinite(got[reference.abs() < torch.finfo(got.dtype).max / 4]).all()


@each
def test_a_row_is_on_its_own(kind):
    """Nothing depends on masked scores, other rows or other sequences: causal, and decoding gives the same weights."""
    module, (scores, live) = make(kind).double(), scores_and_mask(window=5)
    weights = module.weights(scores, live)
    noise = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1), dtype=scores.dtype) * 50
    assert torch.equal(module.weights(torch.where(live, scores, noise), live), weights)
    for t in range(scores.shape[2]):
        alone = module.weights(scores[1:, :, t : t + 1], live[t : t + 1])
        assert (alone - weights[1:, :, t : t + 1]).abs().max() <= 16 * EPS * max(1.0, weights.abs().max().item())
    kept = module.weights(scores[:, :, 6:, 4:], live[6:, 4:])  # a sliding window drops keys nobody sees
    assert (kept - weights[:, :, 6:, 4:]).abs().max() <= 16 * EPS * max(1.0, weights.abs().max().item())


SMOOTH = [(kind, knobs) for kind, knobs, _ in FORMULAS if kind not in NOT_SMOOTH]


@pytest.mark.parametrize("kind, knobs", SMOOTH, ids=[f"{k}-{i}" for i, (k, _) in enumerate(SMOOTH)])
def test_gradients(kind, knobs):
    """Against finite differences, of the scores and of every parameter."""
    module, (scores, live) = make(kind, **knobs).double(), scores_and_mask(T=3, S=4)
    parameters = list(module.parameters())  # gradcheck moves them in place
    assert torch.autograd.gradcheck(
        lambda s, *_: module.weights(s, live), (scores.requires_grad_(), *parameters), atol=1e-7
    )


@each
def test_rows_of_a_fresh_model_sum_to_about_one(kind):
    scores = 0.05 * torch.randn(1, 2, 3, 1024, generator=torch.Generator().manual_seed(0))
    sums = make(kind).weights(scores, torch.ones(1, 1, dtype=torch.bool)).sum(-1)
    assert sums.min() > 0.7 and sums.max() < 1.3


@each
def test_output_distribution(kind):
    """`live` may be (1, 1); a kind that says `as_output` gives every token a positive weight."""
    module, scores = make(kind, heads=1), torch.linspace(-20, 20, 50).view(1, 1, 1, 50)
    weights = module.weights(scores, torch.ones(1, 1, dtype=torch.bool))
    assert torch.equal(weights, module.weights(scores, torch.ones(1, 50, dtype=torch.bool)))
    assert bool((weights > 0).all()) or not module.as_output


# Softmax itself, and the extra term of its sum.


def test_softmax_equals_torch():
    scores, live = scores_and_mask()
    live[2, 0] = True
    expected = torch.softmax(scores.masked_fill(~live, float("-inf")), dim=-1)
    assert (make("softmax").weights(scores, live) - expected).abs().max() <= 4 * EPS


@pytest.mark.parametrize("per, heads", [("head", 2), ("layer", 1)])
@pytest.mark.parametrize("kind", ["softmax", "softermax", "sigsoftmax"])
def test_lobo_is_another_key_of_value_zero(kind, per, heads):
    """weights = those of a row with one more logit b, without it; a row without keys gives b everything."""
    module = make(kind, lobo="learned", lobo_per=per).double()
    assert module.lobo.shape == (heads,)
    with torch.no_grad():
        module.lobo.copy_(torch.tensor([0.4, -1.3])[:heads])
    scores, live = scores_and_mask(magnitude=2.0)
    logits = {"softmax": scores, "softermax": scores * math.log(2), "sigsoftmax": scores + F.logsigmoid(scores)}[kind]
    b = module.lobo.detach().view(-1, 1, 1).expand(2, 2, 7, 1)
    extended = torch.cat([logits.masked_fill(~live, float("-inf")), b], dim=-1)
    weights = module.weights(scores, live)
    assert (weights - torch.softmax(extended, dim=-1)[..., :-1]).abs().max() <= 8 * EPS
    assert (weights.sum(-1) < 1).all() and (weights[:, :, 2] == 0).all()
    weights[:, :, 4:].square().sum().backward()
    assert (module.lobo.grad != 0).all()


@pytest.mark.parametrize("kind, temperature", [("softmax", 1.0), ("softermax", math.log(2))])
@pytest.mark.parametrize("lobo", ["none", "fixed"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_attend_equals_torch(kind, temperature, lobo, with_bias):
    """Weighted values against torch's attention, where the extra term is a key of score b and value 0."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64) if with_bias else None
    mask, b = CausalMask(6, 6), 0.8
    module = make(kind, lobo=lobo, lobo_init=b)
    out = module.attend(q, k, v, Scoring(mask, 0.5, bias_HTS=bias))
    added = torch.zeros(2, 6, 6, dtype=torch.float64) if bias is None else bias * temperature
    added = added.masked_fill(~mask.live_TS(q.device), float("-inf"))
    if lobo == "fixed":
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        added = F.pad(added, (0, 1), value=b)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=0.5 * temperature)
    assert (out - expected).abs().max() <= 64 * EPS


# What only one kind does.


def test_argmax_is_one_hot_and_learns_like_softmax():
    module, (scores, live) = make("ste_argmax"), scores_and_mask()
    live[2, 0] = True
    weights = module.weights(scores.requires_grad_(), live)
    masked = scores.masked_fill(~live, float("-inf"))
    assert torch.equal(weights, F.one_hot(masked.argmax(-1), scores.shape[-1]).to(weights.dtype))
    cotangent = torch.linspace(-1, 1, weights.numel(), dtype=weights.dtype).view_as(weights)
    (got,) = torch.autograd.grad(weights, scores, cotangent)
    (expected,) = torch.autograd.grad(torch.softmax(masked, dim=-1), scores, cotangent)
    assert (got - expected).abs().max() <= 16 * EPS
    equal = module.weights(torch.tensor([[[[1.0, 3.0, 3.0, 9.0]]]]), torch.tensor([[True, True, True, False]]))
    assert equal.flatten().tolist() == [0.0, 0.5, 0.5, 0.0]


@pytest.mark.parametrize("score", [1e4, -1e4])
@pytest.mark.parametrize(
    "kind, knobs",
    [
        ("softermax", {"use_xmax": False}),
        ("strongermax", {"use_xmax": False}),
        ("strongermax", {"xmax_guess": 1.0, "use_learned_obo": True}),
        ("strongermax", {"xmax_guess": 1.0, "overflow_recompute": True}),
        ("strongermax", {"obo": 1.0, "use_learned_temperature_factor": True}),
        ("pfla", {"use_learned_obo": True}),
    ],
)
def test_sums_without_a_true_maximum_neither_overflow_nor_vanish(kind, knobs, score):
    module, scores = make(kind, **knobs), torch.full((1, 2, 1, 64), score, requires_grad=True)
    weights = module.weights(scores, torch.ones(1, 1, dtype=torch.bool))
    (weights * torch.linspace(-9, 9, 64)).sum().backward()
    assert torch.isfinite(weights).all() and weights.sum(-1).max() <= 1 + 1e-5
    assert torch.isfinite(scores.grad).all() and all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_a_polynomial_that_cannot_meet_the_exponential_is_refused():
    cls = kinds("softmax")["exppolymax"]
    for power, refused in ((1.0, False), (1.01, True), (1.5, False), (2.0, False)):
        config = cls.Config(base=4.0, power=power)
        assert [p.field for p in cls.check(config, DIMS)] == ["power"] * refused
        assert refused or torch.isfinite(cls(config, DIMS, 2).curve(torch.linspace(-80, 80, 9))).all()


def test_saturation_keeps_fp16_weights_finite():
    weights = make("saturatingconsmax", initial_gamma=1.0).weights(
        torch.full((1, 2, 1, 3), 1e4, dtype=torch.float16), torch.ones(1, 1, dtype=torch.bool)
    )
    assert torch.isfinite(weights.half()).all() and abs(weights.max().item() / math.exp(11) - 1) < 1e-5


def test_factors_of_constants_move_constants_by_their_size():
    """A step of 0.001 moves gamma = 100 factor by 0.1 where a gamma of its own moves by 0.001."""
    moved = {}
    for kind in ("consmax", "consmax_v2"):
        module = make(kind).double()
        with torch.no_grad():
            for p in module.parameters():
                p.add_(1e-3)
        moved[kind] = [c[1].item() for c in module.constants()]
    assert moved["consmax"] == pytest.approx([2.501, 100.001], rel=1e-6)
    assert moved["consmax_v2"] == pytest.approx([2.5025, 100.1], rel=1e-6)


def test_learned_knots_stay_in_order():
    module = make("pfla", learn_x=True, num_points=4).double()
    with torch.no_grad():
        module.log_widths.copy_(torch.tensor([3.0, -8.0, 0.0, 5.0, -1.0]))
    knots = module._knots(torch.zeros((), dtype=torch.float64))
    assert (knots.diff() > 0).all() and knots[0] == -10 and knots[-1] == 10


@pytest.mark.parametrize(
    "knobs, field",
    [
        ({"div_by_sum_of_terms": False, "obo": 1.0}, "obo"),
        ({"div_by_sum_of_terms": False, "use_learned_obo": True}, "use_learned_obo"),
        ({"use_xmax": False, "xmax_guess": 1.0}, "xmax_guess"),
        ({"overflow_recompute": True}, "overflow_recompute"),
    ],
)
def test_parts_that_contradict_each_other(knobs, field):
    problems = list(Strongermax.check(Strongermax.Config(**knobs), DIMS))
    assert [p.field for p in problems] == [field]
