"""Writing prepared data sets: text, or the documents of CSV, JSONL and Parquet, to train.bin, val.bin and meta.pkl.

The text is read in pieces: once to count and to hash, once more where the tokenizer learns from it, once to encode, on
all cores. Memory does not grow with the text, except with tiktoken and a text without blanks and line ends.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import tokenizer
from .data_encoding import encoded, workers
from .data_files import (
    DTYPES,
    META,
    SPLITS,
    commit_staging,
    find_dataset,
    finish_pending,
    fresh_staging,
    read_meta,
    recorded,
)
from .data_sources import READ_BYTES, Source, opened
from .errors import DataError, UserError
from .files import write_atomically, write_synced

MODEL = "sentencepiece.model"  # a copy of what meta.pkl holds, for other programs
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a disk that fails, not a place that is wrong
MIN_SPLIT_TOKENS = 2  # one input and its target
PROJECT_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found or wrote. `written` is False where the folder was already up to date.

    `documents` counts those that have text, `empty` those without; None and 0 for plain text.
    """

    folder: Path
    tokenizer: str
    vocab_size: int
    train_tokens: int
    val_tokens: int
    written: bool
    documents: int | None = None
    empty: int = 0


@dataclass(frozen=True)
class _Survey:
    """A text as it was read the first time: SHA-256 and bytes of its files, characters and documents."""

    sha256: str
    size_bytes: int
    characters: int
    documents: int
    empty: int


def prepare(
    inputs: Path | str | Sequence[Path | str],
    out_dir: Path | str,
    tokenizer_spec: str,
    *,
    val_fraction: float = 0.1,
    fields: Sequence[str] = (),
    force: bool = False,
) -> Prepared:
    """Encode text files, concatenated in the given order, into the data folder `out_dir`.

    `inputs` are files or http(s) URLs. With `fields` they are CSV, TSV, JSONL or Parquet, and every record is a
    document: its fields joined by a line feed; it ends with the end-of-text token, or with a line feed where the
    tokenizer has none.

    The first int((1 - val_fraction) * characters) characters become train.bin, the rest val.bin, each encoded by
    itself, as in nanoGPT; documents stay whole, and one that goes across belongs to val.bin with all that follow. Token
    ids are uint16, or uint32 where the vocabulary has more than 65536. meta.pkl holds the tokenizer, and the sizes and
    checksums of all files.

    The folder changes in one step at the very end: whatever fails or is killed before leaves it as it was. Where it is
    already up to date (same text, tokenizer and split; files complete) nothing is written unless `force`.

    Errors: UserError for a wrong argument, a missing file, a folder that cannot be written; DataError for a damaged,
    empty or too short text, a full disk, and where another preparation of the folder is running.
    """
    folder = Path(out_dir)
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1, for example 0.1.")
    with opened([inputs] if isinstance(inputs, str | Path) else inputs, fields) as source:
        survey = _look_through(source)
        described = _described(source, survey, val_fraction)
        tok = None if force else _trained_before(folder, tokenizer_spec, described)
        if tok is None:
            train, val = _parts(source, survey, val_fraction)
            tok = tokenizer.build(tokenizer_spec, _as_lines(source, train), _as_lines(source, val))
        wanted = tok.meta() | described | {"dtype": "uint16" if tok.vocab_size <= 2**16 else "uint32"}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                present = None if force else _up_to_date(folder, wanted)
                before = _model_of(folder)
                meta = present or _write(folder, source, survey, tok, wanted)
                _copy_model(folder, before, meta.get("model"))
        except OSError as error:
            kind = DataError if error.errno in FULL else UserError
            reason = f"{error.strerror or error}; what was there is unchanged"
            raise kind(f"cannot write the data folder {folder}: {reason}.") from error
    counts = {split: meta["files"][f"{split}.bin"]["tokens"] for split in SPLITS}
    return Prepared(
        folder, tok.name, tok.vocab_size, counts["train"], counts["val"], written=present is None,
        documents=survey.documents if fields else None, empty=survey.empty,
    )  # fmt: skip


