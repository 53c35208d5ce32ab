"""Score buffers: the stimulus that calibration compares netlists under writes and reads every word of them.

A word that is broken changes an output of the model under that stimulus, and did not under rows of 64 scores.
"""

import numpy as np
import pytest

from ppa.rtl import fp, make
from ppa.rtl.rows import LONGEST, SHORTEST, Rows, normal_rows, random_rows
from ppa.rtl.softermax import Softermax
from ppa.rtl.softmax import Softmax
from ppa.synth.netlist import STREAMS

BUFFERED = {"softmax_buf256": (Softmax, 3, 0), "softermax_buf256": (Softermax, 2, 1)}  # passes, gap
WORDS = 256


def stimulus(name, streams=STREAMS):
    """Inputs of every cycle, as a comparison with a netlist draws them."""
    operator, rng = make(name), np.random.default_rng(0)
    operator.reset(streams)
    return [operator.stimulus(rng, streams, cycle) for cycle in range(operator.cycles)]


def short(name, streams=STREAMS):
    """The same protocol with rows of at most 64 scores, as operators without a buffer have."""
    operator, rng = make(name), np.random.default_rng(0)
    operator.reset(streams)
    if isinstance(operator, Softermax):
        operator.rows = Rows(streams, 2, 1, random_rows(operator.scores))
    else:
        draw = random_rows(lambda rng, shape: fp.from_float(normal_rows(rng, shape), fp.FP16))
        operator.rows = Rows(streams, 3, 0, draw)
    return [operator.stimulus(rng, streams, cycle) for cycle in range(1, operator.cycles)]


def coverage(cycles, passes):
    """How often each word (place in a row) is met, by phase: (passes, words). From the protocol, not from the model."""
    counts = np.zeros((passes, WORDS + 1), dtype=int)
    place = np.zeros(len(cycles[0]["valid"]), dtype=int)
    phase = place.copy()
    for x in cycles:
        valid = x["valid"] == 1
        place = np.where(valid & ((x["start"] == 1) | (x["phase"] != phase)), 0, place)
        np.add.at(counts, (x["phase"][valid], np.minimum(place[valid], WORDS)), 1)
        place, phase = place + valid, np.where(valid, x["phase"], phase)
    assert (counts[:, WORDS] == 0).all()  # no row is longer than the buffer
    return counts[:, :WORDS]


@pytest.mark.parametrize("name", BUFFERED)
def test_every_word_is_written_and_read_in_every_pass(name):
    passes = BUFFERED[name][1]
    counts = coverage(stimulus(name), passes)
    assert counts.min() >= 20  # streams that came to the last word of a full row, and read it in the last pass
    before = coverage(short(name), passes)
    assert (before[:, :SHORTEST] > 0).all() and (before[:, LONGEST:] == 0).all()


@pytest.mark.parametrize("name", BUFFERED)
def test_every_word_holds_both_values_of_every_bit(name):
    """Of what is written to it, over all streams: every bit differs from whatever the word held before."""
    operator, cycles = make(name), stimulus(name)
    mask = (1 << operator.inputs()["score"]) - 1
    for before in (0, mask):
        operator.reset(STREAMS)
        operator.buffer[:] = before
        changed = np.zeros(WORDS, dtype=np.int64)
        for x in cycles:
            operator.step(x)
            changed |= np.bitwise_or.reduce(operator.buffer ^ before, axis=0)
        assert (changed == mask).all()


def broken(cls, word):
    """The operator with one word that keeps what it had."""

    class Broken(cls):
        def given(self, x):
            kept = self.buffer[:, word].copy()
            out = super().given(x)
            self.buffer[:, word] = kept
            return out

    return Broken


@pytest.mark.parametrize("word", [0, 63, 64, 129, 254, 255])
@pytest.mark.parametrize("name", BUFFERED)
def test_a_broken_word_is_noticed(name, word):
    cls, point = BUFFERED[name][0], make(name).parameters

    def differs(cycles):
        right, wrong = cls(**point), broken(cls, word)(**point)
        for operator in (right, wrong):
            operator.reset(len(cycles[0]["valid"]))
        pairs = ((right.step(x), wrong.step(x)) for x in cycles)
        return any((a["weight"] != b["weight"]).any() for a, b in pairs)

    assert differs(stimulus(name, 64))
    assert differs(short(name, 64)) == (word < LONGEST)


@pytest.mark.parametrize("n", [1, SHORTEST, 255, 256])
def test_softermax_with_a_buffer_gives_the_same_weights(n):
    """Rows one after another, idle cycles within a pass, and noise where the scores are not read."""
    rng, outside, inside = np.random.default_rng(n), Softermax(), Softermax(BUFFER=WORDS)
    outside.reset(50)
    inside.reset(50)
    sent = 0
    for _ in range(3):
        row = outside.scores(rng, (50, n))
        for phase in (0, 1):
            for place in range(n):
                for valid in [0] * int(rng.integers(0, 2) and place > 0) + [1]:
                    flags = {"valid": valid, "phase": phase, "start": valid and place == 0 and phase == 0}
                    x = {name: np.full(50, int(flag)) for name, flag in flags.items()} | {"score": row[:, place]}
                    noise = row[:, place] if valid and not phase else rng.integers(0, 4096, 50)
                    want, got = outside.step(x), inside.step({**x, "score": noise})
                    assert (want["out_valid"] == got["out_valid"]).all()
                    sending = want["out_valid"] == 1
                    assert (want["weight"][sending] == got["weight"][sending]).all()
                    sent += sending.sum()
            idle = {"valid": np.zeros(50, int), "phase": np.full(50, phase), "start": np.zeros(50, int)}
            for _ in range(1 + 3 * phase):
                want, got = outside.step({**idle, "score": row[:, 0]}), inside.step({**idle, "score": row[:, 0] ^ 5})
                sending = want["out_valid"] == 1
                assert (want["weight"][sending] == got["weight"][sending]).all()
                sent += sending.sum()
    assert sent == 3 * 50 * n
