"""A small scripted coordinator that is killed at every point where it could be.

Run as a program: python coordinator.py FOLDER [torn]. It forks a coordinator for each crash point (killed with SIGKILL
just before, or just after, the n-th commit), lets a second one resume, and prints what each ledger holds in the end:
{"commits": n, "undisturbed": table, "resumed": {"before 0": table, ...}, "often": table, "runs": {...}}.
With `torn` the ledger has a fault, and the first table that shows it is the last.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from search.ledger import Ledger
from search.records import NewTrial
from search.trial import Identity, Limits, State, TrialResult, TrialSpec

ROUNDS, CANDIDATES = 2, 5


class Doomed(Ledger):
    """Kills its process around its n-th commit."""

    commits = 0
    doom: tuple[str, int] | None = None

    def __init__(self, path: Path):
        super().__init__(path)
        self._db.execute("PRAGMA synchronous = OFF")  # the machine stays up: only time depends on this

    def _commit(self) -> None:
        number, Doomed.commits = Doomed.commits, Doomed.commits + 1
        if self.doom == ("before", number):
            os.kill(os.getpid(), signal.SIGKILL)
        super()._commit()
        if self.doom == ("after", number):
            os.kill(os.getpid(), signal.SIGKILL)


class Torn(Doomed):
    """Writes a result in two transactions, so that a process can die between its state and its curve."""

    def finish(self, study: str, result: TrialResult) -> State:
        state = super().finish(study, replace(result, curve=()))
        with self._write():
            rows = [(self._id(study), result.key, *point) for point in result.curve]
            sql = "INSERT INTO metrics SELECT id, ?3, ?4 FROM trials WHERE study = ?1 AND key = ?2"
            self._db.executemany(sql, rows)
        return state


def fake_result(spec: TrialSpec, starts: int) -> TrialResult:
    """A pure function of the trial and how often it has failed: most are done, one diverges, two kinds fail."""
    number = spec.config["number"]
    if number % CANDIDATES == 1:
        return TrialResult(spec.key, "diverged", None, reason="training loss nan", seconds=1.0)
    if number % CANDIDATES == 2 or (number % CANDIDATES == 3 and starts == 1):
        return TrialResult(spec.key, "failed", None, reason="exit code 1", log_tail="Traceback", seconds=1.0)
    curve = tuple((step, 3.0 - (step + number) / 100) for step in range(0, 50, 10))
    return TrialResult(spec.key, "done", curve[-1][1], curve, seconds=1.0, tokens=100, params=10 + number)


def coordinate(path: Path, runs: Path, kind: type[Doomed] = Doomed) -> None:
    with kind(path) as ledger:
        ledger.lead("study", "hash", "space: {}")
        for number in range(len(ledger.decisions("study")), ROUNDS):
            new = [
                NewTrial(Identity(f"{number * CANDIDATES + i:064d}"[::-1], 1, 50), {"number": number * CANDIDATES + i},
                         f"out/{number}-{i}", Limits(attempts=2))
                for i in range(CANDIDATES)
            ]  # fmt: skip
            ledger.add("study", new)
            ledger.put_costs("machine", "1", {t.identity.config_hash: {"area_m2": t.config["number"]} for t in new})
            while specs := ledger.claim("study", 2):
                for spec in specs:
                    with open(runs, "a") as file:
                        file.write(spec.key + "\n")
                    trial = ledger.trial("study", spec.key)
                    assert trial is not None
                    ledger.finish("study", fake_result(spec, trial.attempts - trial.interrupted))
            keys = {t.identity.key for t in new}
            losses = {t.key: t.loss for t in ledger.trials("study", ["done"]) if t.key in keys and t.loss is not None}
            best = min(losses, key=lambda key: losses[key])
            ledger.decide("study", number, chosen=best, words="the lowest loss", content={"losses": losses})


def table(path: Path) -> dict:
    """All that must not depend on when the coordinator died; `attempts` less those that died with it."""
    with Ledger(path, read_only=True) as ledger:
        rows = [
            [t.key, t.state, t.loss, t.attempts - t.interrupted, t.reason, t.log_tail, t.seconds, t.tokens, t.params,
             t.ended, ledger.curve("study", t.key)]
            for t in ledger.trials("study")
        ]  # fmt: skip
        decisions = [[d.round, d.chosen, d.words, d.content] for d in ledger.decisions("study")]
        return json.loads(json.dumps({"trials": rows, "decisions": decisions, "costs": ledger.costs("machine", "1")}))


def in_child(path: Path, runs: Path, doom: tuple[str, int] | None, kind: type[Doomed] = Doomed) -> int:
    """Coordinates in a fork; its exit code, or minus the signal."""
    pid = os.fork()
    if not pid:
        try:
            Doomed.doom, Doomed.commits = doom, 0
            coordinate(path, runs, kind)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path) -> dict:
    coordinate(folder / "plain.db", folder / "plain.runs")
    commits, counts = Doomed.commits, {}
    resumed = {}
    for number in range(commits):
        for when in ("before", "after"):
            name = f"{when} {number}"
            path, runs = folder / f"{when}{number}.db", folder / f"{when}{number}.runs"
            assert in_child(path, runs, (when, number)) == -signal.SIGKILL, name
            assert in_child(path, runs, None) == 0, name
            resumed[name] = table(path)
            counts[name] = len(runs.read_text().splitlines())
    deaths = 0
    while in_child(folder / "often.db", folder / "often.runs", ("after", 5)) == -signal.SIGKILL:
        deaths += 1
        assert deaths < 100
    plain = len((folder / "plain.runs").read_text().splitlines())
    return {
        "commits": commits, "undisturbed": table(folder / "plain.db"), "resumed": resumed, "deaths": deaths,
        "often": table(folder / "often.db"), "runs": counts, "plain_runs": plain,
    }  # fmt: skip


def torn(folder: Path) -> dict:
    coordinate(folder / "plain.db", folder / "plain.runs", Torn)
    undisturbed, resumed = table(folder / "plain.db"), {}
    for number in range(Doomed.commits):
        path, runs = folder / f"{number}.db", folder / f"{number}.runs"
        in_child(path, runs, ("after", number), Torn)
        in_child(path, runs, None, Torn)
        resumed[str(number)] = table(path)
        if resumed[str(number)] != undisturbed:
            break
    return {"undisturbed": undisturbed, "resumed": resumed}


if __name__ == "__main__":
    print(json.dumps((torn if sys.argv[2:] == ["torn"] else main)(Path(sys.argv[1]))))
