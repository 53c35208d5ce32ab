"""Which code computes a part, why, and whether both compute the same; what needs Triton runs in other processes.

Legend as in gptcore.softmax: B batch, H query heads, K key/value heads, T queries, S keys.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gptcore import kernel_choice
from gptcore.config import Dims, identity
from gptcore.errors import UserError
from gptcore.kernel_choice import PARTS, Choice, choose, spans, use_kernels
from gptcore.loader import from_dict
from gptcore.masking import CausalMask
from gptcore.model import GPT
from gptcore.registry import kinds
from gptcore.softmax import Scoring, Softmax
from gptcore.train import train
from kernels import attention_reference
from kernels.attention_reference import Weighting

ROOT = Path(__file__).parents[1]
DIMS = Dims(8, 1, 64, True, 0.0)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EXPRESSED = [
    ("softmax", {}), ("softmax", {"lobo": "fixed", "lobo_init": 0.7}), ("softmax", {"lobo": "learned"}),
    ("softmax", {"lobo": "learned", "lobo_per": "layer", "lobo_init": -0.4}),
    ("softermax", {}), ("softermax", {"lobo": "learned"}),
    ("consmax", {}), ("consmax", {"base": "2", "clamp": -2.0, "per": "layer"}),
    ("consmax_v2", {}), ("consmax_v2", {"clamp_value": -2.3, "per_head": False}), ("consmax_v2", {"clamping": False}),
    ("saturatingconsmax", {"saturation": -2.5, "learnable_beta": False}),
    ("sigmoidmax", {}), ("sigmoidmax", {"bias": "none", "divisor": 3.0, "div_by_seq_len": True}),
    ("relumax", {}), ("relumax", {"div_by_seq_len": False, "divisor": 40.0, "shift": 0.3}), ("relu2max", {}),
    ("polymax", {}), ("polymax", {"power": 3.0, "x_intercept": -0.7, "y_intercept": 2.0, "divisor": 3.0}),
    ("softplus", {}), ("strongermax", {}), ("strongermax", {"strength": 3.0, "temperature_factor": 2.0, "obo": 1.5}),
]  # fmt: skip
# What of the kinds above no kernel expresses, and a word of the reason.
REFUSED = [
    ("softermax", {"use_xmax": False}, "bounds"), ("polymax", {"power": 2.5}, "2.5"),
    ("saturatingconsmax", {"div_by_seq_len": True}, "number of keys"),
    ("strongermax", {"xmax_guess": 1.0, "divisor": 2.0}, "xmax_guess, divisor"),
    ("strongermax", {"use_learned_obo": True}, "learns_obo"), ("strongermax", {"use_xmax": False}, "use_xmax"),
]  # fmt: skip
# heads, key heads, queries, keys, what else there is
SHAPES = {
    "square": (2, 2, 9, 9, {}),
    "groups, window": (4, 2, 5, 12, {"window": 4}),
    "one query, softcap": (2, 1, 1, 7, {"softcap": 0.9}),
    "bias": (2, 2, 8, 11, {"bias": True, "softcap": 1.5}),
}


def make(kind, heads, **knobs):
    cls = kinds("softmax")[kind]
    module = cls(cls.Config(**knobs), DIMS, heads).double()
    with torch.no_grad():
        for p in module.parameters():
            p += torch.linspace(0.1, 0.4, len(p))
    return module


def computed(softmax, shape, weighting=None):
    """Values and gradients by the kind's own definition, as it computes them, and by its form in the kernels."""
    H, K, T, S, options = shape
    generator = torch.Generator().manual_seed(0)

    def random(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()

    q, k, v = random(2, H, T, 6), random(2, K, S, 6), random(2, K, S, 3)
    bias = random(H, T, S) if "bias" in options else None
    window, softcap = options.get("window"), options.get("softcap")
    leaves = [x for x in (q, k, v, bias, *softmax.parameters()) if x is not None]
    scoring = Scoring(CausalMask(T, S, window), 0.8, softcap=softcap, bias_HTS=bias)
    outcomes = []
    for out in (
        Softmax.attend(softmax, q, k, v, scoring),
        softmax.attend(q, k, v, scoring),
        attention_reference.attention(
            q, k, v, weighting or softmax.weighting(), 0.8, window=window, softcap=softcap, bias_HTS=bias,
            **softmax.head_constants(CPU),
        ),
    ):  # fmt: skip
        cotangent = torch.linspace(-1, 1.1, out.numel(), dtype=out.dtype).view_as(out)
        outcomes.append((out, *torch.autograd.grad(out, leaves, cotangent)))
    return outcomes


def compare(name, knobs, shape, **changes):
    """`changes` are of the weighting."""
    softmax = make(name, SHAPES[shape][0], **knobs)
    weighting = softmax.weighting()
    want, *others = computed(softmax, SHAPES[shape], Weighting(**{**vars(weighting), **changes}))
    for a, b in ((a, b) for got in others for a, b in zip(want, got, strict=True)):
        # float64 sums of at most 2 * 12 * 9 terms, a few operations deep
        assert (a - b).abs().max() <= 256 * torch.finfo(torch.float64).eps * max(1.0, a.abs().max().item())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind, knobs", EXPRESSED, ids=str)
def test_a_kind_and_its_form_in_the_kernels_weigh_alike(kind, knobs, shape):
    compare(kind, knobs, shape)


@pytest.mark.parametrize("change", [{"by_keys": False}, {"shift": 0.9}, {"divisor": 1.1}, {"kind": "relu2"}], ids=str)
def test_another_form_would_be_noticed(change):
    with pytest.raises(AssertionError):
        compare("relumax", {}, "square", **change)


def test_every_other_kind_says_that_no_kernel_does_it():
    expressed = {kind for kind, _ in EXPRESSED}
    for kind in kinds("softmax"):
        weighting = make(kind, 2).weighting()
        assert isinstance(weighting, Weighting) == (kind in expressed), kind
        assert kind in expressed or kind in weighting
    for kind, knobs, word in REFUSED:
        assert word in make(kind, 2, **knobs).weighting()


def test_what_runs_and_why(monkeypatch):
    fp32, obstacle = torch.float32, "no kernel drops weights (dropout 0.1)"
    assert choose("auto", CPU, fp32, None) == Choice("reference", "device cpu is no GPU")
    assert choose("reference", CUDA, fp32, None) == Choice("reference", "as configured")
    monkeypatch.setattr(kernel_choice, "_platform", lambda device, dtype: (None, "compute capability 9.0"))
    assert choose("auto", CUDA, fp32, None) == Choice("triton", "compute capability 9.0")
    assert choose("auto", CUDA, fp32, obstacle) == Choice("reference", obstacle)
    with pytest.raises(UserError, match=r"train\.kernel triton: no kernel drops weights \(dropout 0\.1\)"):
        choose("triton", CUDA, fp32, obstacle)
    monkeypatch.setattr(kernel_choice, "_platform", lambda device, dtype: ("device cuda is broken", ""))
    assert choose("auto", CUDA, fp32, None) == Choice("reference", "device cuda is broken")


@pytest.mark.parametrize("capability, dtype, interpreted, hip, word", [
    ((9, 0), torch.bfloat16, False, None, None), ((9, 0), torch.float64, False, None, "float64"),
    ((7, 5), torch.float16, False, None, "7.5 is below 8.0"), ((9, 0), torch.float16, False, "6.0", "NVIDIA"),
    ((9, 0), torch.float16, True, None, "interpreter"),
])  # fmt: skip
def test_what_a_gpu_must_be(monkeypatch, capability, dtype, interpreted, hip, word):
    major, minor = capability
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major, minor=minor))
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(kernel_choice, "MISSING", None)
    monkeypatch.setattr(kernel_choice, "INTERPRETED", interpreted)
    reason, where = kernel_choice._platform(CUDA, dtype)
    assert (reason is None and where == "compute capability 9.0") if word is None else word in reason


