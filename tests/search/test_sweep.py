"""`gptcore sweep` end to end: resume after kill -9, extension, failures, retries; once with real training."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gptcore import cli
from search import executor_choice, sweep_figures
from search.ledger import Ledger
from search.sweep_runs import load
from search.trial import Limits, TrialResult

PATIENCE_S = 120
STEPS = 20
FILE = """
baseline:
  model: {{n_layer: 1, n_embd: 16, block_size: 16, attention: {{kind: causal, n_head: 2}}}}
  data: {{dataset: {corpus}}}
  train: {{max_iters: {steps}, warmup_iters: 0, eval_interval: 10, eval_iters: 1, batch_size: 2, device: cpu}}
grid:
  model.n_embd: [16, 32{more}]
  train.seed: [1, 2]
"""
WORK = '''
"""Says that it was started, and waits for `go` where the seed is 2."""
import os, time
from pathlib import Path
from search.trial import TrialResult

def run(spec):
    home = Path(os.environ["FAKE_HOME"])
    with open(home / "started", "a") as file:
        file.write(spec.key + "\\n")
    while spec.seed == 2 and not (home / "go").exists():
        time.sleep(0.01)
    return TrialResult(spec.key, "done", 1.5, ((0, 2.0), (20, 1.5)), seconds=0.1, tokens=7, params=3)
'''
COORDINATOR = """
import sys
from gptcore import cli
from search import executor_choice, ledger, sweep_figures
from search.executors import Processes
executor_choice.make_executor = lambda args, folder: Processes(1, work="fake_sweep:run")
sweep_figures.write_figures = lambda found, folder: []
if sys.argv[1] == "forgetful":
    ledger.Ledger.finish = lambda self, study, result: result.state
cli.COMMANDS["sweep"] = ("search.sweep", "")
sys.exit(cli.main(["sweep", *sys.argv[2:]]))
"""


class Table:
    """An executor that trains nothing: `loss` tells the loss of a configuration, or how it fails."""

    capacity = 1

    def __init__(self, loss):
        self.loss, self.started, self.results, self.limits = loss, [], [], []

    def start(self, spec):
        self.started.append((spec.config["model"]["n_embd"], spec.seed))
        self.limits.append(spec.limits)
        value = self.loss(spec)
        if isinstance(value, str):
            result = TrialResult(spec.key, value, None, reason=f"made to end as {value}", log_tail="<b>last words</b>")
        else:
            curve = ((0, value + 1), (10, value + 0.1), (STEPS, value))
            result = TrialResult(spec.key, "done", value, curve, seconds=1.0, tokens=640, params=100)
        self.results.append(result)

    def wait(self, timeout_s):
        found, self.results = self.results, []
        return found

    def running(self):
        return [result.key for result in self.results]

    def close(self):
        pass


@pytest.fixture
def sweep(tmp_path, monkeypatch, corpus):
    """Runs the command on a file with these widths, with a table of losses or with real training; (code, executor)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "sweep", ("search.sweep", ""))

    def command(*arguments, loss=None, more="", steps=STEPS):
        Path("s.yaml").write_text(FILE.format(corpus=corpus, more=more, steps=steps))
        executor = Table(loss) if loss else None
        with monkeypatch.context() as patch:
            patch.setattr(sweep_figures, "write_figures", lambda found, folder: [])  # see test_sweep_page.py
            if executor:
                patch.setattr(executor_choice, "make_executor", lambda args, folder: executor)
            code = cli.main(["sweep", "s.yaml", *arguments])
        return code, executor

    return command


def loss_of(spec):
    return 3.0 - spec.config["model"]["n_embd"] / 100 + 0.01 * spec.seed


def fails_at(width, state):
    return lambda spec: state if spec.config["model"]["n_embd"] == width and spec.seed == 1 else loss_of(spec)


FOUR = [(16, 1), (16, 2), (32, 1), (32, 2)]


