"""Training: exact resume whatever happens, refusals, divergence, budgets."""

import csv
import errno
import math
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch

from gptcore import checkpoint
from gptcore.cli import main
from gptcore.config import identity
from gptcore.distributed import World
from gptcore.errors import CheckpointError, RunError, UserError
from gptcore.loader import from_dict, load
from gptcore.optim import make_optimizer
from gptcore.prepare import prepare
from gptcore.runfolder import open_folder
from gptcore.schedules import learning_rate
from gptcore.train import train


@pytest.fixture
def settings(corpus, tmp_path):
    """Flat settings of a tiny run with dropout, accumulation and 3 evaluations."""
    return {
        "model": {"n_layer": 2, "n_embd": 16, "block_size": 16, "dropout": 0.1, "attention": {"n_head": 2}},
        "data": {"dataset": corpus},
        "train": {
            "out_dir": str(tmp_path / "run"), "batch_size": 4, "gradient_accumulation_steps": 2, "max_iters": 30,
            "eval_interval": 10, "eval_iters": 3, "log_interval": 3, "warmup_iters": 4,
            "learning_rate": 0.01, "device": "cpu",
        },
    }  # fmt: skip


def run(settings, **changes):
    return train(from_dict({**settings, "train": {**settings["train"], **changes}}), quiet=True)


def rows(folder) -> list[dict]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("step_s", "elapsed_s")} for row in csv.DictReader(file)]


def same_state(a, b) -> bool:
    """Bit-identical weights, optimizer state and progress."""
    first, second = checkpoint.read(a / "last.pt"), checkpoint.read(b / "last.pt")
    for payload in (first, second):
        payload["progress"].pop("elapsed_s")
        payload.pop("identity")

    def equal(x, y):
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
        if isinstance(x, (list, tuple)):
            return len(x) == len(y) and all(equal(i, j) for i, j in zip(x, y, strict=True))
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return equal(first, second)


@pytest.fixture
def reference(settings, tmp_path):
    """The uninterrupted run."""
    return run(settings, out_dir=str(tmp_path / "reference"))


def test_a_run_learns_and_leaves_everything_behind(reference):
    table = rows(reference.folder)
    assert reference.status == "finished" and reference.exit_code == 0
    evaluated = [float(r["val_loss"]) for r in table if r["val_loss"]]
    assert [r["step"] for r in table if r["val_loss"]] == ["0", "10", "20", "30"]
    assert evaluated[-1] < evaluated[0] - 0.2
    assert reference.best_loss == min(evaluated)
    assert checkpoint.read(reference.folder / "best.pt")["step"] == reference.best_step
    content = checkpoint.read_run(reference.folder)
    assert content["status"] == "finished" and content["tokens"] == 30 * 8 * 16


class Killed(BaseException):
    pass


def test_killed_at_any_rename_resumes_to_the_same_bits(settings, reference, monkeypatch):
    """Every file of a run appears by a rename. The run dies at the n-th, for every n, and is run again."""
    original, state = os.replace, {}

    def replace(source, target):
        state["calls"] += 1
        if state["calls"] >= state["die_at"]:  # dead processes rename nothing more
            raise Killed
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    die_at, completed = 1, False
    folder = reference.folder.parent / "killed"
    while not completed:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        state.update(calls=0, die_at=die_at)
        try:
            run(settings, out_dir=str(folder))
            completed = True
        except Killed:
            state.update(calls=0, die_at=math.inf)
            run(settings, out_dir=str(folder))
            assert rows(folder) == rows(reference.folder)
            assert same_state(folder, reference.folder)
        die_at += 3
    assert die_at > 15


def test_a_second_kill_after_a_damaged_checkpoint(settings, reference, monkeypatch):
    """The good checkpoint must not be replaced by the damaged one while the next is being put in place."""
    folder = reference.folder
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:1000])
    original = os.replace

    def replace(source, target):
        original(source, target)
        if str(target).endswith(("previous.pt", "staged.pt")):
            raise Killed

    with monkeypatch.context() as m:
        m.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            run(settings, out_dir=str(folder))
    (folder / "staged.pt").unlink(missing_ok=True)
    assert checkpoint.read_newest(folder).payload["step"] == 20
    run(settings, out_dir=str(folder))
    assert rows(folder)[-1]["step"] == "30"


@pytest.mark.parametrize(
    "limit", [{"max_tokens": 12 * 128}, {"patience": 1, "learning_rate": 1e-12, "min_lr": 0.0, "eval_interval": 5}]
)
def test_a_stopped_run_stays_stopped(settings, limit):
    """Killed between its last checkpoint and the note that it has ended, it must not train on."""
    first = run(settings, **limit)
    content = checkpoint.read_run(first.folder)
    checkpoint.write_json(first.folder / "run.json", {**content, "status": "running"})
    again = run(settings, **limit)
    assert (again.status, again.step) == (first.status, first.step) == ("stopped", first.step) and first.step < 30


