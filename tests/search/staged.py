"""A study written step by step through the ledger, as a coordinator does it, without any search: for what shows one."""

import copy
import hashlib
import json

from search.ledger import Ledger
from search.records import NewTrial
from search.trial import Identity, TrialResult

CONFIG = {
    "model": {
        "n_layer": 2, "n_embd": 32, "block_size": 16, "layers": [],
        "attention": {"kind": "causal", "n_head": 2, "softmax": {"kind": "softmax"}},
        "mlp": {"kind": "mlp", "expansion": 4.0}, "norm": {"kind": "layernorm"}, "block": {"kind": "prenorm"},
    },
    "data": {"dataset": "shakespeare_char"}, "train": {"seed": 1, "max_iters": 10}, "hardware": "edge-sky130",
}  # fmt: skip
SEEDS = {"first": 1, "min": 2, "max": 3}
MACHINE = "m0"


def changed(**values):
    """CONFIG with `model.n_layer=3` as model__n_layer=3."""
    config = copy.deepcopy(CONFIG)
    for path, value in values.items():
        *above, last = path.split("__")
        node = config
        for part in above:
            node = node[part]
        node[last] = value
    return config


def hashed(config):
    same = {**config, "train": {}}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def entry(config, name=None, area_m2=1e-6):
    costs = {"params": 1000.0 * config["model"]["n_layer"], "area_m2": area_m2}
    found = {"key": f"{hashed(config)}-{MACHINE}", "config_hash": hashed(config), "costs": costs, "intervals": {}}
    return {"name": name, **found} if name else found


def settings(**more):
    return {
        "name": "s", "strategy": {"kind": "greedy", "beam": 1}, "score": "loss", "unit": "nats",
        "cost": {"name": "area_m2"}, "stage": "decode", "machine": "Edge chip", "vocab_size": 29,
        "budget": {"trials": 60, "seconds": None, "tokens": None, "gpu_hours": None, "rounds": None},
        "seeds": SEEDS, "constraints": {}, "rule": {}, "baseline": entry(CONFIG), **more,
    }  # fmt: skip


class Stage:
    """A study under way. Seeds are those of search.greedy."""

    def __init__(self, path, name="s", **more):
        self.ledger, self.name = Ledger(path), name
        self.ledger.lead(name, "hash", "text", settings=settings(**more) if more.pop("search", True) else None)

    def seeds(self, round_, fresh=False):
        start = SEEDS["first"] + SEEDS["max"] * (2 * (round_ - 1) + fresh)
        return range(start, start + SEEDS["max"])

    def add(self, config, seeds, name=""):
        trials = []
        for seed in seeds:
            own = copy.deepcopy(config)
            own["train"]["seed"] = seed
            trials.append(NewTrial(Identity(hashed(config), seed, 10), own, "folder", name=name))
        self.ledger.add(self.name, trials)
        return [trial.identity.key for trial in trials]

    def run(self, config, seeds, loss, name="", state="done", reason=""):
        """Trials from first to last; `loss` is a number, or one a seed."""
        keys = self.add(config, seeds, name)
        losses = loss if isinstance(loss, list) else [loss] * len(keys)
        for key, one in zip(keys, losses, strict=True):
            self.ledger.claim(self.name, 1, keys=[key])
            done = state == "done"
            result = TrialResult(key, state, one if done else None, reason=reason, seconds=2.0, tokens=100, params=1000)
            self.ledger.finish(self.name, result)
        return keys

    def decide(self, number, incumbent, considered, chosen=None, gain=0.0):
        confirmations = []
        if chosen:
            confirmations = [{"name": chosen, "gain": gain, "low": gain - 0.01, "high": gain + 0.01, "holds": True}]
        content = {
            "incumbent": incumbent, "considered": considered, "judged": [], "confirmations": confirmations,
            "dropped": {}, "failed": {}, "pruned": {}, "words": "",
        }  # fmt: skip
        self.ledger.decide(self.name, number, chosen=chosen, words="words", content=content)

    def close(self):
        self.ledger.close()


def two_rounds(path, finished=False):
    """Baseline, a round that took consmax, and a second one under way with a trial that runs and one that diverged."""
    stage = Stage(path)
    consmax = changed(model__attention__softmax={"kind": "consmax", "beta": 2.0})
    deeper, both = changed(model__n_layer=3), changed(model__n_layer=3)
    both["model"]["attention"]["softmax"] = {"kind": "consmax", "beta": 2.0}
    seeds, fresh = stage.seeds(1), stage.seeds(1, fresh=True)
    stage.run(CONFIG, seeds[:2], [2.50, 2.60])
    stage.run(consmax, seeds[:2], [2.40, 2.52], "softmax -> consmax")
    stage.run(deeper, seeds[:2], 2.58, "n_layer 2 -> 3")
    stage.run(CONFIG, fresh, [2.55, 2.5, 2.6], "baseline")
    stage.run(consmax, fresh, [2.45, 2.4, 2.5], "softmax -> consmax")
    considered = [entry(consmax, "softmax -> consmax", 0.8e-6), entry(deeper, "n_layer 2 -> 3", 1.2e-6)]
    stage.decide(1, entry(CONFIG), considered, "softmax -> consmax", 0.1)
    seeds = stage.seeds(2)
    stage.run(consmax, seeds[:2], [2.44, 2.46], "softmax -> consmax")
    stage.run(both, seeds[:1], [2.40], "n_layer 2 -> 3")
    stage.run(changed(model__n_embd=48), seeds[:1], 0, "n_embd 32 -> 48", "diverged", "the loss is NaN")
    if finished:
        stage.run(both, seeds[1:2], [2.47], "n_layer 2 -> 3")
        stage.decide(2, considered[0], [entry(both, "n_layer 2 -> 3")])
        end = {**considered[0], "config": consmax}
        path_ = [{**considered[0], "round": 1, "gain": 0.1, "low": 0.09, "high": 0.11}]
        gain = {"mean": 0.09, "low": 0.08, "high": 0.1, "seeds": 3}
        stage.ledger.conclude(
            "s", {"reason": "no candidate was an improvement", "rounds": 2, "start": entry(CONFIG), "end": end,
                  "path": path_, "gain": gain, "front": []},
        )  # fmt: skip
    else:
        stage.add(both, seeds[1:2], "n_layer 2 -> 3")
        stage.add(changed(model__n_embd=16), seeds[:2], "n_embd 32 -> 16")
        stage.ledger.claim("s", 1)
    stage.ledger.spend("s", 60.0)
    return stage
