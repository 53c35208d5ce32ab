"""Token scores against one full pass per token, bits per byte against closed forms, and the command on a text."""

import json
import math
import random
import sys

import pytest
import torch

from gptcore import cli, scoring
from gptcore.batch_decode import _groups, generate_together
from gptcore.checkpoint import save
from gptcore.errors import CheckpointError, RunError, UserError
from gptcore.evaluate import model_hash, score_text, start_token
from gptcore.loader import from_dict
from gptcore.model import GPT
from gptcore.sample import Sampling, generate
from gptcore.scoring import score
from gptcore.tokenizer import ByteTokenizer, CharTokenizer, CustomTokenizer
from tests.contract.configs import config_for, kind_ids

BLOCK, V = 16, 29
# Sums of up to some ten log-probabilities in fp32, whose products are summed in another order.
TOLERANCE = 64 * torch.finfo(torch.float32).eps * 10


def make_model(config=None, vocab=V, std=0.4):
    config = (
        config
        or from_dict(
            {
                "model": {
                    "n_layer": 2,
                    "n_embd": 32,
                    "block_size": BLOCK,
                    "vocab_size": vocab,
                    "attention": {"n_head": 4},
                }
            }
        ).model
    )
    torch.manual_seed(3)
    model = GPT(config).eval()
    with torch.no_grad():  # away from uniform predictions
        model.lm_head.weight.normal_(std=std)
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


def one_by_one(model, context, target) -> float:
    """The definition, for what fits into the block: a pass for every token, over all before it."""
    total, tokens = 0.0, [*context, *target]
    for i in range(len(context), len(tokens)):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:i]]))[0][0, -1]
        total += logits.double().log_softmax(-1)[tokens[i]].item()
    return total


def questions(rng, n=6, vocab=V):
    """Pairs of several choices to one context, and others."""
    draw = lambda low, high: [rng.randrange(vocab) for _ in range(rng.randint(low, high))]  # noqa: E731
    pairs = []
    for _ in range(n):
        context = draw(1, 9)
        pairs += [(context, draw(1, 6)) for _ in range(rng.randint(1, 4))]
    return [*pairs, ([5], draw(3, 3)), (draw(3, 3), [])]


@pytest.mark.parametrize("share", [True, False])
def test_scores_are_those_of_one_pass_per_token(model, share):
    pairs = questions(random.Random(1))
    found = score(model, pairs, batch_size=5, share=share)
    for pair, likelihood in zip(pairs, found, strict=True):
        assert likelihood.nats == pytest.approx(one_by_one(model, *pair), abs=TOLERANCE)
    assert found[-1].greedy and found[-1].nats == 0.0


@pytest.mark.parametrize("slot, kind", kind_ids())
def test_every_kind_scores_alike_alone_and_in_a_batch_with_shared_contexts(slot, kind):
    config = config_for(slot, kind)
    model, rng = make_model(config, vocab=config.vocab_size), random.Random(2)
    context = [rng.randrange(V) for _ in range(10)]
    pairs = [(context, [rng.randrange(V) for _ in range(n)]) for n in (1, 4, 2)] + [(context[:9], [1, 2])] * 2
    alone = [score(model, [pair])[0].nats for pair in pairs]
    together = [likelihood.nats for likelihood in score(model, pairs)]
    assert together == pytest.approx(alone, abs=20 * TOLERANCE)  # some kinds divide by small sums


def test_sharing_feeds_a_context_once(model, monkeypatch):
    fed = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda idx, **rest: fed.append(tuple(idx.shape)) or forward(idx, **rest))
    pairs = [(list(range(10)), [c, c + 1]) for c in range(4)]
    score(model, pairs)
    assert fed == [(1, 9), (4, 2)]
    fed.clear()
    score(model, pairs, share=False)
    assert fed == [(4, 11)]


def test_a_copied_state_without_its_lines_in_order_is_seen(model, monkeypatch):
    rng = random.Random(4)
    pairs = [([rng.randrange(V) for _ in range(9)], [c, c + 1]) for _ in range(3) for c in range(3)]
    pairs = [(pairs[i - i % 3][0], target) for i, (_, target) in enumerate(pairs)]
    good = [found.nats for found in score(model, pairs)]
    copy = scoring.copy.deepcopy
    monkeypatch.setattr(
        scoring.copy, "deepcopy", lambda cache, lines: copy(cache, {key: line.flip(0) for key, line in lines.items()})
    )
    assert [found.nats for found in score(model, pairs)] != pytest.approx(good, abs=100 * TOLERANCE)


def test_logits_only_where_they_are_scored(model, monkeypatch):
    rows = []
    head = type(model.lm_head).forward
    monkeypatch.setattr(
        type(model.lm_head), "forward", lambda self, x: rows.append(x.shape[:-1].numel()) or head(self, x)
    )
    score(model, [([1] * 12, [2, 3]), ([4] * 9, [5])], share=False)
    assert rows == [3]


def test_context_is_cut_on_the_left(model):
    long = [random.Random(5).randrange(V) for _ in range(40)]
    assert score(model, [(long, [1, 2])]) == score(model, [(long[-(BLOCK - 1) :], [1, 2])])


