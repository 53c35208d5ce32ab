"""A whole search on a table of losses, killed at every point where it could be, and resumed.

Run as a program: python search_coordinator.py FOLDER. It forks a search for each crash point (SIGKILL just before, or
just after, the n-th commit of the ledger), runs the same command again, and prints
{"commits": n, "undisturbed": table, "resumed": {"before 0": table, ...}, "deaths": how many were killed}.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))

from coordinator import Doomed
from table_executor import Table, space

from search.ledger import Ledger
from search.study import Search

SPACE = space(
    moves={"model.attention.softmax": {"choices": ["consmax", "relumax"]}, "model.n_layer": ["+1"]},
    seeds={"first": 1, "min": 2, "max": 2}, budget={"rounds": 2}, strategy={"rungs": [5], "eta": 3},
)  # fmt: skip


def search(path: Path) -> None:
    with Doomed(path) as ledger:
        ledger.lead(SPACE.name, SPACE.identity, "text", settings=SPACE.settings())
        Search(SPACE, ledger, Table(), Path("/nowhere")).run()


def table(path: Path) -> dict:
    """All that must not depend on when it died."""
    with Ledger(path, read_only=True) as ledger:
        found = ledger.trials(SPACE.name)
        trials = sorted([t.key, t.state, t.loss, t.tokens, ledger.curve(SPACE.name, t.key)] for t in found)
        decisions = [[d.round, d.chosen, d.words, d.content] for d in ledger.decisions(SPACE.name)]
        outcome = ledger.outcome(SPACE.name)
    return json.loads(json.dumps({"trials": trials, "decisions": decisions, "outcome": outcome}))


def in_child(path: Path, doom: tuple[str, int]) -> int:
    pid = os.fork()
    if not pid:
        try:
            Doomed.doom, Doomed.commits = doom, 0
            search(path)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path) -> dict:
    Doomed.commits = 0
    search(folder / "plain.db")
    commits, resumed, deaths = Doomed.commits, {}, 0
    for number in range(commits):
        for when in ("before", "after"):
            path = folder / f"{when}{number}.db"
            deaths += in_child(path, (when, number)) == -signal.SIGKILL
            Doomed.doom = None
            search(path)
            resumed[f"{when} {number}"] = table(path)
            path.unlink()
    return {"commits": commits, "undisturbed": table(folder / "plain.db"), "resumed": resumed, "deaths": deaths}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
