"""The ledger when its writer dies, when many write, when the disk is full, and when the file is no good."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptcore.errors import RunError, UserError
from search.ledger import Ledger
from search.ledger_file import APPLICATION, SCHEMA
from search.records import NewTrial
from search.trial import Identity, TrialResult

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE_S = 120
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def new(number, **settings):
    return NewTrial(Identity(f"{number:064d}"[::-1], 1, 10), {"number": number}, f"out/{number}", **settings)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.db") as opened:
        opened.lead("study", "hash", "space")
        yield opened


def program(name, *arguments, **streams):
    return subprocess.Popen([sys.executable, str(HERE / name), *map(str, arguments)], env=ENV, text=True, **streams)


# -- death of the coordinator ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What `coordinator.py` reports: one ledger for each moment at which a coordinator was killed."""
    running = program("coordinator.py", tmp_path_factory.mktemp("killed"), stdout=subprocess.PIPE)
    output, _ = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0
    return json.loads(output)


def test_a_coordinator_killed_at_any_commit_resumes_to_the_same_tables(killed):
    expected = killed["undisturbed"]
    assert {row[1] for row in expected["trials"]} == {"done", "diverged", "failed"}
    assert len(expected["decisions"]) == 2 and killed["commits"] > 20
    assert len(killed["resumed"]) == 2 * killed["commits"]
    assert {name: found for name, found in killed["resumed"].items() if found != expected} == {}


def test_a_coordinator_killed_again_and_again_gets_there(killed):
    assert killed["deaths"] > 5
    assert killed["often"] == killed["undisturbed"]


def test_a_result_written_in_two_transactions_would_be_noticed(tmp_path):
    """Seeded fault: the state first and the curve after it, so that a kill in between loses the curve."""
    running = program("coordinator.py", tmp_path, "torn", stdout=subprocess.PIPE)
    found = json.loads(running.communicate(timeout=PATIENCE_S)[0])
    assert any(table != found["undisturbed"] for table in found["resumed"].values())


def test_a_kill_repeats_at_most_the_trials_that_ran(killed):
    repeated = [count - killed["plain_runs"] for count in killed["runs"].values()]
    assert min(repeated) >= 0 and max(repeated) <= 2  # two were claimed at a time
    assert max(repeated) > 0  # or else no one was killed while a trial ran, and the above shows nothing


def test_trials_of_a_killed_coordinator_queue_again_and_count_the_attempt(tmp_path):
    path = tmp_path / "ledger.db"
    pid = os.fork()
    if not pid:
        try:
            ledger = Ledger(path)
            ledger.lead("study", "hash", "space")
            ledger.add("study", [new(0), new(1)])
            ledger.claim("study")
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    with Ledger(path, read_only=True) as monitor:
        assert [t.state for t in monitor.trials("study")] == ["running", "queued"]
    with Ledger(path) as ledger:
        ledger.lead("study", "hash", "space")
        assert [(t.state, t.attempts, t.interrupted) for t in ledger.trials("study")] == [
            ("queued", 1, 1),
            ("queued", 0, 0),
        ]


HOLDER = """
import sys
from search.ledger import Ledger
ledger = Ledger(sys.argv[1])
ledger.lead("study", "hash", "space")
print("leading", flush=True)
sys.stdin.read()
"""


def test_a_second_coordinator_is_refused_until_the_first_is_killed(tmp_path):
    path = tmp_path / "ledger.db"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], env=ENV, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout.readline() == "leading\n"
    with Ledger(path) as second:
        with pytest.raises(UserError, match=f"'study'.*process {first.pid} "):
            second.lead("study", "hash", "space")
        second.lead("another", "hash", "space")  # of the same file, at the same time
        first.kill()
        first.communicate()
        second.lead("study", "hash", "space")


# -- many at once ------------------------------------------------------------------------------------------------------


