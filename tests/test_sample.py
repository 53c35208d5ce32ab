"""Sampling: the cache changes nothing, distributions against a naive reference, stops, and the command end to end."""

import math

import pytest
import torch

from gptcore import cli
from gptcore.checkpoint import save, write_json
from gptcore.errors import CheckpointError, RunError, UserError
from gptcore.model import GPT
from gptcore.sample import Sampling, StopStrings, cache_obstacle, context_start, continue_text, generate, sample_text
from gptcore.tokenizer import ByteTokenizer
from tests.babbler import BLOCK, CHARACTERS, char_tokenizer, make_model, write_run

VARIANTS = {
    "learned": {},
    "rotary": {"position": {"kind": "rotary"}},
    "none": {"position": {"kind": "none"}},
    "gqa": {"attention": {"n_head": 4, "n_kv_head": 2}},
    "mqa_rotary": {"attention": {"n_head": 4, "n_kv_head": 1}, "position": {"kind": "rotary"}},
    "window": {"attention": {"n_head": 4, "window": 5}, "position": {"kind": "rotary"}},
    "consmax": {"attention": {"n_head": 4, "softmax": {"kind": "consmax", "initial_gamma": 3.0}}},
    "softermax": {"attention": {"n_head": 4, "softmax": {"kind": "softermax"}}},
    "consmax_window": {"attention": {"n_head": 4, "window": 3, "softmax": {"kind": "consmax", "initial_gamma": 3.0}}},
}


@pytest.fixture(scope="module")
def model() -> GPT:
    return make_model()


@torch.no_grad()
def greedy_crop(model: GPT, prompt: list[int], steps: int) -> list[int]:
    """nanoGPT's loop: crop to the last block_size tokens, take the likeliest next one."""
    tokens = list(prompt)
    for _ in range(steps):
        logits, _ = model(torch.tensor([tokens[-model.config.block_size :]]))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


# the cache


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_with_cache_equals_without_past_block_size(name):
    model = make_model(**VARIANTS[name])
    assert cache_obstacle(model) is None
    prompts = [[1, 2, 3], [9, 8, 7]]
    cached = generate(model, prompts, max_new_tokens=4 * BLOCK, temperature=0)
    plain = generate(model, prompts, max_new_tokens=4 * BLOCK, temperature=0, use_cache=False)
    assert cached == plain
    assert all(len(tokens) == 4 * BLOCK and len(set(tokens)) > 3 for tokens in cached)


@pytest.mark.parametrize("name", ["learned", "rotary", "window"])
@pytest.mark.parametrize("hop", [1, 5, BLOCK])
def test_every_hop_agrees_with_and_without_cache(name, hop):
    model = make_model(**VARIANTS[name])
    texts = [
        generate(model, [[4, 2]], max_new_tokens=3 * BLOCK, temperature=0, hop=hop, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["learned", "rotary", "gqa"])
def test_hop_one_is_the_crop_of_nanogpt(name):
    model = make_model(**VARIANTS[name])
    prompt = list(range(BLOCK + 3))  # longer than the block from the beginning
    assert generate(model, [prompt], max_new_tokens=30, temperature=0, hop=1) == [greedy_crop(model, prompt, 30)]
    assert generate(model, [[5]], max_new_tokens=30, temperature=0, hop=1) == [greedy_crop(model, [5], 30)]


def test_model_without_cache_state_recomputes_and_says_so(model, monkeypatch):
    expected = generate(model, [[1, 2, 3]], max_new_tokens=30, temperature=0)
    monkeypatch.setattr(type(model.transformer.h[1].attn), "new_cache", lambda *args: None)
    assert cache_obstacle(model) == "attention 'causal' of layer 0 keeps no state between tokens"
    assert generate(model, [[1, 2, 3]], max_new_tokens=30, temperature=0) == expected


def test_cached_decode_feeds_one_token_a_step(model, monkeypatch):
    fed = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda idx, **rest: fed.append(idx.shape[1]) or forward(idx, **rest))
    generate(model, [[1, 2, 3]], max_new_tokens=2 * BLOCK, hop=4)
    prefills = [length for length in fed if length > 1]
    assert fed[:4] == [3, 1, 1, 1]
    # Sequences of 3, 13, 17, 21 and 25 tokens begin a window; each moved one holds block_size - hop + 1 = 9.
    assert prefills == [3, 9, 9, 9, 9]


