"""Distillation: the loss against its definition and its limits, what may teach whom, exact runs."""

import os

import pytest
import torch
from test_train import rows, run, same_state, settings  # noqa: F401 (a fixture)

from gptcore import checkpoint, distill
from gptcore.config import TrainConfig
from gptcore.distill import Teacher, distilling, divergence, load_teacher
from gptcore.errors import CheckpointError, UserError
from gptcore.loader import from_dict
from gptcore.losses import cross_entropy
from gptcore.model import GPT
from gptcore.prepare import prepare

V = 9
MODEL = {"n_layer": 1, "n_embd": 12, "block_size": 8, "vocab_size": V, "attention": {"n_head": 2}}
# Two log-softmaxes of V logits up to 10, times T^2 = 9.
TOLERANCE = 9 * 4 * V * 10 * torch.finfo(torch.float64).eps


def model(seed: int, **changes) -> GPT:
    torch.manual_seed(seed)
    built = GPT(from_dict({"model": {**MODEL, **changes}}).model)
    with torch.no_grad():
        for p in built.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return built


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(seed))


def settings_of(**knobs) -> TrainConfig:
    return TrainConfig(distill_from="anything", **knobs)


def pair():
    generator = torch.Generator().manual_seed(5)
    teacher, student = (torch.randn(6, V, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    return teacher, student.requires_grad_()


def error_of_divergence(temperature: float = 3.0) -> float:
    teacher, student = pair()
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher / temperature),
        torch.distributions.Categorical(logits=student / temperature),
    )
    return (distill.divergence(teacher, student, temperature) - temperature**2 * theirs).abs().max().item()


def test_divergence_is_that_of_torch_distributions():
    assert error_of_divergence() < TOLERANCE


def test_a_divergence_the_other_way_round_is_noticed(monkeypatch):
    monkeypatch.setattr(distill, "divergence", lambda a, b, temperature: divergence(b, a, temperature))
    assert error_of_divergence() > TOLERANCE


def test_at_high_temperature_the_gradient_matches_logits():
    """Equation 4 of the paper: (z - v) / V for logits of mean zero, T^2 already taken in."""
    teacher, student = pair()
    temperature = 1e4
    (found,) = torch.autograd.grad(divergence(teacher, student, temperature).sum(), student)
    z, v = (x - x.mean(-1, keepdim=True) for x in (student.detach(), teacher))
    # The next term of exp(z / T) is smaller by z / T, and |z| <= 10.
    assert (found - (z - v) / V).abs().max().item() < 10 / temperature * (z - v).abs().max().item()


def test_weights_zero_one_and_between():
    student, teacher, x = model(0), Teacher(model(1).eval(), 0), tokens()
    logits = student(x)[0]
    targets = x.roll(-1, 1)
    targets[:, -1] = -1
    live = (targets != -1).flatten()
    soft = divergence(teacher.logits(x).flatten(0, 1)[live], logits.flatten(0, 1)[live], 2.0).mean()
    hard = cross_entropy(logits, targets, x)
    for w in (0.0, 0.3, 1.0):
        found = distilling(settings_of(distill_weight=w), teacher)(logits, targets, x)
        torch.testing.assert_close(found, (1 - w) * hard + w * soft, rtol=1e-6, atol=1e-6)
    same = distilling(settings_of(distill_weight=1.0), Teacher(student.eval(), 0))(logits, targets, x)
    assert abs(same.item()) < 1e-6


def test_the_teacher_gets_no_gradient_and_belongs_to_nobody():
    student, teacher = model(0), Teacher(model(1).eval(), 0)
    names = list(student.state_dict())
    student.objective = distilling(settings_of(), teacher)
    student(tokens(), tokens())[1].backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert list(student.state_dict()) == names and len(list(student.modules())) == len(list(model(0).modules()))


