"""GPT-2 weights: equal logits to transformers for every layout it writes, and clear refusals of everything else."""

import json
import math
import os
import re
import shutil
import time

import pytest
import torch

safetensors_torch = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")

from gptcore import cli, pretrained  # noqa: E402
from gptcore.errors import CheckpointError, RunError, UserError  # noqa: E402
from gptcore.model import GPT  # noqa: E402
from gptcore.pretrained import load_pretrained  # noqa: E402
from gptcore.tokenizer import ByteTokenizer  # noqa: E402

SIZE = {"vocab_size": 320, "n_positions": 24, "n_embd": 48, "n_layer": 3, "n_head": 4}
# Two float32 programs that differ in the order of sums only: c eps sqrt(k) times the largest logit, k the longest sum.
TOLERANCE = 8 * torch.finfo(torch.float32).eps * math.sqrt(4 * SIZE["n_embd"])


def write_reference(folder, **changes):
    """A random GPT-2 of transformers, saved; norms and biases are random too, so that a mix-up of any tensor shows."""
    torch.manual_seed(1)
    config = transformers.GPT2Config(**SIZE | {"bos_token_id": 0, "eos_token_id": 0} | changes)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0, 0.2)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    return write_reference(folder), folder


@pytest.fixture
def copy(reference, tmp_path):
    """A folder of weights to spoil."""
    return shutil.copytree(reference[1], tmp_path / "weights")


def load(folder, **options) -> GPT:
    config, weights = load_pretrained(folder, **options)
    model = GPT(config)
    model.load_state_dict(weights)
    return model.eval()


def assert_same_logits(model: GPT, reference, length: int = SIZE["n_positions"]) -> None:
    tokens = torch.randint(0, SIZE["vocab_size"], (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model(tokens)[0], reference(tokens).logits
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


def edit_tensors(folder, edit) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors_torch.load_file(path)
    changed = edit(tensors) or tensors
    safetensors_torch.save_file({name: tensor.contiguous() for name, tensor in changed.items()}, path)


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "REMOVED"}))


# equal logits


def test_saved_by_transformers(reference):
    theirs, folder = reference
    ours = load(folder)
    assert_same_logits(ours, theirs)
    assert ours.parameter_count() == theirs.num_parameters()
    assert ours.lm_head.weight is ours.transformer.wte.weight


def test_tolerance_rejects_a_forgotten_transpose(reference, monkeypatch):
    square = r"h\.\d+\.attn\.c_proj\.weight"  # the one whose shape does not give it away
    monkeypatch.setattr(pretrained, "CONV1D", re.compile(f"(?!{square}){pretrained.CONV1D.pattern}"))
    with pytest.raises(AssertionError):
        assert_same_logits(load(reference[1]), reference[0])


def test_layout_of_the_hub(reference, copy):
    """No `transformer.` prefix, the causal masks stored, a configuration with fewer fields."""

    def strip(tensors):
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        for i in range(SIZE["n_layer"]):
            bare[f"h.{i}.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
            bare[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        return bare

    edit_tensors(copy, strip)
    edit_config(copy, tie_word_embeddings="REMOVED", n_inner="REMOVED", reorder_and_upcast_attn="REMOVED")
    assert_same_logits(load(copy), reference[0])


def test_head_stored_though_tied(reference, copy):
    edit_tensors(copy, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))
    assert_same_logits(load(copy), reference[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"activation_function": "gelu"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "relu"},
        {"activation_function": "silu"},
        {"n_inner": 80},
        {"layer_norm_epsilon": 0.1},
        {"reorder_and_upcast_attn": True},
    ],
    ids=lambda changes: "-".join(map(str, *changes.items())),
)
def test_variants(tmp_path, changes):
    theirs = write_reference(tmp_path, **changes)
    assert_same_logits(load(tmp_path), theirs)


def test_in_parts(reference, tmp_path):
    reference[0].save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(load(tmp_path), reference[0])
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match="model-00002.* is missing"):
        load_pretrained(tmp_path)


