"""Shared fixtures: one thread (bit-identical runs, two cores shared) and a tiny prepared data set."""

import os
import random
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from gptcore.prepare import prepare

torch.set_num_threads(1)
# Whoever starts the tests in the background may have SIGINT ignored, which all processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = "the quick brown fox jumps over a lazy dog while seven kings of rome look on and sing".split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A prepared character data set of 40,000 characters of random words, its folder as a string."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(7)
    text = " ".join(rng.choice(WORDS) for _ in range(9000))[:40_000]
    source = folder / "text.txt"
    source.write_text(text)
    prepare([source], folder / "words", "char")
    return str(folder / "words")
