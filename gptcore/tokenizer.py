"""Text <-> token ids: character, byte, tiktoken and custom-vocabulary tokenizers behind one interface.

A tokenizer is chosen by a specification: `char`, `byte`, `tiktoken:ENCODING` or `custom:VOCABULARY_FILE`. What it
learnt is stored as plain values in meta.pkl beside the tokens, so that reading a data set needs neither the text nor
the vocabulary file.
"""

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .errors import DataError, UserError

SPECIFICATIONS = "char, byte, tiktoken:ENCODING (gpt2, r50k_base, cl100k_base, o200k_base), custom:VOCABULARY_FILE"
MAX_SHOWN = 10  # characters listed in an error message


class Tokenizer(ABC):
    """One way of turning text into ids 0..vocab_size-1 and back.

    `name` is the specification it was built from, `eot` the id that ends a document, None where there is none.
    """

    name: str
    vocab_size: int
    eot: int | None = None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`. UserError where a character is not covered. Names of special tokens are ordinary text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. DataError for an id without a token; bytes that are not UTF-8 become U+FFFD."""

    def meta(self) -> dict[str, Any]:
        """Plain values from which `from_meta` makes an equal tokenizer."""
        return {"tokenizer": self.name, "vocab_size": self.vocab_size, "eot": self.eot}

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[list[int]]:
        """Encode a text that comes in pieces: the same ids as `encode` of the whole, in bounded memory."""
        rest = ""
        for chunk in chunks:
            rest += chunk
            cut = self._safe_cut(rest)
            if cut:
                yield self.encode(rest[:cut])
                rest = rest[cut:]
        if rest:
            yield self.encode(rest)

    def _safe_cut(self, text: str) -> int:
        """A length n, as large as is cheap, such that text[:n] and what follows can be encoded one after the other."""
        return len(text)


class CharTokenizer(Tokenizer):
    """One id per distinct character, in code point order (nanoGPT's shakespeare_char)."""

    name = "char"

    def __init__(self, stoi: dict[str, int]) -> None:
        self.stoi = stoi
        self.itos = {i: c for c, i in stoi.items()}
        self.vocab_size = len(stoi)

    @classmethod
    def from_text(cls, chunks: Iterable[str]) -> "CharTokenizer":
        characters: set[str] = set()
        for chunk in chunks:
            characters.update(chunk)
        if not characters:
            raise UserError("the tokenizer 'char' takes its vocabulary from the text, and the text is empty.")
        return cls({c: i for i, c in enumerate(sorted(characters))})

    def encode(self, text: str) -> list[int]:
        try:
            return list(map(self.stoi.__getitem__, text))
        except KeyError:
            raise _uncovered(self, sorted(set(text) - self.stoi.keys())) from None

    def decode(self, ids: Sequence[int]) -> str:
        try:
            return "".join([self.itos[int(i)] for i in ids])
        except KeyError as error:
            raise _no_token(self, error.args[0]) from None

    def meta(self) -> dict[str, Any]:
        return super().meta() | {"stoi": self.stoi, "itos": self.itos}


class ByteTokenizer(Tokenizer):
    """The bytes of the UTF-8 text: 256 ids, covers everything."""

    name = "byte"
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        try:
            return list(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise _uncovered(self, sorted(set(text[error.start : error.end]))) from None

    def decode(self, ids: Sequence[int]) -> str:
        values = [int(i) for i in ids]
        for value in values:
            if not 0 <= value < self.vocab_size:
                raise _no_token(self, value)
        return bytes(values).decode("utf-8", errors="replace")


class TiktokenTokenizer(Tokenizer):
    """A byte-pair encoding of the tiktoken package (gpt2 is the one of GPT-2 and of nanoGPT)."""

    def __init__(self, encoding: str) -> None:
        from .tokenizer_files import get_encoding

        self.name = f"tiktoken:{encoding}"
        self._encoding = get_encoding(encoding)
        self.vocab_size = self._encoding.n_vocab
        self.eot = self._encoding.eot_token

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        values = [int(i) for i in ids]
        try:
            return self._encoding.decode(values)
        except (KeyError, OverflowError):
            # n_vocab can exceed the assigned ids (cl100k_base has gaps), so a range test would not find the culprit.
            raise _no_token(self, next(i for i in values if not self._has_token(i))) from None

    def _has_token(self, i: int) -> bool:
        try:
            self._encoding.decode_single_token_bytes(i)
        except (KeyError, OverflowError):
            return False
        return True

    # Every encoding of tiktoken ends a piece between an ASCII letter or digit and a line feed: no pattern has a word,
    # a number or a contraction that goes on with "\n", and none begins white space before it.
    _boundary: ClassVar[re.Pattern] = re.compile(r"[A-Za-z0-9](?=\n)")

    def _safe_cut(self, text: str) -> int:
        # Searching only the tail keeps the cost linear in the text; a text without line ends is gathered whole.
        tail = max(0, len(text) - 65536)
        return max((match.end() for match in self._boundary.finditer(text, tail)), default=0)


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
            raise _uncovered(self, sorted(c for c in set(text[end:]) if c not in self._ids) or [text[end]])
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
                raise _no_token(self, i)
            parts.append(self.tokens[i])
        return "".join(parts)

    def meta(self) -> dict[str, Any]:
        return super().meta() | {"tokens": self.tokens}


def build(spec: str, text_chunks: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer that `spec` names; only `char` reads `text_chunks`. UserError for a wrong specification."""
    kind, _, argument = spec.partition(":")
    if kind == "char" and not argument:
        return CharTokenizer.from_text(text_chunks)
    if kind == "byte" and not argument:
        return ByteTokenizer()
    if kind == "tiktoken" and argument:
        return TiktokenTokenizer(argument)
    if kind == "custom" and argument:
        return CustomTokenizer.from_file(argument)
    near = difflib.get_close_matches(kind, ("char", "byte", "tiktoken", "custom"), n=1)
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


def _uncovered(tokenizer: Tokenizer, characters: list[str]) -> UserError:
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in characters[:MAX_SHOWN])
    more = f" and {len(characters) - MAX_SHOWN} more" if len(characters) > MAX_SHOWN else ""
    return UserError(
        f"the vocabulary of the tokenizer {tokenizer.name!r} ({tokenizer.vocab_size} tokens) does not cover {shown}"
        f"{more}.\nRemove these characters, or use a tokenizer that covers everything: byte, tiktoken:gpt2."
    )


def _no_token(tokenizer: Tokenizer, i: int) -> DataError:
    return DataError(
        f"token id {i} has no text in the tokenizer {tokenizer.name!r} (ids 0..{tokenizer.vocab_size - 1}).\n"
        f"The ids come from a model or a data set with another vocabulary."
    )