def test_half_precision_file(reference, copy):
    edit_tensors(copy, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    config, weights = load_pretrained(copy)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    model = GPT(config)
    model.load_state_dict(weights)
    assert model.lm_head.weight.dtype == torch.float32


def test_shorter_block(reference):
    model = load(reference[1], block_size=10)
    assert model.config.block_size == 10
    assert_same_logits(model, reference[0], length=10)
    for wrong in (0, 25):
        with pytest.raises(UserError, match=f"block_size {wrong} is not within the 24 positions"):
            load_pretrained(reference[1], block_size=wrong)


# refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; only 'gpt2'"),
        ({"model_type": "REMOVED"}, "model_type is None"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
        ({"scale_attn_weights": False}, "scale_attn_weights = False is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"activation_function": "mish"}, "'mish' is not supported .known: gelu_new"),
        ({"activation_function": ["relu"]}, "is not supported"),
        ({"n_head": "REMOVED"}, "does not say n_head"),
        ({"n_head": 5}, "not a multiple of n_head 5"),
        ({"n_layer": "three"}, "n_layer: .*'three'"),
        ({"layer_norm_epsilon": 0.0}, "eps: .*0.0"),
        ({"n_inner": 20}, r"h.0.mlp.c_fc.weight is float32 \(48, 192\), config.json asks for floats \(48, 20\)"),
        ({"vocab_size": 321}, "wte.weight is .*321"),
        ({"n_layer": 4}, "missing: h.3.attn.c_attn.bias.* and 6 more"),
        ({"n_layer": 2}, "unknown: transformer.h.2.attn.c_attn.bias"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
    ],
)
def test_configurations_that_do_not_fit(copy, changes, message):
    edit_config(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(copy)


def test_every_faulty_tensor_is_named(copy):
    def spoil(tensors):
        del tensors["transformer.h.1.ln_1.bias"]
        tensors["transformer.h.0.mlp.c_proj.weight"] = tensors["transformer.h.0.mlp.c_proj.weight"].t()
        tensors["transformer.h.2.attn.c_proj.bias"] = torch.zeros(48, dtype=torch.int8)
        tensors["score.weight"] = torch.zeros(2, 48)
        tensors["wpe.weight"] = torch.zeros(24, 48)

    edit_tensors(copy, spoil)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(copy)
    text = str(caught.value)
    assert "missing: h.1.ln_1.bias" in text
    assert "h.0.mlp.c_proj.weight is float32 (48, 192), config.json asks for floats (192, 48)" in text
    assert "h.2.attn.c_proj.bias is int8" in text
    assert "unknown: score.weight, " in text and "wpe.weight" in text
    assert text.count("\n") == 4


def test_head_that_contradicts_the_tie(copy):
    edit_tensors(copy, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}))
    with pytest.raises(CheckpointError, match="lm_head.weight differs from wte.weight"):
        load_pretrained(copy)


def test_damaged_files(copy):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:4], b"", b"\xff" * 100):
        weights.write_bytes(content)
        with pytest.raises(CheckpointError, match="model.safetensors is truncated or damaged"):
            load_pretrained(copy)
    weights.unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors$"):
        load_pretrained(copy)
    for content in ("{", "[]", "\ufffd"):
        (copy / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match="config.json"):
            load_pretrained(copy)
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has no config.json"):
        load_pretrained(copy)


def test_index_cannot_lead_out_of_the_folder(copy):
    (copy / "model.safetensors").rename(copy.parent / "elsewhere.safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"transformer.wte.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        load_pretrained(copy)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="no weight_map"):
        load_pretrained(copy)


def test_pickles_are_not_opened(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin: a pickle.*\n.*save_pretrained"):
        load_pretrained(copy)


def test_unknown_name():
    with pytest.raises(UserError, match="neither a folder .* did you mean 'gpt2-large'"):
        load_pretrained("gpt2-larg")


def test_without_safetensors(reference, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(UserError, match=r"pip install 'gptcore\[hf\]'"):
        load_pretrained(reference[1])


# the hub


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """No network and nothing cached. The hub library reads its variables when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_name_without_network_fails_at_once(empty_cache, capsys):
    began = time.perf_counter()
    with pytest.raises(RunError, match="gpt2 is not in the local cache and cannot be downloaded.*\n.*path of a folder"):
        load_pretrained("gpt2")
    assert cli.main(["sample", "--init_from", "gpt2-xl"]) == 1
    assert "path of a folder" in capsys.readouterr().err
    assert time.perf_counter() - began < 5


def test_unreachable_hub_is_asked_once(empty_cache, monkeypatch):
    asked = []

    def refuse(url, **options):
        asked.append(url)
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **options: pytest.fail("went on"))
    with pytest.raises(RunError, match="ConnectionRefusedError: nobody there"):
        load_pretrained("gpt2-medium")
    assert len(asked) == 1 and "openai-community/gpt2-medium" in asked[0]


@pytest.mark.parametrize("repo", ["models--gpt2", "models--openai-community--gpt2"])
def test_name_in_the_cache(reference, empty_cache, repo):
    pytest.importorskip("huggingface_hub")
    snapshot = empty_cache / repo / "snapshots" / ("0" * 40)
    shutil.copytree(reference[1], snapshot)
    (empty_cache / repo / "refs").mkdir()
    (empty_cache / repo / "refs" / "main").write_text("0" * 40)
    assert_same_logits(load("gpt2"), reference[0])


def test_without_the_hub_library(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'gptcore\[hf\]'"):
        load_pretrained("gpt2")


# sampling


def test_command_samples_from_a_folder(reference, capsys, monkeypatch):
    monkeypatch.setattr("gptcore.tokenizer.TiktokenTokenizer", lambda name: ByteTokenizer())
    options = ["--init_from", str(reference[1]), "--max_new_tokens", "40", "--temperature", "0", "--start", "a"]
    assert cli.main(["sample", *options]) == 0
    out, err = capsys.readouterr()
    assert "40 tokens in" in out and "key/value cache used" in out
    assert os.fspath(reference[1]) in err


def test_command_refuses_another_vocabulary(reference, capsys):
    pytest.importorskip("tiktoken")
    from gptcore import tokenizer_files

    cache = tokenizer_files.cache_dir()
    if cache is None or not (cache / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee").is_file():
        pytest.skip("the GPT-2 rank files are not in the cache")
    assert cli.main(["sample", "--init_from", str(reference[1]), "--max_new_tokens", "1"]) == 1
    assert "50257 tokens but the model only 320" in capsys.readouterr().err


def test_greedy_text_equals_that_of_transformers(reference):
    from gptcore.sample import generate

    theirs, folder = reference
    prompt = torch.tensor([[5, 6, 7]])
    expected = theirs.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generate(load(folder), prompt, max_new_tokens=20, temperature=0) == expected[:, 3:].tolist()
