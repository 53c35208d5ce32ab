"""The files of a data folder: where they are, safe reading of meta.pkl, and an atomic change of the whole set.

A folder holds train.bin and val.bin (token ids, uint16 or uint32, nothing else in them) and meta.pkl (a dict of plain
values), as nanoGPT has it. Three files cannot be renamed at once, so a new set goes through two sub-folders:

    .staging/   being written; worthless after a crash
    .pending/   complete, by one atomic rename; what is in it has to be moved up, meta.pkl last

Whoever finds .pending/ finishes the move (`finish_pending`), so a crash at any moment leaves the old set or the new.
"""

import contextlib
import difflib
import io
import os
import pickle
import pickletools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, UserError
from .files import sync_folder

SPLITS = ("train", "val")
META = "meta.pkl"
FILES = ("train.bin", "val.bin", META)
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
STAGING = ".staging"
PENDING = ".pending"
PROJECT_DATA = Path(__file__).resolve().parents[1] / "data"
NOT_DATASETS = {"template"}
MAX_META_BYTES = 64 * 2**20  # the vocabulary of 10^6 tokens takes some 20 MB
CHUNK_BYTES = 4 * 2**20

# The pickle instructions that make None, bool, int, float, str, bytes, list and dict. None of them names, calls or
# builds anything else. Tuples are left out: as dict keys, nested through the memo, they take exponential time to hash.
_PLAIN_OPCODES = frozenset(
    """PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET""".split()
)
_MEMO_STORES = frozenset(["PUT", "BINPUT", "LONG_BINPUT"])


class _NothingImported(pickle.Unpickler):
    """Second lock behind the list of instructions: no name is ever looked up."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}")


def loads_plain(data: bytes) -> Any:
    """Unpickle plain values; pickle.UnpicklingError for anything else. Executes nothing, whatever `data` is."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _PLAIN_OPCODES:
                raise pickle.UnpicklingError(f"it holds more than plain values (instruction {opcode.name})")
            if opcode.name in _MEMO_STORES and int(argument or 0) > len(data):
                # the C unpickler would allocate that many slots
                raise pickle.UnpicklingError("a memo index is out of range")
        return _NothingImported(io.BytesIO(data)).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything: ValueError, KeyError, EOFError, MemoryError ...
        raise pickle.UnpicklingError(f"it is damaged ({type(error).__name__}: {str(error)[:100]})") from error


def advice(folder: Path) -> str:
    """What to do about a data folder that cannot be used."""
    if (folder / "get_dataset.sh").is_file():
        name = folder.name if folder.resolve().parent.name == "data" else folder
        return f"Prepare it again: gptcore data prepare {name} --force"
    return f"Prepare it again: gptcore data build TEXT_FILE --out {folder} --tokenizer char --force"


def read_meta(path: Path | str) -> dict[str, Any]:
    """Content of a meta.pkl, ours or nanoGPT's. DataError where it is missing, truncated, foreign or unsafe.

    A pickle can run code when it is loaded; this reader admits plain values only and runs nothing.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_META_BYTES:
            raise DataError(f"{path} has {size} bytes, which no meta.pkl has.\n{advice(path.parent)}")
        meta = loads_plain(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.\n{advice(path.parent)}") from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} is refused: {error}.\nNothing in it was executed. A meta.pkl is a dict of strings and numbers.\n"
            f"{advice(path.parent)}"
        ) from error
    if not isinstance(meta, dict):
        raise DataError(f"{path} holds a {type(meta).__name__}, not the dict of a meta.pkl.\n{advice(path.parent)}")
    return meta


def fresh_staging(folder: Path) -> Path:
    """An empty staging folder; what a killed preparation left is removed. The caller holds the folder's lock."""
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    return staging


def commit_staging(folder: Path) -> None:
    """Put the complete set in .staging/ (its files are on the disk) in the place of the present one."""
    finish_pending(folder)
    sync_folder(folder / STAGING)
    os.rename(folder / STAGING, folder / PENDING)
    sync_folder(folder)
    finish_pending(folder)


def finish_pending(folder: Path) -> None:
    """Finish a change of the set that was cut off; usually there is none. Safe for several processes at once."""
    pending = folder / PENDING
    if not pending.is_dir():
        return
    try:
        for name in FILES:
            with contextlib.suppress(FileNotFoundError):  # moved before the crash, or just now by another process
                os.replace(pending / name, folder / name)
        sync_folder(folder)
        # Not rmtree: a preparation that starts now may already have put its own complete set there.
        with contextlib.suppress(OSError):
            pending.rmdir()
    except OSError as error:
        raise DataError(
            f"{pending} holds a complete new data set that must be moved up, and that failed: {error}.\n"
            f"Make {folder} writable and repeat."
        ) from error


def chunks(tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Walk over a token file in constant memory: (position of the chunk, chunk)."""
    step = CHUNK_BYTES // tokens.itemsize
    for start in range(0, len(tokens), step):
        yield start, np.asarray(tokens[start : start + step])


def recorded(meta: Mapping[str, Any], split: str) -> dict[str, int] | None:
    """What our meta.pkl says of a split's file: bytes, tokens, crc32. None for nanoGPT's, which says nothing."""
    files = meta.get("files")
    entry = files.get(f"{split}.bin") if isinstance(files, dict) else None
    if not isinstance(entry, dict) or not all(type(entry.get(key)) is int for key in ("bytes", "tokens", "crc32")):
        return None
    return entry


def find_dataset(name: Path | str) -> Path:
    """Folder of a data set: NAME under ./data or under the project's data/, or the path of a folder.

    UserError lists what there is, and the nearest name. The folder need not be prepared.
    """
    text = str(name)
    if text and text == Path(text).name:  # a plain name: a folder ./NAME of the user's must not hide data/NAME
        for root in _data_roots():
            if (root / text).is_dir():
                return root / text
    if text and Path(text).is_dir():
        return Path(text)
    names = dataset_names()
    near = difflib.get_close_matches(Path(text).name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"there is no data set {text!r}.{hint}\nKnown data sets: {listing()}.\n"
        f"For your own text: data/create_new_dataset.sh NAME TEXT_FILE, or gptcore data build TEXT_FILE --out FOLDER."
    )


def dataset_names() -> list[str]:
    """Names of all data sets under ./data and the project's data/, prepared or not."""
    found = set()
    for root in _data_roots():
        for folder in root.iterdir() if root.is_dir() else ():
            if (folder / "get_dataset.sh").is_file() or (folder / "train.bin").is_file():
                found.add(folder.name)
    return sorted(found - NOT_DATASETS)


def _data_roots() -> tuple[Path, Path]:
    return Path("data"), PROJECT_DATA


def listing() -> str:
    """The data set names in one line, for messages."""
    return ", ".join(dataset_names()) or "none"
