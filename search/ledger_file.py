"""The file under a ledger: its tables and version, transactions, errors in words, and who may write.

SQLite with a write-ahead log, so that monitors read while the coordinator writes, and with synchronous=FULL, so that
what a call has returned from is on the disk (a local one: the log needs shared memory, which network file systems do
not have). A study is led by the process that holds its lock file, a lock of the
operating system that ends with the process, however it dies. Nothing here deletes anything.
"""

import contextlib
import fcntl
import os
import re
import socket
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar
from urllib.parse import quote

from gptcore.errors import RunError, UserError

SCHEMA = 2
APPLICATION = 0x67707473  # "gpts", in the header of the file
BUSY_TIMEOUT_S = 60.0

TABLES = """
CREATE TABLE studies (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, space_hash TEXT NOT NULL, space TEXT NOT NULL,
    elapsed_s REAL NOT NULL DEFAULT 0, settings TEXT NOT NULL DEFAULT '{}', outcome TEXT);
CREATE TABLE trials (
    id INTEGER PRIMARY KEY AUTOINCREMENT, study INTEGER NOT NULL REFERENCES studies, key TEXT NOT NULL,
    config_hash TEXT NOT NULL, seed INTEGER NOT NULL, steps INTEGER NOT NULL, config TEXT NOT NULL,
    folder TEXT NOT NULL, limits TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    interrupted INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', log_tail TEXT NOT NULL DEFAULT '',
    loss REAL, seconds REAL NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0, params INTEGER NOT NULL DEFAULT 0,
    source INTEGER REFERENCES trials, ended INTEGER, scores TEXT NOT NULL DEFAULT '{}',
    extra TEXT NOT NULL DEFAULT '{}', words TEXT NOT NULL DEFAULT '', UNIQUE (study, key));
CREATE INDEX trials_key ON trials (key);
CREATE INDEX trials_state ON trials (study, state);
CREATE INDEX trials_ended ON trials (ended);
CREATE TABLE metrics (
    trial INTEGER NOT NULL REFERENCES trials, step INTEGER NOT NULL, loss REAL NOT NULL, PRIMARY KEY (trial, step)
    ) WITHOUT ROWID;
CREATE TABLE costs (
    config_hash TEXT NOT NULL, machine_hash TEXT NOT NULL, estimator TEXT NOT NULL, content TEXT NOT NULL,
    PRIMARY KEY (config_hash, machine_hash, estimator)) WITHOUT ROWID;
CREATE TABLE decisions (
    study INTEGER NOT NULL REFERENCES studies, round INTEGER NOT NULL, chosen TEXT, words TEXT NOT NULL,
    content TEXT NOT NULL, PRIMARY KEY (study, round)) WITHOUT ROWID;
"""

_F = TypeVar("_F", bound="LedgerFile")


class LedgerFile:
    """An open file, a context manager. UserError for a file that is no ledger; RunError for damage and full disks."""

    def __init__(self, path: str | Path, *, read_only: bool = False):
        self.path = Path(path)
        self._locks: dict[str, TextIO] = {}
        self.writes = not read_only
        if read_only:
            if not self.path.is_file():
                raise UserError(f"no ledger {self.path}")
            self._db = self._connect("ro")
            try:
                self._check()
            except BaseException:
                self._db.close()
                raise
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            gate = open(f"{self.path}.lock", "w")
        except OSError as error:
            raise UserError(f"cannot write beside the ledger {self.path}: {error.strerror}") from error
        with gate:
            fcntl.flock(gate, fcntl.LOCK_EX)  # two that create it at once; SQLite does not wait for the change to WAL
            self._db = self._connect("rwc")
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _connect(self, mode: str) -> sqlite3.Connection:
        try:
            return sqlite3.connect(
                f"file:{quote(str(self.path.absolute()))}?mode={mode}", uri=True, timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
            )  # fmt: skip
        except sqlite3.Error as error:
            raise UserError(f"cannot open the ledger {self.path}: {error}") from error

    def _check(self) -> None:
        """UserError unless this is a ledger of this version."""
        try:
            application = self._db.execute("PRAGMA application_id").fetchone()[0]
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise self._explain(error) from error
        if application != APPLICATION:
            raise UserError(f"{self.path} is a database, but no ledger of a search; name another file")
        if version != SCHEMA:
            age = "an older" if version < SCHEMA else "a newer"
            raise UserError(
                f"{self.path} was written by {age} version (schema {version}, this one reads {SCHEMA}); "
                "read it with that version, or name another file"
            )

    def _prepare(self) -> None:
        with self._explained():
            empty = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            application = self._db.execute("PRAGMA application_id").fetchone()[0]
        if not (empty and application == 0):
            self._check()
            with self._explained():
                found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise self._damaged(found)
        with self._explained():
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
        if empty:
            with self._write():
                for statement in TABLES.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    # -- errors and transactions ---------------------------------------------------------------------------------

    def _damaged(self, what: object) -> RunError:
        return RunError(
            f"the ledger {self.path} is damaged ({what}); nothing was changed. Restore a copy, or save what can be "
            "read with `sqlite3 FILE .recover`"
        )

    def _explain(self, error: sqlite3.DatabaseError) -> Exception:
        text = str(error)
        if "not a database" in text:
            return UserError(f"{self.path} is no ledger (not an SQLite file, or its beginning is damaged)")
        if "malformed" in text or "corrupt" in text:
            return self._damaged(text)
        if "full" in text or "disk I/O" in text:
            return RunError(
                f"cannot write the ledger {self.path}: {text}. All up to here is kept; make room and run the same "
                "command again"
            )
        if "locked" in text:
            return RunError(f"the ledger {self.path} is held by another process for over {BUSY_TIMEOUT_S:.0f} s")
        if isinstance(error, sqlite3.OperationalError):
            return RunError(f"the ledger {self.path} cannot be used: {text}")
        return error  # an invariant of the tables: a fault of this program

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            explained = self._explain(error)
            if explained is error:
                raise
            raise explained from error

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        """One transaction: all of it is on the disk afterwards, or nothing."""
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._commit()
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("ROLLBACK")
                raise

    def _commit(self) -> None:
        self._db.execute("COMMIT")

    def _rows(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple]:
        with self._explained():
            return self._db.execute(sql, values).fetchall()

    def close(self) -> None:
        if self.writes:  # SQLite does so itself unless a monitor looks on: then a copy of the file would lack the log
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()

    def __enter__(self: _F) -> _F:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _lock(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise UserError(f"study name {name!r}: letters, digits, '.', '_' and '-' only")
        path = Path(f"{self.path}.{name}.lock")
        try:
            lock = open(path, "a+")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise UserError(f"study {name!r} of {self.path} is being run by {holder}; wait for it, or stop it")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        self._locks[name] = lock