def test_runs_are_run_once_and_a_longer_file_starts_only_what_is_new(sweep, capsys):
    assert sweep(loss=loss_of)[1].started == FOUR
    assert "4 runs, 4 new, 0 known already" in capsys.readouterr().out
    code, executor = sweep(loss=loss_of)
    assert (code, executor.started) == (0, [])
    assert sweep(loss=loss_of, more=", 64")[1].started == [(64, 1), (64, 2)]
    code, executor = sweep("--max_iters=40", loss=loss_of)  # other runs, and the old ones stay known
    assert (code, executor.started) == (0, FOUR)
    assert "6 runs of earlier versions of the file" in capsys.readouterr().out
    assert sweep(loss=loss_of, more=", 64")[1].started == []


def test_dry_run_lists_and_starts_nothing(sweep, capsys, tmp_path):
    code, executor = sweep("--dry-run", loss=loss_of)
    shown = capsys.readouterr().out
    assert code == 0 and executor.started == [] and not (tmp_path / "out").exists()
    assert re.findall(r"n_embd=\d+, seed=\d", shown) == [f"n_embd={w}, seed={s}" for w, s in FOUR]


def test_a_failure_keeps_its_reason_and_is_tried_again_when_asked(sweep, capsys):
    code, executor = sweep(loss=fails_at(32, "failed"))
    assert code == 1 and executor.started == [*FOUR[:3], (32, 1), (32, 2)]  # two attempts
    shown = capsys.readouterr().out
    assert "1 of 4 runs failed:\n  n_embd=32, seed=1: failed, made to end as failed\n--retry failed starts" in shown
    page = Path("out/sweeps/s/sweep.html").read_text()
    assert "made to end as failed" in page and "&lt;b&gt;last words&lt;/b&gt;" in page and "<b>last" not in page
    code, executor = sweep(loss=loss_of)
    assert (code, executor.started) == (1, [])  # known to have failed: said again, and not skipped in silence
    code, executor = sweep("--retry", "failed", loss=loss_of)
    assert (code, executor.started) == (0, [(32, 1)])


@pytest.mark.parametrize("state", ["diverged", "oom", "timeout"])
def test_every_way_to_fail_is_told_and_makes_the_exit_code(sweep, state, capsys):
    code, executor = sweep(loss=fails_at(16, state))
    assert code == 1 and executor.started == FOUR
    assert f"n_embd=16, seed=1: {state}, made to end as {state}" in capsys.readouterr().out
    with Ledger("out/sweeps/s/ledger.sqlite", read_only=True) as ledger:
        (trial,) = ledger.trials("s", [state])
        assert trial.log_tail == "<b>last words</b>"
    if state != "diverged":
        more = ("--seconds-per-trial", "9", "--memory-per-trial", "3")
        _, executor = sweep("--retry", f"{state},failed", *more, loss=loss_of)
        assert executor.started == [(16, 1)] and executor.limits == [Limits(9.0, 3_000_000_000)]


def test_tables_and_log(sweep):
    assert sweep("--results_file", "t.parquet", loss=fails_at(32, "oom"))[0] == 1
    with open("out/sweeps/s/runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model.n_embd"], row["seed"], row["state"]) for row in rows] == [
        ("16", "1", "done"), ("16", "2", "done"), ("32", "1", "oom"), ("32", "2", "done"),
    ]  # fmt: skip
    log = list(yaml.safe_load_all(Path("out/sweeps/s/runs.yaml").read_text()))
    assert log[0]["formatted_name"] == "s-16-1" and log[0]["config"] == {"model.n_embd": 16, "train.seed": 1}
    assert log[0]["best_val_loss"] == pytest.approx(2.85) and log[0]["best_val_iter"] == STEPS
    assert log[2]["best_val_loss"] != log[2]["best_val_loss"] and log[2]["state"] == "oom"
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    assert list(pandas.read_parquet("t.parquet")["state"]) == [row["state"] for row in rows]


def test_the_monitor_shows_it(sweep, capsys):
    sweep(loss=fails_at(16, "failed"))
    capsys.readouterr()
    assert cli.main(["monitor", "out/sweeps/s", "--once"]) == 0
    shown = capsys.readouterr().out
    assert "finished" in shown and "n_embd=32, seed=2" in shown and "3 done" in shown
    best = next(line for line in shown.splitlines() if line.startswith("best mean"))
    assert "(2 seeds)" in best and "n_embd=32" in best and "seed=" not in best  # a mean has no seed


