"""Statistics of a prepared data set: what its tokens are, and the loss below which a model must know their order.

The unigram entropy of a split, -sum p ln p over its own token frequencies p, is the loss of the best model that ignores
all order of these tokens: no choice of probabilities does better on that split (Gibbs' inequality). A trained model has
to be below it. In bits a byte it compares between tokenizers; longer tokens have some order in them and lower it.

A segment is a document where the tokens have an end-of-text token between them, else a line (a run of tokens up to one
whose text ends with a line feed). Segments count as repeated where all their tokens are the same as those of an earlier
one; near-duplicates are not found. Memory: a count for each token of the vocabulary and 12 bytes for each segment.
"""

import dataclasses
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from .data import Dataset, open_dataset
from .data_files import SPLITS, chunks
from .errors import RunError
from .files import write_atomically

STATS = "stats.json"
TOP = 20


@dataclass(frozen=True)
class SplitStats:
    """One of train and val. Shares are of its tokens; `*_in_train` ones are None for train itself.

    `text_bytes` counts the UTF-8 bytes that the tokens stand for, nothing for end-of-text tokens. `segments` and
    `repeated_share` are None where the tokens have neither documents nor lines.
    """

    tokens: int
    text_bytes: int
    bytes_per_token: float
    distinct_tokens: int
    entropy_nats_per_token: float
    entropy_bits_per_byte: float | None
    segments: int | None
    repeated_share: float | None
    segments_in_train_share: float | None = None
    tokens_not_in_train: int | None = None
    tokens_not_in_train_share: float | None = None


@dataclass(frozen=True)
class TopToken:
    """A frequent token of train; `text` is None for a special token, bytes that are no UTF-8 become U+FFFD."""

    id: int
    text: str | None
    count: int
    share: float


@dataclass(frozen=True)
class DatasetStats:
    """Of a whole data set. `segment` is "document", "line" or None; `val_share` is of all tokens."""

    name: str
    tokenizer: str
    vocab_size: int
    used_tokens: int
    val_share: float
    segment: str | None
    train: SplitStats
    val: SplitStats
    top_tokens: tuple[TopToken, ...]
    source: dict[str, Any] | None

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def measure(folder: Path | str) -> DatasetStats:
    """Read every token of a prepared folder. DataError where it is damaged or not prepared."""
    dataset = open_dataset(folder)
    dataset.check(dataset.vocab_size, block_size=1)
    tok = dataset.tokenizer()
    texts = [tok.token_bytes(i) for i in range(dataset.vocab_size)]
    counts = {split: _counts(getattr(dataset, split), dataset.vocab_size) for split in SPLITS}
    segment, ends = _segment_ends(tok.eot, texts, counts["train"] + counts["val"])
    hashes, sizes = {}, {}
    for split in SPLITS:
        hashes[split], sizes[split] = _segments(getattr(dataset, split), ends)
    lengths = np.array([len(text or b"") for text in texts], dtype=np.int64)
    train = _split(counts["train"], lengths, hashes["train"], sizes["train"], segment)
    val = _split(counts["val"], lengths, hashes["val"], sizes["val"], segment)
    unseen = counts["val"][counts["train"] == 0]
    known = np.isin(hashes["val"], hashes["train"])
    val = dataclasses.replace(
        val,
        segments_in_train_share=None if segment is None else float(sizes["val"][known].sum() / val.tokens),
        tokens_not_in_train=int((unseen > 0).sum()),
        tokens_not_in_train_share=float(unseen.sum() / val.tokens),
    )
    return DatasetStats(
        name=Path(folder).resolve().name,
        tokenizer=tok.name,
        vocab_size=dataset.vocab_size,
        used_tokens=int(((counts["train"] + counts["val"]) > 0).sum()),
        val_share=val.tokens / (train.tokens + val.tokens),
        segment=segment,
        train=train,
        val=val,
        top_tokens=_top(counts["train"], texts),
        source=_source(dataset),
    )


