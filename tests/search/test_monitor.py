"""The monitor: finds ledgers, prints, sorts and filters, and tells what is wrong."""

import argparse
import json
import os
import re
import subprocess
import sys
import time

import pytest

from gptcore.errors import UserError
from search.fullscreen import View, ordered
from search.monitor import Studies, TrialRow, add_arguments, run
from tests.search.staged import CONFIG, Stage, two_rounds
from tests.search.terminals import ROOT, environment

PROGRAM = """
import argparse, sys
from gptcore.errors import RunError, UserError
from search import monitor
parser = argparse.ArgumentParser()
monitor.add_arguments(parser)
try:
    sys.exit(monitor.run(parser.parse_args()))
except (UserError, RunError) as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def monitor(*args, code=PROGRAM):
    command = [sys.executable, "-B", "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "a" / "ledger.sqlite"
    path.parent.mkdir()
    return path


# -- printing ----------------------------------------------------------------------------------------------------------


def test_once_and_json(ledger):
    two_rounds(ledger).close()
    shown = monitor(ledger)  # on a pipe, as with --once
    assert shown.returncode == 0 and not shown.stderr and "\x1b" not in shown.stdout
    rows = [line for line in shown.stdout.split("\n") if re.match(r"(done|diverged|running|queued) ", line)]
    assert len(rows) == 19 and sum(line.startswith("done") for line in rows) == 15
    assert re.search(r"diverged +7 +- +2.0 +n_embd 32 -> 48: the loss is NaN +n_embd=48", shown.stdout)
    said = json.loads(monitor(ledger.parent, "s", "--json").stdout)
    assert said["status"]["counts"] == {"queued": 2, "running": 1, "done": 15, "diverged": 1}
    assert len(said["trials"]) == 19 and said["trials"][14]["differs"] == "n_layer=3, softmax=consmax"
    assert said["study"] == "s" and said["studies"] == [{"ledger": str(ledger), "study": "s"}]


def test_wrong_usage(ledger, tmp_path):
    two_rounds(ledger).close()
    no_ledger = tmp_path / "text.sqlite"
    no_ledger.write_text("no database, but long enough to look like one " * 50)
    empty = tmp_path / "empty"
    empty.mkdir()
    for args, words in [
        ((tmp_path / "none",), "no ledger"), ((no_ledger,), "is no ledger"), ((empty,), "no ledger in"),
        ((ledger, "other"), "no study 'other'.*there: s"), ((ledger, "--interval", "0"), "more than 0"),
        ((ledger, "--interval", "nan"), "more than 0"), ((ledger, "--interval", "inf"), "at most 86400 s"),
    ]:  # fmt: skip
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        with pytest.raises(UserError, match=words) as error:
            run(parser.parse_args([*map(str, args)]))
        assert error.value.exit_code == 2 and "\n" not in str(error.value)
    assert monitor(empty).returncode == 2
    assert list(empty.iterdir()) == []


def test_a_folder_of_several_newest_first(ledger, tmp_path):
    two_rounds(ledger).close()
    newer = tmp_path / "b" / "ledger.sqlite"
    Stage(newer, "late").close()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.sqlite").write_text("no database")
    os.utime(newer, (time.time() + 100, time.time() + 100))
    studies = Studies(tmp_path, None)
    assert studies.all == [(newer, "late"), (ledger, "s")] and studies.at == (newer, "late")
    assert len(studies.unread) == 1 and "x.sqlite" in studies.unread[0]
    studies.next()
    assert studies.at == (ledger, "s") and studies.look().status.study == "s"
    studies.next()
    assert studies.at == (newer, "late") and studies.look().rows == ()


def test_a_control_does_not_hide_what_it_controls(ledger):
    two_rounds(ledger).close()
    control = Stage(ledger, "s.random1")
    control.run(CONFIG, [77], 2.5)
    assert Studies(ledger, None).at[1] == "s"
    control.close()


# -- sorting, filtering, keys ------------------------------------------------------------------------------------------


def row(order, state="done", loss=2.0, **more):
    values = {"seed": 1, "seconds": 1.0, "key": f"k{order}", "candidate": "", "differs": "", "reason": ""}
    return TrialRow(order=order, state=state, loss=loss, **values | more)


def test_ordered():
    rows = [row(0, loss=2.5), row(1, "failed", None), row(2, loss=2.4), row(3, "queued", None), row(4, loss=2.5)]
    assert [r.order for r in ordered(rows, "loss")] == [2, 0, 4, 1, 3]
    assert [r.order for r in ordered(rows, "loss", reverse=True)] == [0, 4, 2, 1, 3]  # nothing known: last both ways
    assert [r.order for r in ordered(rows, "state")] == [3, 0, 2, 4, 1]
    assert [r.order for r in ordered(rows, "order", reverse=True)] == [4, 3, 2, 1, 0]


def test_keys_change_the_view(ledger):
    two_rounds(ledger).close()
    view = View(Studies(ledger, None))
    view.read()

    def press(*keys):
        for key in keys:
            view.press(key)
        view.picture(80, 24)
        return [r.state for r in view.rows()]

    assert len(press()) == 19 and press("f") == ["diverged"] and len(press("f")) == 19
    assert press("/", *"DONE n_layer=3 soft", "enter") == ["done"] and view.words == "DONE n_layer=3 soft"
    assert not press("/", "x") and len(press("backspace", "escape")) == 19
    press("s", "s")
    assert view.sort == "loss" and view.rows()[0].loss == 2.4
    press("r")
    assert view.rows()[0].loss == 2.6
    press("j", "down", "k")
    assert view.top == 1
    press("end")
    assert view.top == 19 - view.page
    press("pgup", "pgup", "pgup")
    assert view.top == 0
    press("c")
    assert view.round and not view.quit
    press("q")
    assert view.quit


def test_a_ledger_that_goes_away_is_told_on_the_screen(ledger):
    two_rounds(ledger).close()
    view = View(Studies(ledger, None))
    view.read()
    ledger.rename(ledger.parent / "elsewhere")
    view.read()
    assert "no ledger" in view.problem and len(view.rows()) == 19