def test_compiled_as_one_graph():
    student, x = model(0), tokens()
    student.objective = distilling(settings_of(), Teacher(model(1).eval().requires_grad_(False), 0))
    torch._dynamo.reset()
    compiled = torch.compile(student, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            torch.testing.assert_close(compiled(tokens(seed), x)[1], student(tokens(seed), x)[1], rtol=1e-5, atol=1e-6)


@pytest.fixture
def teacher_run(settings, tmp_path):  # noqa: F811
    """A finished run whose context is longer than its pupil's."""
    larger = {**settings, "model": {**settings["model"], "n_embd": 24, "block_size": 20}}
    return run(larger, out_dir=str(tmp_path / "teacher")).folder


def test_distilled_runs_continue_exactly(settings, teacher_run, tmp_path):  # noqa: F811
    fixed = {"distill_from": str(teacher_run), "distill_temperature": 3.0, "lr_decay_iters": 30}
    whole = run(settings, **fixed, out_dir=str(tmp_path / "whole")).folder
    parts = run(settings, **fixed, max_iters=10, out_dir=str(tmp_path / "parts")).folder
    run(settings, **fixed, out_dir=str(parts), init_from="resume")
    assert rows(whole) == rows(parts) and same_state(whole, parts)
    alone = run(settings, out_dir=str(tmp_path / "alone"), lr_decay_iters=30).folder
    assert rows(alone)[0]["val_loss"] == rows(whole)[0]["val_loss"]  # always the plain cross entropy
    assert rows(alone)[-1]["val_loss"] != rows(whole)[-1]["val_loss"]
    saved = checkpoint.read(whole / "best.pt")["model"]
    assert saved.keys() == checkpoint.read(alone / "best.pt")["model"].keys()


def test_another_teacher_on_the_way_is_said(settings, teacher_run, tmp_path, capsys):  # noqa: F811
    from gptcore.train import train

    fixed = {"distill_from": str(teacher_run), "max_iters": 10}
    folder = run(settings, **fixed).folder
    os.replace(teacher_run / "previous.pt", teacher_run / "best.pt")
    train(from_dict({**settings, "train": {**settings["train"], **fixed, "max_iters": 20, "init_from": "resume"}}))
    assert "the teacher is now that of step 20" in capsys.readouterr().err and folder.exists()


def test_one_file_may_teach(teacher_run):
    meta, config = checkpoint.read(teacher_run / "last.pt")["tokenizer"], checkpoint.load_model(teacher_run).config
    found = load_teacher(str(teacher_run / "previous.pt"), config, meta, torch.device("cpu"))
    assert found.step == 20 and not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())


@pytest.mark.parametrize(
    "changes, expected",
    [({"vocab_size": 40}, r"knows \d+ tokens, the model 40"), ({"block_size": 64}, "block_size 20 is shorter than 64")],
)
def test_who_cannot_teach(changes, expected, teacher_run):
    meta, config = checkpoint.read(teacher_run / "last.pt")["tokenizer"], checkpoint.load_model(teacher_run).config
    with pytest.raises(UserError, match=f"train.distill_from.*cannot teach.*{expected}"):
        load_teacher(str(teacher_run), config.model_copy(update=changes), meta, torch.device("cpu"))


def test_another_vocabulary_cannot_teach(settings, teacher_run, tmp_path):  # noqa: F811
    characters = sorted(checkpoint.read(teacher_run / "last.pt")["tokenizer"]["stoi"])
    text = tmp_path / "other.txt"
    text.write_text("".join(characters).replace("q", "Q") * 300)  # as many characters, one of them another
    prepare([text], tmp_path / "other", "char")
    with pytest.raises(UserError, match="its tokenizer is not that of the data set .*'char' of another vocabulary"):
        run({**settings, "data": {"dataset": str(tmp_path / "other")}}, distill_from=str(teacher_run))


def test_no_teacher_there(settings, tmp_path):  # noqa: F811
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        run(settings, distill_from=str(tmp_path / "nobody"))
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "last.pt").exists()