def test_bad_logits_and_empty_contexts(model):
    with pytest.raises(ValueError, match="empty context"):
        score(model, [([], [1])])
    broken = make_model()
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(math.nan)
    with pytest.raises(RunError, match="not finite"):
        score(broken, [([1], [2])])


@pytest.mark.parametrize("kind", ["causal", "linear", "ssm", "identity"])
@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0, top_k=9)])
def test_decoding_side_by_side_gives_the_same_texts(kind, sampling):
    config = config_for("attention", kind)
    model, rng = make_model(config, vocab=config.vocab_size), random.Random(7)
    prompts = [[rng.randrange(V) for _ in range(n)] for n in (3, 9, 1, 3, 10, 8)]
    rest = {"max_new_tokens": 6, "seed": 5, "eot": 4, "vocab_size": 27, "stop": lambda new: len(new) > new[0] % 6}
    expected = generate(model, prompts, temperature=sampling.temperature, top_k=sampling.top_k, **rest)
    assert len({len(tokens) for tokens in expected}) > 1  # they end at different times
    for batch_size in (2, 32):
        found = generate_together(model, prompts, sampling=sampling, batch_size=batch_size, **rest)
        assert found == expected


def test_prompts_of_like_lengths_decode_together():
    assert list(_groups([3, 30, 5, 28, 9], 4, 32)) == [[1, 3], [4, 2, 0]]
    assert list(_groups([5, 5, 5], 4, 2)) == [[0, 1], [2]]


# ---- texts


def chars(text):
    return CharTokenizer.from_text([text])


def uniform(vocab):
    model = make_model(vocab=vocab)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return model


def test_bits_per_byte_of_a_uniform_model_in_closed_form():
    text = "naïve café — \U0001f600\n" * 9
    tokenizer = chars(text)
    found = score_text(uniform(tokenizer.vocab_size), tokenizer, text)
    bits = len(text) * math.log2(tokenizer.vocab_size)
    assert found.bits_per_byte == pytest.approx(bits / len(text.encode()), rel=1e-6)
    assert (found.bytes, found.characters, found.tokens) == (len(text.encode()), len(text), len(text))
    assert found.bits_per_character == pytest.approx(math.log2(tokenizer.vocab_size), rel=1e-6)
    assert found.stderr == pytest.approx(0, abs=1e-6)
    assert score_text(uniform(256), ByteTokenizer(), text).bits_per_byte == pytest.approx(8, rel=1e-6)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 24, 25, 70])
