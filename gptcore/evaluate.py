"""Bits per byte of a text, comparable between models with different tokenizers; and what identifies a model.

bits per byte = -log2 p(text) / bytes of the text in UTF-8. Every token is scored, each exactly once, in windows of
block_size that overlap so that after the first window each token has at least half a block of context. Before the text
stands one start token: the end-of-text token, or where the vocabulary has none a line feed, else a space, else token 0.
Its own probability is not counted.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from .config import canonical
from .errors import CheckpointError, RunError, UserError
from .model import GPT
from .scoring import Progress, score, windows
from .tokenizer import Tokenizer

WINDOWS_AT_ONCE = 1024


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts a text. `dropped` characters were left out of it, and of its bytes.

    `stderr_nats` is the standard error of `nats`, from the spread between windows as if these were independent; None
    for a single window.
    """

    bytes: int
    characters: int
    tokens: int
    windows: int
    nats: float
    stderr_nats: float | None
    dropped: int
    start: str

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def stderr(self) -> float | None:
        """Of the bits per byte."""
        return None if self.stderr_nats is None else self.stderr_nats / math.log(2) / self.bytes

    @property
    def bits_per_character(self) -> float:
        return self.nats / math.log(2) / self.characters

    @property
    def loss(self) -> float:
        """Nats a token, as in training: not comparable between tokenizers."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Of a token: not comparable between tokenizers."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def score_text(
    model: GPT, tokenizer: Tokenizer, text: str, *, batch_size: int = 32, drop_unknown: bool = False,
    progress: Progress | None = None, name: str = "the text",
) -> TextScore:  # fmt: skip
    """Bits per byte of `text`, called `name` in messages.

    UserError for characters that the tokenizer lacks, unless they are to be dropped, and for a text that has nothing
    else; CheckpointError for a tokenizer that does not belong to the model.
    """
    check_vocabulary(model, tokenizer)
    kept = Coverage(tokenizer, name, drop=drop_unknown)
    kept.look_at([text])
    text = kept.clean(text)
    if not text:
        raise UserError(f"{name} is empty{' without the characters that were dropped' if kept.dropped else ''}")
    tokens = tokenizer.encode(text)
    first, words = start_token(tokenizer)
    block_size = model.config.block_size
    stream, total = windows(tokens, first, block_size, math.ceil(block_size / 2)), 0.0
    counts: list[int] = []
    losses: list[float] = []
    while group := list(islice(stream, WINDOWS_AT_ONCE)):
        losses += [-found.nats for found in score(model, group, batch_size=batch_size, share=False)]
        counts += [len(target) for _, target in group]
        if progress is not None:
            progress(sum(counts), len(tokens))
    total, n = math.fsum(losses), len(counts)
    spread = math.fsum((loss - count * total / len(tokens)) ** 2 for loss, count in zip(losses, counts, strict=True))
    return TextScore(
        bytes=len(text.encode()), characters=len(text), tokens=len(tokens), windows=n, nats=total,
        stderr_nats=math.sqrt(spread * n / (n - 1)) if n > 1 else None, dropped=kept.dropped, start=words,
    )  # fmt: skip


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file, line ends as they are. UserError says what keeps it from being read."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it, or give another file")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}")


def check_vocabulary(model: GPT, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > model.lm_head.out_features:
        raise CheckpointError(
            f"the tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} tokens but the model only "
            f"{model.lm_head.out_features}: they do not belong together"
        )


def start_token(tokenizer: Tokenizer) -> tuple[int, str]:
    """What stands before a text that begins from nothing, and how to call it."""
    if tokenizer.eot is not None:
        return tokenizer.eot, "end-of-text token"
    for character, words in (("\n", "line feed"), (" ", "space")):
        if _covers(tokenizer, character):
            return tokenizer.encode(character)[0], words
    return 0, f"token 0 ({tokenizer.decode([0])!r})"


class Coverage:
    """Texts against what a tokenizer can encode: an error for what it cannot, or, to `drop`, leaves it out and counts.

    A tokenizer of strings may know a character only within longer ones; such a character counts as unknown in a text
    that cannot be encoded as it is.
    """

    def __init__(self, tokenizer: Tokenizer, name: str, *, drop: bool):
        self.tokenizer, self.name, self.drop = tokenizer, name, drop
        self.dropped = 0
        self._known: dict[str, bool] = {}
        self._remove: dict[int, None] = {}

    def look_at(self, texts: Iterable[str]) -> None:
        """Finds what cannot be encoded. UserError with the first such character and their number, unless dropping."""
        first, count = None, 0
        for text in texts:
            unknown = {c for c in set(text) if not self._knows(c)}
            if not unknown or self._encodes(text):
                continue
            first = first or next(c for c in text if c in unknown)
            count += sum(map(text.count, unknown))
            self._remove |= {ord(c): None for c in unknown}
        if first is not None and not self.drop:
            kinds = len(self._remove)
            raise UserError(
                f"{self.name}: the tokenizer {self.tokenizer.name!r} ({self.tokenizer.vocab_size} tokens) has no token "
                f"for {first!r} (U+{ord(first):04X}), the first of {count:,} such characters ({kinds} different).\n"
                "--unknown drop leaves them out and counts them; a model with the tokenizer byte or tiktoken:gpt2 "
                "covers everything"
            )

    def clean(self, text: str) -> str:
        """`text` without what `look_at` found unknown."""
        kept = text.translate(self._remove) if self._remove else text
        self.dropped += len(text) - len(kept)
        return kept

    def _knows(self, character: str) -> bool:
        if character not in self._known:
            self._known[character] = _covers(self.tokenizer, character)
        return self._known[character]

    def _encodes(self, text: str) -> bool:
        return _covers(self.tokenizer, text)


def _covers(tokenizer: Tokenizer, text: str) -> bool:
    try:
        tokenizer.encode(text)
    except UserError:
        return False
    return True


def model_hash(model: GPT) -> str:
    """SHA-256 of the architecture and of every weight: equal exactly for models that compute the same."""
    digest = hashlib.sha256(json.dumps(canonical(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_result(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Writes FOLDER/eval/NAME.json, whole or not at all; numbers that are not finite, which JSON lacks, as null.

    RunError when that is not possible.
    """
    from .checkpoint import write_json

    path = folder / "eval" / f"{name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, _finite(content))
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