def _look_through(source: Source) -> _Survey:
    """First pass over the text: counts and hash."""
    digest = hashlib.sha256()
    characters = documents = empty = 0
    for text in source.texts(digest):
        characters += len(text)
        documents += 1
        empty += not text
    if characters == 0:
        raise DataError(f"the text is empty: {', '.join(map(str, source.paths))}. Nothing was written.")
    size = sum(path.stat().st_size for path in source.paths)
    return _Survey(digest.hexdigest(), size, characters, documents - empty, empty if source.fields else 0)


def _described(source: Source, survey: _Survey, val_fraction: float) -> dict[str, Any]:
    """What meta.pkl says of the text and its split."""
    text: dict[str, Any] = {
        "files": list(source.names),
        "sha256": survey.sha256,
        "bytes": survey.size_bytes,
        "characters": survey.characters,
    }
    if source.fields:
        text |= {"fields": list(source.fields), "documents": survey.documents}
    return {"format": "gptcore-data-1", "val_fraction": val_fraction, "source": text}


def _trained_before(folder: Path, spec: str, described: dict[str, Any]) -> tokenizer.Tokenizer | None:
    """The tokenizer of the folder where the same specification was trained on the same text: it need not be again."""
    if not spec.startswith("sentencepiece:"):
        return None
    from .tokenizer_sentencepiece import trains

    try:
        finish_pending(folder)
        meta = read_meta(folder / META)
        same = meta.get("tokenizer") == spec and described.items() <= meta.items()
        return tokenizer.from_meta(meta) if same and trains(spec) else None
    except DataError:
        return None


def _parts(source: Source, survey: _Survey, val_fraction: float, digest: Any = None) -> tuple[Iterator[str], ...]:
    """The texts of the training part and of the rest, to be consumed one after the other."""
    n_train = int((1 - val_fraction) * survey.characters)
    return _split(source.texts(digest), n_train, whole=bool(source.fields))


def _as_lines(source: Source, texts: Iterator[str]) -> Iterator[str]:
    """What a tokenizer learns from: documents with the line feed that may end them."""
    return (f"{text}\n" for text in texts if text) if source.fields else texts