def model_of(**changes):
    return from_dict({"model": {"n_layer": 4, "n_embd": 16, "block_size": 8, "vocab_size": 11,
                                "attention": {"n_head": 2}, **changes}}).model  # fmt: skip


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(kernel_choice, "_platform", lambda device, dtype: (None, "compute capability 9.0"))


def all_parts(kernel):
    return lambda part: kernel


def test_layers_are_grouped(a_gpu):
    other = {"attention": {"n_head": 2, "softmax": "sigsoftmax"}}
    model = GPT(model_of(layers=[{"repeat": 2}, {"repeat": 1, **other}, {"repeat": 1}]))
    groups = use_kernels(model, all_parts("auto"), CUDA, torch.bfloat16)
    assert kernel_choice.described(groups) == (
        "triton: attention in layers 0-1, 3, mlp, norm, loss (compute capability 9.0); "
        "reference: attention in layer 2 (no kernel weighs like sigsoftmax)"
    )
    with pytest.raises(
        UserError, match="layer 2: train.kernel triton: no kernel weighs .*train.kernels.attention=auto"
    ):
        use_kernels(model, all_parts("triton"), CUDA, torch.bfloat16)
    assert spans([0, 2, 3, None, 4, 9]) == "layers 0, 2-4, 9, outside of layers"


