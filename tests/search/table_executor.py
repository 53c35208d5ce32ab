"""A search on a table of losses instead of trainings, for tests of whoever decides."""

import hashlib

from search.ledger import Ledger
from search.space import from_mapping
from search.study import Search
from search.trial import TrialResult

MODEL = {"n_layer": 2, "n_embd": 32, "block_size": 16, "vocab_size": 29, "attention": {"kind": "causal", "n_head": 2}}
INTERVAL = 5
MOVES = {
    "model.n_layer": ["+1", "-1"], "model.n_embd": ["+16", "-16"],
    "model.attention.softmax": {"choices": ["softmax", "consmax", "relumax"]},
}  # fmt: skip


def noise(key, size=0.002):
    return (int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32 - 0.5) * size


def loss_of(config):
    """Depth and width help less and less; consmax costs nothing; relumax is bad."""
    model = config["model"]
    extra = {"softmax": 0.0, "consmax": -0.05, "relumax": 0.3}[model["attention"]["softmax"]["kind"]]
    return 3.0 + 0.4 / model["n_layer"] + 8 / model["n_embd"] + extra


class Table:
    """An executor that knows every loss; dies after `alive` trials, where that is given."""

    capacity = 2

    def __init__(self, alive=None, broken=()):
        self.alive, self.broken, self.started, self.results = alive, broken, 0, []
        self.reached, self.steps, self.specs = {}, 0, []

    def start(self, spec):
        if self.alive is not None and self.started >= self.alive:
            raise KeyboardInterrupt
        self.started += 1
        self.specs.append(spec)
        kind = spec.config["model"]["attention"]["softmax"]["kind"]
        if kind in self.broken:
            self.results.append(TrialResult(spec.key, "diverged", None, reason="NaN"))
            return
        last = spec.config["train"]["max_iters"]
        loss = loss_of(spec.config) + noise(spec.key) + noise(f"seed {spec.seed}", 0.2)  # what pairing removes
        until = spec.pause_at or last
        curve = tuple((step, loss + 0.1 * (last - step)) for step in range(0, until + 1, INTERVAL))
        paused = spec.pause_at is not None
        tokens = 10 * (until - self.reached.get(spec.key, 0))
        self.reached[spec.key] = until
        self.steps += tokens // 10
        self.results.append(
            TrialResult(spec.key, "pruned" if paused else "done", None if paused else loss, curve, tokens=10 * until)
        )

    def wait(self, timeout_s):
        found, self.results = self.results, []
        return found

    def running(self):
        return [result.key for result in self.results]

    def close(self):
        pass


def space(**changes):
    raw = {
        "baseline": {"model": MODEL, "train": {"max_iters": 10, "eval_interval": INTERVAL}},
        "hardware": "edge-sky130", "cost": "params",
        "moves": MOVES, "budget": {"rounds": 3}, "seeds": {"first": 1, "min": 2, "max": 3},
    }  # fmt: skip
    return from_mapping(raw | changes)


def run(tmp_path, executor, where="a", extend=False, **changes):
    found = space(**changes)
    with Ledger(tmp_path / f"{where}.sqlite") as ledger:
        ledger.lead(found.name, found.identity, "text", extend=extend)
        outcome = Search(found, ledger, executor, tmp_path).run()
        rows = ledger.decisions(found.name)
        trials = {(t.key, t.state, t.loss) for t in ledger.trials(found.name)}
    return outcome, rows, trials
