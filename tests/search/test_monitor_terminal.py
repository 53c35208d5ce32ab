"""The monitor beside a search: leaves no trace in its folder, reads during writes, and gives the terminal back."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from search.watch import watch
from tests.search.staged import two_rounds
from tests.search.terminals import ROOT, Terminal
from tests.search.test_monitor import PROGRAM, monitor


def contents(folder):
    """Read by another process: closing a file drops the locks that SQLite holds on it in this one."""
    code = "import hashlib, pathlib, sys; print(sorted((p.name, p.stat().st_mtime_ns, hashlib.md5(p.read_bytes())"
    code += ".hexdigest()) for p in pathlib.Path(sys.argv[1]).iterdir()))"
    return subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "a" / "ledger.sqlite"
    path.parent.mkdir()
    return path


@pytest.mark.parametrize("when", ["ended", "under way", "killed"])
def test_nothing_is_written(ledger, when):
    stage = two_rounds(ledger)
    if when == "ended":
        stage.close()
    elif when == "killed":
        stage.close()
        dies = "import os; from tests.search.staged import CONFIG, Stage; "
        dies += f"Stage({str(ledger)!r}, 'k').run(CONFIG, [99], 2.5); os._exit(9)"
        subprocess.run([sys.executable, "-c", dies], cwd=ROOT, check=False)
    before = contents(ledger.parent)
    assert ("-wal" in before) == (when != "ended")
    for args in ((), ("--json",)):
        assert monitor(ledger, "s", *args).returncode == 0
    assert contents(ledger.parent) == before
    stage.close()


DEMOTED = """
import locale, os, shutil, sys  # all that is to be imported, now: the interpreter may be root's alone
import search.live, search.monitor
if os.geteuid() == 0:  # who may write everywhere
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    open(sys.argv[1] + "/new", "w")
except PermissionError:
    pass
else:
    sys.exit("the folder is no read-only one")
"""


@pytest.mark.parametrize("running", [False, True])
def test_a_folder_without_the_right_to_write(running):
    with tempfile.TemporaryDirectory() as folder:
        stage = two_rounds(Path(folder) / "ledger.sqlite")
        if not running:
            stage.close()
        before = contents(folder)
        os.chmod(folder, 0o555)
        try:
            found = monitor(folder, "--json", code=DEMOTED + PROGRAM)
        finally:
            os.chmod(folder, 0o755)
        assert found.returncode == 0 and len(json.loads(found.stdout)["trials"]) == 19, found.stderr
        assert contents(folder) == before
        stage.close()


def test_a_plain_read_only_connection_would_leave_a_trace(ledger):
    """What the check above would find without search.watch."""
    two_rounds(ledger).close()
    before = contents(ledger.parent)
    code = f"from search.ledger import Ledger; Ledger({str(ledger)!r}, read_only=True).studies()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert contents(ledger.parent) != before


WRITER = """
import sys, time
from tests.search.staged import CONFIG, Stage
stage = Stage({path!r})
print("ready", flush=True)
seed = 0
while True:
    seed += 1
    stage.run(CONFIG, [seed], 2.5, f"number {{seed}}")
    time.sleep(0.005)  # a ledger of tens of thousands would be slow to draw
"""


@contextlib.contextmanager
def writer(path):
    """Another process that goes on writing trials."""
    code = WRITER.format(path=str(path))
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_every_look_during_writes_is_whole(ledger):
    with writer(ledger):
        last = 0
        for _ in range(100):
            trials = watch(ledger, lambda opened: opened.brief("s"))
            assert len(trials) >= last and [t.seed for t in trials] == list(range(1, len(trials) + 1))
            last = len(trials)
    assert last > 1


def test_keys_on_a_terminal_while_another_process_writes(ledger):
    with writer(ledger), Terminal(PROGRAM, ledger, "--interval", "0.1") as terminal:
        first = int(re.search(r"of (\d+) by", terminal.until(r"of \d\d+ by order \^"))[1])
        terminal.until(rf"of (?!{first} )\d+ by")  # it goes on by itself
        terminal.until(r"by seed v", "ssssr")
        terminal.until(r"filter: number 7_", "/number 7")
        screen = terminal.until(r"1-\d+ of \d+ with 'number 7 seed=7'", " seed=7\r")
        shown = re.findall(r"(?:done|running|queued) +(\d+) .* number (\d+) ", screen)
        assert shown and all(seed == number and number.startswith("7") for seed, number in shown)  # however many by now
        terminal.until(r"0-0 of 0 failed", "f")
        terminal.until(r"-\d+ of \d+ by seed v", "f\x1b")
        terminal.until(r"candidate +state +seeds +loss +gain", "c")
        terminal.press("q")
        assert terminal.end() == 0 and terminal.restored


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 0), (signal.SIGHUP, 129)])
def test_the_terminal_is_restored_after_signals(ledger, number, code):
    two_rounds(ledger).close()
    with Terminal(PROGRAM, ledger) as terminal:
        terminal.until("1-[0-9]+ of 19")
        terminal.process.send_signal(number)
        assert terminal.end() == code and terminal.restored and "Traceback" not in terminal.said


def test_the_terminal_is_restored_after_a_fault(ledger):
    two_rounds(ledger).close()
    broken = "import search.fullscreen as f; f.ordered = lambda *_: 1 / 0\n"
    with Terminal(broken + PROGRAM, ledger) as terminal:
        assert terminal.end() == 1 and terminal.restored
    said = terminal.said
    assert said.rfind("ZeroDivisionError") > said.rfind("\x1b[?1049l")  # readable: not on the screen that went away


def test_a_monitor_that_forgets_the_modes_is_found_out(ledger):
    two_rounds(ledger).close()
    broken = "import search.keys as k; k.Keyboard.__exit__ = lambda *_: None\n"
    with Terminal(broken + PROGRAM, ledger) as terminal:
        terminal.until("1-[0-9]+ of 19")
        terminal.press("q")
        assert terminal.end() == 0 and not terminal.restored