@pytest.mark.parametrize("hop", [1, 3, 4, BLOCK])
def test_context_policy(hop):
    for n in range(1, 5 * BLOCK):
        start = context_start(n, BLOCK, hop)
        assert start % hop == 0 and 1 <= n - start <= BLOCK
        assert start == 0 or n - (start - hop) > BLOCK  # the smallest such multiple


# randomness


def test_seed_decides(model):
    first, again, other = (
        generate(model, [[1, 2]] * 3, max_new_tokens=20, temperature=2.0, seed=seed) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other
    assert len({tuple(tokens) for tokens in first + other}) == 6  # neither rows nor neighbouring seeds share a stream


def test_sample_does_not_depend_on_its_company(model):
    alone = generate(model, [[1, 2]], max_new_tokens=20, seed=7)
    together = generate(model, [[1, 2], [3], [4, 5], [6, 7, 8]], max_new_tokens=25, seed=7)
    assert together[0][:20] == alone[0]
    assert [len(tokens) for tokens in together] == [25] * 4


def test_unseeded_calls_differ(model):
    assert generate(model, [[1]], max_new_tokens=40, temperature=5) != generate(
        model, [[1]], max_new_tokens=40, temperature=5
    )


def test_large_batches_run_in_parts(model, monkeypatch):
    whole = generate(model, [[1, 2]] * 5, max_new_tokens=20, seed=7)
    monkeypatch.setattr("gptcore.sample.MAX_LOGITS", 2 * BLOCK * len(CHARACTERS))
    assert generate(model, torch.tensor([[1, 2]] * 5), max_new_tokens=20, seed=7) == whole


def test_model_keeps_its_mode(model):
    model.train()
    generate(model, [[1]], max_new_tokens=2)
    assert model.training
    model.eval()


def test_top_k_one_is_greedy(model):
    greedy = generate(model, [[3, 1]], max_new_tokens=30, temperature=0)
    assert generate(model, [[3, 1]], max_new_tokens=30, top_k=1, seed=1) == greedy
    assert generate(model, [[3, 1]], max_new_tokens=30, top_p=1e-9, seed=1) == greedy


def naive_distribution(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """One row of `Sampling.probabilities`, token by token."""
    weight = {i: math.exp((x - max(logits)) / temperature) for i, x in enumerate(logits)}
    order = sorted(weight, key=lambda i: -weight[i])[: top_k or len(logits)]
    if top_p is not None:
        total, kept, mass = sum(weight[i] for i in order), [], 0.0
        for i in order:
            kept.append(i)
            mass += weight[i] / total
            if mass >= top_p:
                break
        order = kept
    total = sum(weight[i] for i in order)
    return [weight[i] / total if i in order else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [None, 1, 5, 40, 1000])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.5, 0.93, 1.0])
def test_distribution_against_naive_reference(temperature, top_k, top_p):
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(2)) * 2
    found = Sampling(temperature, top_k, top_p).probabilities(logits)
    expected = torch.tensor([naive_distribution(row, temperature, top_k, top_p) for row in logits.double().tolist()])
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-7)  # the expected values pass by float32
    assert torch.equal(found > 0, expected > 0)


def test_nucleus_boundaries():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    kept = {p: int((Sampling(top_p=p).probabilities(logits) > 0).sum()) for p in (1e-12, 0.49, 0.51, 0.74, 0.76, 1.0)}
    assert kept == {1e-12: 1, 0.49: 1, 0.51: 2, 0.74: 2, 0.76: 3, 1.0: 3}


