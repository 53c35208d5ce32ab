"""What is recorded of a generation and how it is coloured and named, against naive definitions and other libraries."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcore.candidates import Candidate, Recorder, Step, steps
from gptcore.sample import Sampling, continue_text, generate
from gptcore.showing import MODES, Decoder, colour, confidence, ink, label, pieces, visible
from gptcore.showing.terminal import RAMPS
from gptcore.tokenizer import ByteTokenizer, TiktokenTokenizer
from tests.babbler import char_tokenizer, make_model

GPT2 = TiktokenTokenizer("gpt2")
LOGITS = torch.randn(3, 30, generator=torch.Generator().manual_seed(5)) * 2


@pytest.fixture(scope="module")
def model():
    return make_model()


# the record


def check_steps(found: list[Step], ids: list[int], sampling: Sampling, k: int) -> None:
    """Against the definitions, token by token, in Python's own arithmetic."""
    for step, token, row in zip(found, ids, LOGITS.double().tolist(), strict=True):
        total = math.fsum(map(math.exp, row))
        order = sorted(range(len(row)), key=lambda i: -row[i])
        drawn = sampling.probabilities(torch.tensor([row]))[0].tolist()
        if sampling.is_greedy:
            drawn = [float(i == order[0]) for i in range(len(row))]
        assert step.token == token and step.rank == order.index(token) + 1
        assert step.logit == pytest.approx(row[token])
        for shown in (step, *step.candidates):
            assert shown.probability == pytest.approx(math.exp(row[shown.token]) / total, rel=1e-9)
            assert shown.sampling == pytest.approx(drawn[shown.token], rel=1e-6)
        assert [c.token for c in step.candidates] == order[:k]


