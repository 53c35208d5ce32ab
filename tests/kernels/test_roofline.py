"""The roofline model against instructions counted in compiled kernels, published conventions, and by hand."""

import json
from pathlib import Path

import pytest

from kernels import launch_table, roofline
from kernels.launch_table import Launch

GOLDEN = json.loads((Path(roofline.__file__).parent / "golden" / "triton-3.7.1" / "attention.json").read_text())
POINTS = [(kernel, kind, D) for kernel in ("forward", "d_queries", "d_keys") for kind in ("softmax", "consmax")
          for D in (32, 64, 128, 256)]  # fmt: skip


def off(kernel, kind, D, counted_kind=None):
    """Greatest distance of the model from what was counted, over what was counted; a stray instruction is allowed."""
    counted = GOLDEN[f"sm_90 {kernel} {counted_kind or kind} D{D} bf16"]
    launch = Launch(*(counted[name] for name in ("BM", "BN", "num_warps", "num_stages")))
    model = roofline.tile_instructions(kernel, kind, D, D, launch)
    return max(max(abs(model[name] - counted["loop"][name]) - 1, 0) / max(counted["loop"][name], 1) for name in model)


@pytest.mark.parametrize("kernel, kind, D", POINTS)
def test_instructions_are_those_counted(kernel, kind, D):
    """Within a tenth, as the control flow of the loops scatters; arithmetic is exact but for one shuffle."""
    assert off(kernel, kind, D) <= 0.1


def test_a_wrong_model_is_seen(monkeypatch):
    assert off("forward", "softmax", 128, "consmax") > 0.1
    monkeypatch.setattr(roofline, "LOOP", 0)
    assert max(off(*point) for point in POINTS) > 0.1


def test_convention_of_published_figures():
    """4 B H T^2 D forward, halved when causal, 2.5 times backward; B = 2, H = 16, T = 8192, D = 128."""
    shape = {"B": 2, "H": 16, "K": 16, "T": 8192, "S": 8192, "D": 128, "E": 128, "itemsize": 2}
    whole = 4 * 2 * 16 * 8192**2 * 128
    assert roofline.attention_work("forward", "softmax", causal=False, **shape).flops == whole
    assert roofline.attention_work("forward", "consmax", causal=True, **shape).flops == whole / 2
    assert roofline.attention_work("backward", "relu", causal=True, **shape).flops == 1.25 * whole


def test_bytes_by_hand():
    shape = {"B": 1, "H": 4, "K": 2, "T": 8, "S": 8, "D": 16, "E": 32, "causal": True, "itemsize": 2}
    q, k, v, o = 4 * 8 * 16, 2 * 8 * 16, 2 * 8 * 32, 4 * 8 * 32
    assert roofline.attention_work("forward", "consmax", **shape).bytes == 2 * (q + k + v + o)
    assert roofline.attention_work("forward", "softmax", **shape).bytes == 2 * (q + k + v + o) + 4 * 4 * 8
    assert roofline.attention_work("backward", "relu", **shape).bytes == 2 * (2 * (q + k + v) + o)
    # one query over a cache of 32768 keys, 8 key heads of width 128: 4 B T K D
    decode = roofline.attention_work("decode", "softmax", 1, 32, 8, 1, 32768, 128, 128, True, 2)
    assert decode.bytes == pytest.approx(4 * 32768 * 8 * 128, rel=1e-3)


def test_exponentials_bound_narrow_heads():
    """A tile of 128 x 128 needs 1024 clocks of the exponential unit at any width, and 16 D of the tensor cores."""
    for D, bound in ((32, "exponentials"), (128, "tensor cores")):
        work = roofline.attention_work("forward", "consmax", 4, 16, 16, 4096, 4096, D, D, True, 2)
        row = launch_table.launch(90, "forward", D, "consmax", 2)
        issued = roofline.warp_instructions("forward", "consmax", 4, 16, 4096, 4096, D, D, True, {"forward": row})
        times = roofline.least_times_s(work, roofline.H200, issued)
        assert max(times, key=times.__getitem__) == bound
        assert times["exponentials"] / times["tensor cores"] == pytest.approx(1024 / (16 * D))


def test_refusals():
    with pytest.raises(ValueError, match="sideways"):
        roofline.attention_work("sideways", "softmax", 1, 1, 1, 1, 1, 1, 1, True, 2)
    with pytest.raises(ValueError, match="polymax"):
        roofline.tile_instructions("forward", "polymax", 64, 64, Launch(128, 128, 8, 3))
