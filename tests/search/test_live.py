"""The live table: fits its terminal, tells what the status says, leaves the terminal and the search alone."""

import io
import re
import signal
import threading
import time

import pytest
from rich.console import Console

from search import live
from search.live import Screen, picture
from search.status import read_status
from search.watch import watch
from tests.search.staged import CONFIG, Stage, changed, two_rounds
from tests.search.terminals import Terminal


def look(path):
    return watch(path, lambda ledger: read_status(ledger, "s"))


def drawn(renderable, width, height=24):
    console = Console(file=io.StringIO(), width=width, height=height, highlight=False)
    console.print(renderable)
    return console.file.getvalue().rstrip("\n").split("\n")


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger.sqlite"


def crowded(path):
    stage = Stage(path)
    stage.run(CONFIG, [1, 2], [2.5, 2.6])
    for i in range(40):
        stage.run(changed(model__n_embd=48 + i), [1], 2.4 + i / 100, f"n_embd 32 -> {48 + i}, of a long name " * 3)
    stage.close()


def fits(ledger, width, height):
    lines = drawn(picture(look(ledger), height), width)
    assert len(lines) <= height and max(map(len, lines)) <= width
    return lines


def test_fits(ledger):
    crowded(ledger)
    for width, height in ((80, 24), (80, 18), (140, 40)):
        lines = fits(ledger, width, height)
        shown = [line for line in lines if line.startswith("n_embd")]
        rest = re.search(r"and (\d+) more: (\d+) done", "\n".join(lines))
        assert len(shown) + int(rest[1]) == 40 and rest[1] == rest[2] and len(shown) >= 3


def test_a_table_that_ignores_its_room_does_not_fit(ledger, monkeypatch):
    crowded(ledger)
    candidates = live.candidates
    monkeypatch.setattr(live, "candidates", lambda status, room: candidates(status, 100))
    with pytest.raises(AssertionError):
        fits(ledger, 80, 24)


def test_says_what_the_status_says(ledger):
    two_rounds(ledger).close()
    text = "\n".join(drawn(picture(look(ledger), 30), 100))
    assert "s  stopped  round 2" in text and "Edge chip" in text and "(1 interrupted)" in text
    assert re.search(r"incumbent +loss 2.4529 \(7 seeds\) +area 0.8 mm2 +params 2,000 +softmax -> consmax\n", text)
    assert re.search(r"path +softmax -> consmax \+0.1000 nats", text)
    assert re.search(r"n_layer 2 -> 3 +running +1/2 +2.4000 +\+0.0400 +-\n", text)
    assert re.search(r"trials +19 of 60", text) and "2 queued, 1 running, 15 done, 1 diverged" in text
    assert "rate       16 trials/min, at most 2 min 45 s of budget left" in text


def test_a_finished_study_and_a_sweep(ledger, tmp_path):
    two_rounds(ledger, finished=True).close()
    text = "\n".join(drawn(picture(look(ledger), 30), 100))
    assert "ended      no candidate was an improvement" in text and "left" not in text
    assert "+0.0900 [+0.0800, +0.1000] nats from start to end, 3 seeds" in text
    stage = Stage(tmp_path / "sweep.sqlite", search=False)
    stage.run(CONFIG, [1], 2.5)
    stage.run(changed(model__n_layer=3), [1], 0, state="oom", reason="[rank0] out of memory")
    stage.close()
    text = "\n".join(drawn(picture(look(tmp_path / "sweep.sqlite"), 30), 100))
    assert "n_layer=3: [rank0] out of memory" in text and "round" not in text and "incumbent" not in text


def test_on_a_pipe_there_are_the_lines_alone(ledger, capsys):
    before = threading.active_count()
    stage = Stage(ledger)
    with Screen(ledger, "s") as screen:
        screen.line("round 1: [2] candidates")
        assert threading.active_count() == before
    stage.close()
    assert capsys.readouterr() == ("round 1: [2] candidates\n", "")


def test_what_fails_is_shown_and_not_raised(ledger, monkeypatch):
    def broken(opened, study):
        raise ZeroDivisionError("a fault of the display")

    monkeypatch.setattr(live, "read_status", broken)
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, highlight=False)
    stage = Stage(ledger)
    with Screen(ledger, "s", console=console, interval_s=0.01) as screen:
        time.sleep(0.1)
        screen.line("the search goes on")
    stage.close()
    said = console.file.getvalue()
    assert "no live table: ZeroDivisionError: a fault of the display" in said and "the search goes on" in said
    missing = Screen(ledger.parent / "none.sqlite", "s", console=console, interval_s=0.01)
    with missing:
        time.sleep(0.05)
    assert "no live table: no ledger" in console.file.getvalue()


SEARCH = """
import time
from search.live import Screen
from tests.search.staged import CONFIG, Stage, changed
stage = Stage({path!r})
with stage.ledger, Screen({path!r}, "s", interval_s=0.05) as screen:
    stage.run(CONFIG, [1, 2], [2.5, 2.6])
    screen.line("round 1: 1 candidate, [bold]as it is[/bold]")
    stage.run(changed(model__n_layer=3), [1], 2.4, "deeper")
    time.sleep(0.3)
    print("what others print")
    {then}
"""


@pytest.mark.parametrize(
    "then, code, tells",
    [("pass", 0, ""), ("1 / 0", 1, "ZeroDivisionError"), ("print('wait'); time.sleep(30)", -2, "KeyboardInterrupt")],
)
def test_a_terminal_is_as_it_was_after_every_end(ledger, then, code, tells):
    with Terminal(SEARCH.format(path=str(ledger), then=then), columns=80) as terminal:
        if "sleep" in then:
            terminal.until("wait")
            terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == code and terminal.restored and tells in terminal.text
    assert "\x1b[?1049h" not in terminal.said  # the lines of a search stay readable above its table
    assert "round 1: 1 candidate, [bold]as it is[/bold]\r\n" in terminal.text
    assert "what others print\r\n" in terminal.text
    assert re.search(r"deeper +done +1/1 +2.4000 +\+0.1000", terminal.text)
    left = {p.name for p in ledger.parent.iterdir()}
    assert left == {"ledger.sqlite", "ledger.sqlite.lock", "ledger.sqlite.s.lock"}  # the log is in the file