def test_parts_are_told_apart(a_gpu):
    config = from_dict({"model": model_of(position="rotary").model_dump(), "train": {
        "kernel": "triton", "kernels": {"norm": "reference", "loss": "auto"}}})  # fmt: skip
    model = GPT(config.model)
    groups = use_kernels(model, config.train.kernel_of, CUDA, torch.bfloat16)
    assert {group.part: group.choice.path for group in groups} == {
        "attention": "triton", "mlp": "triton", "norm": "reference", "position": "triton", "loss": "triton",
    }  # fmt: skip
    assert [group.part for group in groups] == [part for part in PARTS if part != "rounding"]
    assert {group.part: group.layers for group in groups}["norm"] == (0, 1, 2, 3, None)
    assert identity(config) == identity(from_dict({"model": model_of(position="rotary").model_dump()}))


@pytest.mark.parametrize("part, changes, word", [
    ("mlp", {"mlp": {"kind": "mlp", "activation": "mish"}}, "mish"), ("mlp", {"mlp": "dual_path"}, "dual_path"),
    ("mlp", {"mlp": {"kind": "swiglu", "linear": "bitlinear"}}, "bitlinear"), ("mlp", {"mlp": "kan"}, "kan"),
    ("mlp", {"mlp": {"kind": "mlp", "rounding": {"output": 8}}}, "rounds"),
    ("rounding", {"attention": {"n_head": 2, "rounding": {"q": 8}}, "rounding": {"range": "learned"}}, "learned range"),
    ("norm", {"norm": "dact"}, "dact"),
])  # fmt: skip
def test_what_else_has_no_kernel_says_why(a_gpu, part, changes, word):
    groups = use_kernels(GPT(model_of(**changes)), all_parts("auto"), CUDA, torch.bfloat16)
    assert [(g.choice.path, word in g.choice.reason) for g in groups if g.part == part] == [("reference", True)]
    assert {g.choice.path for g in groups if g.part != part} == {"triton"}


def test_a_loss_that_needs_logits_has_them():
    model, x = GPT(model_of()), torch.zeros(1, 8, dtype=torch.long)
    assert not model._needs_logits()
    model.objective = lambda logits, targets, idx: logits.mean()
    assert model._needs_logits() and not model.eval()._needs_logits()
    assert GPT(model_of(softmax_output="consmax"))._needs_logits()
    assert model(x, x)[0] is not None


@pytest.mark.parametrize("changes, word", [
    ({"attention": {"n_head": 2, "rounding": {"scores": 8}}}, "rounds"), ({"attention": {"kind": "linear"}}, "linear"),
    ({"n_embd": 1024}, "512"), ({"attention": {"kind": "identity"}}, "identity"),
    ({"dropout": 0.1}, r"\(dropout 0.1\); triton in evaluation"),
])  # fmt: skip
def test_what_has_no_kernel_says_why(a_gpu, changes, word):
    with torch.device("meta"):
        model = GPT(model_of(**{**changes, "n_layer": 1}))
    group, *_ = use_kernels(model, all_parts("auto"), CUDA, torch.bfloat16)
    assert group.choice.path == "reference" and word.replace("\\", "") in group.choice.reason


