"""Reading: hostile and damaged folders, batches that depend on (seed, step) alone, the prefetcher."""

import io
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcore import data_files
from gptcore.data import (
    Dataset,
    Prefetcher,
    eval_batches,
    find_dataset,
    open_dataset,
    read_meta,
    train_batch,
)
from gptcore.errors import DataError, UserError
from gptcore.prepare import prepare

TEXT = "To be, or not to be, that is the question.\n" * 40
TOKENS = np.arange(1000, dtype=np.uint16)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "t.txt").write_text(TEXT)
    prepare(tmp_path / "t.txt", tmp_path / "set", "char")
    return tmp_path / "set"


def nanogpt_folder(root: Path, *, meta: bool) -> Path:
    root.mkdir()
    ids = np.arange(100, dtype=np.uint16) % 3
    ids.tofile(root / "train.bin")
    ids[:20].tofile(root / "val.bin")
    if meta:
        table = {"\n": 0, "a": 1, "b": 2}
        content = {"vocab_size": 3, "itos": {i: c for c, i in table.items()}, "stoi": table}
        (root / "meta.pkl").write_bytes(pickle.dumps(content))
    return root


# meta.pkl


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickle_runs_nothing(tmp_path, folder, protocol):
    target = tmp_path / "was_here"
    payload = {"vocab_size": 3, "stoi": {"a": Hostile(target)}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(payload, protocol=protocol))
    with pytest.raises(DataError, match="refused") as caught:
        open_dataset(folder)
    assert not target.exists()
    assert "Nothing in it was executed" in str(caught.value)
    pickle.loads((folder / "meta.pkl").read_bytes())
    assert target.exists(), "the payload of this test must be a live one"


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02\x82\x01.",  # extension registry
        b"\x80\x02}Pname\n.",  # persistent id
        b"\x80\x05\x97.",  # out-of-band buffer
    ],
)
def test_every_way_to_name_something_is_refused(tmp_path, data):
    (tmp_path / "meta.pkl").write_bytes(data)
    with pytest.raises(DataError, match="more than plain values"):
        read_meta(tmp_path / "meta.pkl")


def test_second_lock_refuses_names_by_itself():
    with pytest.raises(pickle.UnpicklingError, match="os.system|posix.system"):
        data_files._NothingImported(io.BytesIO(pickle.dumps(os.system))).load()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle at all",
        pickle.dumps({"vocab_size": 3})[:-4],
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00",  # BINBYTES8 of 2**56 bytes
        b"\x80\x04}]K\x01s.",  # a list as key
        pickle.dumps([1, 2]),
        b"PK\x03\x04" + bytes(50),
    ],
)
def test_damaged_or_foreign_meta(folder, data):
    (folder / "meta.pkl").write_bytes(data)
    with pytest.raises(DataError, match="gptcore data build") as caught:
        open_dataset(folder)
    assert len(str(caught.value).splitlines()) < 6


def test_memo_index_that_would_allocate_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="memo index"):
        data_files.loads_plain(b"\x80\x04}r\xff\xff\xff\x7f.")  # 2**31: 32 GB in the C unpickler


def test_exponential_keys_are_refused_at_once():
    """A tuple of a tuple of ... twice each, as a key: 2**60 steps to hash."""
    nested = b"\x80\x04}K\x01q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60)) + b"K\x01s."
    with pytest.raises(pickle.UnpicklingError, match="TUPLE"):
        data_files.loads_plain(nested)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text() | st.integers(), values, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(value=PLAIN, protocol=st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_plain_values_pass(value, protocol):
    assert data_files.loads_plain(pickle.dumps(value, protocol=protocol)) == value


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60))
def test_noise_gives_the_one_error(data):
    try:
        data_files.loads_plain(data)
    except pickle.UnpicklingError:
        pass


def test_oversized_meta_is_not_read(tmp_path):
    with open(tmp_path / "meta.pkl", "wb") as file:
        file.truncate(data_files.MAX_META_BYTES + 1)
    with pytest.raises(DataError, match="bytes, which no meta.pkl has"):
        read_meta(tmp_path / "meta.pkl")


@pytest.mark.parametrize("change", [{"vocab_size": "65"}, {"vocab_size": True}, {"vocab_size": 0}, {"dtype": "int8"}])
def test_impossible_meta(folder, change):
    meta = read_meta(folder / "meta.pkl") | change
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    with pytest.raises(DataError, match=next(iter(change))):
        open_dataset(folder)


# token files


def test_opened_set(folder):
    dataset = open_dataset(str(folder))
    dataset.check(dataset.vocab_size, block_size=64)
    assert dataset.vocab_size == len(set(TEXT))
    assert dataset.tokenizer().decode(dataset.train) == TEXT[: int(len(TEXT) * 0.9)]
    with pytest.raises(ValueError, match="read-only"):
        dataset.train[0] = 1


