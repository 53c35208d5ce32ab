"""Where the text of a data set comes from: plain text, or the documents of CSV, JSONL and Parquet; files or URLs.

Everything is read in pieces, as often as asked: memory does not grow with the files, only with the longest document
(and the row group of a Parquet file). Text is UTF-8; "\\r\\n" and "\\r" read as "\\n", a byte order mark is dropped.
"""

import codecs
import contextlib
import csv
import difflib
import hashlib
import http.client
import io
import json
import re
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError, UserError

READ_BYTES = 2**20
CSV_FIELD_BYTES = 2**30  # Python's own limit is 128 KiB, shorter than many a document
DOWNLOAD_SECONDS = 60  # without a single byte
URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")

Fields = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Text files, and the fields whose values are its documents; no fields means plain text, concatenated."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]  # where each came from, for the record: a file name, or a URL without its query
    fields: Fields = ()

    def texts(self, digest: Any = None) -> Iterator[str]:
        """Pieces of plain text cut anywhere, or one document after the other, "" where a record has none.

        `digest`, if given, is fed with the bytes of all files. Errors: DataError for what cannot be read or decoded,
        UserError for a field that is not there.
        """
        digest = hashlib.sha256() if digest is None else digest
        for path in self.paths:
            if not self.fields:
                yield from _pieces(path, digest)
                continue
            yield from READERS[path.suffix.lower()](path, self.fields, digest)


@contextlib.contextmanager
def opened(inputs: Sequence[Path | str], fields: Sequence[str] = ()) -> Iterator[Source]:
    """The source of these files and URLs; what was downloaded goes away at the end. UserError for a wrong request."""
    if not inputs:
        raise UserError("no input file given; name at least one text file.")
    with tempfile.TemporaryDirectory(prefix="gptcore-") as folder:
        paths, names = [], []
        for number, given in enumerate(inputs):
            if isinstance(given, str) and URL.match(given):
                parts = urllib.parse.urlsplit(given)
                shown = urllib.parse.urlunsplit(parts._replace(query="", fragment=""))  # a query may hold a key
                name = Path(urllib.parse.unquote(parts.path)).name or "index"
                _check_format(name, fields)
                paths.append(_download(given, shown, Path(folder) / str(number) / name))
                names.append(shown)
            else:
                _check_format(str(given), fields)
                if not Path(given).exists() or Path(given).is_dir():
                    what = "is a folder" if Path(given).is_dir() else "there is no such file"
                    raise UserError(f"cannot read the text {given}: {what}. Nothing was written.")
                paths.append(Path(given))
                names.append(Path(given).name)
        yield Source(tuple(paths), tuple(names), tuple(fields))


def _check_format(name: str, fields: Sequence[str]) -> None:
    suffix = Path(name).suffix.lower()
    if fields and suffix not in READERS:
        raise UserError(f"--field reads {', '.join(READERS)}, and {name} is none of these. Plain text has no fields.")
    if not fields and suffix == ".parquet":
        raise UserError(f"{name} is no plain text; name the column that holds the text: --field NAME.")


def _download(url: str, shown: str, path: Path) -> Path:
    """Fetch a URL into a file, in pieces. DataError where that fails or the content is cut short."""
    if not url.lower().startswith(("http://", "https://")):
        raise UserError(f"{shown}: only http:// and https:// can be fetched; or give a local file.")
    print(f"fetching {shown}", file=sys.stderr, flush=True)
    done = 0
    try:
        path.parent.mkdir(parents=True)
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as answer, open(path, "wb") as file:
            promised = answer.headers.get("Content-Length")
            while data := answer.read(READ_BYTES):
                done += len(data)
                file.write(data)
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
        raise DataError(f"cannot fetch {shown}: {reason}. Nothing was written.") from error
    if promised is not None and promised.isdigit() and int(promised) != done:
        raise DataError(f"{shown}: the connection ended after {done} of {promised} bytes. Nothing was written.")
    return path


