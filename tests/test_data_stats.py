"""Statistics of data sets: against counts by hand, collections.Counter and scipy, on files whose tokens are known."""

import json
import math
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gptcore import cli, data_files, data_stats
from gptcore.data_stats import measure
from gptcore.errors import DataError
from gptcore.prepare import prepare

LINES = ["abc\n", "abc\n", "a long line with more in it\n", "abc\n", "naïve 世界\n", "a long line with more in it\n"]


def data_set(root: Path, train: str, val: str, spec: str = "byte") -> Path:
    """Train and val exactly as given: the split falls between them."""
    path = root / "t.txt"
    path.write_text(train + val)
    total = len(train) + len(val)
    prepare(path, root / "set", spec, val_fraction=1 - (len(train) + 0.5) / total)
    return root / "set"


def test_by_hand(tmp_path):
    stats = measure(data_set(tmp_path, "aab\nab\nab\n", "ab\nc\nab\n"))
    assert (stats.tokenizer, stats.vocab_size, stats.used_tokens, stats.segment) == ("byte", 256, 4, "line")
    train, val = stats.train, stats.val
    assert (train.tokens, val.tokens, train.text_bytes, train.segments, val.segments) == (10, 8, 10, 3, 3)
    assert stats.val_share == pytest.approx(8 / 18)
    p = np.array([4, 3, 3]) / 10
    assert train.entropy_nats_per_token == pytest.approx(-(p * np.log(p)).sum())
    assert train.entropy_bits_per_byte == pytest.approx(-(p * np.log2(p)).sum())
    assert train.repeated_share == pytest.approx(3 / 10)  # the second "ab\n"
    assert val.repeated_share == pytest.approx(3 / 8)
    assert val.segments_in_train_share == pytest.approx(6 / 8)
    assert (val.tokens_not_in_train, val.tokens_not_in_train_share) == (1, pytest.approx(1 / 8))
    assert [(t.text, t.count) for t in stats.top_tokens] == [("a", 4), ("\n", 3), ("b", 3)]


@pytest.mark.parametrize("spec", ["byte", "char", "custom"])
@pytest.mark.parametrize("chunk_bytes", [16, 2**20])
def test_against_counters_of_the_text(tmp_path, spec, chunk_bytes, monkeypatch):
    monkeypatch.setattr(data_files, "CHUNK_BYTES", chunk_bytes)  # lines and documents reach across chunks
    train, val = "".join(LINES * 3), "".join(LINES[2:] + ["unseen\n", "no end"])
    if spec == "custom":
        vocabulary = tmp_path / "v.txt"
        vocabulary.write_text("".join(f"{c}\n" for c in sorted(set(train + val) - {"\n"})) + "\\n\nabc\n")
        spec = f"custom:{vocabulary}"
    stats = measure(data_set(tmp_path, train, val, spec))
    for text, split in ((train, stats.train), (val, stats.val)):
        lines = text.splitlines(keepends=True)
        counts = Counter(text.encode() if spec == "byte" else text)
        assert split.text_bytes == len(text.encode())
        assert split.segments == len(lines)
        if spec in ("byte", "char"):
            from scipy.stats import entropy

            assert (split.tokens, split.distinct_tokens) == (counts.total(), len(counts))
            assert split.entropy_nats_per_token == pytest.approx(entropy(list(counts.values())))
            size = (lambda s: len(s.encode())) if spec == "byte" else len
            repeated = sum(size(line) for i, line in enumerate(lines) if line in lines[:i])
            assert split.repeated_share == pytest.approx(repeated / split.tokens)
    if spec == "char":
        seen = [line for line in val.splitlines(keepends=True) if line in LINES]
        assert stats.val.segments_in_train_share == pytest.approx(sum(map(len, seen)) / stats.val.tokens)


def test_lines_cut_at_chunks_are_noticed(tmp_path, monkeypatch):
    """Seeded fault: each chunk of the file taken for itself."""
    whole = data_stats._segment_tokens

    def chunk_by_chunk(tokens, ends):
        for _, chunk in data_stats.chunks(tokens):
            yield from whole(chunk, ends)

    monkeypatch.setattr(data_stats, "_segment_tokens", chunk_by_chunk)
    with pytest.raises(AssertionError):
        test_against_counters_of_the_text(tmp_path, "char", 16, monkeypatch)


