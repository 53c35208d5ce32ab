"""Compiled and interpreted kernels cannot share a process: each is checked in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def run(*arguments, **variables) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          env=environment | variables)  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def interpreted(marks: str, *names: str) -> None:
    """Runs interpreted_<name>.py."""
    files = [HERE / f"interpreted_{name}.py" for name in names]
    out = run("-m", "pytest", "-p", "no:cacheprovider", "-m", marks, *files, TRITON_INTERPRET="1")
    assert " passed" in out and "skipped" not in out
