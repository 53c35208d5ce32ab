"""The monitor on a sweep: how far its runs are, how long it takes, and waiting for one that has not begun."""

import io
import re

import pytest
from rich.console import Console

from gptcore.errors import UserError
from search.fullscreen import View
from search.monitor import Studies
from search.progress import TAIL_BYTES, Progress, progress
from tests.search.staged import CONFIG, Stage, changed, two_rounds
from tests.search.terminals import Terminal
from tests.search.test_monitor import PROGRAM, monitor

HEAD = "step,tokens,train_loss,val_loss,learning_rate,grad_norm,step_s,elapsed_s\n"


def under_way(path):
    """12 runs: 8 done in a minute, one that runs, three that wait."""
    stage = Stage(path, search=False)
    for width in range(8):
        stage.run(changed(model__n_embd=32 + width), [1], 2.5, f"n_embd={32 + width}")
    for width in range(8, 12):
        stage.add(changed(model__n_embd=32 + width), [1], f"n_embd={32 + width}")
    stage.ledger.claim("s", 1)
    stage.ledger.spend("s", 60.0)
    return stage


def drawn(view, width=120, height=24):
    console = Console(file=io.StringIO(), width=width, height=height, highlight=False)
    console.print(view.picture(width, height))
    return console.file.getvalue().rstrip("\n").split("\n")


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the trials of a stage have the folder `folder`
    (tmp_path / "folder").mkdir()
    return tmp_path / "ledger.sqlite"


def test_the_latest_ends_leave_room_for_the_line_of_keys(ledger):
    under_way(ledger).close()
    view = View(Studies(ledger, None))
    view.read()
    assert drawn(view)[-1].rstrip().endswith("c latest")
    view.press("c")
    for height in (14, 24, 40):
        lines = drawn(view, height=height)
        assert len(lines) == height and lines[-1].startswith("1-") and any("n_embd=39 " in line for line in lines)


def test_the_time_that_is_left_is_that_of_what_is_to_come(ledger):
    """4 of 12 runs at 8 a minute."""
    under_way(ledger).close()
    assert "rate       8 trials/min, some 30 s left\n" in monitor(ledger).stdout


def test_a_run_tells_its_step_and_its_last_loss(ledger, tmp_path):
    stage = under_way(ledger)
    (tmp_path / "folder" / "metrics.csv").write_text(
        HEAD + "4,40,2.9,2.75,0.1,1.0,0.5,2.0\n5,50,2.8,,0.1,1.0,0.5,2.5\n6,60,2."
    )
    rows = Studies(ledger, None).look().rows
    stage.close()
    (running,) = [row for row in rows if row.state == "running"]
    assert (running.progress, running.seconds, running.loss) == ("step 5 of 10, loss 2.7500", 2.5, None)
    assert [row.progress for row in rows if row.state != "running"] == [""] * 11
    (tmp_path / "folder" / "metrics.csv").write_text(HEAD)  # no line yet, and then no file
    assert Studies(ledger, None).look().rows[8].progress == ""
    (tmp_path / "folder" / "metrics.csv").unlink()
    assert Studies(ledger, None).look().rows[8].progress == ""


def test_it_is_shown(ledger, tmp_path):
    under_way(ledger).close()
    (tmp_path / "folder" / "metrics.csv").write_text(HEAD + "4,40,2.9,2.75,0.1,1.0,0.5,2.0\n")
    view = View(Studies(ledger, None))
    view.read()
    assert any(re.match(r"running +1 +- +2.0 +step 4 of 10, loss 2.7500: n_embd=40", line) for line in drawn(view, 160))


@pytest.mark.parametrize("lines", [10, 5000])
def test_only_the_end_of_a_long_file_is_read(tmp_path, lines):
    rows = "".join(f"{i},{i},2.5,{3 - i / 1e4 if i % 100 == 0 else ''},0.1,1.0,0.5,{i / 2}\n" for i in range(lines))
    (tmp_path / "metrics.csv").write_text(HEAD + rows)
    last = lines - 1
    assert progress(tmp_path) == Progress(last, 3 - last // 100 / 100, last / 2)
    assert (len(rows) > TAIL_BYTES) == (lines == 5000)


def test_without_a_ledger_a_terminal_waits_and_a_pipe_does_not(tmp_path):
    folder = tmp_path / "later"
    with pytest.raises(UserError, match="no ledger"):
        Studies(folder, None)
    studies = Studies(folder, None, wait=True)
    view = View(studies)
    view.read()
    assert drawn(view, 300)[0].startswith("no ledger") and "q quit" in drawn(view, 300)[1]
    folder.mkdir()
    two_rounds(folder / "ledger.sqlite").close()
    view.read()
    assert view.problem == "" and len(view.rows()) == 19
    named = View(Studies(folder, "s", wait=True))
    named.read()
    assert len(named.rows()) == 19
    with pytest.raises(UserError, match="no study 'other'"):
        Studies(folder, "other", wait=True)


def test_a_terminal_shows_a_sweep_as_soon_as_it_begins(tmp_path):
    with Terminal(PROGRAM, tmp_path / "later", "--interval", "0.1") as terminal:
        terminal.until("no ledger .*later")
        (tmp_path / "later").mkdir()
        stage = Stage(tmp_path / "later" / "ledger.sqlite", search=False)
        stage.run(CONFIG, [1], 2.5, "n_embd=32")
        terminal.until("1-1 of 1 by order")
        stage.close()
        terminal.press("q")
        assert terminal.end() == 0 and terminal.restored
