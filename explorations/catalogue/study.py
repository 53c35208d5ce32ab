"""Every kind of the catalogue in one small model: does it learn, and what does it cost?

  python explorations/catalogue/study.py run [--jobs N] [--only TEXT] [--out DIR]
  python explorations/catalogue/study.py table        # docs/catalogue_study.md from what was measured

`run` trains base.yaml with each kind, one process each on one thread: 300 steps, one seed, about 20 seconds each.
Killed, the same command goes on where it was; a run that failed is tried again. Results go into
benchmarks/results/catalogue_study.json, each as soon as it is there.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from gptcore.analysis.swap import every_kind, with_kind
from gptcore.checkpoint import read_run
from gptcore.config import identity
from gptcore.data import find_dataset, open_dataset
from gptcore.errors import UserError
from gptcore.files import write_atomically
from gptcore.loader import from_dict, load
from gptcore.model import declare
from gptcore.ops import Pass
from gptcore.prepare import ensure_prepared
from gptcore.runfolder import is_finished
from gptcore.yamlfile import dump

HERE = Path(__file__).parent
BASE = HERE / "base.yaml"
MEASURED = HERE.parent.parent / "benchmarks" / "results"
RESULTS, RATIOS = MEASURED / "catalogue_study.json", MEASURED / "kinds.json"
TABLE = HERE.parent.parent / "docs" / "catalogue_study.md"
DEFAULT = "default"
SLOWEST = 1.5  # times the default's step at equal size; more needs a reason
# Why a kind may learn nothing, or be slow.
REASONS = {
    "norm/cappedhyperspherenorm": "the stream of a fresh model is much shorter than the radius, so that nothing is "
    "normalised, and the model stays at the frequencies of characters. With `embedding.scale: sqrt` it reaches 2.625.",
    "norm/dact": "the stream of a fresh model is of size 0.02, where tanh(alpha x) is alpha x: nothing is normalised, "
    "and the model stays at the frequencies of characters (3.238 after 900 steps; 3.258 with `embedding.scale: sqrt`). "
    "With `alpha_init: 30` it reaches 2.630 in 300 steps.",
}


def plans(base: Path = BASE) -> dict[str, dict[str, Any]]:
    """Name (`slot/kind`, or the default) -> nested configuration."""
    config = load(base).config
    sections = config.model_dump(mode="json", exclude_unset=True)
    found = {DEFAULT: sections}
    for slot, kind in every_kind():
        found[f"{slot}/{kind}"] = {**sections, "model": with_kind(sections["model"], slot, kind)}
    return found


def train(name: str, plan: dict[str, Any], out: Path) -> dict[str, Any]:
    """Trains one plan in a process of its own, or takes what is there; the row for results.json."""
    file_name = name.replace("/", "-")
    try:
        run_identity = identity(from_dict(plan))
    except UserError as error:
        return {"status": "failed", "error": str(error)}
    folder = out / f"{file_name}-{run_identity[:8]}"
    if not is_finished(folder, run_identity):
        file = out / f"{file_name}.yaml"
        write_atomically(file, dump(plan).encode())
        command = [sys.executable, "-m", "gptcore", "train", str(file), "--quiet", f"--out_dir={folder}"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            return {"status": "failed", "exit_code": done.returncode, "error": last[0], "identity": run_identity}
    content = read_run(folder)
    return {
        "status": content["status"], "loss": content["best_loss"], "step": content["step"],
        "parameters": content["parameters"], "identity": run_identity,
    }  # fmt: skip


def run(out: Path, jobs: int, only: str, results: Path = RESULTS, base: Path = BASE) -> int:
    """Trains whatever is missing; returns the number of failures."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = {name: plan for name, plan in plans(base).items() if only in name}
    dataset = load(base).config.data.dataset
    ensure_prepared(dataset)
    held = json.loads(results.read_text()) if results.exists() else {}
    held["unigram_entropy"], held["vocab_size"] = unigram_entropy(dataset)
    rows = held.setdefault("runs", {})
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(train, name, plan, out): name for name, plan in chosen.items()}
        for done, future in enumerate(as_completed(futures), 1):
            name, row = futures[future], future.result()
            rows[name] = row
            failed += row["status"] == "failed"
            write_atomically(
                results, (json.dumps({**held, "runs": dict(sorted(rows.items()))}, indent=1) + "\n").encode()
            )
            print(f"{done}/{len(futures)} {name}: {row['status']} {row.get('loss') or row.get('error')}", flush=True)
    return failed