def test_an_interrupted_sweep_shows_what_it_has_and_says_how_to_go_on(sweep, capsys):
    def interrupted(spec):
        if spec.seed == 2:
            raise KeyboardInterrupt
        return loss_of(spec)

    assert sweep(loss=interrupted)[0] == 130
    assert "see out/sweeps/s/sweep.html; the same command goes on" in capsys.readouterr().err
    page = Path("out/sweeps/s/sweep.html").read_text()
    assert ">under way</span>" in page and "Lowest loss 2.8500 of n_embd=16" in re.sub("<[^>]*>", "", page)
    with open("out/sweeps/s/runs.csv", newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done", "running", "queued", "queued"]
    assert sweep(loss=loss_of)[0] == 0
    assert ">under way</span>" not in Path("out/sweeps/s/sweep.html").read_text()


def test_runs_that_are_another_one_are_named(sweep, capsys):
    assert sweep(loss=loss_of, more=", 16")[1].started == FOUR
    shown = capsys.readouterr().out
    assert "2 runs of the file, already there under another name: n_embd=16, seed=1; n_embd=16, seed=2\n" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--retry", "done"], "no state 'done'"), (["--retry", "diverged"], "it would diverge again"),
        (["--ignore", "n_haed"], "no setting of s.yaml"), (["--results_file", "t.txt"], "a table is written as"),
        (["--results_file", "/dev/null/t.csv"], "t.csv: cannot be written"),
        (["model.n_layr=2"], "n_layr"), (["--jobs", "0"], "--jobs 0"),
    ],
)  # fmt: skip
def test_wrong_use_is_said_before_anything_starts(sweep, capsys, arguments, words):
    assert sweep(*arguments)[0] == 2
    assert words in capsys.readouterr().err
    assert not list(Path("out").rglob("trial.json"))


def test_a_package_that_a_table_needs_is_missed_before_the_first_run(sweep, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, executor = sweep("--results_file", "t.parquet", loss=loss_of)
    assert (code, executor.started) == (2, []) and "Parquet needs pyarrow: pip" in capsys.readouterr().err


def started(home):
    return (home / "started").read_text().split() if (home / "started").exists() else []


@pytest.mark.parametrize("memory", ["sound", "forgetful"])
def test_killed_in_the_middle_it_goes_on_without_repeats(tmp_path, corpus, memory):
    """And a ledger that forgets what has ended is caught: there the first run is started again."""
    (tmp_path / "fake_sweep.py").write_text(WORK)
    (tmp_path / "s.yaml").write_text(FILE.format(corpus=corpus, more="", steps=STEPS))
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": path, "FAKE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", COORDINATOR, memory, str(tmp_path / "s.yaml"), "-o", str(tmp_path / "o")]
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + PATIENCE_S
    while len(started(tmp_path)) < 2:  # the second hangs
        assert time.monotonic() < until and first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    if memory == "forgetful":
        Path(tmp_path / "o/runs").rename(tmp_path / "o/lost")  # else the result in its folder is found
    before = started(tmp_path)
    (tmp_path / "go").touch()
    command[3] = "sound"
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert second.returncode == 0, second.stderr
    after = started(tmp_path)[len(before):]  # fmt: skip
    plan = load(tmp_path / "s.yaml")
    keys = [run.identity.key for run in plan.runs]
    assert before == keys[:2]
    assert (after == keys[1:]) == (memory == "sound"), after


def test_real_runs_are_run_folders(sweep, capsys):
    code, _ = sweep("--executor", "inline", steps=4)
    assert code == 0
    folders = sorted(Path("out/sweeps/s/runs").iterdir())
    assert len(folders) == 4 and folders[0].name.startswith("n_embd=16_seed=1-")
    about = json.loads((folders[0] / "run.json").read_text())
    assert about["status"] == "finished" and (folders[0] / "best.pt").exists()
    capsys.readouterr()
    assert cli.main(["sample", "--out_dir", str(folders[0]), "--start", "the", "--max_new_tokens", "5"]) == 0
    assert cli.main(["inspect", "out/sweeps/s/runs"]) == 0
    for folder in folders:
        config = load_config(folder)
        assert config.train.seed in (1, 2) and config.train.max_iters == 4


def load_config(folder):
    from gptcore.loader import load as load_run

    return load_run(folder).config
