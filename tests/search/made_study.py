"""Studies in a ledger without any training: the coordinator's loop over a made-up world of losses and costs, with the
real rule and the real ledger. Pages and figures are tested on them."""

import hashlib
import math
import random
from dataclasses import asdict

from search.decide import TAKEN, Evidence, Rule, confirm, decide
from search.paired import interval
from search.records import NewTrial
from search.trial import Identity, TrialResult

MOVES = {"n_layer": (1, -1), "n_embd": (16, -16), "kind": ("softmax", "consmax", "relumax"), "rows": (2, 0.5)}
START = {"n_layer": 2, "n_embd": 64, "kind": "softmax", "rows": 16}
RULE = Rule(0.95, 0.01, 2, 4)


def config_hash(at):
    return hashlib.sha256(repr((at["n_layer"], at["n_embd"], at["kind"])).encode()).hexdigest()


def costs_of(at):
    params = 12 * at["n_layer"] * at["n_embd"] ** 2 + 65 * at["n_embd"]
    area = 2e-6 + 3e-12 * params + 4e-10 * at["rows"] ** 2 + (2e-8 if at["kind"] == "softmax" else 0)
    latency = 1e-5 + 2e-10 * params * 16 / at["rows"]
    return {"params": params, "area_m2": area, "energy_per_token_j": 4e-12 * params, "latency_s": latency}


def place(at):
    costs = costs_of(at)
    ends = {name: (0.8 * value, 1.3 * value) for name, value in costs.items() if name != "params"}
    where = {"key": f"{config_hash(at)}-{at['rows']:g}", "config_hash": config_hash(at)}
    return where | {"costs": costs, "intervals": ends}


def loss_of(at, seed):
    extra = {"softmax": 0.0, "consmax": -0.03, "relumax": 0.2}[at["kind"]]
    own = random.Random(f"{config_hash(at)} {seed}").gauss(0, 0.004)
    return 2.0 + 0.5 / at["n_layer"] + 16 / at["n_embd"] + extra + random.Random(seed).gauss(0, 0.05) + own


def settings(name, strategy="greedy", **changes):
    return {
        "name": name, "strategy": {"kind": strategy}, "score": "loss", "unit": "nats", "cost": {"name": "area_m2"},
        "stage": "decode", "machine": "a made-up machine", "vocab_size": 65,
        "budget": {"trials": 200, "seconds": 3600, "tokens": None, "gpu_hours": None, "rounds": 5},
        "seeds": {"first": 1, "min": 2, "max": 4}, "constraints": {"area_m2": {"min": None, "max": 5e-6}},
        "rule": {"confidence": 0.95, "shrink_tolerance": 0.01}, "baseline": place(START), **changes,
    }  # fmt: skip


class World:
    """Trains nothing: enters a trial as ended. The score is the loss, or the accuracy of a task."""

    def __init__(self, ledger, name, score="loss", broken=()):
        self.ledger, self.name, self.task, self.broken = ledger, name, score.removeprefix("task:"), broken

    def value(self, at, seed):
        trial = NewTrial(Identity(config_hash(at), seed, 100), {"model": at}, "folder")
        key = trial.identity.key
        self.ledger.add(self.name, [trial])
        if self.ledger.claim(self.name, keys=[key]):
            loss = loss_of(at, seed)
            curve = [(step, loss + 2 * (math.exp(-step / 30) - math.exp(-100 / 30))) for step in range(0, 101, 25)]
            result = TrialResult(
                key, "done", loss, tuple(curve), seconds=10, tokens=1000, scores={"quiz": 1 / loss}
            )  # fmt: skip
            if at["kind"] in self.broken:
                result = TrialResult(key, "diverged", None, reason="loss is <nan>", log_tail="step 3\nnan", seconds=2)
            self.ledger.finish(self.name, result)
        found = self.ledger.trial(self.name, key)
        return found.loss if self.task == "loss" or found.loss is None else found.scores[self.task]

    def gains(self, before, after, seeds):
        """Paired gains, None where the candidate failed. A move of the machine alone needs no trial."""
        if config_hash(before) == config_hash(after):
            return [0.0 for seed in seeds if self.value(before, seed)]
        pairs = [(self.value(before, seed), self.value(after, seed)) for seed in seeds]
        if any(b is None for _, b in pairs):
            return None
        return [a - b if self.task == "loss" else b - a for a, b in pairs]