def test_weights_only_checkpoints_are_not_resumed(settings, reference):
    (reference.folder / "last.pt").write_bytes((reference.folder / "best.pt").read_bytes())
    with pytest.raises(CheckpointError, match="weights only"):
        run(settings, out_dir=str(reference.folder), max_iters=40, init_from="resume")


def test_a_run_folder_stands_for_its_run(settings, reference):
    """The same identity, the same name, the same vocabulary rule."""
    loaded = load(reference.folder)
    assert identity(loaded.config) == checkpoint.read_run(reference.folder)["identity"]
    assert loaded.name == "run" and loaded.config.model.vocab_size is None


def test_leftovers_of_a_killed_process_go(settings, reference):
    leftover = reference.folder / ".best.pt.123.tmp"
    leftover.write_bytes(b"x")
    run(settings, out_dir=str(reference.folder), max_iters=31, init_from="resume")
    assert not leftover.exists()


def test_interrupt_does_not_save_a_diverged_model(settings, monkeypatch):
    from gptcore import train as module

    class AtOnce(module.Interrupt):
        requested = property(lambda self: True, lambda self, value: None)

    monkeypatch.setattr(module, "Interrupt", AtOnce)
    wild = {"learning_rate": 1e30, "warmup_iters": 0, "grad_clip": 0.0, "log_interval": 1000, "max_iters": 60}
    result = run(settings, **wild)
    while result.status == "interrupted":  # each step is saved, until one is not worth it
        result = run(settings, **wild)
    assert result.status == "diverged"
    assert checkpoint.read_newest(result.folder).payload["step"] < result.step


@pytest.mark.parametrize("sync", [2, 5, 8, 11])
def test_full_disk_loses_nothing(sync, settings, reference, monkeypatch):
    original, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) >= sync:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle)

    folder = reference.folder.parent / "full"
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", fsync)
        with pytest.raises(RunError, match="No space left on device"):
            run(settings, out_dir=str(folder))
    run(settings, out_dir=str(folder))
    assert rows(folder) == rows(reference.folder) and same_state(folder, reference.folder)


def spawn(settings, tmp_path, **changes):
    import yaml

    config = {**settings, "train": {**settings["train"], **changes}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "gptcore", "train", str(path)]


def wait_for_step(folder, step: int, process) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if int(rows(folder)[-1]["step"]) >= step:
                return
        except (OSError, IndexError, ValueError, KeyError):
            pass
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise TimeoutError


