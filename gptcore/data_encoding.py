"""Text to token ids on all cores, in order and in bounded memory.

Forked processes, not threads: tiktoken gives the interpreter's lock away, but for 10 MB of text two threads took 2.0
CPU seconds where one took 1.0, and no less time. A worker holds one end of a pipe and ends when the other is closed, so
a kill of the parent takes all of them. Short texts, look-ups in numpy (char, byte) and systems without fork are done in
the calling process.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import numpy as np

from .errors import RunError
from .tokenizer import Tokenizer

BATCH_CHARACTERS = 2**19  # of documents encoded by one task
PARALLEL_BYTES = 8 * 2**20  # of text: 0.8 s of tiktoken
AHEAD = 2  # tasks a worker, under way or waiting to be taken in order

Task = TypeVar("Task")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(tok: Tokenizer, text_bytes: int) -> int:
    """How many processes are worth their start."""
    if not tok.parallel or text_bytes < PARALLEL_BYTES or multiprocessing.current_process().daemon:
        return 1
    return cores() if "fork" in multiprocessing.get_all_start_methods() else 1


def encoded(
    tok: Tokenizer, texts: Iterable[str], dtype: np.dtype[Any], *, documents: bool, processes: int
) -> Iterator[np.ndarray]:
    """Arrays of ids, in the order of the text.

    Plain text is encoded as if it came in one piece. Each document is encoded by itself and ends with the
    end-of-text token, or with a line feed where the tokenizer has none.
    """
    if documents and tok.eot is not None:
        yield from in_order(lambda batch: tok.encode_documents(batch).astype(dtype), _batches(texts), processes, dtype)
        return
    if documents:
        texts = ("".join(f"{document}\n" for document in batch) for batch in _batches(texts))
    yield from in_order(lambda text: tok.encode_array(text).astype(dtype), tok.safe_pieces(texts), processes, dtype)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents that have text, in lists of about BATCH_CHARACTERS."""
    batch: list[str] = []
    size = 0
    for document in filter(None, documents):
        batch.append(document)
        size += len(document)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def in_order(
    function: Callable[[Task], np.ndarray], tasks: Iterable[Task], processes: int, dtype: np.dtype[Any]
) -> Iterator[np.ndarray]:
    """`map` by processes: results in the order of the tasks, at most `AHEAD` tasks a process under way or waiting.

    A worker is sent a task only when it has none, so that neither side ever waits for the other to read. What
    `function` raises is raised here; RunError where a worker was killed.
    """
    if processes == 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("fork")
    started: list[tuple[Connection, Any]] = []
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            inherited = [ours, *(connection for connection, _ in started)]
            worker = context.Process(target=_work, args=(function, theirs, inherited), daemon=True)
            worker.start()
            theirs.close()
            started.append((ours, worker))
        yield from _dispatch([connection for connection, _ in started], iter(tasks), dtype)
    finally:
        for connection, worker in started:
            connection.close()
            worker.terminate()
            worker.join()


def _dispatch(idle: list[Connection], tasks: Iterator[Any], dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
    at_work: dict[Connection, int] = {}  # which task
    results: dict[int, np.ndarray] = {}
    limit = AHEAD * len(idle)
    sent = taken = 0
    task = next(tasks, None)
    while task is not None or at_work or results:
        while task is not None and idle and sent - taken < limit:
            connection = idle.pop()
            connection.send(task)
            at_work[connection] = sent
            sent += 1
            task = next(tasks, None)  # read while they work, so that who becomes idle need not wait for it
        if taken in results:
            yield results.pop(taken)
            taken += 1
            continue
        for ready in wait(list(at_work)):
            assert isinstance(ready, Connection)
            try:
                answer = ready.recv()
            except (EOFError, ConnectionError) as error:
                raise RunError("a process that encodes was killed, perhaps for want of memory.") from error
            if isinstance(answer, Exception):
                raise answer
            results[at_work.pop(ready)] = np.frombuffer(answer, dtype=dtype)
            idle.append(ready)


def _work(function: Callable[[Any], np.ndarray], connection: Connection, inherited: list[Connection]) -> None:
    """A worker's life: until the other end of its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    for other in inherited:  # copies of the parent's ends, which would keep the pipes open after its death
        other.close()
    try:
        while True:
            try:
                answer: bytes | Exception = function(connection.recv()).tobytes()
            except EOFError:
                return
            except Exception as error:  # raised again in the parent
                answer = error
            connection.send(answer)
    except ConnectionError:
        return