def unigram_entropy(dataset: str) -> tuple[float, int]:
    """(nats a token of the validation text by the frequency of its tokens alone, vocabulary size)."""
    data = open_dataset(find_dataset(dataset))
    counts = np.bincount(np.asarray(data.val), minlength=data.vocab_size).astype(float)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum()), data.vocab_size


def cost(plan: dict[str, Any], vocab: int) -> tuple[float, float]:
    """(FLOPs of training, primitive operations of the forward pass), both a token at full context."""
    model = from_dict(plan).with_vocab(vocab).model
    T = model.block_size
    flops = 2 * sum(op.macs for op in declare(model, Pass("train", 1, T, T)).ops)
    primitives = sum(sum(op.primitives().values()) for op in declare(model, Pass("prefill", 1, T, T)).ops)
    return flops / T, primitives / T


def missing(results: dict[str, Any], ratios: dict[str, Any]) -> Iterator[str]:
    """What the table would have to explain and does not: one line each."""
    for name in plans():
        row, timed = results["runs"].get(name), ratios.get(name)
        if row is None or (timed is None and name != DEFAULT):
            yield f"{name} has not been {'trained' if row is None else 'timed'}"
            continue
        if name in REASONS:
            continue
        if row["status"] != "finished" or not row["loss"] < results["unigram_entropy"]:
            yield f"{name} does not learn ({row.get('loss')}, {row['status']}) and nothing says why"
        if timed and list(timed["ratio"].values())[-1] > SLOWEST:
            yield f"{name} is slow ({timed['ratio']}) and nothing says why"


def markdown(results: dict[str, Any], ratios: dict[str, Any]) -> str:
    runs, configured = results["runs"], plans()
    base = runs[DEFAULT]["loss"]
    parts = [
        "# Every kind in one small model",
        "`explorations/catalogue/base.yaml` with one slot changed: 4 layers, width 128, 300 steps of 12 x 64 "
        f"characters, one seed. The text has a unigram entropy of {results['unigram_entropy']:.3f} nats; the default "
        f"reaches {base:.3f}. **This is a smoke test, not a ranking**: differences below 0.05 are within the spread of "
        "seeds, kinds are at their default knobs, and 300 steps favour what starts fast.",
        "Step: time of a training step to the default's, interleaved on one thread (`benchmarks/bench_kinds.py`); "
        "where a kind changes the number of parameters by more than 3 %, the second number is at the width that makes "
        "both models equally large. FLOPs: matrix products of training, a token. Primitives: operations outside "
        "matrix products of the forward pass, a token. Written by `python explorations/catalogue/study.py table`; a "
        "test compares it.",
    ]
    head = "| kind | loss | to default | step | parameters | kFLOPs | primitives |\n|---|---|---|---|---|---|---|"
    for slot in dict.fromkeys(name.split("/")[0] for name in configured):
        lines = []
        for name in (n for n in configured if n.split("/")[0] == slot):
            row, timed = runs[name], ratios.get(name, {"ratio": {"itself": 1.0}})
            flops, primitives = cost(configured[name], results["vocab_size"])
            loss = f"{row['loss']:.3f} | {row['loss'] - base:+.3f}" if row["status"] == "finished" else "failed | "
            step = ", ".join(f"{value:.2f}" for value in timed["ratio"].values())
            mark = "*" if name in REASONS else ""
            lines.append(
                f"| `{name.split('/')[-1]}`{mark} | {loss} | {step} | {row.get('parameters', 0):,} | "
                f"{flops / 1e3:,.0f} | {primitives:,.0f} |"
            )
        parts += [f"## {slot}", "\n".join([head, *lines])]
        reasons = [f"- \\* `{name}`: {why}" for name, why in REASONS.items() if name.split("/")[0] == slot]
        parts += ["\n".join(reasons)] if reasons else []
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="runs at the same time (default: one a core)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="kinds whose `slot/kind` holds this text")
    parser.add_argument("--out", type=Path, default=Path("out/catalogue"), help="run folders (default: out/catalogue)")
    args = parser.parse_args(argv)
    if args.command == "run":
        return 1 if run(args.out, args.jobs, args.only) else 0
    results, ratios = json.loads(RESULTS.read_text()), json.loads(RATIOS.read_text())
    open_points = list(missing(results, ratios))
    for line in open_points:
        print(line, file=sys.stderr)
    if not open_points:
        write_atomically(TABLE, markdown(results, ratios).encode())
        print(f"written: {TABLE}")
    return 1 if open_points else 0


if __name__ == "__main__":
    sys.exit(main())
