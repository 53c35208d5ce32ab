"""How long a training step waits for its data, and how fast a text is prepared against a plain tiktoken loop."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from interleaved import ratio

from gptcore.data import Prefetcher
from gptcore.data_encoding import cores
from gptcore.data_files import find_dataset
from gptcore.tokenizer import build

STEPS, WARMUP = 100, 10
TEXT_BYTES = 100 * 2**20
ROUNDS = 3


def test_waiting_for_data(benchmark, make_trainer):
    trainer = make_trainer("data", {})
    waited, worked = [], []
    with Prefetcher(trainer._batch, 0, trainer.where.device) as batches:

        def step():
            began = time.perf_counter()
            x, y = next(batches)
            ready = time.perf_counter()
            trainer._update(x, y, 1e-3)
            waited.append(ready - began)
            worked.append(time.perf_counter() - ready)

        benchmark.pedantic(step, rounds=STEPS, warmup_rounds=WARMUP)
    share = sum(waited[WARMUP:]) / (sum(waited[WARMUP:]) + sum(worked[WARMUP:]))
    benchmark.extra_info["share_waiting"] = round(share, 5)
    print(f"\nwaiting for data: {share:.4%} of a training step (4 layers, width 128, batch 12 x 64, one thread)")


# A fresh process for each way, which imports no more than the way needs: its memory is a result too.
CHILD = """
import json, os, resource, sys, time
from pathlib import Path
import numpy as np
from gptcore.prepare import prepare
from gptcore.tokenizer_files import get_encoding

def plain(text, out):
    'What one writes first: one process, pieces of 1 MB, encode_ordinary, an array, a file.'
    with open(text, encoding="utf-8") as file, open(out, "wb") as tokens:
        while piece := file.read(2**20):
            np.array(encoding.encode_ordinary(piece), dtype=np.uint16).tofile(tokens)

way, text, out = sys.argv[1:]
encoding = get_encoding("gpt2")  # reading the ranks is no part of either
began, cpu = time.perf_counter(), sum(os.times()[:4])
plain(text, out) if way == "plain" else prepare(text, out, "tiktoken:gpt2", force=True)
facts = {"wall_s": time.perf_counter() - began, "cpu_s": sum(os.times()[:4]) - cpu}  # with its children
# Not ru_maxrss, which a process takes over from the one that started it.
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of the largest, what it shares with us included
print(json.dumps(facts | {"peak_bytes": int(peak) * 1024, "worker_peak_bytes": worker * 1024}))
"""


def measured(way: str, text: Path, out: Path) -> dict[str, float]:
    """Seconds (wall and CPU) of one way without the start of its process, and the peak of its memory."""
    command = [sys.executable, "-c", CHILD, way, str(text), str(out)]
    root = str(Path(__file__).parents[1])
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)


def test_preparing_100_mb(benchmark, tmp_path):
    """100 MB of the Shakespeare corpus, over and over, in GPT-2 tokens; the two ways in turns."""
    corpus = find_dataset("shakespeare_char") / "input.txt"
    if not corpus.is_file():
        pytest.skip("the text is not there: gptcore data prepare shakespeare_char")
    text, data = tmp_path / "text.txt", corpus.read_bytes()
    with open(text, "wb") as file:
        for _ in range(TEXT_BYTES // len(data) + 1):
            file.write(data)
        file.truncate(TEXT_BYTES)
    found: dict[str, list[dict[str, float]]] = {"plain": [], "prepare": []}

    def one_round():
        for way, results in found.items():
            results.append(measured(way, text, tmp_path / way))

    benchmark.pedantic(one_round, rounds=ROUNDS)
    first = data[: 2**21].decode()
    wanted = build("tiktoken:gpt2").encode(first)[:-100]
    ids = np.fromfile(tmp_path / "prepare" / "train.bin", dtype=np.uint16, count=len(wanted))
    assert ids.tolist() == wanted, "no time is worth reporting of wrong tokens"
    times = {way: [result["wall_s"] for result in results] for way, results in found.items()}
    tokens = (tmp_path / "prepare" / "train.bin").stat().st_size + (tmp_path / "prepare" / "val.bin").stat().st_size
    facts = {
        "cores": cores(),
        "ratio": round(ratio(times["plain"], times["prepare"]), 2),
        "tokens_per_s": round(tokens / 2 / min(times["prepare"])),
        **{
            f"{way}_{key}": round(min(r[key] for r in results), 2)
            for way, results in found.items()
            for key in results[0]
        },
    }
    benchmark.extra_info.update(facts)
    print("\npreparing 100 MB:", json.dumps(facts, indent=2))