@pytest.mark.parametrize(
    "optimizer", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("muon", "lion", "adafactor"))]
)
def test_kill_9_and_ctrl_c_of_a_real_process(optimizer, settings, tmp_path):
    """SIGKILL in the middle, Ctrl-C later, then to the end: the same bits as one undisturbed run."""
    long = {"max_iters": 600, "eval_interval": 100, "lr_decay_iters": 600, "optimizer": optimizer}
    undisturbed = run(settings, **long, out_dir=str(tmp_path / "undisturbed"))
    folder = tmp_path / "disturbed"
    command = spawn(settings, tmp_path, **long, out_dir=str(folder))

    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_step(folder, 140, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert checkpoint.read_run(folder)["status"] == "running"

    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(folder, 330, second)
    second.send_signal(signal.SIGINT)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 130, errors
    assert "resuming" in errors and f"gptcore train {command[-1]}" in errors
    assert checkpoint.read_run(folder)["status"] == "interrupted"
    saved = checkpoint.read(folder / "last.pt")["step"]
    assert 330 <= saved < 600

    assert run(settings, **long, out_dir=str(folder)).status == "finished"
    assert rows(folder) == rows(undisturbed.folder)
    assert same_state(folder, undisturbed.folder)


def test_samples_appear_once(settings, reference, tmp_path):
    """Also those of steps that a killed process had already passed."""
    long = {"sample_tokens": 5, "sample_start": "the", "out_dir": str(tmp_path / "sampled")}
    folder = run(settings, **long).folder
    whole = (folder / "samples.txt").read_text()
    assert [line for line in whole.splitlines() if line.startswith("---")] == [
        f"--- step {n} ---" for n in (10, 20, 30)
    ]
    os.replace(folder / "previous.pt", folder / "last.pt")  # as if killed after step 20
    run(settings, **long)
    assert (folder / "samples.txt").read_text() == whole


def test_truncated_checkpoint_falls_back_to_the_one_before(settings, reference, capsys):
    folder = reference.folder
    before = checkpoint.read(folder / "previous.pt")["step"]
    original = rows(folder)
    data = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(data[: len(data) // 2])
    restored = checkpoint.read_newest(folder)
    assert restored.payload["step"] == before and "truncated" in restored.warning
    train(from_dict({**settings, "train": {**settings["train"], "out_dir": str(folder)}}))
    assert "falling back" in capsys.readouterr().err
    assert rows(folder) == original
    (folder / "previous.pt").write_bytes(b"")
    (folder / "last.pt").write_bytes(data[:-1000])
    with pytest.raises(CheckpointError, match="no readable one"):
        checkpoint.read_newest(folder)


def test_flipped_bit_is_noticed(reference):
    path = reference.folder / "last.pt"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:  # not into the padding between two records
        record = max(archive.infolist(), key=lambda info: info.file_size)
        content = archive.read(record)
    data[data.index(content) + len(content) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)


def test_checkpoints_hold_plain_values_and_foreign_pickles_run_nothing(reference, tmp_path):
    assert torch.load(reference.folder / "last.pt", weights_only=True)["step"] == 30

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model_config": Hostile()}, reference.folder / "last.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        checkpoint.read(reference.folder / "last.pt")
    assert not (tmp_path / "executed").exists()


def test_changed_architecture_is_refused_with_the_difference(settings, reference):
    changed = {**settings, "model": {**settings["model"], "n_layer": 3}}
    for mode in ("scratch", "resume"):
        with pytest.raises(UserError, match=r"n_layer: 2 -> 3"):
            run(changed, out_dir=str(reference.folder), init_from=mode)
    assert checkpoint.read(reference.folder / "last.pt")["step"] == 30


def test_other_settings_need_an_explicit_resume(settings, reference):
    with pytest.raises(UserError, match=r"train.max_iters: 30 -> 40"):
        run(settings, out_dir=str(reference.folder), max_iters=40)
    extended = run(settings, out_dir=str(reference.folder), max_iters=40, init_from="resume")
    assert extended.status == "finished" and extended.step == 40


def test_resume_on_other_tokens_is_refused(settings, reference, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text("the quick brown fox jumps over a lazy dog while seven kings of rome look on and sing " * 300)
    prepare([text], tmp_path / "other", "char")
    other = {**settings, "data": {"dataset": str(tmp_path / "other")}}
    with pytest.raises(UserError, match="does not hold the tokens"):
        run(other, out_dir=str(reference.folder), max_iters=40, init_from="resume")


def test_resume_of_nothing(settings, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nothing to resume"):
        run(settings, init_from="resume")
    assert not (tmp_path / "run").exists()
    monkeypatch.chdir(tmp_path)
    done = run(settings, out_dir=None)
    with pytest.raises(UserError, match=f"runs of that name: {done.folder}"):
        run(settings, out_dir=None, init_from="resume", max_iters=40)
    assert run(settings, out_dir=None, init_from="resume").folder == done.folder  # `resume` names no other experiment


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_divergence_stops_and_keeps_the_last_good_checkpoint(settings, dtype):
    result = run(settings, learning_rate=1e6, warmup_iters=0, grad_clip=0.0, dtype=dtype, max_iters=60)
    assert result.status == "diverged" and result.exit_code == 1
    assert checkpoint.read_run(result.folder)["status"] == "diverged"
    model = checkpoint.load_model(result.folder).model
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_learns(settings, dtype):
    result = run(settings, dtype=dtype)
    table = [float(r["val_loss"]) for r in rows(result.folder) if r["val_loss"]]
    assert result.status == "finished" and table[-1] < table[0] - 0.2


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(settings, reference):
    plain = {**settings, "model": {**settings["model"], "dropout": 0.0}}
    eager = run(plain, out_dir=str(reference.folder.parent / "eager"))
    compiled = run(plain, out_dir=str(reference.folder.parent / "compiled"), compile=True)
    assert compiled.best_loss == pytest.approx(eager.best_loss, rel=1e-4)


def test_budgets_and_early_stop(settings, tmp_path):
    by_tokens = run(settings, max_tokens=12 * 128, out_dir=str(tmp_path / "tokens"))
    assert (by_tokens.status, by_tokens.step, by_tokens.exit_code) == ("stopped", 12, 0)
    by_time = run(settings, max_seconds=1e-9, out_dir=str(tmp_path / "time"))
    assert (by_time.status, by_time.step) == ("stopped", 1)
    stuck = run(settings, learning_rate=1e-12, min_lr=0.0, patience=2, eval_interval=5, out_dir=str(tmp_path / "stuck"))
    assert stuck.status == "stopped" and "no better loss in 2 evaluations" in stuck.reason and stuck.step < 30


def test_two_trainers_of_one_folder(settings, tmp_path):
    with open_folder(tmp_path / "run", World(0, 1, torch.device("cpu"))):
        with pytest.raises(UserError, match="another process"):
            run(settings)
    assert run(settings).status == "finished"


def test_only_matrices_decay(settings):
    from gptcore.model import GPT

    config = from_dict(settings)
    model = GPT(config.with_vocab(20).model)
    decayed, free = make_optimizer(model, config.train).param_groups
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    assert {p.dim() for p in decayed["params"]} == {2} and {p.dim() for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_learning_rate_schedule(settings):
    t = from_dict(
        {**settings, "train": {"learning_rate": 1.0, "min_lr": 0.2, "warmup_iters": 4, "max_iters": 24}}
    ).train
    assert [learning_rate(t, s) for s in range(4)] == [0.2, 0.4, 0.6, 0.8]
    assert learning_rate(t, 4) == 1.0
    assert learning_rate(t, 14) == pytest.approx(0.6)  # half way down a cosine is the mean of its ends
    assert learning_rate(t, 24) == learning_rate(t, 99) == 0.2


def test_validation_batches_are_the_same_each_time(settings, reference):
    again = run(settings, out_dir=str(reference.folder.parent / "again"))
    assert rows(again.folder) == rows(reference.folder) and same_state(again.folder, reference.folder)


def test_starting_from_gpt2_weights(settings, tmp_path):
    """Fine-tuning starts at the loss that transformers computes for the same weights, and resumes like any run."""
    transformers = pytest.importorskip("transformers")
    from gptcore.data import eval_batches, open_dataset

    dataset = open_dataset(settings["data"]["dataset"])
    torch.manual_seed(3)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=dataset.vocab_size,
            n_positions=16,
            n_embd=24,
            n_layer=2,
            n_head=3,
            bos_token_id=0,
            eos_token_id=0,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            initializer_range=0.3,
        )  # fmt: skip
    ).eval()
    theirs.save_pretrained(tmp_path / "weights")
    losses = []
    for x, y in eval_batches(dataset.val, batches=3, batch_size=4, block_size=16):
        logits = theirs(x).logits
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).item())
    plain = {**settings, "model": {"dropout": 0.1}}
    with pytest.raises(UserError, match=r"attention.softmax.kind: softmax -> consmax"):
        run({**plain, "model": {"attention": {"n_head": 3, "softmax": "consmax"}}}, init_from=str(tmp_path / "weights"))
    result = run(plain, init_from=str(tmp_path / "weights"), learning_rate=1e-3)
    assert float(rows(result.folder)[0]["val_loss"]) == pytest.approx(sum(losses) / 3, abs=1e-4)
    assert checkpoint.config_of(result.folder).model.n_embd == 24
    again = run(plain, init_from=str(tmp_path / "weights"), learning_rate=1e-3)
    assert again.step == result.step and rows(again.folder) == rows(result.folder)
    longer = run(plain, init_from="resume", learning_rate=1e-3, max_iters=35)  # the model comes from the checkpoint
    assert longer.step == 35


def test_gpt2_initialisation():
    """Standard deviation 0.02, smaller by sqrt(2 layers) into the residual stream; zero biases, unit gains."""
    from gptcore.model import GPT

    torch.manual_seed(0)
    config = from_dict({"model": {"n_layer": 8, "n_embd": 128, "vocab_size": 500, "attention": {"n_head": 4}}})
    model = GPT(config.model)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            expected = 0.02 / math.sqrt(2 * 8) if "c_proj" in name else 0.02
            # the sample deviation of n values has a relative error of 1 / sqrt(2 n); allow six of them
            assert abs(p.std().item() / expected - 1) < 6 / math.sqrt(2 * p.numel()), name
            assert abs(p.mean().item()) < 6 * expected / math.sqrt(p.numel()), name
        else:
            gain = name.rsplit(".", 2)[-2].startswith("ln_") and name.endswith("weight")
            assert torch.equal(p, torch.full_like(p, 1.0 if gain else 0.0)), name
    assert model.lm_head.weight is model.transformer.wte.weight


def test_tensorboard_events(settings):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(settings, tensorboard=True)
    events = EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    written = [(str(e.step), pytest.approx(e.value)) for e in events.Scalars("val_loss")]
    assert written == [(r["step"], float(r["val_loss"])) for r in rows(result.folder) if r["val_loss"]]


def test_command_line_errors(settings, tmp_path, capsys):
    assert main(["train", str(tmp_path / "missing.yaml")]) == 2
    assert "no configuration file" in capsys.readouterr().err
    assert main(["train", f"data.dataset={tmp_path}", "--device=cpu"]) == 1
    assert "not prepared" in capsys.readouterr().err
    assert main(["train", "--n_layr=3"]) == 2
    assert "did you mean 'n_layer'" in capsys.readouterr().err
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["train", f"data.dataset={settings['data']['dataset']}", f"train.out_dir={blocked}/x"]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["train", f"data.dataset={settings['data']['dataset']}", "train.device=cuda:7"]) == 2
    assert "cuda:7" in capsys.readouterr().err
