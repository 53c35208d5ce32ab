"""Preparing large texts: killed while processes encode, and memory that does not grow with the text."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptcore.prepare import prepare
from tests.test_prepare import NEW, OLD, ROOT, snapshot, text_of, write
from tests.test_tokenizer import gpt2_cached


def test_killed_while_processes_encode(tmp_path):
    """SIGKILL in the middle: the old set is whole, no worker lives on, the next preparation has nothing in its way."""
    if not gpt2_cached():
        pytest.skip("the GPT-2 rank files are not in the cache; `pytest -m network` fetches them")
    out = tmp_path / "out"
    prepare(write(tmp_path / "old.txt", OLD), out, "char")
    before = snapshot(out)
    text = write(tmp_path / "new.txt", NEW * 8000)  # 12 MB
    command = [sys.executable, "-m", "gptcore", "data", "build", text, "--out", out, "--tokenizer", "tiktoken:gpt2"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 100_000 for p in out.glob(".staging/*.bin")):
        assert child.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.005)
    child.kill()
    child.wait()
    with pytest.raises(ProcessLookupError):  # the workers are of its process group
        while time.monotonic() < deadline:
            os.killpg(child.pid, 0)
            time.sleep(0.01)
    assert {k: v for k, v in snapshot(out).items() if not k.startswith(".staging/")} == before
    assert text_of(out) == OLD
    prepare(write(text, NEW), out, "tiktoken:gpt2")
    assert text_of(out) == NEW
    assert sorted(p.name for p in out.iterdir()) == ["meta.pkl", "train.bin", "val.bin"]


# Peak memory of preparing in a fresh process, less what the process had before, in MiB.
MEMORY = """
import re, sys
from pathlib import Path
from gptcore.prepare import prepare
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
prepare(sys.argv[1], sys.argv[2], sys.argv[3], force=True)
before = peak()
prepare(sys.argv[4], sys.argv[2], sys.argv[3], force=True)
if sys.argv[5:]:
    kept = Path(sys.argv[4]).read_text()
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("fault", [[], ["keep the text"]])
def test_memory_does_not_grow_with_the_text(tmp_path, fault):
    """48 MB take less than 12 MB more than 4 MB do; the second case shows that the measure sees a text that is kept."""
    small, large = write(tmp_path / "s.txt", NEW * 3000), write(tmp_path / "l.txt", NEW * 33_000)
    command = [sys.executable, "-c", MEMORY, small, tmp_path / "out", "byte", large, *fault]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (float(done.stdout) > 12) == bool(fault), done.stdout
