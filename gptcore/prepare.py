"""Writing prepared data sets: any UTF-8 text files to train.bin, val.bin and meta.pkl.

The text is read twice, in pieces: once to count, to hash and to collect the characters, once to encode. Memory does not
grow with the text, except with tiktoken and a text that has no line ends.
"""

import codecs
import contextlib
import fcntl
import hashlib
import io
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
from .errors import DataError, UserError
from .files import write_synced

READ_BYTES = 2**20
MIN_SPLIT_TOKENS = 2  # one input and its target
PROJECT_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found or wrote. `written` is False where the folder was already up to date."""

    folder: Path
    tokenizer: str
    vocab_size: int
    train_tokens: int
    val_tokens: int
    written: bool


@dataclass(frozen=True)
class _Source:
    """A text as it was read the first time: byte and character counts, SHA-256 of the concatenated files."""

    paths: tuple[Path, ...]
    sha256: str
    size_bytes: int
    characters: int


def prepare(
    inputs: Path | str | Sequence[Path | str],
    out_dir: Path | str,
    tokenizer_spec: str,
    *,
    val_fraction: float = 0.1,
    force: bool = False,
) -> Prepared:
    """Encode text files, concatenated in the given order, into the data folder `out_dir`.

    The first int((1 - val_fraction) * characters) characters become train.bin, the rest val.bin, each encoded by
    itself, as in nanoGPT; "\\r\\n" reads as "\\n" and a byte order mark is dropped. Token ids are uint16, or uint32
    where the vocabulary has more than 65536. meta.pkl holds the tokenizer, and the sizes and checksums of all files.

    The folder changes in one step at the very end: whatever fails or is killed before leaves it as it was. Where it is
    already up to date (same text, tokenizer and split; files complete) nothing is written unless `force`.

    Errors: UserError for a wrong argument; DataError for a missing, undecodable, empty or too short text, and where
    another preparation of the folder is running.
    """
    paths = tuple(Path(p) for p in ([inputs] if isinstance(inputs, str | Path) else inputs))
    folder = Path(out_dir)
    if not paths:
        raise UserError("no input file given; name at least one text file.")
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1, for example 0.1.")
    source, characters = _survey(paths)
    tok = tokenizer.build(tokenizer_spec, characters)
    wanted = tok.meta() | {
        "format": "gptcore-data-1",
        "dtype": "uint16" if tok.vocab_size <= 2**16 else "uint32",
        "val_fraction": val_fraction,
        "source": {
            "files": [p.name for p in paths],
            "sha256": source.sha256,
            "bytes": source.size_bytes,
            "characters": source.characters,
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            present = None if force else _up_to_date(folder, wanted)
            meta = present or _write(folder, source, tok, wanted)
    except OSError as error:
        raise DataError(f"cannot write the data folder {folder}: {error}.\nWhat was there is unchanged.") from error
    counts = {split: meta["files"][f"{split}.bin"]["tokens"] for split in SPLITS}
    return Prepared(folder, tok.name, tok.vocab_size, counts["train"], counts["val"], written=present is None)


def _survey(paths: tuple[Path, ...]) -> tuple[_Source, list[str]]:
    """First pass over the text: counts, hash, and the set of characters."""
    digest = hashlib.sha256()
    found: set[str] = set()
    characters = 0
    for piece in _read(paths, digest):
        found.update(piece)
        characters += len(piece)
    if characters == 0:
        raise DataError(f"the text is empty: {', '.join(map(str, paths))}. Nothing was written.")
    size = sum(path.stat().st_size for path in paths)
    return _Source(paths, digest.hexdigest(), size, characters), sorted(found)


def _read(paths: Iterable[Path], digest: Any) -> Iterator[str]:
    """Pieces of the decoded text; `digest` is fed with the raw bytes."""
    for path in paths:
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


def _write(folder: Path, source: _Source, tok: tokenizer.Tokenizer, wanted: dict[str, Any]) -> dict[str, Any]:
    """Second pass: write the complete set into the staging folder, then swap it in. Returns its meta."""
    staging = fresh_staging(folder)
    try:
        digest = hashlib.sha256()
        pieces = _read(source.paths, digest)
        n_train = int((1 - wanted["val_fraction"]) * source.characters)
        head, tail = _split(pieces, n_train)
        dtype: np.dtype = DTYPES[wanted["dtype"]]
        files = {}
        for split, part in zip(SPLITS, (head, tail), strict=True):
            files[f"{split}.bin"] = _write_tokens(staging / f"{split}.bin", tok.encode_stream(part), dtype)
        if digest.hexdigest() != source.sha256:
            raise DataError(f"the text changed while it was read: {', '.join(map(str, source.paths))}. Repeat.")
        for name, entry in files.items():
            if entry["tokens"] < MIN_SPLIT_TOKENS:
                raise DataError(
                    f"the text is too short: {source.characters} characters give {entry['tokens']} tokens in {name}, "
                    f"and {MIN_SPLIT_TOKENS} are the minimum.\nUse a longer text or another val_fraction."
                )
        meta = wanted | {"files": files}
        write_synced(staging / META, pickle.dumps(meta, protocol=4))
        commit_staging(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return meta


def _split(pieces: Iterator[str], n_head: int) -> tuple[Iterator[str], Iterator[str]]:
    """The first `n_head` characters and the rest, as two streams to be consumed one after the other."""
    rest: list[str] = []

    def head() -> Iterator[str]:
        left = n_head
        while left and (piece := next(pieces, "")):
            if len(piece) > left:
                rest.append(piece[left:])
            yield piece[:left]
            left -= min(left, len(piece))

    def tail() -> Iterator[str]:
        yield from itertools.chain(rest, pieces)

    return head(), tail()


def _write_tokens(path: Path, ids: Iterable[list[int]], dtype: np.dtype) -> dict[str, int]:
    """Write token ids; returns the file's tokens, bytes and CRC-32, as recorded in meta.pkl."""
    tokens = crc = 0
    with open(path, "wb") as file:
        for chunk in ids:
            data = np.array(chunk, dtype=dtype).tobytes()
            file.write(data)
            tokens += len(chunk)
            crc = zlib.crc32(data, crc)
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