def neighbours(at, moves):
    found = {}
    for key, values in moves.items():
        for value in values:
            new = value if key == "kind" else at[key] * value if key == "rows" else at[key] + value
            if new != at[key] and (key == "kind" or 1 <= new <= 128):
                name = f"{at[key]} -> {new}" if key == "kind" else f"{key} {at[key]:g} -> {new:g}"
                found[name] = at | {key: new}
    return found


def walks(at, moves, name):
    """What a random control looks at: eight points, four moves away at most."""
    rng, found = random.Random(name), {}
    for _ in range(8):
        end, words = at, []
        for _ in range(rng.randint(1, 4)):
            word, end = rng.choice(sorted(neighbours(end, moves).items(), key=lambda item: item[0]))
            words.append(word)
        found["; ".join(words)] = end
    return found


def cost_change(new, old, rule):
    if "lexicographic" in rule:
        return tuple(float(costs_of(new)[name] - costs_of(old)[name]) for name in rule["lexicographic"])
    return costs_of(new)[rule["name"]] - costs_of(old)[rule["name"]]


def study(ledger, name, rounds=4, strategy="greedy", *, broken=(), moves=MOVES, conclude=True, text="", **changes):
    """Runs one. `changes` are those of its settings, `text` is put into everything that may hold words."""
    said = settings(name, strategy, **changes)
    ledger.lead(name, "hash of the space", f"cost: area_m2\n# {text}\n", settings=said)
    world, at, path, round_ = World(ledger, name, said["score"], broken), START, [], 0
    for round_ in range(1, rounds + 1):
        seeds = [100 * round_ + i for i in range(4)]
        found = walks(at, moves, name) if strategy == "random" else neighbours(at, moves)
        found = {f"{n}{text}": new for n, new in found.items()}
        gains = {n: world.gains(at, new, seeds[:3]) for n, new in found.items()}
        decision = decide(
            [Evidence(n, tuple(g), cost_change(found[n], at, said["cost"])) for n, g in gains.items() if g], RULE
        )
        confirmations = []
        for judged in [j for j in decision.judged if j.verdict in TAKEN][:3]:
            fresh = world.gains(at, found[judged.name], [seed + 50 for seed in seeds])
            confirmations.append(confirm(judged, fresh, RULE))
            if confirmations[-1].holds:
                break
        chosen = confirmations[-1].judged.name if confirmations and confirmations[-1].holds else None
        content = {
            "incumbent": place(at), "considered": [place(new) | {"name": n, "move": {}} for n, new in found.items()],
            "dropped": {f"duplicate{text}": 2}, "pruned": {}, "words": decision.words,
            "failed": {n: f"seed 1: diverged, loss is <nan>{text}" for n, g in gains.items() if g is None},
            "judged": [asdict(j) for j in decision.judged],
            "confirmations": [asdict(c.judged) | {"holds": c.holds, "luck": c.luck} for c in confirmations],
        }  # fmt: skip
        words = confirmations[-1].words if chosen else decision.words
        ledger.decide(name, round_, chosen=chosen, words=words + text, content=content)
        ledger.spend(name, 60.0)
        if chosen is None:
            break
        at, c = found[chosen], confirmations[-1].judged
        path.append(place(at) | {"round": round_, "name": chosen, "gain": c.gain, "low": c.low, "high": c.high})
        if strategy == "random":
            break
    if conclude:
        fresh = interval(world.gains(START, at, range(900, 904)), 0.95) if path else None
        gain = {"mean": fresh.mean, "low": fresh.low, "high": fresh.high, "seeds": fresh.seeds} if fresh else None
        ledger.conclude(name, {
            "reason": f"no candidate was an improvement{text}", "rounds": round_, "start": place(START),
            "end": place(at) | {"config": {"model": at}}, "path": path, "gain": gain, "front": [],
        })  # fmt: skip
    ledger.leave(name)


def with_controls(ledger, name="made", controls=5, **changes):
    """A greedy study and its random controls."""
    study(ledger, name, **changes)
    for i in range(1, controls + 1):
        study(ledger, f"{name}.random{i}", 1, "random")
