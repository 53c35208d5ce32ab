"""Runs of the GPU benchmark with workers that have no torch: deaths, limits, kills, the command line."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import block_plan, parts, plan, store
from benchmarks.gpu.runner import NoDevice, Runner

ROOT = Path(__file__).parents[2]

WORKER = """
import json, os, sys, time
unit = json.load(sys.stdin)
print(json.dumps({"environment": {"device": "Fake one", "torch": "2"}}), flush=True)
for n, point in enumerate(unit["points"]):
    T = point["T"] if "T" in point else dict(point["sizes"])["T"]
    if T == 13:
        print("Fatal: kernel died", file=sys.stderr)
        os._exit(9)
    if T == 14:
        time.sleep(60)
    for name in point["contestants"]:
        row = {"contestant": name, "op": point["op"], "status": "ok", "value": T}
        print(json.dumps({"row": row}), flush=True)
        time.sleep(%s)
    print(json.dumps({"done": n}), flush=True)
"""


def fake(tmp_path, pause=0.0):
    script = tmp_path / "worker.py"
    script.write_text(WORKER % pause)
    return sys.executable, str(script)


def run_part(tmp_path, monkeypatch, lengths, seconds=20.0, parallel=1):
    points = [plan.Point("fake", "forward", ("triton:relu", "flex"), 1, 1, 1, T, T, 64, 64) for T in lengths]
    monkeypatch.setitem(parts.PARTS, "fake", plan.Part("", lambda rows: points, 1.0, parallel))
    rows = store.Store(tmp_path / "out")
    lines = []
    Runner(rows, lines.append, fake(tmp_path)).run(["fake"], seconds)
    return store.read(rows.path), lines


def test_a_dead_worker_costs_its_own_point(tmp_path, monkeypatch):
    rows, lines = run_part(tmp_path, monkeypatch, [1, 13, 2])
    assert [(r["T"], r["status"]) for r in rows] == [
        ("1", "ok"), ("1", "ok"), ("13", "error"), ("13", "error"), ("2", "ok"), ("2", "ok")]  # fmt: skip
    assert "9: Fatal: kernel died" in rows[2]["reason"] and rows[4]["device"] == "Fake one"
    assert "4 ok, 2 error" in lines[0]


def test_what_the_time_cuts_off_is_listed(tmp_path, monkeypatch):
    began = time.monotonic()
    rows, lines = run_part(tmp_path, monkeypatch, [1, 14, 2], seconds=0.6)
    assert time.monotonic() - began < 20
    assert [(r["T"], r["status"]) for r in rows][2:] == [("14", "skipped")] * 2 + [("2", "skipped")] * 2
    assert "2 ok, 4 skipped" in lines[0]


def test_points_of_the_block(tmp_path, monkeypatch):
    sizes = block_plan.sized(T=1, C=8)
    point = block_plan.BlockPoint("fake", "mlp", ("triton",), sizes, "both", "relu2", options=("no bias",))
    died = replace(point, sizes=block_plan.sized(T=13, C=8))
    monkeypatch.setitem(parts.PARTS, "fake", plan.Part("", lambda rows: [point, died], 1.0))
    rows = store.Store(tmp_path / "out")
    Runner(rows, print, fake(tmp_path)).run(["fake"], 20.0)
    first, second = store.read(rows.path)
    assert (first["status"], first["sizes"], first["kind"], first["variant"], first["options"], first["mode"]) == (
        "ok", "T=1 C=8", "mlp", "relu2", "no bias", "both")  # fmt: skip
    assert (second["status"], second["sizes"], parts.kernel_of(second)) == ("error", "T=13 C=8", point.kernel)


def test_a_kill_keeps_the_rows(tmp_path):
    """The whole program, killed without warning; a new run drops the torn line and its own parts only."""
    out = tmp_path / "out"
    script = f"""
import sys
from benchmarks.gpu.__main__ import main
sys.exit(main(["memory", "determinism", "--out", {str(out)!r}], worker={fake(tmp_path, 0.2)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    path = out / "rows.csv"
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") < 4):
        time.sleep(0.02)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    rows = store.read(path)
    assert len(rows) >= 3 and rows[0]["device"] == "Fake one"
    with open(path, "a") as file:
        file.write('determinism,"torn')
    assert len(store.read(path)) == len(rows)
    left = store.Store(out, anew=["memory"]).rows
    assert left == [r for r in rows if r["part"] != "memory"] == store.read(path)
    old = [n for n in store.FIELDS if n not in store.LATER]  # written before there was more than attention
    path.write_text(",".join(old) + "\n" + ",".join("x" for _ in old) + "\n")
    assert store.read(path) == [dict.fromkeys(old, "x") | dict.fromkeys(store.LATER, "")]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        store.Store(out)


def test_command_line(tmp_path, capsys):
    assert command.main(["--list", "window"]) == 0
    assert "window: P7" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["windows"])
    assert "choose from correctness" in capsys.readouterr().err
    refusing = sys.executable, "-c", """print('{"refused": "no CUDA device"}')"""
    assert command.main(["memory", "--out", str(tmp_path / "x")], worker=refusing) == 2
    assert "nothing is timed" in capsys.readouterr().err and not (tmp_path / "x").exists()
    with pytest.raises(NoDevice, match="says"):
        Runner.probe((sys.executable, "-c", "raise SystemExit('broken')"))
    assert command.main(["memory", "--out", str(tmp_path / "y")], worker=fake(tmp_path)) == 0
    assert "Fake one" in (tmp_path / "y" / "report.md").read_text()
    with open(tmp_path / "y" / "rows.csv") as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"ok"}
