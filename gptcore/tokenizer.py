"""Text <-> token ids: character, byte, tiktoken, sentencepiece and custom-vocabulary tokenizers behind one interface.

A tokenizer is chosen by a specification: `char`, `byte`, `tiktoken:ENCODING`, `sentencepiece:SIZE` or
`custom:VOCABULARY_FILE`. What it learnt is stored as plain values in meta.pkl beside the tokens, so that reading a data
set needs neither the text nor the vocabulary or model file.
"""

import difflib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .errors import DataError, UserError

SPECIFICATIONS = (
    "char, byte, tiktoken:ENCODING (gpt2, r50k_base, cl100k_base, o200k_base), "
    "sentencepiece:SIZE[:unigram] (trained on the text), sentencepiece:MODEL_FILE, custom:VOCABULARY_FILE"
)
KINDS = ("char", "byte", "tiktoken", "sentencepiece", "custom")
MAX_SHOWN = 10  # characters listed in an error message


class Tokenizer(ABC):
    """One way of turning text into ids 0..vocab_size-1 and back.

    `name` is the specification it was built from, `eot` the id that ends a document, None where there is none.
    """

    name: str
    vocab_size: int
    eot: int | None = None
    parallel: ClassVar[bool] = True  # whether encoding is slow enough for several processes

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`. UserError where a character is not covered. Names of special tokens are ordinary text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. DataError for an id without a token; bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def token_bytes(self, i: int) -> bytes | None:
        """UTF-8 bytes that the token stands for, perhaps part of a character. None for a special token or a gap."""

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as uint32."""
        return np.array(self.encode(text), dtype=np.uint32)

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        """Each document by itself, each followed by the end-of-text token, which the tokenizer must have."""
        assert self.eot is not None
        end = np.array([self.eot], dtype=np.uint32)
        return np.concatenate([part for text in documents for part in (self.encode_array(text), end)])

    def meta(self) -> dict[str, Any]:
        """Plain values from which `from_meta` makes an equal tokenizer."""
        return {"tokenizer": self.name, "vocab_size": self.vocab_size, "eot": self.eot}

    def safe_pieces(self, chunks: Iterable[str]) -> Iterator[str]:
        """Cut a text that comes in chunks so that the pieces, each encoded by itself, give the ids of the whole."""
        rest = ""
        for chunk in chunks:
            rest += chunk
            cut = self._safe_cut(rest)
            if cut:
                yield rest[:cut]
                rest = rest[cut:]
        if rest:
            yield rest

    def _safe_cut(self, text: str) -> int:
        """A length n, as large as is cheap, such that text[:n] and what follows can be encoded one after the other."""
        return len(text)


class CharTokenizer(Tokenizer):
    """One id per distinct character, in code point order (nanoGPT's shakespeare_char)."""

    name = "char"
    parallel = False

    def __init__(self, stoi: dict[str, int]) -> None:
        self.stoi = stoi
        self.itos = {i: c for c, i in stoi.items()}
        self.vocab_size = len(stoi)
        # By code point; the last entry stands for everything beyond the table.
        self._table = np.full(max(map(ord, stoi)) + 2, -1, dtype=np.int64)
        self._table[[ord(c) for c in stoi]] = list(stoi.values())

    @classmethod
    def from_text(cls, chunks: Iterable[str]) -> "CharTokenizer":
        seen = np.zeros(0x110000, dtype=bool)
        for chunk in chunks:
            seen[_code_points(chunk)] = True
        found = np.flatnonzero(seen)
        if not len(found):
            raise UserError("the tokenizer 'char' takes its vocabulary from the text, and the text is empty.")
        return cls({chr(c): i for i, c in enumerate(found.tolist())})

    def encode(self, text: str) -> list[int]:
        try:
            return list(map(self.stoi.__getitem__, text))
        except KeyError:
            raise uncovered(self, sorted(set(text) - self.stoi.keys())) from None

    def encode_array(self, text: str) -> np.ndarray:
        # 6 ns a character against 54 by way of `encode`: a look-up table instead of a dict and a list.
        ids = self._table[np.minimum(_code_points(text), len(self._table) - 1)]
        if len(ids) and ids.min() < 0:
            raise uncovered(self, sorted(set(text) - self.stoi.keys()))
        return ids.astype(np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        try:
            return "".join([self.itos[int(i)] for i in ids])
        except KeyError as error:
            raise no_token(self, error.args[0]) from None

    def token_bytes(self, i: int) -> bytes | None:
        return self.itos[i].encode("utf-8", "surrogatepass") if i in self.itos else None

    def meta(self) -> dict[str, Any]:
        return super().meta() | {"stoi": self.stoi, "itos": self.itos}


class ByteTokenizer(Tokenizer):
    """The bytes of the UTF-8 text: 256 ids, covers everything."""

    name = "byte"
    parallel = False
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        try:
            return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint32)
        except UnicodeEncodeError as error:
            raise uncovered(self, sorted(set(text[error.start : error.end]))) from None

    def decode(self, ids: Sequence[int]) -> str:
        values = [int(i) for i in ids]
        for value in values:
            if not 0 <= value < self.vocab_size:
                raise no_token(self, value)
        return bytes(values).decode("utf-8", errors="replace")

    def token_bytes(self, i: int) -> bytes | None:
        return bytes([i]) if 0 <= i < self.vocab_size else None


class TiktokenTokenizer(Tokenizer):
    """A byte-pair encoding of the tiktoken package (gpt2 is the one of GPT-2 and of nanoGPT)."""

    def __init__(self, encoding: str) -> None:
        from .tokenizer_files import get_encoding

        self.name = f"tiktoken:{encoding}"
        self._encoding = get_encoding(encoding)
        self.vocab_size = self._encoding.n_vocab
        self.eot = self._encoding.eot_token
        self._special = {
            self._encoding.encode_single_token(token): token for token in self._encoding.special_tokens_set
        }
        self._end = self._special.get(self.eot) if self.eot is not None else None

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_array(self, text: str) -> np.ndarray:
        try:  # no list of Python numbers between: a tenth less time
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # half a surrogate pair, which `encode` replaces
            return super().encode_array(text)

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        # One call: tiktoken encodes what stands between special tokens by itself. 3 us a document less than one by one.
        if self._end is None or any(self._end in text for text in documents):
            return super().encode_documents(documents)
        joined = "".join(f"{text}{self._end}" for text in documents)
        return self._encoding.encode_to_numpy(joined, allowed_special={self._end}, disallowed_special=())

    def decode(self, ids: Sequence[int]) -> str:
        values = [int(i) for i in ids]
        try:
            return self._encoding.decode(values)
        except (KeyError, OverflowError):
            # n_vocab can exceed the assigned ids (cl100k_base has gaps), so a range test would not find the culprit.
            raise no_token(self, next(i for i in values if not self._has_token(i))) from None

    def _has_token(self, i: int) -> bool:
        return self._bytes_of(i) is not None

    def token_bytes(self, i: int) -> bytes | None:
        return None if i in self._special else self._bytes_of(i)

    def _bytes_of(self, i: int) -> bytes | None:
        try:
            return self._encoding.decode_single_token_bytes(i)
        except (KeyError, OverflowError):
            return None

    # Where every encoding of tiktoken ends a piece: between an ASCII letter or digit and a blank or line feed (no
    # pattern has a word, number or contraction that goes on with one, and none looks behind), and after a line feed
    # that stands alone between two characters that are not white space (what may stand before it in a piece may not
    # stand after it, but for "/", which o200k_base takes along).
    _boundary: ClassVar[re.Pattern] = re.compile(r"[A-Za-z0-9](?=[ \n])|(?<=\S)\n(?=[^\s/])")

    def _safe_cut(self, text: str) -> int:
        # Searching only the tail keeps the cost linear in the text; a text without a boundary is gathered whole.
        for tail in (1024, 65536):
            start = max(0, len(text) - tail)
            if cut := max((match.end() for match in self._boundary.finditer(text, start)), default=0):
                return cut
        return 0


class CustomTokenizer(Tokenizer):
    """A fixed list of strings; encoding takes, from left to right, the longest token that matches."""

    def __init__(self, name: str, tokens: list[str]) -> None:
        self.name = name
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._longest = max(map(len, tokens))
        lengths: dict[str, set[int]] = {}
        for token in tokens:
            lengths.setdefault(token[0], set()).add(len(token))
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}

    @classmethod
    def from_file(cls, path: str) -> "CustomTokenizer":
        """Read a vocabulary: one token a line, Python-style escapes (\\n, \\t, \\\\, \\xHH, \\uHHHH, \\UHHHHHHHH)."""
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the vocabulary file {path}: {error}") from error
        line_of: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            token = _unescape(line, f"{path}, line {number}")
            if token in line_of:
                raise UserError(f"{path}, line {number}: the token {token!r} is already on line {line_of[token]}.")
            line_of[token] = number
        if not line_of:
            raise UserError(f"the vocabulary file {path} holds no token; write one token on each line.")
        return cls(f"custom:{path}", list(line_of))

    def encode(self, text: str) -> list[int]:
        ids, end = self._match(text, len(text))
        if end < len(text):
            raise uncovered(self, sorted(c for c in set(text[end:]) if c not in self._ids) or [text[end]])
        return ids

    def _match(self, text: str, stop: int) -> tuple[list[int], int]:
        """Ids of the tokens that begin before `stop`, and the position after them or of the first mismatch."""
        ids: list[int] = []
        at = 0
        while at < stop:
            for length in self._lengths.get(text[at], ()):
                found = self._ids.get(text[at : at + length])
                if found is not None:
                    ids.append(found)
                    at += length
                    break
            else:
                break
        return ids, at

    def _safe_cut(self, text: str) -> int:
        # A token that begins in the last `longest - 1` characters could have been a longer one.
        stop = len(text) - self._longest + 1
        end = self._match(text, stop)[1]
        return end if end >= stop else len(text)  # stopped early: nothing matches, let encode say so at once

    def decode(self, ids: Sequence[int]) -> str:
        parts = []
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                raise no_token(self, i)
            parts.append(self.tokens[i])
        return "".join(parts)

    def token_bytes(self, i: int) -> bytes | None:
        return self.tokens[i].encode() if 0 <= i < self.vocab_size else None

    def meta(self) -> dict[str, Any]:
        return super().meta() | {"tokens": self.tokens}


def build(spec: str, text_chunks: Iterable[str] = (), held_out: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer that `spec` names. UserError for a wrong specification.

    `text_chunks` is read by what learns from the text; `held_out`, the rest of it, by `char` alone, which must know
    every character.
    """
    kind, _, argument = spec.partition(":")
    if kind == "char" and not argument:
        return CharTokenizer.from_text(itertools.chain(text_chunks, held_out))
    if kind == "byte" and not argument:
        return ByteTokenizer()
    if kind == "tiktoken" and argument:
        return TiktokenTokenizer(argument)
    if kind == "custom" and argument:
        return CustomTokenizer.from_file(argument)
    if kind == "sentencepiece" and argument:
        from . import tokenizer_sentencepiece

        return tokenizer_sentencepiece.build(spec, text_chunks)
    near = difflib.get_close_matches(kind, KINDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near and near[0] != kind else ""
    raise UserError(f"unknown tokenizer {spec!r}.{hint} Possible: {SPECIFICATIONS}.")


def from_meta(meta: dict[str, Any] | None) -> Tokenizer:
    """The tokenizer of a prepared data set.

    `meta` is the content of meta.pkl: ours, or nanoGPT's (vocab_size, stoi, itos), which means `char`. None stands for
    a folder without meta.pkl, which for nanoGPT means the GPT-2 encoding. DataError where the content is not usable.
    """
    if meta is None:
        return TiktokenTokenizer("gpt2")
    name = meta.get("tokenizer", "char" if "stoi" in meta else None)
    if name == "tiktoken":  # as the hardware forks of nanoGPT write it
        name = f"tiktoken:{meta.get('tiktoken_encoding', 'gpt2')}"
    if not isinstance(name, str):
        raise DataError("meta.pkl names no tokenizer and has no character table (stoi).")
    if name == "char":
        return CharTokenizer(_checked_table(meta))
    if name.startswith("custom:"):
        tokens = meta.get("tokens")
        if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) and t for t in tokens):
            raise DataError(f"meta.pkl does not hold the vocabulary of its tokenizer {name!r}.")
        return CustomTokenizer(name, tokens)
    if name.startswith("sentencepiece:"):
        from .tokenizer_sentencepiece import SentencePieceTokenizer

        if not isinstance(meta.get("model"), bytes):
            raise DataError(f"meta.pkl does not hold the model of its tokenizer {name!r}.")
        return SentencePieceTokenizer(name, meta["model"])
    try:
        return build(name)
    except UserError as error:
        raise DataError(f"meta.pkl names a tokenizer that cannot be used here: {error}") from error


def _checked_table(meta: dict[str, Any]) -> dict[str, int]:
    """nanoGPT's stoi: every key one character, every id once and below the vocabulary size."""
    stoi = meta.get("stoi")
    if not isinstance(stoi, dict) or not stoi:
        raise DataError("meta.pkl has no character table (stoi).")
    characters_ok = all(isinstance(c, str) and len(c) == 1 for c in stoi)
    if not characters_ok or set(map(repr, stoi.values())) != set(map(str, range(len(stoi)))):
        raise DataError("the character table (stoi) of meta.pkl is damaged: it must map characters to 0, 1, 2, ...")
    return stoi


_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))")
_SIMPLE_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"', "0": "\0"}


def _unescape(line: str, where: str) -> str:
    def character(match: re.Match) -> str:
        code = match[1] or match[2] or match[3]
        try:
            return chr(int(code, 16)) if code else _SIMPLE_ESCAPES[match[4]]
        except (KeyError, ValueError, OverflowError):
            raise UserError(
                f"{where}: unknown escape {match[0]!r}; possible: \\n \\r \\t \\0 \\\\ \\xHH \\uHHHH \\UHHHHHHHH."
            ) from None

    return _ESCAPE.sub(character, line)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def uncovered(tokenizer: Tokenizer, characters: list[str]) -> UserError:
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in characters[:MAX_SHOWN])
    more = f" and {len(characters) - MAX_SHOWN} more" if len(characters) > MAX_SHOWN else ""
    return UserError(
        f"the vocabulary of the tokenizer {tokenizer.name!r} ({tokenizer.vocab_size} tokens) does not cover {shown}"
        f"{more}.\nRemove these characters, or use a tokenizer that covers everything: byte, tiktoken:gpt2."
    )


def no_token(tokenizer: Tokenizer, i: int) -> DataError:
    return DataError(
        f"token id {i} has no text in the tokenizer {tokenizer.name!r} (ids 0..{tokenizer.vocab_size - 1}).\n"
        f"The ids come from a model or a data set with another vocabulary."
    )