def test_a_run_says_what_ran(corpus, tmp_path, capfd):
    settings = {
        "model": {"n_layer": 2, "n_embd": 16, "block_size": 8, "attention": {"n_head": 2}}, "data": {"dataset": corpus},
        "train": {"out_dir": str(tmp_path / "run"), "max_iters": 1, "eval_iters": 1, "device": "cpu"},
    }  # fmt: skip
    train(from_dict(settings))
    assert "kernels: reference: attention, mlp, norm, loss (device cpu is no GPU)" in capfd.readouterr().err
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["kernels"]
    layers = {"attention": [0, 1], "mlp": [0, 1], "norm": [0, 1, None], "loss": [None]}
    assert kept == [{"part": part, "layers": where, "path": "reference", "reason": "device cpu is no GPU"}
                    for part, where in layers.items()]  # fmt: skip
    other = {**settings, "train": {**settings["train"], "kernel": "reference"}}
    assert identity(from_dict(other)) == identity(from_dict(settings))
    if not kernel_choice.INTERPRETED:
        for name, file in (("new", None), ("mine", "config.yaml")):  # what comes to nothing leaves nothing of its own
            folder = tmp_path / name
            if file:
                folder.mkdir()
                (folder / file).write_text("{}")
            refused = {**settings, "train": {**settings["train"], "kernel": "triton", "out_dir": str(folder)}}
            told = r"attention, mlp, norm, loss: train\.kernel triton: (device cpu|the package).*; train\.kernel=auto"
            with pytest.raises(UserError, match=told):
                train(from_dict(refused))
            assert folder.exists() == bool(file) and (not file or (folder / file).exists())


def python(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          env={**clean, **environment})  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


STEP = """
import sys{block}
import torch, gptcore, gptcore.cli, gptcore.train
from gptcore.loader import from_dict
from gptcore.model import GPT
config = from_dict({{"model": {{"n_layer": 1, "n_embd": 16, "block_size": 8, "vocab_size": 11,
                               "attention": {{"n_head": 2, "softmax": "consmax"}}}}}})
model, x = GPT(config.model), torch.zeros(2, 8, dtype=torch.long)
model(x, x)[1].backward()
print([name for name in sys.modules if name.split(".")[0] == "triton" or name in
       ("kernels.attention", "kernels.mlp", "kernels.norms", "kernels.rotary", "kernels.linear_cross_entropy",
        "kernels.fake_quantise", "kernels.fixed_point")])
"""


def test_triton_is_not_imported_on_a_cpu():
    """Nor by the tools around. (torch's own optimizers import it, where it is installed.)"""
    assert python("-c", STEP.format(block="")) == "[]\n"


def test_all_works_where_triton_is_missing(corpus, tmp_path):
    more = f"""
from gptcore.errors import UserError
from gptcore.kernel_choice import use_kernels
settings = {{"model": config.model, "data": {{"dataset": {corpus!r}}},
            "train": {{"out_dir": {str(tmp_path / "run")!r}, "max_iters": 2, "eval_iters": 1, "device": "cpu"}}}}
print(gptcore.train.train(from_dict({{**settings, "model": {{"n_layer": 1, "n_embd": 16, "block_size": 8,
    "attention": {{"n_head": 2, "softmax": "consmax"}}}}}}), quiet=True).status)
try:
    use_kernels(model, lambda part: "triton" if part == "attention" else "auto", torch.device("cpu"), torch.float32)
except UserError as error:
    print(error)
"""
    out = python("-c", STEP.format(block='; sys.modules["triton"] = None') + more).splitlines()
    assert out[1:] == [
        "finished",
        "layer 0: train.kernel triton: the package triton is not installed; "
        "train.kernels.attention=auto takes plain torch there",
    ]


PARTS_OF_MODELS = pytest.mark.parametrize("name", ["model", "stream"])


def interpreted(name, marks):
    pytest.importorskip("triton")
    out = python("-m", "pytest", "-p", "no:cacheprovider", "-m", marks, ROOT / "tests" / f"interpreted_{name}.py")
    assert " passed" in out and "skipped" not in out


@PARTS_OF_MODELS
def test_models_with_kernels_compute_the_same(name):
    interpreted(name, "not slow")


@pytest.mark.slow
@PARTS_OF_MODELS
def test_models_with_kernels_are_one_graph(name):
    interpreted(name, "slow")