def test_sixteen_processes_claim_3000_trials_none_lost_none_twice(ledger):
    ledger.add("study", [new(number) for number in range(3000)])
    claimers = [
        program("claimer.py", ledger.path, number, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for number in range(16)
    ]
    for claimer in claimers:
        assert claimer.stdout.readline() == "ready\n"
    for claimer in claimers:  # all are there: off they go
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    claimed = [claimer.communicate(timeout=PATIENCE_S)[0].split() for claimer in claimers]
    assert [claimer.returncode for claimer in claimers] == [0] * 16
    assert sum(bool(keys) for keys in claimed) > 1  # they did compete
    keys = [key for some in claimed for key in some]
    assert len(keys) == len(set(keys)) == 3000
    assert {(t.state, t.attempts) for t in ledger.trials("study")} == {("running", 1)}


def test_a_monitor_reads_whole_transactions_while_the_coordinator_writes(ledger):
    """Each transaction adds trials in threes and a result of three points: a monitor must never see part of one."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            seen = set()
            with Ledger(ledger.path, read_only=True) as monitor:
                while (count := len(monitor.trials("study"))) < 300:
                    done = monitor.trials("study", ["done"])
                    lengths = {len(monitor.curve("study", t.key)) for t in done}
                    if count % 3 or lengths - {3}:
                        os._exit(2)
                    seen.add(count)
                try:
                    monitor.add("study", [new(1000)])
                except RunError:  # attempt to write a readonly database
                    code = 0 if len(seen) > 1 else 3
        finally:
            os._exit(code)
    for number in range(0, 300, 3):
        ledger.add("study", [new(number + i) for i in range(3)])
        key = ledger.claim("study")[0].key
        ledger.finish("study", TrialResult(key, "done", 1.0, ((0, 3.0), (1, 2.0), (2, 1.0))))
        time.sleep(0.001)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing_that_was_written(ledger):
    ledger.add("study", [new(number) for number in range(50)])
    key = ledger.claim("study")[0].key
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    curve = tuple((step, 1.0) for step in range(5000))
    with pytest.raises(RunError, match="full.*make room"):
        ledger.finish("study", TrialResult(key, "done", 1.0, curve))
    assert ledger.counts("study") == {"queued": 49, "running": 1}
    assert ledger.curve("study", key) == ()
    ledger._db.execute(f"PRAGMA max_page_count = {2**30}")
    ledger.finish("study", TrialResult(key, "done", 1.0, curve))  # the same connection goes on
    assert ledger.counts("study") == {"queued": 49, "done": 1}
    with Ledger(ledger.path) as other:
        assert other._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from test_ledger_faults import Ledger, RunError, new
ledger = Ledger(sys.argv[1])
ledger.lead("study", "hash", "space")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
count = 0
try:
    while True:
        ledger.add("study", [new(count)])
        count += 1
except RunError as error:
    print(count, error)
"""


def test_a_file_that_cannot_grow_keeps_every_trial_that_add_returned_for(tmp_path):
    """The operating system refuses the write here, as a full disk does, and not SQLite."""
    path = tmp_path / "ledger.db"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(HERE)], env=ENV, text=True, capture_output=True,
        timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    count, _, message = done.stdout.partition(" ")
    assert int(count) > 3 and "make room" in message
    with Ledger(path) as ledger:
        assert len(ledger.trials("study")) == int(count)


def filled(path):
    with Ledger(path) as ledger:
        ledger.lead("study", "hash", "space")
        ledger.add("study", [new(number) for number in range(2000)])
    return path


@pytest.mark.parametrize("read_only", [False, True])
def test_a_damaged_ledger_is_named_and_left_alone(tmp_path, read_only):
    path = filled(tmp_path / "ledger.db")
    content = bytearray(path.read_bytes())
    content[8192 : len(content) - 4096] = b"\xa5" * (len(content) - 12288)
    path.write_bytes(content)
    with pytest.raises(RunError, match="ledger.db is damaged"):
        with Ledger(path, read_only=read_only) as ledger:
            ledger.trials("study")
    assert path.read_bytes() == content


@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path, read_only):
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("model:\n  n_layer: 4\n" * 100)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE songs (name TEXT)")
    db.close()
    before = text.read_bytes(), other.read_bytes()
    with pytest.raises(UserError, match="notes.txt is no ledger"):
        Ledger(text, read_only=read_only)
    with pytest.raises(UserError, match="other.db is a database, but no ledger"):
        Ledger(other, read_only=read_only)
    with pytest.raises(UserError, match="cannot open|no ledger"):
        Ledger(tmp_path, read_only=read_only)
    assert (text.read_bytes(), other.read_bytes()) == before


@pytest.mark.parametrize(("version", "age"), [(SCHEMA - 1, "an older"), (SCHEMA + 1, "a newer")])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_ledger_of_another_version_is_refused_and_left_alone(tmp_path, version, age, read_only):
    path = filled(tmp_path / "ledger.db")
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION,)
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    with pytest.raises(UserError, match=f"{age} version .schema {version}, this one reads {SCHEMA}"):
        Ledger(path, read_only=read_only)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM trials").fetchone() == (2000,)
    db.close()


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_order_and_resume_survive_a_clock_that_jumps(tmp_path, monkeypatch):
    now = iter(range(10**9, 0, -(10**5)))  # back by a day at each look
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    monkeypatch.setattr(time, "time_ns", lambda: next(now) * 10**9)
    with Ledger(tmp_path / "ledger.db") as ledger:
        for name in ("first", "second"):
            ledger.lead(name, "hash", "space")
        ledger.add("first", [new(number) for number in range(3)])
        for spec in ledger.claim("first", 3):
            ledger.finish("first", TrialResult(spec.key, "done", 1.0))
        assert [study.name for study in ledger.studies()] == ["first", "second"]
        assert [(t.config["number"], t.ended) for t in ledger.trials("first")] == [(0, 1), (1, 2), (2, 3)]
