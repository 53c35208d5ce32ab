"""The ledger: one SQLite file that holds all there is to know about studies, their trials, costs and decisions.

Only the coordinator of a study writes; monitors read at any time (`Ledger(path, read_only=True)`). Each write is one
transaction that is on the disk when the call returns, so a killed coordinator loses at most what it had not yet
written, and `lead` queues again what was running then. Order comes from counters, never from a clock.

A trial is trained once: `add` and `lead` take over what any study of the file has already found out about the same
key. Two studies that run at the very same time do not see each other's running trials and may both train one.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from gptcore.errors import UserError

from .ledger_file import LedgerFile
from .records import Added, DecisionRow, NewTrial, Study, Trial
from .trial import ENDED, REUSABLE, STATES, Limits, State, TrialResult, TrialSpec

NEXT_END = "(SELECT coalesce(max(ended), 0) + 1 FROM trials)"
COLUMNS = (
    "t.key, t.config_hash, t.seed, t.steps, t.config, coalesce(o.folder, t.folder), t.limits, t.state, t.attempts, "
    "t.interrupted, t.reason, t.log_tail, t.loss, t.seconds, t.tokens, t.params, s.name, t.ended, t.scores, t.extra, "
    "t.words"
)


class Ledger(LedgerFile):
    """An open ledger, a context manager."""

    # -- studies -------------------------------------------------------------------------------------------------

    def lead(
        self, name: str, space_hash: str, space: str, *, extend: bool = False, settings: Mapping[str, Any] | None = None
    ) -> Study:
        """Becomes the coordinator of a study, new or resumed, until `close` or the death of the process.

        Trials that a dead coordinator left running are queued again, or taken over where another study has finished
        them since. UserError when another process leads the study, or when it is that of another space (`extend`
        takes the new space instead).
        """
        self._lock(name)
        try:
            with self._write():
                row = self._db.execute("SELECT id, space_hash FROM studies WHERE name = ?", (name,)).fetchone()
                if row is None:
                    values = (name, space_hash, space)
                    self._db.execute("INSERT INTO studies (name, space_hash, space) VALUES (?, ?, ?)", values)
                elif row[1] != space_hash and not extend:
                    raise UserError(
                        f"study {name!r} of {self.path} was begun with another space file; undo the change, extend "
                        "the study, or give this one another name"
                    )
                else:
                    self._db.execute(
                        "UPDATE studies SET space_hash = ?, space = ? WHERE id = ?", (space_hash, space, row[0])
                    )
                    self._db.execute(
                        "UPDATE trials SET state = 'queued', interrupted = interrupted + 1 "
                        "WHERE study = ? AND state = 'running'",
                        (row[0],),
                    )
                    self._take_over(row[0])
                if settings is not None:
                    self._db.execute("UPDATE studies SET settings = ? WHERE name = ?", (json.dumps(settings), name))
        except BaseException:
            self.leave(name)
            raise
        return self.study(name)

    def leave(self, name: str) -> None:
        """Is its coordinator no longer."""
        self._locks.pop(name).close()

    def conclude(self, study: str, outcome: Mapping[str, Any]) -> None:
        """Records where a search ended; a search that goes on from there replaces it."""
        with self._write():
            self._db.execute("UPDATE studies SET outcome = ? WHERE id = ?", (json.dumps(outcome), self._id(study)))

    def outcome(self, study: str) -> dict[str, Any] | None:
        """What `conclude` recorded."""
        text = self._rows("SELECT outcome FROM studies WHERE id = ?", (self._id(study),))[0][0]
        return None if text is None else json.loads(text)

    def _id(self, study: str) -> int:
        rows = self._rows("SELECT id FROM studies WHERE name = ?", (study,))
        if not rows:
            known = ", ".join(s.name for s in self.studies()) or "none"
            raise UserError(f"no study {study!r} in {self.path} (there: {known})")
        return rows[0][0]

    def studies(self) -> list[Study]:
        """All studies, oldest first."""
        rows = self._rows("SELECT name, space_hash, space, elapsed_s, settings FROM studies ORDER BY id")
        return [_study(row) for row in rows]

    def study(self, name: str) -> Study:
        number = self._id(name)
        rows = self._rows("SELECT name, space_hash, space, elapsed_s, settings FROM studies WHERE id = ?", (number,))
        return _study(rows[0])

    def spend(self, study: str, seconds: float) -> None:
        """Adds to the time that coordinators of the study have spent, so that a budget survives a resume."""
        with self._write():
            self._db.execute("UPDATE studies SET elapsed_s = elapsed_s + ? WHERE name = ?", (seconds, study))

    # -- trials --------------------------------------------------------------------------------------------------

    def add(self, study: str, trials: Iterable[NewTrial]) -> Added:
        """Enters trials, in order. What the study has already is left as it is, whatever its state."""
        added, number = Added(), self._id(study)
        with self._write():
            for new in trials:
                i = new.identity
                inserted = self._db.execute(
                    "INSERT OR IGNORE INTO trials (study, key, config_hash, seed, steps, config, folder, limits, state,"
                    f" reason, extra, ended) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, CASE WHEN ? THEN {NEXT_END} END)",
                    (
                        number, i.key, i.config_hash, i.seed, i.steps, json.dumps(new.config), new.folder,
                        json.dumps(asdict(new.limits)), new.state, new.reason, json.dumps(new.extra),
                        new.state != "queued",
                    ),
                ).rowcount  # fmt: skip
                fate = added.known if not inserted else added.queued if new.state == "queued" else added.ended
                fate.append(i.key)
            taken = self._take_over(number)
        added.reused.extend(key for key in added.queued if key in taken)
        added.queued[:] = [key for key in added.queued if key not in taken]
        return added

    def _take_over(self, study: int) -> set[str]:
        """Gives queued trials of a study the result that another study has for the same key; the keys."""
        found = self._db.execute(
            "SELECT t.id, t.key, min(coalesce(o.source, o.id)) FROM trials t JOIN trials o ON o.key = t.key "
            f"AND o.study <> t.study AND o.state IN ({_marks(REUSABLE)}) "
            "WHERE t.study = ? AND t.state = 'queued' GROUP BY t.id ORDER BY t.id",
            (*REUSABLE, study),
        ).fetchall()
        names = "state, reason, log_tail, loss, seconds, tokens, params, scores, words"
        for number, _, source in found:
            self._db.execute(
                f"UPDATE trials SET ({names}) = (SELECT {names} FROM trials WHERE id = ?), source = ?, "
                f"ended = {NEXT_END} WHERE id = ?",
                (source, source, number),
            )
        return {key for _, key, _ in found}

    def claim(self, study: str, limit: int = 1, *, keys: Collection[str] | None = None) -> list[TrialSpec]:
        """Up to `limit` queued trials (of `keys`), oldest first, which are running from now on: no one else's."""
        number = self._id(study)
        chosen = "" if keys is None else f"AND t.key IN ({_marks(keys)}) "
        with self._write():
            rows = self._db.execute(
                f"SELECT t.id, {COLUMNS} FROM trials t LEFT JOIN trials o ON o.id = t.source LEFT JOIN studies s "
                f"ON s.id = o.study WHERE t.study = ? AND t.state = 'queued' {chosen}ORDER BY t.id LIMIT ?",
                (number, *(keys or ()), limit),
            ).fetchall()
            self._db.executemany(
                "UPDATE trials SET state = 'running', attempts = attempts + 1 WHERE id = ?", [row[:1] for row in rows]
            )
        return [Trial(*row[1:]).spec for row in rows]

    def finish(self, study: str, result: TrialResult) -> State:
        """Records how a trial ended, with its curve; the state it has now.

        That is `queued` for one that failed and has attempts left. What it failed of stays readable until then.
        """
        number = self._id(study)
        assert result.state != "done" or (result.loss is not None and math.isfinite(result.loss)), result
        curve = [point for point in result.curve if math.isfinite(point[1])]
        with self._write():
            row = self._db.execute(
                "SELECT id, state, attempts - interrupted, limits FROM trials WHERE study = ? AND key = ?",
                (number, result.key),
            ).fetchone()
            assert row is not None and row[1] in ("queued", "running"), f"{result.key} has ended before"
            again = result.state == "failed" and row[2] < json.loads(row[3])["attempts"]
            state: State = "queued" if again else result.state
            self._db.execute(
                "UPDATE trials SET state = ?, reason = ?, log_tail = ?, loss = ?, seconds = seconds + ?, tokens = ?, "
                f"params = ?, scores = ?, words = ?, ended = CASE WHEN ? THEN ended ELSE {NEXT_END} END WHERE id = ?",
                (
                    state, result.reason, result.log_tail, result.loss, result.seconds, result.tokens, result.params,
                    json.dumps(dict(result.scores)), result.words, again, row[0],
                ),
            )  # fmt: skip
            self._db.execute("DELETE FROM metrics WHERE trial = ?", (row[0],))
            self._db.executemany("INSERT INTO metrics VALUES (?, ?, ?)", [(row[0], *point) for point in curve])
        return state

    def go_on(self, study: str, keys: Collection[str], pause_at: int | None) -> None:
        """Queues trials that were pruned at a step again, to go on from there to `pause_at`, or to their end."""
        with self._write():
            self._db.execute(
                "UPDATE trials SET state = 'queued', interrupted = attempts, "
                "extra = json_set(extra, '$.pause_at', ?) WHERE study = ? AND state = 'pruned' AND "
                f"key IN ({_marks(keys)})",
                (pause_at, self._id(study), *keys),
            )

    def retry(self, study: str, states: Collection[State], keys: Collection[str] | None = None) -> int:
        """Queues trials (of `keys`) that ended in one of `states` once more; how many."""
        number = self._id(study)
        assert set(states) <= set(ENDED), states
        chosen = "" if keys is None else f" AND key IN ({_marks(keys)})"
        with self._write():
            return self._db.execute(
                "UPDATE trials SET state = 'queued', source = NULL WHERE study = ? AND "
                f"state IN ({_marks(states)}){chosen}",
                (number, *states, *(keys or ())),
            ).rowcount

    def limit(self, study: str, limits: Limits) -> None:
        """What waits, or is paused, runs under these limits and no longer under those that it was entered with."""
        with self._write():
            self._db.execute(
                "UPDATE trials SET limits = ? WHERE study = ? AND state IN ('queued', 'pruned')",
                (json.dumps(asdict(limits)), self._id(study)),
            )

    def trials(self, study: str, states: Collection[State] = STATES) -> list[Trial]:
        """The trials of a study in the order in which they were added."""
        return self._trials("t.study = ? AND t.state IN", (self._id(study),), states)

    def ends(self, study: str, since: int = 0) -> list[Trial]:
        """The trials that ended after the end of number `since`, in the order in which they ended."""
        found = self._trials("t.ended > ? AND t.study = ? AND t.state IN", (since, self._id(study)), ENDED)
        return sorted(found, key=lambda trial: trial.ended or 0)

    def trial(self, study: str, key: str) -> Trial | None:
        found = self._trials("t.study = ? AND t.key = ? AND t.state IN", (self._id(study), key), STATES)
        return found[0] if found else None

    def find(self, key: str) -> Trial | None:
        """A finished trial of that key, in whichever study."""
        found = self._trials("t.key = ? AND t.source IS NULL AND t.state IN", (key,), REUSABLE)
        return found[0] if found else None

    def _trials(self, where: str, values: tuple, states: Collection[State]) -> list[Trial]:
        rows = self._rows(
            f"SELECT {COLUMNS} FROM trials t LEFT JOIN trials o ON o.id = t.source LEFT JOIN studies s "
            f"ON s.id = o.study WHERE {where} ({_marks(states)}) ORDER BY t.id",
            (*values, *states),
        )
        return [Trial(*row) for row in rows]

    def counts(self, study: str) -> dict[State, int]:
        """Number of trials by state; states without any are left out."""
        sql = "SELECT state, count(*) FROM trials WHERE study = ? GROUP BY state"
        found = dict(self._rows(sql, (self._id(study),)))
        return {state: found[state] for state in STATES if state in found}

    def curve(self, study: str, key: str) -> tuple[tuple[int, float], ...]:
        """(step, validation loss) of a trial; that of its source where it was taken over."""
        sql = (
            "SELECT m.step, m.loss FROM trials t JOIN metrics m ON m.trial = coalesce(t.source, t.id) "
            "WHERE t.study = ? AND t.key = ? ORDER BY m.step"
        )
        return tuple(self._rows(sql, (self._id(study), key)))

    # -- costs and decisions -------------------------------------------------------------------------------------

    def put_costs(self, machine_hash: str, estimator: str, costs: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps what an estimator version said, by configuration hash."""
        rows = [(name, machine_hash, estimator, json.dumps(content)) for name, content in costs.items()]
        with self._write():
            self._db.executemany("INSERT OR REPLACE INTO costs VALUES (?, ?, ?, ?)", rows)

    def costs(self, machine_hash: str, estimator: str) -> dict[str, dict[str, Any]]:
        """By configuration hash, all that this estimator version said about this machine."""
        sql = "SELECT config_hash, content FROM costs WHERE machine_hash = ? AND estimator = ?"
        return {name: json.loads(content) for name, content in self._rows(sql, (machine_hash, estimator))}

    def decide(self, study: str, round: int, *, chosen: str | None, words: str, content: Mapping[str, Any]) -> None:
        """Records the decision of a round, once."""
        values = (self._id(study), round, chosen, words, json.dumps(content))
        with self._write():
            self._db.execute("INSERT INTO decisions VALUES (?, ?, ?, ?, ?)", values)

    def decisions(self, study: str) -> list[DecisionRow]:
        sql = "SELECT round, chosen, words, content FROM decisions WHERE study = ? ORDER BY round"
        rows = self._rows(sql, (self._id(study),))
        return [DecisionRow(number, chosen, words, json.loads(content)) for number, chosen, words, content in rows]


def _study(row: tuple) -> Study:
    name, space_hash, space, elapsed_s, settings = row
    return Study(name, space_hash, space, elapsed_s, json.loads(settings))


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))
