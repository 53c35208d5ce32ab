"""Has queued trials of a study run, as many at a time as the executor holds, until each of them has ended."""

import time
from collections.abc import Callable, Collection

from .executors import Executor
from .ledger import Ledger
from .trial import State, TrialResult

WAIT_S = 1.0
SPENT_EVERY_S = 5.0  # how often the time that was spent is written down; a killed coordinator loses no more of it


def run_trials(
    ledger: Ledger, executor: Executor, study: str, keys: Collection[str], hear: Callable[[TrialResult, State], object]
) -> None:
    """`hear` gets every result with the state it left: `queued` for a trial that failed and is tried again."""
    began = time.monotonic()
    open_, waiting = set(keys), len(keys)  # waiting: as far as is known; one that failed may wait once more
    while open_:
        free = executor.capacity - len(executor.running())
        if free > 0 and waiting:
            claimed = ledger.claim(study, free, keys=open_)
            waiting = waiting - len(claimed) if len(claimed) == free else 0
            for spec in claimed:
                executor.start(spec)
        for result in executor.wait(WAIT_S):
            state = ledger.finish(study, result)
            if state == "queued":
                waiting += 1
            else:
                open_.discard(result.key)
            hear(result, state)
        now = time.monotonic()
        if now - began > SPENT_EVERY_S or not open_:
            ledger.spend(study, now - began)
            began = now