def _write(
    folder: Path, source: Source, survey: _Survey, tok: tokenizer.Tokenizer, wanted: dict[str, Any]
) -> dict[str, Any]:
    """Last pass: write the complete set into the staging folder, then swap it in. Returns its meta."""
    staging = fresh_staging(folder)
    try:
        digest = hashlib.sha256()
        dtype: np.dtype = DTYPES[wanted["dtype"]]
        files = {}
        for split, part in zip(SPLITS, _parts(source, survey, wanted["val_fraction"], digest), strict=True):
            processes = workers(tok, survey.size_bytes)
            ids = encoded(tok, part, dtype, documents=bool(source.fields), processes=processes)
            files[f"{split}.bin"] = _write_tokens(staging / f"{split}.bin", ids, dtype)
        if digest.hexdigest() != survey.sha256:
            raise DataError(f"the text changed while it was read: {', '.join(map(str, source.paths))}. Repeat.")
        for name, entry in files.items():
            if entry["tokens"] < MIN_SPLIT_TOKENS:
                raise DataError(
                    f"the text is too short: {survey.characters} characters give {entry['tokens']} tokens in {name}, "
                    f"and {MIN_SPLIT_TOKENS} are the minimum.\nUse a longer text or another val_fraction."
                )
        meta = wanted | {"files": files}
        write_synced(staging / META, pickle.dumps(meta, protocol=4))
        commit_staging(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return meta


def _model_of(folder: Path) -> bytes | None:
    try:
        return read_meta(folder / META).get("model")
    except DataError:
        return None


def _copy_model(folder: Path, before: bytes | None, model: bytes | None) -> None:
    """Keep the file beside the data the model that meta.pkl holds; where it holds none now, our old copy goes."""
    path = folder / MODEL
    present = path.read_bytes() if path.is_file() else None
    if model is not None and present != model:
        write_atomically(path, model)
    elif model is None and present is not None and present == before:
        path.unlink()


def _split(texts: Iterator[str], n_head: int, *, whole: bool) -> tuple[Iterator[str], Iterator[str]]:
    """The first `n_head` characters and the rest, as two streams; a text that goes across is cut, or goes `whole`."""
    rest: list[str] = []

    def head() -> Iterator[str]:
        left = n_head
        for text in texts:
            if len(text) > left:
                rest.append(text if whole else text[left:])
                if not whole:
                    yield text[:left]
                return
            yield text
            left -= len(text)

    def tail() -> Iterator[str]:
        yield from itertools.chain(rest, texts)

    return head(), tail()


def _write_tokens(path: Path, ids: Iterable[np.ndarray], dtype: np.dtype) -> dict[str, int]:
    """Write token ids; returns the file's tokens, bytes and CRC-32, as recorded in meta.pkl."""
    tokens = crc = 0
    with open(path, "wb") as file:
        for chunk in ids:
            file.write(chunk.data)
            tokens += len(chunk)
            crc = zlib.crc32(chunk.data, crc)
        file.flush()
        os.fsync(file.fileno())
    return {"tokens": tokens, "bytes": tokens * dtype.itemsize, "crc32": crc}


def _up_to_date(folder: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The present meta where the folder already holds what `wanted` describes, complete; else None."""
    finish_pending(folder)
    try:
        meta = read_meta(folder / META)
    except DataError:
        return None  # absent or damaged: written anew
    described = {key: value for key, value in meta.items() if key != "files"}
    return meta if described == wanted and is_complete(folder, meta) else None


def is_complete(folder: Path, meta: dict[str, Any]) -> bool:
    """Whether both token files have the size and the CRC-32 that our `meta` records."""
    for split in SPLITS:
        entry, path = recorded(meta, split), folder / f"{split}.bin"
        if entry is None or not path.is_file() or path.stat().st_size != entry["bytes"]:
            return False
        crc = 0
        with open(path, "rb") as file:
            while data := file.read(READ_BYTES):
                crc = zlib.crc32(data, crc)
        if crc != entry["crc32"]:
            return False
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second preparation. The lock is the kernel's: it dies with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DataError(f"another preparation of {folder} is running; wait for it or stop it.") from error
    finally:
        os.close(handle)


def run_script(folder: Path, *, force: bool = False) -> None:
    """Run the folder's get_dataset.sh with this interpreter; its output goes to the terminal. DataError if it fails."""
    script = folder / "get_dataset.sh"
    if not script.is_file():
        raise UserError(
            f"{folder} has no get_dataset.sh.\n"
            f"Prepare it with: gptcore data build TEXT_FILE --out {folder} --tokenizer char"
        )
    search_path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": search_path, "FORCE": "1" if force else ""}
    sys.stdout.flush()
    done = subprocess.run(["sh", "./get_dataset.sh"], cwd=folder, env=environment)
    if done.returncode != 0:
        raise DataError(
            f"{script} failed with exit code {done.returncode}; its message is above.\n"
            f"Data that was prepared before is unchanged."
        )


def ensure_prepared(name: Path | str) -> Path:
    """Folder of a data set, ready to open: where its files are missing and it has a get_dataset.sh, that is run.

    Call it in one process only. A folder that is there but damaged is left for `open_dataset` to explain.
    """
    folder = find_dataset(name)
    finish_pending(folder)
    present = all((folder / f"{split}.bin").is_file() for split in SPLITS)
    if not present and (folder / "get_dataset.sh").is_file():
        print(f"data set {folder.name} is not prepared yet: running {folder / 'get_dataset.sh'}", flush=True)
        run_script(folder)
    return folder
