"""The trial table of a study as CSV, YAML or Parquet, by the suffix of the file's name.

One row a trial: the columns of the ledger, then every setting in which the configurations differ, by its dotted path.
YAML also holds the space file and the decisions.
"""

import csv
import io
import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gptcore.errors import RunError, UserError
from gptcore.files import write_atomically
from gptcore.yamlfile import dump

from .ledger import Ledger

COLUMNS = (
    "name", "key", "state", "loss", "config_hash", "seed", "steps", "params", "tokens", "seconds", "attempts",
    "interrupted", "reason", "source", "ended", "folder",
)  # fmt: skip
PARQUET = ("pandas", "pyarrow")


def check_packages(path: Path) -> None:
    """UserError where a package is missing that such a table needs, before anything is computed for it."""
    missing = [name for name in PARQUET if find_spec(name) is None] if path.suffix == ".parquet" else []
    if missing:
        raise UserError(f"{path}: Parquet needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def table(ledger: Ledger, study: str) -> list[dict[str, Any]]:
    """The rows, all with the same keys in the same order."""
    trials = ledger.trials(study)
    leaves = [_flatten(trial.config) for trial in trials]
    names = sorted({name for leaf in leaves for name in leaf})
    differ = [name for name in names if len({json.dumps(leaf.get(name, ["absent"])) for leaf in leaves}) > 1]
    home = ledger.path.absolute().parent
    return [
        {column: getattr(trial, column) for column in COLUMNS}
        | {"folder": _from(home, trial.folder)}
        | {name: leaf.get(name) for name in differ}
        for trial, leaf in zip(trials, leaves, strict=True)
    ]


def _from(home: Path, folder: str) -> str:
    """As seen from the folder of the ledger where it lies in it: such a table can be moved with all that it names."""
    path = Path(folder)
    return str(path.relative_to(home)) if path.is_relative_to(home) else folder


def _flatten(value: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items:
        return {".".join(path): value}
    return {name: leaf for key, child in items for name, leaf in _flatten(child, (*path, str(key))).items()}


def export(ledger: Ledger, study: str, path: Path) -> int:
    """Writes the table; the number of trials. UserError for another suffix or where a package is missing."""
    rows = table(ledger, study)
    if path.suffix == ".csv":
        content = _csv(rows)
    elif path.suffix in (".yaml", ".yml"):
        decisions = [asdict(decision) for decision in ledger.decisions(study)]
        about = {"study": study, "space": ledger.study(study).space, "trials": rows, "decisions": decisions}
        content = dump(about).encode()
    elif path.suffix == ".parquet":
        check_packages(path)
        content = _parquet(rows)
    else:
        raise UserError(f"{path}: a table is written as .csv, .yaml or .parquet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    return len(rows)


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (bool, float, dict, list)) else value


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pandas

    frame = pandas.DataFrame(rows, columns=list(rows[0]) if rows else list(COLUMNS))
    for name in frame.columns.difference(COLUMNS):  # a column has one type; settings may be a number here, a word there
        types = {type(row[name]) for row in rows if row[name] is not None}
        if len(types) > 1 and not types <= {int, float} or types & {dict, list}:
            frame[name] = [None if row[name] is None else json.dumps(row[name]) for row in rows]
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
