"""Reading prepared data sets: finding, checking, sampling batches.

Batches are a pure function of (seed, step), so a resumed run continues exactly and any number of processes sees the
same global batch. Legend: B sequences in a batch, T block_size.
"""

import itertools
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import tokenizer
from .data_files import (
    DTYPES,
    META,
    SPLITS,
    advice,
    chunks,
    dataset_names,
    find_dataset,
    finish_pending,
    listing,
    read_meta,
    recorded,
)
from .errors import DataError

__all__ = [
    "Dataset",
    "Prefetcher",
    "dataset_names",
    "eval_batches",
    "find_dataset",
    "open_dataset",
    "read_meta",
    "train_batch",
]

Batch = tuple[torch.Tensor, torch.Tensor]
GPT2_VOCAB_SIZE = 50257  # of a nanoGPT folder without meta.pkl


@dataclass(frozen=True)
class Dataset:
    """An opened data folder. `train` and `val` are read-only memory maps of token ids, shape (tokens,).

    `meta` is the content of meta.pkl, None for a nanoGPT folder of GPT-2 tokens, which has none.
    """

    folder: Path
    train: np.memmap
    val: np.memmap
    vocab_size: int
    meta: dict[str, Any] | None

    def tokenizer(self) -> tokenizer.Tokenizer:
        """The tokenizer that made these tokens."""
        try:
            return tokenizer.from_meta(self.meta)
        except DataError as error:
            raise DataError(f"{self.folder / META}: {error}") from error

    def check(self, vocab_size: int, block_size: int) -> None:
        """Read every token once, so that a wrong file is found before training and not in the middle of it.

        DataError names the file, the position and the id where an id is not below `vocab_size`, a split that is shorter
        than block_size + 1 tokens, and a file whose content is not the one that meta.pkl was written for.
        """
        for split in SPLITS:
            tokens = getattr(self, split)
            path = self.folder / f"{split}.bin"
            if len(tokens) < block_size + 1:
                raise DataError(
                    f"{path} has {len(tokens)} tokens, fewer than block_size + 1 = {block_size + 1}.\n"
                    f"Use a smaller block_size, or prepare the data set from a longer text."
                )
            crc = 0
            for start, chunk in chunks(tokens):
                crc = zlib.crc32(chunk.data, crc)
                if chunk.max() >= vocab_size:
                    at = int(np.argmax(chunk >= vocab_size))
                    raise DataError(
                        f"{path} holds the token id {chunk[at]} at position {start + at}, but the vocabulary has "
                        f"{vocab_size} tokens (ids 0..{vocab_size - 1}).\n"
                        f"Either the model's vocab_size is not the data set's ({self.vocab_size}), or the file is no "
                        f"token file of this data set.\n{advice(self.folder)}"
                    )
            entry = recorded(self.meta or {}, split)
            if entry is not None and entry["crc32"] != crc:
                raise DataError(
                    f"{path} is not the file that {META} beside it was written for (CRC-32 {crc}, recorded "
                    f"{entry['crc32']}): damaged, or copied from another preparation.\n{advice(self.folder)}"
                )