def test_draws_follow_the_distribution():
    sampling = Sampling(temperature=1.5, top_k=6, top_p=0.9)
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(4)) * 2
    p = sampling.probabilities(logits)[0]
    n = 4000
    uniform = [(i + 0.5) / n for i in range(n)]  # a grid: every token comes up n p times, give or take one
    ids = torch.tensor(sampling.choose(logits.expand(n, -1), uniform))
    assert (torch.bincount(ids, minlength=10) - n * p).abs().max() <= 1
    ends = sampling.choose(logits.expand(2, -1), [0.0, math.nextafter(1.0, 0.0)])
    assert all(p[i] > 0 for i in ends)


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-6])
def test_tiny_temperature_is_greedy(model, temperature):
    greedy = generate(model, [[3, 1]], max_new_tokens=20, temperature=0)
    assert generate(model, [[3, 1]], max_new_tokens=20, temperature=temperature, seed=5) == greedy


def test_huge_temperature_is_uniform():
    p = Sampling(temperature=1e300).probabilities(torch.randn(1, 8))
    torch.testing.assert_close(p, torch.full((1, 8), 1 / 8, dtype=torch.float64))


@pytest.mark.parametrize(
    "knob",
    [
        {"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": 0}, {"top_k": -3},
        {"top_p": 0.0}, {"top_p": 1.01}, {"top_p": math.nan}, {"hop": 0}, {"hop": BLOCK + 1}, {"max_new_tokens": -1},
    ],
)  # fmt: skip
def test_values_out_of_range(model, knob):
    with pytest.raises(UserError, match=next(iter(knob))):
        generate(model, [[1]], **({"max_new_tokens": 1} | knob))


def test_prompts_are_checked(model):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(model, [[1], []], max_new_tokens=1)
    with pytest.raises(ValueError, match="outside 0..27"):
        generate(model, [[28]], max_new_tokens=1)
    assert generate(model, [], max_new_tokens=1) == []
    assert generate(model, [[1]], max_new_tokens=0) == [[]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite(temperature, value):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[3] = value
    with pytest.raises(RunError, match="not finite"):
        generate(model, [[1]], max_new_tokens=3, temperature=temperature)


# ends


def test_eot_ends_and_is_not_returned(model):
    free = generate(model, [[1, 2]] * 3, max_new_tokens=30, temperature=1.5, seed=1)
    eot = free[1][7]
    ended = generate(model, [[1, 2]] * 3, max_new_tokens=30, temperature=1.5, seed=1, eot=eot)
    assert ended == [tokens[: tokens.index(eot)] if eot in tokens else tokens for tokens in free]
    assert eot not in ended[1]


def test_everything_ended_stops_early(model, monkeypatch):
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda idx, **rest: calls.append(1) or forward(idx, **rest))
    found = generate(model, [[1, 2]] * 2, max_new_tokens=1000, stop=lambda new: len(new) == 3)
    assert [len(tokens) for tokens in found] == [3, 3]
    assert len(calls) == 3


def test_padded_vocabulary_is_never_drawn(model):
    found = generate(model, [[1]] * 4, max_new_tokens=30, temperature=50.0, vocab_size=5, seed=0)
    assert {token for tokens in found for token in tokens} == set(range(5))


def test_stop_strings_cut_the_text(model):
    free = continue_text(model, char_tokenizer(), "ab", num_samples=3, max_new_tokens=60, temperature=2.0, seed=1)
    stop = free.texts[0][20:23]
    stopped = continue_text(
        model, char_tokenizer(), "ab", num_samples=3, max_new_tokens=60, temperature=2.0, seed=1, stop=[stop, "\0"]
    )
    for text, whole in zip(stopped.texts, free.texts, strict=True):
        assert text == "ab" + whole[2:].split(stop)[0]
    assert stopped.tokens < free.tokens == 180


