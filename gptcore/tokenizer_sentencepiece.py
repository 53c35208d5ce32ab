"""Vocabularies trained on the text by sentencepiece (Kudo and Richardson 2018), an optional package.

`sentencepiece:SIZE` trains byte-pair merges (Sennrich et al. 2016), `sentencepiece:SIZE:unigram` a unigram model (Kudo
2018), `sentencepiece:FILE` takes the model that an earlier data set was given. Decoding gives the text back exactly: no
normalisation, no blank put before the text, characters without a token of their own as bytes, the line feed a token by
itself. Training is deterministic and reads the training part only, of a long text evenly spaced lines: at most `SAMPLE`
characters.

Not covered: a text with U+2581, which sentencepiece itself uses for the blank; models that other programs trained with
other rules, for which the ids would depend on where a long text is cut.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, UserError
from .tokenizer import Tokenizer, no_token, uncovered

SAMPLE = 10_000_000  # characters; 8,000 tokens of 5.6 million: 1.2 s for merges, 10 s for unigram (184 MB)
LONGEST_LINE = 1000  # characters; sentencepiece leaves out lines of more than 4192 bytes
BLANK = "\u2581"
KINDS = ("bpe", "unigram")
PROBE = "  two words\n\n tab\t\u00e9\U0001f916 \r\n"


class SentencePieceTokenizer(Tokenizer):
    """A trained model. `eot` is its end-of-sentence token."""

    def __init__(self, name: str, model: bytes) -> None:
        self.name = name
        self.model = model
        try:
            self._processor = _package().SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise DataError(f"the model of the tokenizer {name!r} is damaged: {_short(error)}.") from error
        self.vocab_size = self._processor.vocab_size()
        self.eot = self._processor.eos_id()
        if self.eot < 0 or not self._is_exact():
            raise UserError(
                f"the model of {name!r} changes the text (normalisation, added blanks, unknown characters) or has no "
                f"end-of-sentence token.\nUse one that `gptcore data build --tokenizer sentencepiece:SIZE` trained."
            )

    def _is_exact(self) -> bool:
        """Whether a line feed is a token by itself that nothing crosses, and decoding gives back what was encoded."""
        whole = self._processor.encode(PROBE)
        return self.encode(PROBE) == whole and len(self._processor.encode("\n")) == 1 and self.decode(whole) == PROBE

    def encode(self, text: str) -> list[int]:
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        if BLANK in text:
            raise uncovered(self, [BLANK])
        # Line by line, as the line feed is a token by itself: BPE of 512 kB takes 1.7 times as long in one piece.
        line_feed = self._processor.piece_to_id("\n")
        try:
            lines = text.encode().split(b"\n")
        except UnicodeEncodeError as error:
            raise uncovered(self, sorted(set(text[error.start : error.end]))) from None
        encoded = self._processor.encode(lines, num_threads=1)
        ids = [i for line in encoded for i in (*line, line_feed)]
        return np.array(ids[:-1], dtype=np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        values = [int(i) for i in ids]
        for value in values:
            if not 0 <= value < self.vocab_size:
                raise no_token(self, value)
        return self._processor.decode(values)

    def token_bytes(self, i: int) -> bytes | None:
        if not 0 <= i < self.vocab_size or self._processor.is_control(i) or self._processor.is_unknown(i):
            return None
        piece = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            return bytes([int(piece[3:-1], 16)])  # <0x0A>
        return piece.replace(BLANK, " ").encode()

    def meta(self) -> dict[str, Any]:
        return super().meta() | {"model": self.model}

    def _safe_cut(self, text: str) -> int:
        return text.rfind("\n") + 1


def trains(spec: str) -> bool:
    """Whether the specification asks for training, rather than for a model file."""
    kind, _, argument = spec.partition(":")
    return kind == "sentencepiece" and argument.partition(":")[0].isdigit()


def build(spec: str, text_chunks: Iterable[str]) -> SentencePieceTokenizer:
    """Train on the text, or read the model file. UserError where the size does not fit the text, or for a bad file."""
    argument = spec.partition(":")[2]
    if not trains(spec):
        try:
            return SentencePieceTokenizer(spec, Path(argument).read_bytes())
        except OSError as error:
            raise UserError(f"cannot read the sentencepiece model {argument}: {error.strerror}.") from error
        except DataError as error:
            raise UserError(str(error)) from error
    size, _, kind = argument.partition(":")
    if (kind or KINDS[0]) not in KINDS:
        raise UserError(f"{spec!r}: sentencepiece has no kind {kind!r}; possible: sentencepiece:{size}[:unigram].")
    model = io.BytesIO()
    lines = sample(text_chunks)
    if not lines:
        raise UserError(f"the tokenizer {spec!r} is trained on the text, and the training part has none.")
    try:
        _package().SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=int(size), model_type=kind or KINDS[0],
            byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, user_defined_symbols=["\n"], unk_id=0, eos_id=1, bos_id=-1, pad_id=-1,
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(f"sentencepiece cannot make {size} tokens of this text: {_short(error)}.") from error
    return SentencePieceTokenizer(spec, model.getvalue())


def sample(text_chunks: Iterable[str], limit: int = SAMPLE) -> list[str]:
    """Lines to train on: all, or every 2nd, 4th, 8th ..., as many as have no more than `limit` characters."""
    lines: list[str] = []
    stride = 1
    size = 0
    for number, line in enumerate(_lines(text_chunks)):
        if number % stride:
            continue
        lines.append(line)
        size += len(line)
        while size > limit and len(lines) > 1:
            lines = lines[::2]
            stride *= 2
            size = sum(map(len, lines))
    return lines


def _lines(text_chunks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for chunk in text_chunks:
        *whole, rest = (rest + chunk).split("\n")
        for line in whole:
            yield from _cut(line)
    yield from _cut(rest)


def _cut(line: str) -> Iterator[str]:
    for start in range(0, len(line), LONGEST_LINE):
        yield line[start : start + LONGEST_LINE]


def _package() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            "this tokenizer needs the package sentencepiece, which this Python does not have.\n"
            "Install it (pip install 'gptcore[sentencepiece]') or use tiktoken:gpt2, byte or char."
        ) from error
    return sentencepiece


def _short(error: Exception) -> str:
    """What sentencepiece says, without its source line, its condition and its own options."""
    said = str(error).rpartition("] ")[2].partition(" Increase vocab_size")[0].strip()
    return (said or str(error).strip() or type(error).__name__)[:200].rstrip(".")