def test_a_text_is_scored_token_by_token_with_half_a_block_of_context(length):
    rng = random.Random(length)
    tokenizer = chars("\nabcdefgh")
    model = make_model(vocab=tokenizer.vocab_size)
    text = "".join(rng.choice("abcdefgh\n") for _ in range(length))
    tokens, total, end = [tokenizer.encode("\n")[0], *tokenizer.encode(text)], 0.0, 1
    while end < len(tokens):  # tokens[end] is the next to predict; each window but the first begins half a block back
        stop = min(len(tokens), end + (BLOCK if end == 1 else BLOCK // 2 + 1))
        begin = stop - 1 - min(BLOCK, stop - 1)
        assert end == 1 or end - begin >= BLOCK // 2
        total += one_by_one(model, tokens[begin:end], tokens[end:stop])
        end = stop
    assert score_text(model, tokenizer, text).nats == pytest.approx(-total, abs=length * TOLERANCE)


def test_start_tokens():
    assert start_token(chars("\nab")) == (0, "line feed")
    assert start_token(chars("b a")) == (0, "space")
    assert start_token(chars("ba")) == (0, "token 0 ('a')")
    with_end = chars("\nab")
    with_end.eot = 2
    assert start_token(with_end) == (2, "end-of-text token")


def test_unknown_characters(model):
    tokenizer = chars("abc\n")
    small = make_model(vocab=4)
    with pytest.raises(UserError, match=r"no token for 'x' \(U\+0078\), the first of 4 such characters \(2 different"):
        score_text(small, tokenizer, "abxyabyx")
    found = score_text(small, tokenizer, "abxyabyx", drop_unknown=True)
    assert (found.dropped, found.bytes) == (4, 4)
    assert found.nats == score_text(small, tokenizer, "abab").nats
    with pytest.raises(UserError, match="is empty without the characters that were dropped"):
        score_text(small, tokenizer, "xyz", drop_unknown=True)
    with pytest.raises(CheckpointError, match="do not belong together"):
        score_text(small, ByteTokenizer(), "abc")
    pairs = CustomTokenizer("custom:x", ["ab", "c"])  # knows a and b only together
    assert score_text(make_model(vocab=2), pairs, "abcab").tokens == 3
    with pytest.raises(UserError, match="no token for 'a'"):
        score_text(make_model(vocab=2), pairs, "abca")


def test_model_hash_tells_weights_and_architecture_apart(model):
    assert model_hash(model) == model_hash(make_model())
    other = make_model()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1e-3
    assert model_hash(other) != model_hash(model)
    window = model.config.model_copy(update={"attention": model.config.attention.model_copy(update={"window": 3})})
    assert model_hash(make_model(window)) != model_hash(model)


# ---- the command


@pytest.fixture
def run_folder(tmp_path):
    tokenizer = chars("the quick brown fox\n")
    model = make_model(vocab=tokenizer.vocab_size)
    folder = tmp_path / "run"
    folder.mkdir()
    payload = {"model_config": model.config.model_dump(mode="json"), "model": model.state_dict(), "step": 7}
    save(folder, payload | {"tokenizer": tokenizer.meta(), "identity": "i"}, best=True)
    (folder / "run.json").write_text('{"status": "finished", "identity": "i"}')
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "eval", ("gptcore.commands.eval", "scores of a trained run"))

    def run(*argv):
        code = cli.main(["eval", *map(str, argv)])
        return code, *capsys.readouterr()

    return run


def test_text_through_the_command(command, run_folder, tmp_path):
    text = "the brown box\nfix the fox\n" * 5
    (tmp_path / "note.txt").write_bytes(text.encode())
    code, out, _ = command("--out_dir", run_folder, "--text", tmp_path / "note.txt")
    assert code == 0 and f"{len(text):,} bytes" in out
    written = json.loads((run_folder / "eval" / "text-note.json").read_text())
    assert f"{written['result']['bits_per_byte']:.4f}" in out
    assert (written["identity"], written["step"], written["start"]) == ("i", 7, "line feed")
    assert len(written["model_hash"]) == 64 and written["versions"]["torch"]
    assert command("--out_dir", run_folder, "--text", tmp_path / "note.txt", "--checkpoint", "last.pt")[0] == 0
    assert json.loads((run_folder / "eval" / "text-note-last.json").read_text())["checkpoint"] == "last.pt"
    assert json.loads((run_folder / "eval" / "text-note.json").read_text()) == written  # not replaced
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note.txt").write_text(text + "the box\n")
    assert command("--out_dir", run_folder, "--text", tmp_path / "other" / "note.txt")[0] == 0
    names = sorted(path.name for path in (run_folder / "eval").glob("text-note-*.json"))
    assert len(names) == 2 and json.loads((run_folder / "eval" / "text-note.json").read_text()) == written


def test_bad_input(command, run_folder, tmp_path):
    (tmp_path / "greek.txt").write_text("the αβ")
    (tmp_path / "bytes.txt").write_bytes(b"ok \xff")
    here = ("--out_dir", run_folder)
    for argv, code, words in [
        ((*here,), 2, "nothing to evaluate"),
        ((*here, "--text", tmp_path / "greek.txt", "--limit", "5"), 2, "--limit belongs to --tasks"),
        ((*here, "--text", tmp_path / "greek.txt", "--num_fewshot", "5"), 2, "--num_fewshot belongs to --tasks"),
        ((*here, "--tasks", "mmlu"), 2, "groups of the harness are not read"),
        (("--out_dir", tmp_path / "none", "--text", tmp_path / "greek.txt"), 2, "no folder"),
        ((*here, "--text", tmp_path / "gone.txt"), 2, "cannot read"),
        ((*here, "--text", tmp_path / "bytes.txt"), 2, "not UTF-8 text (byte 3)"),
        ((*here, "--text", tmp_path / "greek.txt"), 2, "no token for 'α'"),
        ((*here, "--text", tmp_path / "greek.txt", "--checkpoint", "x.pt"), 2, "checkpoints there: best.pt, last.pt"),
        ((*here, "--tasks", "shakespear_line"), 2, "did you mean 'shakespeare_line'"),
        ((*here, "--tasks", "shakespeare_line", "--limit", "0"), 2, "--limit must be at least 1"),
        ((*here, "--tasks", "shakespeare_line", "--task_path", tmp_path / "no"), 2, "no folder or file"),
    ]:
        found, _, err = command(*argv)
        assert (found, err.count("Traceback")) == (code, 0) and words in err
    last = torch.load(run_folder / "last.pt", weights_only=True)
    torch.save(last | {"tokenizer": {"tokenizer": "wordpiece:3"}}, run_folder / "future.pt")
    code, _, err = command(*here, "--text", tmp_path / "greek.txt", "--checkpoint", "future.pt")
    assert code == 1 and f"{run_folder}/future.pt: " in err and "'wordpiece:3'" in err
    for path in run_folder.glob("*.pt"):
        path.unlink()
    code, _, err = command(*here, "--text", tmp_path / "greek.txt")
    assert code == 1 and "no checkpoint" in err


def test_a_result_that_cannot_be_written(command, run_folder, tmp_path):
    (tmp_path / "note.txt").write_text("the fox")
    (run_folder / "eval").write_text("a file is in the way")
    code, out, err = command("--out_dir", run_folder, "--text", tmp_path / "note.txt")
    assert code == 1 and "cannot write" in err and "bits per byte" in out


def test_a_text_needs_no_harness(command, run_folder, tmp_path, monkeypatch):
    for name in ("lm_eval", "datasets", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    (tmp_path / "note.txt").write_text("the fox")
    assert command("--out_dir", run_folder, "--text", tmp_path / "note.txt")[0] == 0