def test_stop_string_in_the_prompt_does_not_count(model):
    text = continue_text(model, char_tokenizer(), "abc", max_new_tokens=10, temperature=2.0, seed=3, stop=["abc"])
    assert text.tokens == 10


def test_stop_string_of_many_bytes_is_seen_as_soon_as_it_is_complete():
    stop = StopStrings(ByteTokenizer(), ["\U0001f916\u00e9"])
    tokens = list(("x" * 30 + "\U0001f916\u00e9").encode())
    assert not any(stop(tokens[:n]) for n in range(1, len(tokens)))
    assert stop(tokens)
    assert stop.cut("x\U0001f916\u00e9y") == "x"
    with pytest.raises(UserError, match="empty"):
        StopStrings(ByteTokenizer(), ["a", ""])


def test_partial_utf8_becomes_replacement_characters():
    model = make_model(vocab_size=256)
    text = continue_text(model, ByteTokenizer(), "\u00e9", max_new_tokens=40, temperature=3.0, seed=0).texts[0]
    assert text.startswith("\u00e9") and "\ufffd" in text


def test_empty_prompt_starts_from_eot_or_line_feed(model, monkeypatch):
    tokenizer = char_tokenizer()
    from_line_feed = continue_text(model, tokenizer, "", max_new_tokens=5, temperature=0).texts[0]
    assert "\n" + from_line_feed == continue_text(model, tokenizer, "\n", max_new_tokens=5, temperature=0).texts[0]
    monkeypatch.setattr(tokenizer, "eot", 9)
    expected = tokenizer.decode(generate(model, [[9]], max_new_tokens=5, temperature=0, eot=9)[0])
    assert continue_text(model, tokenizer, "", max_new_tokens=5, temperature=0).texts == [expected]


def test_tokenizer_of_another_model(model):
    with pytest.raises(CheckpointError, match="256 tokens but the model only 28"):
        continue_text(model, ByteTokenizer(), "a", max_new_tokens=1)


# the command


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    write_run(folder)
    return folder


def sample(*options) -> int:
    return cli.main(["sample", *map(str, options)])


def test_command_prints_samples_and_speed(run_folder, capsys):
    options = ["--out_dir", run_folder, "--start", "hello\\n", "--num_samples", 2, "--max_new_tokens", 30]
    assert sample(*options) == 0
    out, err = capsys.readouterr()
    *texts, speed = out.split("-" * 72 + "\n")
    assert len(texts) == 2 and all(text.startswith("hello\n") and len(text) == 37 for text in texts)
    assert speed.startswith("60 tokens in ") and "tokens/s on cpu, float32; key/value cache used" in speed
    assert "best.pt, step 5" in err
    assert sample(*options) == 0
    assert capsys.readouterr().out.split("-" * 72)[:2] == out.split("-" * 72)[:2]
    expected = sample_text(run_folder, start="hello\n", num_samples=2, max_new_tokens=30, temperature=0.8, seed=1337)
    assert [text.removesuffix("\n") for text in texts] == expected


def test_command_options(run_folder, tmp_path, capsys):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("from a file", encoding="utf-8")
    options = ["--out_dir", run_folder, "--start", f"FILE:{prompt}", "--stop", "e", "--stop", "\\n"]
    knobs = ["--temperature", 2, "--top_k", 20, "--top_p", 0.95, "--checkpoint", "last.pt", "--dtype", "bfloat16"]
    assert sample(*options, *knobs, "--max_new_tokens", 200, "--seed", 3) == 0
    out, err = capsys.readouterr()
    text = out.split("\n" + "-" * 72)[0]
    assert text.startswith("from a file") and not set(text.removeprefix("from a file")) & {"e", "\n"}
    assert "last.pt" in err and "bfloat16" in out


def test_command_takes_the_newest_run_below_a_folder(tmp_path, capsys):
    import os

    for name, at in (("old", 1000), ("new", 2000)):
        write_run(tmp_path / name)
        os.utime(tmp_path / name / "run.json", (at, at))
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "empty" / "run.json", {"status": "running"})
    assert sample("--out_dir", tmp_path, "--max_new_tokens", 2) == 0
    err = capsys.readouterr().err
    assert f"the most recently updated of 2: {tmp_path / 'new'}" in err