SAMPLINGS = [Sampling(0.7, top_k=4), Sampling(1.0), Sampling(2.0, top_p=0.5), Sampling(0)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("k", [0, 1, 7, 30])
def test_steps_against_the_definitions(sampling, k):
    ids = sampling.choose(LOGITS, [0.1, 0.5, 0.9])
    check_steps(steps(ids, LOGITS, sampling, k), ids, sampling, k)


@pytest.mark.parametrize(
    "fault",
    [
        lambda s: replace(s, rank=s.rank - 1),
        lambda s: replace(s, probability=s.sampling),
        lambda s: replace(s, sampling=s.probability),
        lambda s: replace(s, candidates=s.candidates[::-1]),
        lambda s: replace(s, candidates=tuple(Candidate(c.token, c.sampling, c.sampling) for c in s.candidates)),
    ],
)
def test_the_check_of_steps_sees_a_fault(fault):
    ids = SAMPLINGS[0].choose(LOGITS, [0.1, 0.5, 0.9])
    found = [fault(step) for step in steps(ids, LOGITS, SAMPLINGS[0], 7)]
    with pytest.raises(AssertionError):
        check_steps(found, ids, SAMPLINGS[0], 7)


def test_more_candidates_than_tokens():
    (first, *_) = steps([0, 0, 0], LOGITS, Sampling(), 99)
    assert len(first.candidates) == 30


def test_watching_changes_nothing_and_sees_every_token(model):
    prompts = [[1, 2], [3], [4, 5], [6, 7, 8]]
    options = {"max_new_tokens": 30, "temperature": 1.5, "seed": 7}
    free = [set(tokens) for tokens in generate(model, prompts, **options)]
    eot = options["eot"] = min(set.union(*free) - set.intersection(*free))  # ends some, not all
    plain = generate(model, prompts, **options)
    heard: list[tuple[int, int]] = []
    seen = Recorder(4, 5, eot, lambda i, token: heard.append((i, token)))
    assert generate(model, prompts, watch=seen, **options) == plain
    for i, tokens in enumerate(plain):
        assert [step.token for step in seen.steps[i]] == tokens == [token for j, token in heard if j == i]
        assert (i in seen.ended) == (len(tokens) < 30)
    assert 0 < len(seen.ended) < 4  # both cases took place


def test_recorded_logits_are_those_of_the_text(model):
    """The whole text in one pass, without cache, gives the same probabilities."""
    sample = continue_text(model, char_tokenizer(), "ab", max_new_tokens=9, seed=1, candidates=3).samples[0]
    tokens = char_tokenizer().encode(sample.text)
    with torch.no_grad():
        p = model(torch.tensor([tokens]))[0][0].softmax(-1)
    for i, step in enumerate(sample.steps):
        assert step.probability == pytest.approx(p[1 + i, tokens[2 + i]].item(), rel=1e-9)


def test_how_a_sample_ended(model):
    tokenizer = char_tokenizer()
    options = {"max_new_tokens": 30, "temperature": 1.5, "seed": 1, "candidates": 0}
    free = continue_text(model, tokenizer, "a", **options).samples[0]
    stop = free.text[8:10]
    stopped = continue_text(model, tokenizer, "a", stop=[stop], **options).samples[0]
    tokenizer.eot = free.tokens[20]
    ended = continue_text(model, tokenizer, "a", **options).samples[0]
    calls = itertools.count()
    cancelled = continue_text(model, char_tokenizer(), "a", cancelled=lambda: next(calls) >= 3, **options).samples[0]
    assert [s.ended for s in (free, stopped, ended, cancelled)] == ["length", "stop", "eot", "cancelled"]
    assert cancelled.tokens == free.tokens[:4]
    assert ended.tokens == free.tokens[: free.tokens.index(tokenizer.eot)]
    for sample in (free, stopped, ended, cancelled):
        assert [step.token for step in sample.steps] == list(sample.tokens)
    assert continue_text(model, tokenizer, "a", max_new_tokens=3).samples[0].steps == ()


# confidence and colour


def step(logit: float, probability: float, rank: int) -> Step:
    return Step(0, logit, probability, probability, rank, ())


def test_confidence():
    found = [step(-2.0, 0.125, 1), step(0.0, 1.0, 10), step(2.0, 0.0, 100), step(1.0, 0.5, 5000)]
    assert confidence(found, "softmax").values == (0.125, 1.0, 0.0, 0.5)
    assert confidence(found, "minmax").values == (0.0, 0.5, 1.0, 0.75)
    assert confidence(found, "rank").values == pytest.approx((1.0, 0.5, 0.0, 0.0))
    assert [words for _, words in confidence(found, "minmax").legend] == ["-2.0", "-1.0", "0.0", "1.0", "2.0"]
    assert [words for _, words in confidence(found, "rank").legend] == ["100+", "32", "10", "3", "1"]
    assert confidence(found[:1], "minmax").values == (1.0,)
    assert all(confidence([], mode).values == () for mode in MODES)
    with pytest.raises(ValueError, match="minmax, softmax, rank"):
        confidence(found, "topk")


def luminance(rgb) -> float:
    """WCAG 2.1."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_ramp_is_read_by_lightness_alone():
    ramp = [colour(i / 50) for i in range(51)]
    light = [luminance(rgb) for rgb in ramp]
    assert all(a > b for a, b in itertools.pairwise(light))
    assert min(contrast(rgb, ink(rgb)) for rgb in ramp) >= 4.5
    assert colour(-1) == colour(0) and colour(2) == colour(1)


def test_the_ramp_is_the_blues_of_colorbrewer():
    matplotlib = pytest.importorskip("matplotlib")
    blues = matplotlib.colormaps["Blues"]
    for i in range(21):
        assert all(abs(a - 255 * b) < 2.5 for a, b in zip(colour(i / 20), blues(i / 20)[:3], strict=True))


@pytest.mark.parametrize("name", RAMPS)
def test_terminals_of_few_colours_get_darker_steadily(name):
    from rich.color import Color

    light = [luminance(Color.from_ansi(number).get_truecolor()) for number in RAMPS[name]]
    assert all(a > b for a, b in itertools.pairwise(light))


# names and pieces


def test_labels():
    tokenizer = char_tokenizer()
    names = {c: label(tokenizer, tokenizer.encode(c)[0]) for c in "\n a"}
    assert names == {"\n": "\u21b5", " ": "\u2423", "a": "a"}
    assert label(ByteTokenizer(), 0xE2) == "#226" and label(ByteTokenizer(), 0x1B) == "\\x1b"
    assert label(tokenizer, 999) == "#999"  # a padded vocabulary
    tokenizer.itos[5] = "unforgettable"
    assert label(tokenizer, 5, 9) == "unforget\u2026" and label(tokenizer, 5, 13) == "unforgettable"
    assert visible("a\tb\r\x07") == "a\u21e5b\\r\\x07"


BYTES = st.lists(st.integers(0, 255), max_size=40) | st.text(max_size=12).map(lambda text: list(text.encode()))
MERGES = st.lists(st.integers(0, 50256), max_size=12) | st.text(max_size=12).map(lambda text: GPT2.encode(text))


@given(st.tuples(st.just(ByteTokenizer()), BYTES) | st.tuples(st.just(GPT2), MERGES))
def test_pieces_are_the_text(drawn):
    tokenizer, tokens = drawn
    text = tokenizer.decode(tokens)
    found = pieces(tokenizer, tokens)
    assert "".join(piece.text for piece in found) == text
    assert [i for piece in found for i in range(piece.first, piece.last + 1)] == list(range(len(tokens)))
    decoder = Decoder(tokenizer)
    assert "".join(map(decoder.add, tokens)) + decoder.rest() == text


def test_pieces_hold_whole_characters_and_end_where_the_text_ends():
    tokens = list("a\u00e9\U0001f916b".encode())
    assert [(p.text, p.first, p.last) for p in pieces(ByteTokenizer(), tokens)] == [
        ("a", 0, 0), ("\u00e9", 1, 2), ("\U0001f916", 3, 6), ("b", 7, 7)
    ]  # fmt: skip
    assert [p.text for p in pieces(ByteTokenizer(), tokens, 2)] == ["a", "\u00e9"]
    assert [p.text for p in pieces(ByteTokenizer(), tokens[:5])] == ["a", "\u00e9", "\ufffd"]
