"""Trained vocabularies: exact round trips, the ids of sentencepiece itself, one model for one text."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcore import cli, tokenizer, tokenizer_sentencepiece
from gptcore.data import open_dataset
from gptcore.data_stats import measure
from gptcore.errors import DataError, UserError
from gptcore.prepare import prepare
from gptcore.tokenizer_sentencepiece import sample

sentencepiece = pytest.importorskip("sentencepiece", reason="the optional package sentencepiece is not installed")

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards make toxic brew for the evil queen".split()


def corpus(words: int, seed: int = 0) -> str:
    choose = random.Random(seed)
    return "".join(choose.choice(WORDS) + choose.choice([" ", " ", ", ", ".\n", "  ", "\n\n"]) for _ in range(words))


TEXT = corpus(3000)
SPEC = "sentencepiece:340"


@pytest.fixture(scope="module", params=[SPEC, "sentencepiece:300:unigram"])
def trained(request) -> tokenizer.Tokenizer:
    return tokenizer.build(request.param, [TEXT])


def test_size_and_round_trip(trained):
    assert trained.vocab_size == int(trained.name.split(":")[1])
    assert trained.decode(trained.encode(TEXT)) == TEXT
    assert len(trained.encode(TEXT)) < 0.75 * len(TEXT)
    assert b"".join(trained.token_bytes(i) for i in trained.encode(TEXT)) == TEXT.encode()
    assert trained.token_bytes(trained.eot) is None and trained.token_bytes(trained.vocab_size) is None


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]) | st.sampled_from(" \n\t\0ae"))
)
def test_any_text_round_trips_and_is_what_sentencepiece_gives(trained, text):
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.model)
    assert trained.encode(text) == processor.encode(text)
    assert trained.encode_array(text).tolist() == trained.encode(text)
    assert trained.decode(trained.encode(text)) == text
    assert b"".join(trained.token_bytes(i) for i in trained.encode(text)) == text.encode()


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_pieces_give_the_ids_of_the_whole(trained, size):
    pieces = [TEXT[i : i + size] for i in range(0, len(TEXT), size)]
    assert [i for piece in trained.safe_pieces(pieces) for i in trained.encode(piece)] == trained.encode(TEXT)


def test_training_is_deterministic_and_names_are_text(trained):
    assert tokenizer.build(trained.name, [TEXT[:100], TEXT[100:]]).model == trained.model
    assert tokenizer.build(trained.name, [corpus(3000, seed=1)]).model != trained.model
    for name in ("</s>", "<unk>", "<0x0A>"):
        assert trained.eot not in trained.encode(name) and trained.decode(trained.encode(name)) == name


def test_what_cannot_be_encoded_or_decoded(trained):
    for text, point in (("a\u2581b", "2581"), ("a\ud800b", "D800")):
        with pytest.raises(UserError, match=rf"U\+{point}"):
            trained.encode(text)
    for bad in (-1, 340):
        with pytest.raises(DataError, match=f"token id {bad} "):
            trained.decode([5, bad])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sentencepiece:100", "cannot make 100 tokens of this text"),
        ("sentencepiece:90000", "cannot make 90000 tokens of this text.*too high"),
        ("sentencepiece:0", "cannot make 0 tokens"),
        ("sentencepiece:340:wordpiece", "no kind 'wordpiece'"),
        ("sentencepiece:no/such.model", "cannot read the sentencepiece model no/such.model"),
        ("sentencepiece:", "unknown tokenizer"),
    ],
)
def test_wrong_specifications(spec, message):
    with pytest.raises(UserError, match=message):
        tokenizer.build(spec, [TEXT])


def test_model_that_is_none_or_changes_the_text(tmp_path):
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(UserError, match="damaged"):
        tokenizer.build(f"sentencepiece:{tmp_path / 'junk.model'}")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_prefix=str(tmp_path / "usual"), vocab_size=45, minloglevel=2
    )
    with pytest.raises(UserError, match="changes the text"):
        tokenizer.build(f"sentencepiece:{tmp_path / 'usual.model'}")


def test_long_texts_are_thinned_evenly():
    lines = [f"line {i:04}" for i in range(1000)]
    assert sample(["\n".join(lines)]) == lines
    assert sample(["\n".join(lines)[i : i + 7] for i in range(0, 10_000, 7)]) == lines
    thinned = sample(["\n".join(lines)], limit=1000)
    assert thinned == lines[::16] and 500 <= sum(map(len, thinned)) <= 1000
    assert sample(["a" * 2500]) == ["a" * 1000, "a" * 1000, "a" * 500]


# as a data set


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "t.txt").write_text(TEXT)
    return tmp_path / "t.txt"


def test_data_set_holds_its_model(text, tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare(text, out, SPEC)
    dataset = open_dataset(out)
    model = (out / "sentencepiece.model").read_bytes()
    assert dataset.meta["model"] == model
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    split = int(0.9 * len(TEXT))
    assert dataset.train.tolist() == processor.encode(TEXT[:split])
    assert dataset.tokenizer().decode(dataset.train) + dataset.tokenizer().decode(dataset.val) == TEXT
    assert tokenizer.build(SPEC, [TEXT[:split]]).model == model, "trained on the training part alone"
    assert measure(out).train.text_bytes == split

    (out / "sentencepiece.model").unlink()
    monkeypatch.setattr(tokenizer_sentencepiece, "sample", lambda chunks: pytest.fail("trained again"))
    assert not prepare(text, out, SPEC).written
    assert (out / "sentencepiece.model").read_bytes() == model, "the copy is made again"


def test_other_preparations_train_again_and_take_the_copy_away(text, tmp_path):
    out = tmp_path / "out"
    prepare(text, out, SPEC)
    first = (out / "sentencepiece.model").read_bytes()
    assert prepare(text, out, SPEC, val_fraction=0.5).written
    assert (out / "sentencepiece.model").read_bytes() != first
    assert prepare(text, out, "byte").written
    assert not (out / "sentencepiece.model").exists()
    (out / "sentencepiece.model").write_bytes(b"a user's own")
    assert prepare(text, out, "char").written
    assert (out / "sentencepiece.model").read_bytes() == b"a user's own"


def test_model_of_one_data_set_for_another_text(text, tmp_path):
    prepare(text, tmp_path / "out", SPEC)
    shutil.copy(tmp_path / "out/sentencepiece.model", tmp_path / "m.model")
    other = tmp_path / "other.txt"
    other.write_text("quite other words, with éß and \U0001f916\n" * 20)
    prepare(other, tmp_path / "second", f"sentencepiece:{tmp_path / 'm.model'}")
    (tmp_path / "m.model").unlink()
    dataset = open_dataset(tmp_path / "second")
    assert dataset.tokenizer().decode(dataset.train) == other.read_text()[: int(0.9 * len(other.read_text()))]


def test_documents_end_with_the_end_of_sentence_token(tmp_path):
    documents = [corpus(400, seed=i) for i in range(5)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    prepare(tmp_path / "t.jsonl", tmp_path / "out", SPEC, fields=["text"])
    dataset = open_dataset(tmp_path / "out")
    tok = dataset.tokenizer()
    ids = np.concatenate([dataset.train, dataset.val])
    assert np.array_equal(ids, np.concatenate([[*tok.encode(d), tok.eot] for d in documents]))


def test_damaged_model_in_meta():
    for model in (None, "text", b"junk"):
        with pytest.raises(DataError, match="model"):
            tokenizer.from_meta({"tokenizer": SPEC, "model": model})


def test_command(text, tmp_path, capsys):
    assert cli.main(["data", "build", str(text), "--out", str(tmp_path / "o"), "--tokenizer", "sentencepiece:340"]) == 0
    assert "vocabulary 340" in capsys.readouterr().out
    assert (
        cli.main(["data", "build", str(text), "--out", str(tmp_path / "p"), "--tokenizer", "sentencepiece:99999"]) == 2
    )
    assert "Please set it to a value <=" in capsys.readouterr().err and not (tmp_path / "p").exists()