def open_dataset(folder: Path | str) -> Dataset:
    """Open a prepared folder, ours or nanoGPT's.

    DataError, with what to do, where it is missing, empty, truncated, foreign or unsafe. Only sizes are looked at here;
    `Dataset.check` reads the tokens.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no data folder {folder}.\nKnown data sets: {listing()}.")
    finish_pending(folder)
    missing = [f"{split}.bin" for split in SPLITS if not (folder / f"{split}.bin").is_file()]
    if missing:
        raise DataError(f"{folder} is not prepared: {' and '.join(missing)} missing.\n{advice(folder)}")
    meta = read_meta(folder / META) if (folder / META).exists() else None
    vocab_size = GPT2_VOCAB_SIZE if meta is None else meta.get("vocab_size")
    if type(vocab_size) is not int or not 1 <= vocab_size <= 2**32:
        raise DataError(f"{folder / META}: vocab_size is {vocab_size!r}, not a size of uint32.\n{advice(folder)}")
    dtype_name = (meta or {}).get("dtype", "uint16")
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise DataError(f"{folder / META}: dtype is {dtype_name!r}, not uint16 or uint32.\n{advice(folder)}")
    train, val = (_open_split(folder, split, DTYPES[dtype_name], meta or {}) for split in SPLITS)
    return Dataset(folder=folder, train=train, val=val, vocab_size=vocab_size, meta=meta)


def _open_split(folder: Path, split: str, dtype: np.dtype, meta: dict[str, Any]) -> np.memmap:
    path = folder / f"{split}.bin"
    size = path.stat().st_size
    entry = recorded(meta, split)
    if size == 0:
        raise DataError(f"{path} is empty.\n{advice(folder)}")
    if entry is not None and size != entry["bytes"]:
        raise DataError(
            f"{path} has {size} bytes, but {META} was written for one of {entry['bytes']}: truncated, or from "
            f"another preparation.\n{advice(folder)}"
        )
    if size % dtype.itemsize:
        raise DataError(
            f"{path} has {size} bytes, not a whole number of {dtype.name} tokens: truncated or no token file.\n"
            f"{advice(folder)}"
        )
    return np.memmap(path, dtype=dtype, mode="r")


def train_batch(
    tokens: np.ndarray, *, seed: int, step: int, sequences: int, block_size: int, rank: int = 0, world: int = 1
) -> Batch:
    """This process's part of the training batch of `step`: inputs and targets, int64, (sequences / world, block_size).

    Every start of a window is equally likely, as in nanoGPT. The starts come from the counter-based generator Philox
    (Salmon et al. 2011) with the key (seed, step): nothing has to be saved or replayed. Its raw output is used because
    numpy keeps that stable between versions, unlike Generator's distributions; the bias of the remainder is below
    tokens / 2**64. `sequences` must be a multiple of `world`.
    """
    assert sequences % world == 0 and 0 <= rank < world, (sequences, rank, world)
    key = np.array([seed % 2**64, step % 2**64], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(sequences)
    starts = (raw % np.uint64(len(tokens) - block_size)).astype(np.int64)
    share = sequences // world
    return _windows(tokens, starts[rank * share : (rank + 1) * share], block_size)


def eval_batches(tokens: np.ndarray, *, batches: int, batch_size: int, block_size: int) -> Iterator[Batch]:
    """`batches` batches of windows evenly spaced from the first token to the last: the same at every evaluation."""
    count = batches * batch_size
    for first in range(0, count, batch_size):
        index = np.arange(first, first + batch_size, dtype=np.int64)
        starts = index * (len(tokens) - block_size - 1) // max(count - 1, 1)
        yield _windows(tokens, starts, block_size)


def _windows(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> Batch:
    # One gather for the batch: 8 us at B=12, T=64 against 47 us for a loop over the sequences.
    window_BT = tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
    x_BT = torch.from_numpy(np.ascontiguousarray(window_BT[:, :-1]))
    y_BT = torch.from_numpy(np.ascontiguousarray(window_BT[:, 1:]))
    return x_BT, y_BT


class Prefetcher:
    """Iterator over the batches of first_step, first_step + 1, ..., built ahead by one thread and placed on `device`.

    `make_batch(step)` is called in the thread, in the order of the steps, at most `AHEAD` batches ahead. An exception
    in it is raised in the consumer at the step it belongs to. Use as a context manager, or call `close`.
    """

    AHEAD = 2

    def __init__(self, make_batch: Callable[[int], Batch], first_step: int, device: torch.device | str) -> None:
        self._make_batch = make_batch
        self._device = torch.device(device)
        self._ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(self.AHEAD)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, args=(first_step,), name="prefetch", daemon=True)
        self._thread.start()

    def _fill(self, first_step: int) -> None:
        try:
            for step in itertools.count(first_step):
                self._room.acquire()
                if self._stop.is_set():
                    return
                x, y = self._make_batch(step)
                if self._device.type == "cuda":
                    x, y = x.pin_memory(), y.pin_memory()
                self._ready.put((x, y))
        except BaseException as error:  # handed to the consumer, whatever it is
            self._ready.put(error)

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> Batch:
        if self._stop.is_set():
            raise RuntimeError("the prefetcher is closed")
        if self._error is None:
            item = self._ready.get()
            if not isinstance(item, BaseException):
                self._room.release()
                # Copied here, not in the thread, so that the copy is ordered on the consumer's stream.
                return item[0].to(self._device, non_blocking=True), item[1].to(self._device, non_blocking=True)
            self._error = item
        raise self._error

    def close(self) -> None:
        """Stop the thread and wait for it: at most the time of one `make_batch`."""
        self._stop.set()
        self._room.release()
        self._thread.join()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def tokens_of(meta: dict[str, Any] | None) -> dict[str, Any]:
    """What identifies the tokens of a data set: vocabulary, and sizes and checksums of the files where recorded."""
    return {key: (meta or {}).get(key) for key in ("tokenizer", "vocab_size", "stoi", "files")}
