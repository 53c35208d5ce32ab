"""`make bench`: what is wrong gives no number; table, picture and comparison from closed-form times."""

import copy
import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import bench_kernels, kernel_table
from benchmarks.gpu import contestants
from benchmarks.gpu.block_plan import sized
from gptcore.registry import kinds, lookup
from kernels import attention_reference


def test_right_paths_are_timed():
    for path, kind in (("gptcore", "consmax"), ("kernels", "relu"), ("sdpa", "softmax")):
        at, run = bench_kernels.runnable("both", path, kind)
        assert len(run()) == (5 if (path, kind) == ("kernels", "consmax") else 3)
        assert at.op == "both"


@pytest.mark.parametrize("op", ["forward", "both", "decode"])
def test_wrong_forms_are_not_timed(op, monkeypatch):
    kind, curve = lookup("softmax", "consmax"), attention_reference.curve
    real = kind.attend
    monkeypatch.setattr(kind, "attend", lambda *args: real(*args) * 1.01)
    with pytest.raises(pytest.fail.Exception, match="out of consmax of gptcore is wrong, so it is not timed"):
        bench_kernels.runnable(op, "gptcore", "consmax")
    # Only in the type that would be timed.
    monkeypatch.setattr(
        attention_reference, "curve", lambda w, x: curve(w, x) + (0.01 if x.dtype != torch.float64 else 0)
    )
    with pytest.raises(pytest.fail.Exception, match="sigmoid is wrong"):
        bench_kernels.runnable(op, "kernels", "sigmoid")


def test_operators_of_the_block():
    """Those timed on a GPU, one shape each; a definition runs here."""
    points = bench_kernels.block_points()
    assert {p.op for p in points} >= {"linear", "mlp", "rms_norm", "rotary", "cross_entropy", "int8_linear", "lut"}
    linear = next(p for p in points if (p.op, p.variant) == ("linear", "relu2"))
    assert linear["K"] == 1024
    small = replace(linear, sizes=sized(M=8, K=16, N=16), dtype="fp32")
    out = bench_kernels.block_runnable(small, "kernels", "cpu")()
    assert out.shape == (8, 16) and bool((out >= 0).all())


def test_every_registered_softmax_is_there():
    assert {kind for path, kind in bench_kernels.PATHS if path == "gptcore"} == set(kinds("softmax"))
    assert {kind for path, kind in bench_kernels.PATHS if path == "triton"} == set(attention_reference.KINDS)
    assert set(attention_reference.KINDS) <= set(contestants.WEIGHTINGS)


def entry(path, median):
    info = {
        "op": "forward", "path": path, "kind": "softmax", "point": "T8", "flops": 1e6, "bytes": 1e3,
        "flops_per_s": 1e6 / median, "bytes_per_s": 1e3 / median, "roofline_share": 0.5, "copy_bytes_per_s": 1e10,
        "matmul_flops_per_s": 1e11, "device": "cpu", "torch": "2", "triton": "3",
    }  # fmt: skip
    stats = {"median": median, "q1": median, "q3": median, "min": median, "rounds": 9}
    return {"name": f"test[{path}]", "group": "forward", "stats": stats, "extra_info": info}


def test_table_picture_and_comparison(tmp_path, capsys):
    other = {"name": "no work counted", "group": None, "stats": {}, "extra_info": {}}
    base = {"benchmarks": [entry("sdpa", 2e-5), entry("triton", 1e-5), other]}
    new = copy.deepcopy(base)
    new["benchmarks"][0]["stats"]["median"] = 4e-5
    new["benchmarks"][1]["stats"] |= {"median": 0.5e-5, "min": 0.4e-5}
    new["benchmarks"][1]["extra_info"]["torch"] = "3"
    paths = [tmp_path / name for name in ("new.json", "base.json")]
    for path, content in zip(paths, (new, base), strict=True):
        path.write_text(json.dumps(content))
    assert kernel_table.main([str(paths[0])]) == 0
    assert "| triton | softmax | 5.0 | 10.0 to 10.0 | 4.0 | 9 | 0.12 |" in (tmp_path / "new.md").read_text()
    assert ElementTree.parse(tmp_path / "new.svg").getroot().tag.endswith("svg")
    assert kernel_table.main([str(path) for path in paths]) == 0
    out = capsys.readouterr().out
    assert "different torch: 2 then, 2, 3 now" in out and "1.000  geometric mean of 2 medians, 2.000 the slowest" in out
    assert "  0.500   0.400  test[triton]" in out
    (tmp_path / "empty.json").write_text("")
    for arguments in ([], [str(tmp_path / "empty.json")], [str(paths[0]), ""]):
        assert kernel_table.main(arguments) == 2
