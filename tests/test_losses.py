"""Training losses against torch's own, closed forms and numerical gradients; validation stays plain."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_train import rows, run, settings  # noqa: F401 (a fixture)

from gptcore import losses
from gptcore.config import TrainConfig
from gptcore.loader import from_dict
from gptcore.losses import CrossEntropy, cross_entropy, make_objective, shaped
from gptcore.model import GPT
from gptcore.ops import Graph, Pass

EPS = torch.finfo(torch.float32).eps
V = 11


def data(scale: float = 3.0, dtype=torch.float32, ignore: bool = True):
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(2, 5, V, generator=generator, dtype=torch.float64) * scale).to(dtype)
    targets = torch.randint(V, (2, 5), generator=generator)
    if ignore:
        targets[0, 1] = targets[1, 4] = -1
    return logits.requires_grad_(), targets


def objective(**knobs):
    return make_objective(TrainConfig(**knobs))


def test_the_default_is_cross_entropy_to_the_bit():
    assert objective() == CrossEntropy(kernel="auto")
    logits, targets = data()
    theirs = F.cross_entropy(logits.view(-1, V), targets.view(-1), ignore_index=-1)
    for ours in (cross_entropy, objective()):
        assert torch.equal(ours(logits, targets, targets), theirs)


@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_label_smoothing_is_that_of_torch(smoothing):
    logits, targets = data()
    ours = objective(label_smoothing=smoothing)(logits, targets, targets)
    theirs = F.cross_entropy(logits.view(-1, V), targets.view(-1), ignore_index=-1, label_smoothing=smoothing)
    (a,), (b,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    # Sums of V terms of size |logits| <= 12, twice.
    assert abs(ours - theirs).item() < 2 * V * EPS * 12 and (a - b).abs().max() < 2 * V * EPS


def naive(logits, targets, smoothing, gamma, z) -> float:
    """Token by token, from the definitions."""
    total, count = 0.0, 0
    for row, target in zip(logits.view(-1, V).tolist(), targets.flatten().tolist(), strict=True):
        if target == -1:
            continue
        log_z = math.log(sum(math.exp(v) for v in row))
        p = math.exp(row[target] - log_z)
        soft = [(1 - smoothing) * (i == target) + smoothing / V for i in range(V)]
        loss = -sum(q * (v - log_z) for q, v in zip(soft, row, strict=True))
        total += (1 - p) ** gamma * loss + z * log_z**2
        count += 1
    return total / count


COMBINATIONS = [(s, g, z) for s in (0.0, 0.2) for g in (0.0, 0.5, 2.0) for z in (0.0, 0.01) if s or g or z]


def worst_of_all_combinations() -> float:
    logits, targets = data()
    worst = 0.0
    for s, g, z in COMBINATIONS:
        ours = objective(label_smoothing=s, focal_gamma=g, z_loss=z)(logits, targets, targets).item()
        worst = max(worst, abs(ours - naive(logits.double(), targets, s, g, z)))
    return worst


TOLERANCE = 4 * V * EPS * 12  # as above, and a power of a difference from 1


def test_every_combination_is_its_definition():
    assert worst_of_all_combinations() < TOLERANCE


def test_a_mean_over_ignored_tokens_is_noticed(monkeypatch):
    monkeypatch.setattr(losses, "mean_of_live", lambda loss_N, targets_N: loss_N.mean())
    assert worst_of_all_combinations() > TOLERANCE


def test_closed_forms_of_a_uniform_guess():
    logits, targets = torch.full((1, 3, V), 0.5), torch.tensor([[0, 4, 7]])
    log_z = 0.5 + math.log(V)
    for gamma in (0.5, 1.0, 2.0):
        focal = objective(focal_gamma=gamma)(logits, targets, targets)
        assert focal.item() == pytest.approx((1 - 1 / V) ** gamma * math.log(V), rel=1e-6)
    plain = cross_entropy(logits, targets, targets).item()
    assert objective(z_loss=0.1)(logits, targets, targets).item() - plain == pytest.approx(0.1 * log_z**2, rel=1e-5)


@pytest.mark.parametrize("knobs", COMBINATIONS)
def test_gradients_are_those_of_finite_differences(knobs):
    logits, targets = data(scale=1.0, dtype=torch.float64)
    s, g, z = knobs

    def loss(logits):
        return losses.mean_of_live(
            shaped(logits.view(-1, V), targets.view(-1), smoothing=s, gamma=g, z=z), targets.view(-1)
        )

    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sure_and_wrong_tokens_stay_finite(dtype):
    logits = torch.zeros(1, 2, V, dtype=dtype)
    logits[0, :, 3] = 1e4
    logits.requires_grad_()
    for gamma in (0.5, 2.0):  # one token is surely right, the other surely wrong
        loss = objective(focal_gamma=gamma, label_smoothing=0.1, z_loss=1e-4)(logits, torch.tensor([[3, 5]]), None)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(logits.grad).all() and loss.dtype == torch.float32


def test_the_model_minimises_the_objective_and_evaluates_plainly():
    model = GPT(from_dict({"model": {"n_layer": 1, "n_embd": 12, "block_size": 8, "vocab_size": V}}).model)
    x = torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(0))
    plain = model(x, x)[1]
    model.objective = objective(z_loss=1.0)
    assert not torch.equal(model(x, x)[1], plain)
    assert torch.equal(model.eval()(x, x)[1], plain)


def test_compiled_as_one_graph():
    model = GPT(from_dict({"model": {"n_layer": 1, "n_embd": 12, "block_size": 8, "vocab_size": V}}).model)
    model.objective = objective(z_loss=0.1, label_smoothing=0.1, focal_gamma=1.5)
    x = torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    traced = torch.compile(model, fullgraph=True, backend="aot_eager")(x, x)[1]
    torch.testing.assert_close(traced, model(x, x)[1], rtol=1e-6, atol=1e-6)


def test_a_run_reports_the_plain_validation_loss(settings, tmp_path):  # noqa: F811
    """Before the first update every objective has the same; afterwards a run learns by its own."""
    plain = run(settings, out_dir=str(tmp_path / "plain")).folder
    other = {"label_smoothing": 0.1, "focal_gamma": 1.0, "z_loss": 1e-3, "out_dir": str(tmp_path / "other")}
    shaped_run = run(settings, **other).folder
    first, second = ([float(r["val_loss"]) for r in rows(folder) if r["val_loss"]] for folder in (plain, shaped_run))
    assert first[0] == second[0] and second[1] != first[1] and second[-1] < second[0] - 0.2


def test_an_objective_on_another_scale_is_no_divergence(settings):  # noqa: F811
    result = run(settings, z_loss=5.0)  # 5 ln(27)^2 = 54 nats at the start, above 3 ln(27)
    assert result.status == "finished"
    result = run(
        settings, z_loss=5.0, learning_rate=1e30, warmup_iters=0, grad_clip=0.0, out_dir=str(result.folder) + "2"
    )
    assert result.status == "diverged"


def test_declared_loss():
    def recorded(config) -> list[tuple]:
        g = Graph(Pass("train", 2, 4, 4))
        losses.declare(g, g.tensor("logits", 2, 4, V), config)
        return [(op.name, op.per_element, op.slot, op.kind) for op in g.ops]

    default = [
        ("loss.max", (("max", 1),), "loss", "cross_entropy"),
        ("loss.shift", (("add", 1),), "loss", "cross_entropy"),
        ("loss.sum_exp", (("exp", 1), ("add", 1)), "loss", "cross_entropy"),
        ("loss.log", (("log", 1), ("add", 1)), "loss", "cross_entropy"),
    ]
    assert recorded(None) == recorded(TrainConfig()) == default
    for knobs, extra in (
        ({"label_smoothing": 0.1}, ["mean_logit", "smooth"]),
        ({"focal_gamma": 2.0}, ["focal"]),
        ({"z_loss": 0.1}, ["z_loss"]),
        (
            {"distill_from": "x"},
            ["soften", "softened_max", "softened_shift", "softened_sum_exp", "softened_log", "divergence"],
        ),
    ):
        found = recorded(TrainConfig(**knobs))
        assert found[:4] == default and [name for name, *_ in found[4:]] == ["loss." + n for n in extra]
