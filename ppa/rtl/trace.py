"""What a trained model computes, to be replayed through the operators: a second stimulus beside the random one.

trace.json is written by `python -m ppa.synth.traces`, which says what is in it; its `source` says of which model.
Values are stored as fp16. Every operator rounds them to its own format, as the helpers here do.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gptcore.errors import UserError

from .integers import unsigned

FILE = Path(__file__).with_name("trace.json")
FORMAT = 1
CYCLES = 512  # of a replay, where a protocol does not want another number


@dataclass(frozen=True)
class Trace:
    """Parts of a forward pass. `sha256` is that of the file."""

    scores: tuple[np.ndarray, ...]  # rows of attention scores, as many as the query sees keys
    activations: np.ndarray  # inputs of activations, channel after channel
    norm_inputs: np.ndarray  # (rows, width)
    norm_weight: np.ndarray  # (width,)
    left: np.ndarray  # (tokens, inner): what a linear layer reads
    right: np.ndarray  # (outputs, inner): rows of its weight
    source: Mapping[str, Any]
    sha256: str


def pack(values: np.ndarray) -> dict[str, Any]:
    """A tensor as JSON can hold it."""
    patterns = np.ascontiguousarray(values, dtype="<f2").tobytes()
    return {"shape": list(np.shape(values)), "fp16": base64.b64encode(patterns).decode()}


def unpack(held: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(held["fp16"]), dtype="<f2").astype(np.float64).reshape(held["shape"])


@cache
def load(path: Path = FILE) -> Trace:
    """The trace in a file. UserError where it is none."""
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        tensors = {name: unpack(held) for name, held in content["tensors"].items()}
        ends = np.cumsum(tensors.pop("score_lengths")).astype(int)
        if content["format"] != FORMAT or ends[-1] != tensors["scores"].size:
            raise ValueError(f"not of format {FORMAT}")
        rows = tuple(np.split(tensors.pop("scores"), ends[:-1]))
        return Trace(rows, source=content["source"], sha256=hashlib.sha256(raw).hexdigest(), **tensors)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no trace of a model ({error}); python -m ppa.synth.traces RUN makes one") from error


def fixed(values: np.ndarray, fraction: int, width: int) -> np.ndarray:
    """Patterns of two's complement with so many bits of fraction, to the nearest, saturated."""
    half = 1 << (width - 1)
    return unsigned(np.clip(np.round(values * 2.0**fraction), -half, half - 1).astype(np.int64), width)


def symmetric(values: np.ndarray, width: int) -> np.ndarray:
    """Integers of so many bits, one scale for all: the largest magnitude becomes the largest code."""
    highest = (1 << (width - 1)) - 1
    return np.round(values / np.abs(values).max() * highest).astype(np.int64)


def passing(values: np.ndarray, streams: int, cycles: int = CYCLES) -> Iterator[np.ndarray]:
    """One value a stream and cycle, in their order; streams begin evenly spread."""
    start = np.arange(streams) * len(values) // streams
    for now in range(cycles):
        yield values[(start + now) % len(values)]


def products(trace: Trace, streams: int, cycles: int = CYCLES) -> Iterator[tuple[np.ndarray, ...]]:
    """(token, output, inner, 1 at the first of a sum): which operands a multiply-accumulate meets in each cycle.

    A stream goes along the inner dimension of one sum after another; streams begin in different places of theirs.
    """
    (tokens, inner), outputs = trace.left.shape, len(trace.right)
    stream = np.arange(streams)
    for now in range(cycles):
        place = now + stream * inner // streams
        pair = (stream * tokens * outputs // streams + place // inner) % (tokens * outputs)
        yield pair // outputs, pair % outputs, place % inner, (place % inner == 0).astype(np.int64)