def _pieces(path: Path, digest: Any) -> Iterator[str]:
    """Pieces of the decoded text; `digest` is fed with the raw bytes."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    done = 0
    try:
        with open(path, "rb") as file:
            while data := file.read(READ_BYTES):
                digest.update(data)
                done += len(data)
                if piece := newlines.decode(data):
                    yield piece
            if piece := newlines.decode(b"", final=True):
                yield piece
    except UnicodeDecodeError as error:
        at = done - len(error.object) + error.start
        raise DataError(
            f"{path} is not UTF-8 text: {error.reason} at byte {at} (0x{error.object[error.start]:02x}).\n"
            f"Convert it first, for example: iconv -f LATIN1 -t UTF-8 {path.name}. Nothing was written."
        ) from error
    except OSError as error:
        raise DataError(f"cannot read the text {path}: {error.strerror}. Nothing was written.") from error


def _lines(path: Path, digest: Any) -> Iterator[str]:
    """Lines without their ends. Only "\n" ends one: JSON may hold U+2028 and its like as they are."""
    rest = ""
    for piece in _pieces(path, digest):
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest


def _jsonl(path: Path, fields: Fields, digest: Any) -> Iterator[str]:
    for number, line in enumerate(_lines(path, digest), 1):
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}. Nothing was written.") from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise DataError(f"{path}, line {number} holds {kind}, not an object with fields. Nothing was written.")
        try:
            values = [record[name] for name in fields]
        except KeyError:
            _check_fields(fields, list(record), f"{path}, line {number}")
            raise
        yield _document(values, fields, path, f"line {number}")


def _csv(path: Path, fields: Fields, digest: Any) -> Iterator[str]:
    """The first row names the columns; .tsv is separated by tabs and has no quotes."""
    csv.field_size_limit(CSV_FIELD_BYTES)
    tabs = path.suffix.lower() == ".tsv"
    rows = csv.reader(
        (f"{line}\n" for line in _lines(path, digest)),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        header = next(rows, [])
        _check_fields(fields, header, f"{path}, line 1")
        for name in fields:
            if header.count(name) > 1:
                raise UserError(f"{path} has {header.count(name)} columns {name!r}; rename all but one.")
        columns = [header.index(name) for name in fields]
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {rows.line_num} has {len(row)} fields, and the header {len(header)}. A text with "
                    f"{'tabs' if tabs else 'commas or line ends needs quotes'}? Nothing was written."
                )
            yield _document([row[column] for column in columns], fields, path, f"line {rows.line_num}")
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num} is not CSV: {error}. Nothing was written.") from error


def _parquet(path: Path, fields: Fields, digest: Any) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"Parquet needs the package pyarrow ({error}): pip install pyarrow") from error
    try:
        with open(path, "rb") as file:
            while data := file.read(READ_BYTES):
                digest.update(data)
        with pyarrow.parquet.ParquetFile(path) as table:
            schema = table.schema_arrow
            _check_fields(fields, schema.names, str(path))
            row = 0
            for batch in table.iter_batches(columns=list(fields), batch_size=1024):
                columns = [batch.column(name).to_pylist() for name in fields]
                for values in zip(*columns, strict=True):
                    row += 1
                    yield _document(list(values), fields, path, f"row {row}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a text is not UTF-8: {error.reason}. Nothing was written.") from error
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(f"cannot read the Parquet file {path}: {reason} Nothing was written.") from error


READERS: dict[str, Callable[[Path, Fields, Any], Iterator[str]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}


def _check_fields(wanted: Fields, present: list[str], where: str) -> None:
    for name in wanted:
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{where}: there is no field {name!r}.{hint} Its fields: {', '.join(present) or 'none'}.")


def _document(values: list[Any], fields: Fields, path: Path, place: str) -> str:
    """The texts of the fields, a line feed between them; empty and absent (null) ones left out."""
    for name, value in zip(fields, values, strict=True):
        if value is not None and not isinstance(value, str):
            kind = type(value).__name__
            raise DataError(f"{path}, {place}: the field {name!r} holds {kind}, not text. Nothing was written.")
    document = values[0] or "" if len(values) == 1 else "\n".join(filter(None, values))
    if not document.isascii():
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{path}, {place}: half a surrogate pair, no UTF-8 text. Nothing was written.") from error
    return document.replace("\r\n", "\n").replace("\r", "\n") if "\r" in document else document