def test_no_order_free_model_is_below_the_entropy(tmp_path):
    """Gibbs: random other probabilities lose more on the same tokens."""
    folder = data_set(tmp_path, "".join(LINES * 5), "".join(LINES))
    floor = measure(folder).val.entropy_nats_per_token
    tokens = np.fromfile(folder / "val.bin", dtype=np.uint16)
    own = np.bincount(tokens, minlength=256) / len(tokens)
    generator = np.random.default_rng(0)
    losses = []
    for mix in np.linspace(0, 1, 50):
        q = (1 - mix) * own + mix * generator.dirichlet(np.ones(256))
        losses.append(-np.log(q[tokens]).mean())
    assert losses[0] == pytest.approx(floor)
    assert min(losses) >= floor - 1e-12 and losses[-1] > floor + 0.5


def test_documents_of_an_end_of_text_token(tmp_path):
    from tests.test_tokenizer import gpt2_cached

    if not gpt2_cached():
        pytest.skip("the GPT-2 rank files are not in the cache; `pytest -m network` fetches them")
    documents = ["the same\ndocument", "another", "the same\ndocument", "the last one", "another", "new"]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    prepare(path, tmp_path / "set", "tiktoken:gpt2", fields=["text"], val_fraction=0.15)
    stats = measure(tmp_path / "set")
    assert (stats.segment, stats.train.segments, stats.val.segments) == ("document", 4, 2)
    assert stats.train.text_bytes == sum(len(d) for d in documents[:4])
    ids = np.fromfile(tmp_path / "set/train.bin", dtype=np.uint16).tolist()
    first = ids[: ids.index(50256) + 1]
    assert stats.train.repeated_share == pytest.approx(len(first) / len(ids))
    assert stats.val.segments_in_train_share == pytest.approx(2 / 4)  # "another" and its end, of two documents of 2
    assert [t.text for t in stats.top_tokens if t.id == 50256] == [None]
    assert stats.source["documents"] == 6


def test_nothing_repeats_in_one_line_and_one_token(tmp_path):
    stats = measure(data_set(tmp_path, "a" * 50, "a" * 10))
    assert stats.segment is None and stats.train.repeated_share is None and stats.val.segments_in_train_share is None
    assert stats.train.entropy_nats_per_token == 0.0
    assert "-0.0" not in data_stats.render(stats) and "-" in data_stats.render(stats)


def test_command_prints_and_writes(tmp_path, capsys):
    folder = data_set(tmp_path, "".join(LINES * 5), "".join(LINES))
    assert cli.main(["data", "stats", str(folder)]) == 0
    out = capsys.readouterr().out
    saved = json.loads((folder / "stats.json").read_text())
    stats = measure(folder)
    assert saved["train"]["entropy_nats_per_token"] == stats.train.entropy_nats_per_token
    assert f"{stats.train.entropy_nats_per_token:.4f}" in out and "bits a byte" in out
    nats, tokens, size = (saved["val"][k] for k in ("entropy_nats_per_token", "tokens", "text_bytes"))
    assert saved["val"]["entropy_bits_per_byte"] == pytest.approx(nats * tokens / size / math.log(2))


def test_damaged_and_missing_sets(tmp_path, capsys):
    folder = data_set(tmp_path, "".join(LINES * 5), "".join(LINES))
    ids = np.fromfile(folder / "val.bin", dtype=np.uint16)
    ids[0] += 1
    ids.tofile(folder / "val.bin")
    with pytest.raises(DataError, match="copied from another preparation"):
        measure(folder)
    (tmp_path / "empty").mkdir()
    assert cli.main(["data", "stats", str(tmp_path / "empty")]) == 1
    assert cli.main(["data", "stats", str(tmp_path / "none")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_unwritable_folder_keeps_the_table(tmp_path, capsys):
    folder = data_set(tmp_path, "".join(LINES * 5), "".join(LINES))
    (folder / "stats.json").mkdir()
    assert cli.main(["data", "stats", str(folder)]) == 1
    captured = capsys.readouterr()
    assert "unigram entropy" in captured.out and "cannot write" in captured.err


def test_nanogpt_folder_with_a_table(tmp_path):
    np.array([0, 1, 0, 2], dtype=np.uint16).tofile(tmp_path / "train.bin")
    np.array([1, 0], dtype=np.uint16).tofile(tmp_path / "val.bin")
    table = {"\n": 0, "a": 1, "é": 2}
    content = {"vocab_size": 3, "itos": {i: c for c, i in table.items()}, "stoi": table}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(content))
    stats = measure(tmp_path)
    assert (stats.train.text_bytes, stats.train.segments, stats.source) == (5, 3, None)