@pytest.mark.parametrize("meta", [True, False])
def test_nanogpt_folder(tmp_path, meta):
    dataset = open_dataset(nanogpt_folder(tmp_path / "nano", meta=meta))
    dataset.check(dataset.vocab_size, block_size=8)
    assert dataset.train.dtype == np.uint16
    assert list(dataset.train[:4]) == [0, 1, 2, 0]
    assert dataset.vocab_size == (3 if meta else 50257)
    if meta:
        assert dataset.tokenizer().decode([1, 2, 0]) == "ab\n"


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_empty_truncated_and_longer_files(folder, split):
    path = folder / f"{split}.bin"
    good = path.read_bytes()
    for content, message in (
        (b"", "is empty"),
        (good[:-1], "truncated"),
        (good[:-2], "truncated"),
        (good + b"\0\0", "another preparation"),
        (b"PK\x03\x04" + bytes(40), "another preparation"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            open_dataset(folder)
        assert path.name in str(caught.value)
        assert "gptcore data build" in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=f"{split}.bin missing"):
        open_dataset(folder)


def test_odd_number_of_bytes_in_a_nanogpt_folder(tmp_path):
    folder = nanogpt_folder(tmp_path / "nano", meta=True)
    with open(folder / "val.bin", "ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match="not a whole number of uint16"):
        open_dataset(folder)


def test_file_of_another_preparation_with_equal_size(folder):
    """Same size, valid ids, other content: only the checksum tells."""
    ids = np.fromfile(folder / "train.bin", dtype=np.uint16)
    ids[:2] = ids[1], ids[0]
    ids.tofile(folder / "train.bin")
    dataset = open_dataset(folder)
    with pytest.raises(DataError, match="copied from another preparation"):
        dataset.check(dataset.vocab_size, block_size=8)


def test_missing_meta_is_not_taken_for_the_old_one(folder):
    """Our folder without meta.pkl reads as GPT-2 tokens, as for nanoGPT; with a smaller model that is caught."""
    (folder / "meta.pkl").unlink()
    assert open_dataset(folder).vocab_size == 50257


@pytest.mark.parametrize("position", [0, 7, 99])
def test_id_outside_the_vocabulary(tmp_path, position, monkeypatch):
    monkeypatch.setattr(data_files, "CHUNK_BYTES", 16)
    folder = nanogpt_folder(tmp_path / "nano", meta=True)
    ids = np.fromfile(folder / "train.bin", dtype=np.uint16)
    ids[position] = 3
    ids.tofile(folder / "train.bin")
    dataset = open_dataset(folder)
    dataset.check(4, block_size=8)
    with pytest.raises(DataError, match=rf"train\.bin holds the token id 3 at position {position}\b"):
        dataset.check(3, block_size=8)


def test_split_shorter_than_a_block(tmp_path):
    dataset = open_dataset(nanogpt_folder(tmp_path / "nano", meta=True))
    dataset.check(3, block_size=19)
    with pytest.raises(DataError, match=r"val\.bin has 20 tokens, fewer than block_size \+ 1 = 21"):
        dataset.check(3, block_size=20)


def test_several_readers_finish_a_cut_off_change(folder, tmp_path):
    (tmp_path / "t.txt").write_text(TEXT.upper())
    prepare(tmp_path / "t.txt", tmp_path / "new", "char")
    shutil.move(tmp_path / "new", folder / ".pending")
    opened: list[Dataset] = []
    threads = [threading.Thread(target=lambda: opened.append(open_dataset(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [d.tokenizer().decode(d.train[:6]) for d in opened] == ["TO BE,"] * 8
    assert sorted(p.name for p in folder.iterdir()) == ["meta.pkl", "train.bin", "val.bin"]


# finding


def test_find_dataset(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "data" / "mine"
    mine.mkdir(parents=True)
    (mine / "get_dataset.sh").touch()
    (tmp_path / "mine").mkdir()
    assert find_dataset("mine").resolve() == mine
    assert find_dataset("./mine").resolve() == tmp_path / "mine"  # written as a path, it is one
    assert find_dataset(folder) == folder
    assert find_dataset("shakespeare_char") == data_files.PROJECT_DATA / "shakespeare_char"
    with pytest.raises(UserError, match="Did you mean 'shakespeare_char'") as caught:
        find_dataset("shakespear_char")
    assert "mine, shakespeare_bpe, shakespeare_char" in str(caught.value)
    with pytest.raises(UserError, match="Known data sets"):
        find_dataset("")


# batches


def test_targets_are_the_inputs_one_later():
    x, y = train_batch(TOKENS, seed=1, step=0, sequences=6, block_size=10)
    assert x.shape == y.shape == (6, 10)
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous() and y.is_contiguous()
    assert torch.equal(y, x + 1)
    assert torch.equal(x[:, 1:], x[:, :-1] + 1)


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_one_global_batch(world):
    whole = train_batch(TOKENS, seed=3, step=5, sequences=12, block_size=8)
    parts = [train_batch(TOKENS, seed=3, step=5, sequences=12, block_size=8, rank=r, world=world) for r in range(world)]
    for whole_half, halves in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(halves), whole_half)


def test_batches_are_independent_of_history_and_state():
    first = [train_batch(TOKENS, seed=3, step=s, sequences=4, block_size=8)[0] for s in range(6)]
    np.random.seed(0)
    torch.manual_seed(0)
    again = {s: train_batch(TOKENS, seed=3, step=s, sequences=4, block_size=8)[0] for s in (5, 0, 3)}
    for step, x in again.items():
        assert torch.equal(x, first[step])
    assert len({tuple(x[:, 0].tolist()) for x in first}) == 6
    assert not torch.equal(first[0], train_batch(TOKENS, seed=4, step=0, sequences=4, block_size=8)[0])


def test_batches_are_frozen():
    """The starts are part of what a checkpoint means: a changed generator would break exact resumption."""
    x, _ = train_batch(TOKENS, seed=1337, step=2, sequences=5, block_size=4)
    assert x[:, 0].tolist() == [511, 38, 629, 196, 437]


def test_every_start_is_drawn_equally_often():
    tokens, block = np.arange(13, dtype=np.uint16), 8
    starts = torch.cat(
        [train_batch(tokens, seed=0, step=s, sequences=50, block_size=block)[0][:, 0] for s in range(100)]
    )
    counts = torch.bincount(starts, minlength=5)
    assert len(counts) == 5  # 0..4; the last target is the last token
    assert (counts - 1000).abs().max() < 5 * (5000 * 0.2 * 0.8) ** 0.5


def test_shortest_possible_split():
    x, y = train_batch(TOKENS[:9], seed=0, step=0, sequences=2, block_size=8)
    assert x.tolist() == [list(range(8))] * 2
    assert y[0, -1] == 8


def test_evaluation_batches_are_fixed_and_cover_the_split():
    arguments = {"batches": 3, "batch_size": 4, "block_size": 10}
    first = list(eval_batches(TOKENS, **arguments))
    for (x, y), (x2, y2) in zip(first, eval_batches(TOKENS, **arguments), strict=True):
        assert x.shape == (4, 10)
        assert torch.equal(y, x + 1)
        assert torch.equal(x, x2) and torch.equal(y, y2)
    starts = torch.cat([x[:, 0] for x, _ in first])
    assert starts[0] == 0
    assert first[-1][1][-1, -1] == 999
    assert set(starts.diff().tolist()) <= {89, 90}  # 989 / 11
    assert len(list(eval_batches(TOKENS[:11], batches=1, batch_size=1, block_size=10))) == 1


# prefetcher


def make(step: int):
    return train_batch(TOKENS, seed=0, step=step, sequences=4, block_size=8)


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def test_prefetcher_yields_the_steps_in_order():
    with Prefetcher(make, first_step=7, device="cpu") as batches:
        for step in range(7, 17):
            x, y = next(batches)
            assert torch.equal(x, make(step)[0]) and torch.equal(y, make(step)[1])
    assert not prefetch_threads()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_prefetcher_works_ahead_but_not_far():
    made: list[int] = []

    def record(step):
        made.append(step)
        return make(step)

    with Prefetcher(record, first_step=0, device="cpu") as batches:
        next(batches)
        deadline = time.monotonic() + 5
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert made == [0, 1, 2]


def test_prefetcher_raises_the_threads_error_at_its_step():
    def fail_at_3(step):
        if step == 3:
            raise DataError("the disk is gone")
        return make(step)

    with Prefetcher(fail_at_3, first_step=0, device="cpu") as batches:
        for _ in range(3):
            next(batches)
        for _ in range(2):  # and again, instead of waiting for ever
            with pytest.raises(DataError, match="the disk is gone"):
                next(batches)
    assert not prefetch_threads()


def test_prefetcher_closes_promptly_when_full_or_idle():
    batches = Prefetcher(make, first_step=0, device="cpu")
    time.sleep(0.05)
    start = time.monotonic()
    batches.close()
    batches.close()
    assert time.monotonic() - start < 1
    assert not prefetch_threads()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_prefetcher_on_a_gpu():
    with Prefetcher(make, first_step=0, device="cuda") as batches:
        for step in range(5):
            x, y = next(batches)
            assert x.device.type == "cuda"
            assert torch.equal(x.cpu(), make(step)[0]) and torch.equal(y.cpu(), make(step)[1])