def _counts(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    total = np.zeros(vocab_size, dtype=np.int64)
    for _, chunk in chunks(tokens):
        total += np.bincount(chunk, minlength=vocab_size)
    return total


def _segment_ends(eot: int | None, texts: list[bytes | None], used: np.ndarray) -> tuple[str | None, np.ndarray]:
    """What a segment is, and for each token whether it ends one."""
    ends = np.zeros(len(texts), dtype=bool)
    if eot is not None and eot < len(texts) and used[eot]:
        ends[eot] = True
        return "document", ends
    ends[:] = [text is not None and text.endswith(b"\n") for text in texts]
    return ("line" if used[ends].any() else None), ends


def _segments(tokens: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """64-bit hash and number of tokens of each segment, in order."""
    hashes, sizes = array("Q"), array("L")
    for segment in _segment_tokens(tokens, ends):
        hashes.append(int.from_bytes(blake2b(segment.tobytes(), digest_size=8).digest(), "little"))
        sizes.append(len(segment))
    return np.array(hashes, dtype=np.uint64), np.array(sizes, dtype=np.int64)


def _segment_tokens(tokens: np.ndarray, ends: np.ndarray) -> Iterator[np.ndarray]:
    if not ends.any():
        return
    rest = tokens[:0]
    for _, chunk in chunks(tokens):
        data = np.concatenate([rest, chunk])
        start = 0
        for end in (np.flatnonzero(ends[data]) + 1).tolist():
            yield data[start:end]
            start = end
        rest = data[start:]
    if len(rest):
        yield rest


def _split(
    counts: np.ndarray, lengths: np.ndarray, hashes: np.ndarray, sizes: np.ndarray, segment: str | None
) -> SplitStats:
    tokens, text_bytes = int(counts.sum()), int((counts * lengths).sum())
    shares = counts[counts > 0] / tokens
    nats = float(-(shares * np.log(shares)).sum()) + 0.0  # not -0.0
    first = np.unique(hashes, return_index=True)[1]
    return SplitStats(
        tokens=tokens,
        text_bytes=text_bytes,
        bytes_per_token=text_bytes / tokens,
        distinct_tokens=len(shares),
        entropy_nats_per_token=nats,
        entropy_bits_per_byte=nats * tokens / (math.log(2) * text_bytes) if text_bytes else None,
        segments=None if segment is None else len(hashes),
        repeated_share=None if segment is None else float(1 - sizes[first].sum() / tokens),
    )


def _top(counts: np.ndarray, texts: list[bytes | None]) -> tuple[TopToken, ...]:
    order = np.argsort(-counts, kind="stable")[:TOP]
    total = int(counts.sum())
    return tuple(
        TopToken(i, None if (text := texts[i]) is None else text.decode(errors="replace"), n, n / total)
        for i in order.tolist()
        if (n := int(counts[i]))
    )


def _source(dataset: Dataset) -> dict[str, Any] | None:
    source = (dataset.meta or {}).get("source")
    return source if isinstance(source, dict) else None


def save(stats: DatasetStats, folder: Path) -> Path:
    """Write stats.json beside the data; RunError where that cannot be."""
    try:
        write_atomically(folder / STATS, stats.json().encode())
    except OSError as error:
        raise RunError(f"cannot write {folder / STATS}: {error.strerror}; the table above is complete.") from error
    return folder / STATS


def render(stats: DatasetStats) -> str:
    """The statistics as text."""
    segment = stats.segment or "line"
    train, val = stats.train, stats.val
    rows = [
        ("", "train", "val"),
        ("tokens", f"{train.tokens:,}", f"{val.tokens:,}"),
        ("share of the tokens", _percent(1 - stats.val_share), _percent(stats.val_share)),
        ("bytes of text", f"{train.text_bytes:,}", f"{val.text_bytes:,}"),
        ("bytes a token", f"{train.bytes_per_token:.3f}", f"{val.bytes_per_token:.3f}"),
        ("distinct tokens", f"{train.distinct_tokens:,}", f"{val.distinct_tokens:,}"),
        ("  of them not in train", "", f"{val.tokens_not_in_train:,}"),
        ("  share of the tokens", "", _percent(val.tokens_not_in_train_share)),
        ("unigram entropy, nats a token", f"{train.entropy_nats_per_token:.4f}", f"{val.entropy_nats_per_token:.4f}"),
        ("  in bits a byte", _number(train.entropy_bits_per_byte), _number(val.entropy_bits_per_byte)),
        (f"{segment}s", _count(train.segments), _count(val.segments)),
        (f"repeated {segment}s, share of the tokens", _percent(train.repeated_share), _percent(val.repeated_share)),
        (f"{segment}s also in train, share", "", _percent(val.segments_in_train_share)),
    ]
    used = stats.used_tokens / stats.vocab_size
    top = [("most frequent in train", "id", "count", "share")] + [
        ("  (special)" if t.text is None else f"  {t.text!r}", str(t.id), f"{t.count:,}", _percent(t.share))
        for t in stats.top_tokens
    ]
    return "\n".join([
        f"{stats.name}: tokenizer {stats.tokenizer}, {stats.used_tokens:,} of {stats.vocab_size:,} tokens used "
        f"({_percent(used)})",
        "", *_columns(rows), "",
        "The unigram entropy is the lowest loss that a model can have on the split without using the order of tokens.",
        "", *_columns(top),
    ])  # fmt: skip


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
