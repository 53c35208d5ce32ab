"""Encoding in several processes: ids and order are those of tiktoken on the whole text, memory stays bounded."""

import multiprocessing
import os
import random
import re
import signal
import time

import numpy as np
import pytest

from gptcore import data_encoding, tokenizer_files
from gptcore.data_encoding import AHEAD, PARALLEL_BYTES, encoded, in_order, workers
from gptcore.errors import RunError, UserError
from gptcore.tokenizer import ByteTokenizer, CustomTokenizer, TiktokenTokenizer
from tests.test_tokenizer import gpt2_cached

RANKS = {  # names in tiktoken's cache
    "r50k_base": "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4",
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
}
# What the patterns of the encodings treat differently: letters, digits, contractions, white space, marks, symbols.
ALPHABET = [*"ab1_'/s \n\n\n  \t\r.,!-A", "'s", "'LL", "é", "一", "。", "\u00a0", "\u2028", "\x1c", "\x85", "\u0301"]
ALPHABET += ["\u0661", "²", "Ⅷ", "\U0001f916", "\u200b", "ー", "ل", "//", "\r\n", "\n\n", "ǅ", "\ufeff"]


def cached(encoding: str) -> TiktokenTokenizer:
    cache = tokenizer_files.cache_dir()
    if not gpt2_cached() or not (cache / RANKS.get(encoding, "")).exists():
        pytest.skip(f"the rank file of {encoding} is not in the cache; `pytest -m network` fetches it")
    return TiktokenTokenizer(encoding)


@pytest.fixture(params=["gpt2", *RANKS])
def tiktoken(request) -> TiktokenTokenizer:
    return cached(request.param)


def wrong_cuts(tok: TiktokenTokenizer, boundary: re.Pattern, texts: int = 1000) -> int:
    """How many of the cuts in random texts give other ids than tiktoken for the whole text."""
    choose = random.Random(0)
    wrong = cuts = 0
    for _ in range(texts):
        text = "".join(choose.choices(ALPHABET, k=choose.randint(2, 40)))
        whole = tok._encoding.encode_ordinary(text)
        assert tok.encode_array(text).tolist() == whole
        for match in boundary.finditer(text):
            cuts += 1
            wrong += tok.encode(text[: match.end()]) + tok.encode(text[match.end() :]) != whole
    assert cuts > 200
    return wrong


def test_every_place_where_text_is_cut(tiktoken):
    assert wrong_cuts(tiktoken, tiktoken._boundary) == 0


@pytest.mark.parametrize(
    ("encoding", "fault"),
    [
        ("o200k_base", r"[A-Za-z0-9](?=\W)"),
        ("gpt2", r"[A-Za-z0-9] "),
        ("gpt2", r"\n(?=[^\s/])"),
        ("cl100k_base", r"(?<=\S)\n"),
        ("o200k_base", r"(?<=\S)\n(?=\S)"),  # takes "/" along with the line feed
    ],
)
def test_wrong_places_are_noticed(encoding, fault):
    assert wrong_cuts(cached(encoding), re.compile(fault)) > 0


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("documents", [False, True])
def test_ids_are_tiktokens_in_order(tiktoken, documents, processes, monkeypatch):
    monkeypatch.setattr(data_encoding, "BATCH_CHARACTERS", 100)
    choose = random.Random(1)
    words = ["".join(choose.choices(ALPHABET, k=choose.randint(1, 8))) for _ in range(50)]
    texts = [" ".join(choose.choices(words, k=choose.randint(0, 30))) for _ in range(100)]
    texts += ["a name is text: <|endoftext|> <|fim_prefix|>", "<|endoftext|", ">", " "]
    ids = encoded(tiktoken, iter(texts), np.dtype("<u4"), documents=documents, processes=processes)
    found = np.concatenate(list(ids)).tolist()
    encode = tiktoken._encoding.encode_ordinary
    if documents:
        assert found == [i for text in texts if text for i in [*encode(text), tiktoken._encoding.eot_token]]
    else:
        assert found == encode("".join(texts))


def test_documents_without_an_end_token_end_with_a_line_feed():
    ids = encoded(ByteTokenizer(), ["ab", "", "c\n"], np.dtype("<u2"), documents=True, processes=1)
    found = np.concatenate(list(ids))
    assert found.tobytes() == np.frombuffer(b"ab\nc\n\n", dtype=np.uint8).astype("<u2").tobytes()


def test_text_on_one_line_is_not_gathered(tiktoken):
    """100 kB with blanks and no line end come out piece by piece."""
    pieces = list(tiktoken.safe_pieces(["word " * 2000] * 10))
    assert len(pieces) == 11 and max(map(len, pieces)) <= 10_001


def children() -> list:
    return multiprocessing.active_children()


def test_results_in_order_and_few_tasks_ahead():
    """Tasks that end in another order; the reader is never more than AHEAD tasks a process and one in front."""
    read: list[int] = []
    behind: list[int] = []

    def tasks():
        for i in range(40):
            read.append(i)
            yield i

    def work(i: int) -> np.ndarray:
        time.sleep(0.01 if i % 3 == 0 else 0.0)
        return np.array([i, os.getpid()])

    done, workers = [], set()
    for result in in_order(work, tasks(), 3, np.dtype(np.int64)):
        done.append(int(result[0]))
        workers.add(int(result[1]))
        behind.append(len(read) - len(done))
    assert done == list(range(40))
    assert len(workers) > 1 and os.getpid() not in workers
    assert 0 < max(behind) <= AHEAD * 3 + 1
    assert not children()


@pytest.mark.parametrize("processes", [1, 2])
def test_error_in_a_task_is_raised_and_ends_the_work(processes):
    def work(i: int) -> np.ndarray:
        if i == 5:
            raise UserError("task 5")
        return np.array([i])

    with pytest.raises(UserError, match="task 5"):
        list(in_order(work, iter(range(10**9)), processes, np.dtype(np.int64)))
    assert not children()


def test_killed_worker_is_an_error_with_words():
    def work(i: int) -> np.ndarray:
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.array([i])

    with pytest.raises(RunError, match="was killed"):
        list(in_order(work, iter(range(100)), 2, np.dtype(np.int64)))
    assert not children()


def test_a_reader_that_stops_leaves_no_process():
    results = in_order(lambda i: np.array([i]), iter(range(10**9)), 2, np.dtype(np.int64))
    assert [int(next(results)[0]) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert not children()


def test_short_texts_and_look_ups_need_no_processes(monkeypatch):
    monkeypatch.setattr(data_encoding, "cores", lambda: 4)
    custom = CustomTokenizer("custom:x", ["a"])
    assert [workers(custom, size) for size in (PARALLEL_BYTES - 1, PARALLEL_BYTES)] == [1, 4]
    assert workers(ByteTokenizer(), 10**12) == 1
