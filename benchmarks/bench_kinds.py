"""Time of a training step with each kind of the catalogue, as a ratio to the default configuration.

4 layers, width 128, 4 heads, block 64, batch 12, fp32, one thread. A kind stands in every place that always holds one
of its slot. Where it changes the number of parameters by more than 3 %, it is timed a second time at the width that
makes the models equally large. The ratios go into results/kinds.json, which `explorations/catalogue/study.py` reads.
"""

import json
import platform
from pathlib import Path

import pytest
import torch
from conftest import MODEL, VOCAB
from interleaved import ratio, time_steps

from gptcore.analysis.swap import every_kind, of_equal_size, parameters, with_kind
from gptcore.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "kinds.json"
ROUNDS, WARMUP = 60, 6
EQUAL = 0.03  # sizes that differ by no more count as equal
STEP = 8  # of widths: four heads of an even width


@pytest.mark.parametrize("slot, kind", list(every_kind()))
def test_training_step_of_kind(benchmark, make_trainer, slot, kind):
    size, changed = parameters(MODEL), with_kind(MODEL, slot, kind)
    models = {"default": MODEL, "equal width": changed}
    if abs(parameters(changed) / size - 1) > EQUAL:
        models["equal size"] = of_equal_size(changed, size, STEP)
    trainers = {name: make_trainer(name, model) for name, model in models.items()}
    contestants = {name: lambda x, y, t=trainer: t._update(x, y, 1e-3) for name, trainer in trainers.items()}
    timed = time_steps(benchmark, contestants, VOCAB, ROUNDS, WARMUP)
    ratios = {name: round(ratio(timed[name], timed["default"]), 3) for name in list(models)[1:]}
    sizes = {name: parameters(model) for name, model in models.items()}
    _record(f"{slot}/{kind}", {"ratio": ratios, "parameters": sizes, "rounds": ROUNDS})
    benchmark.extra_info.update(ratios)
    print(f"\n{slot + ' ' + kind:32}" + "".join(f"{name} {value:.3f}  " for name, value in ratios.items()), end="")


def _record(name: str, values: dict) -> None:
    """Puts one result into the file, which keeps the others: a run may be of a few kinds only."""
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    content[name] = {**values, "torch": torch.__version__, "machine": platform.machine()}
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomically(RESULTS, (json.dumps(dict(sorted(content.items())), indent=1) + "\n").encode())
