"""The demos: every command they show exists and accepts its options and configurations, and each runs to its end."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gptcore.cli import _parse
from gptcore.loader import load
from search.space import load as load_space
from search.sweep_runs import load as load_sweep

ROOT = Path(__file__).parent.parent
READS = {"train": load, "search": load_space, "sweep": lambda path, overrides: load_sweep(path, overrides, [])}
DEMOS = sorted(path for path in (ROOT / "demos").glob("*.sh") if os.access(path, os.X_OK))


def started(demo, *arguments, **environment):
    return subprocess.run([demo, *arguments], capture_output=True, text=True, env=os.environ | environment)


def commands(shown):
    return [shlex.split(line)[2:] for line in shown.splitlines() if line.startswith("$ gptcore ")]


def check(command):
    """SystemExit or UserError where the command would refuse it before it begins."""
    args = _parse(command[0], command[1:])
    if command[0] in READS and not args.config.startswith("made/"):
        overrides = [word for word in args.overrides if not word.startswith("data.dataset")]
        READS[command[0]](ROOT / args.config, [*overrides, "model.vocab_size=65"])


def test_there_are_demos():
    assert len(DEMOS) == 3


@pytest.mark.parametrize("demo", DEMOS, ids=lambda path: path.stem)
def test_its_commands_are_valid(demo):
    found = started(demo, "--dry-run", OUT="made")
    assert found.returncode == 0 and not found.stderr
    assert len(commands(found.stdout)) >= 3
    for command in commands(found.stdout):
        check(command)


def test_the_check_goes_red():
    with pytest.raises(SystemExit):
        check(["sample", "--no_such_option"])
    with pytest.raises(Exception, match="softmacks"):
        check(["train", "explorations/quickstart.yaml", "model.attention.softmax=softmacks"])


def test_a_wrong_option_is_refused():
    found = started(DEMOS[0], "--dry")
    assert found.returncode == 2 and "usage:" in found.stderr and not found.stdout


MADE = {
    "softmax_or_consmax": ("softmax/best.pt", "consmax/best.pt"),
    "how_many_bits": ("sweep/sweep.html", "model/quantize.csv"),
    "search": ("search/search.html", "winner/best.pt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_for_real(corpus, tmp_path, name):
    """To its end, on a text whose characters are not those of README.md."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "gptcore"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gptcore "$@"\n')
    program.chmod(0o755)
    out, demo = tmp_path / "out", ROOT / "demos" / f"{name}.sh"
    path = f"{programs}:{os.environ['PATH']}"
    found = started(demo, OUT=str(out), ITERS="10", DATASET=str(corpus), PATH=path)
    assert found.returncode == 0, found.stderr
    assert commands(found.stdout) == commands(
        started(demo, "--dry-run", OUT=str(out), ITERS="10", DATASET=str(corpus)).stdout
    )
    for file in MADE[name]:
        assert (out / file).is_file()


def test_every_demo_is_run_for_real():
    assert set(MADE) == {demo.stem for demo in DEMOS}