def test_command_says_what_an_empty_prompt_means(run_folder, capsys):
    assert sample("--out_dir", run_folder, "--start", "", "--max_new_tokens", 2) == 0
    assert "starting from a line feed" in capsys.readouterr().err


def test_command_names_what_has_no_cache(run_folder, capsys, monkeypatch):
    monkeypatch.setattr("gptcore.attention.causal.CausalAttention.new_cache", lambda *args: None)
    assert sample("--out_dir", run_folder, "--max_new_tokens", 2) == 0
    assert "no key/value cache: attention 'causal' of layer 0" in capsys.readouterr().out


def test_output_encoding_without_the_character(run_folder, monkeypatch):
    import io
    import sys

    from gptcore.commands.sample import _print

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    _print("a\ufffd")
    stream.flush()
    assert stream.buffer.getvalue() == b"a?\n"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--start", "Ärger"], 2, "does not cover 'Ä'"),
        (["--start", "FILE:/nowhere/prompt.txt"], 2, "cannot read /nowhere/prompt.txt"),
        (["--start", "FILE:"], 2, "cannot read"),
        (["--num_samples", 0], 2, "--num_samples must be at least 1"),
        (["--max_new_tokens", -1], 2, "max_new_tokens must not be negative"),
        (["--temperature", -1], 2, "temperature must be 0"),
        (["--top_k", 0], 2, "top_k must be at least 1"),
        (["--top_p", 2], 2, "top_p must be above 0"),
        (["--stop", ""], 2, "stop string must not be empty"),
        (["--checkpoint", "worst.pt"], 2, "no file worst.pt .* best.pt, last.pt"),
        (["--device", "abacus"], 2, "abacus"),
        (["--init_from", "gpt2"], 2, "--out_dir and --init_from gpt2 name two models"),
    ],
)
def test_command_errors(run_folder, capsys, options, code, message):
    import re

    assert sample("--out_dir", run_folder, *options) == code
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert "Traceback" not in err


def test_command_errors_of_folders(tmp_path, capsys):
    binary = tmp_path / "prompt.bin"
    binary.write_bytes(b"ab\xff\xfe")
    (tmp_path / "half").mkdir()
    write_json(tmp_path / "half" / "run.json", {"status": "running"})
    (tmp_path / "torn").mkdir()
    write_json(tmp_path / "torn" / "run.json", {"status": "running"})
    (tmp_path / "torn" / "last.pt").write_bytes(b"PK\x03\x04 half a checkpoint")
    (tmp_path / "nothing").mkdir()
    cases = [
        (["--out_dir", tmp_path / "absent"], 2, "no folder"),
        (["--out_dir", tmp_path / "nothing"], 2, "not a run"),
        (["--out_dir", tmp_path / "half"], 1, "no checkpoint"),
        (["--out_dir", tmp_path / "torn"], 1, "truncated or damaged"),
        (["--start", f"FILE:{binary}"], 2, "not UTF-8 text (byte 2)"),
    ]
    for options, code, message in cases:
        assert sample(*options) == code
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p["model_config"].update(attention={"kind": "telepathy"}), "telepathy"),
        (lambda p: p["model"].pop("transformer.h.0.attn.c_attn.weight"), "h.0.attn.c_attn.weight"),
        (lambda p: p.pop("step"), "step"),
        (lambda p: p["tokenizer"].update(stoi={"a": 3}), "character table"),
    ],
)
def test_command_with_a_checkpoint_of_another_version(run_folder, tmp_path, capsys, spoil, message):
    payload = torch.load(run_folder / "last.pt", weights_only=True)
    spoil(payload)
    save(tmp_path, payload, best=False)
    assert sample("--out_dir", tmp_path) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
