"""Cross entropy kernels without their kernels: the definition, the work model, memory, and the rules of the gate."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from kernels import aot, gate, linear_cross_entropy, losses_rows, losses_work
from kernels.cross_entropy import ROWS, tile
from kernels.gates import losses as points
from kernels.linear_cross_entropy import MOST_BYTES, chunk_rows, padded
from kernels.losses_reference import cross_entropy, token_losses


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_definition_is_torchs():
    logits, targets = 3 * random(5, 11), torch.tensor([3, -1, 0, 10, 2])
    for smoothing in (0.0, 0.3):
        for reduction, got in (
            ("mean", cross_entropy(logits, targets, smoothing=smoothing)),
            ("none", token_losses(logits, targets, smoothing=smoothing)),
        ):
            options = {"ignore_index": -1, "label_smoothing": smoothing, "reduction": reduction}
            want = F.cross_entropy(logits, targets, **options)
            torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)


def test_focal_and_z_in_closed_form():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    logits = (p * 4).log().unsqueeze(0)  # Z = 4
    loss = token_losses(logits, torch.tensor([1]), gamma=2.0, z=0.5)
    torch.testing.assert_close(loss, -(0.8**2) * p[1:2].log() + 0.5 * torch.tensor([4.0]).double().log() ** 2)


@pytest.mark.parametrize("terms", [{}, {"smoothing": 0.2}, {"gamma": 1.5}, {"smoothing": 0.1, "gamma": 0.5, "z": 0.1}])
def test_finite_differences_of_the_definition(terms):
    targets = torch.tensor([3, -1, 0])
    logits = random(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets, **terms), logits, rtol=1e-6)


def test_work_by_hand():
    """8192 rows of GPT-2's padded vocabulary in bf16: 100,608 bytes a row, three times, and 56 bytes of numbers."""
    work = losses_work.cross_entropy_work(8192, 50304, 2)
    assert (work.flops, work.bytes, work.exponentials) == (0, 8192 * (3 * 100_608 + 56), 2 * 8192 * 50304)
    assert losses_work.chain_bytes(8192, 50304, 2) == 36 * 8192 * 50304
    fused = losses_work.linear_work(256, 4, 16, 2, 4)  # one chunk
    assert fused.flops == 6 * 256 * 4 * 16
    logits, x, weight, dw = 256 * 16 * 2, 256 * 4 * 2, 16 * 4 * 2, 16 * 4 * 4
    products = (x + weight + logits) + (logits + weight + x) + (logits + x + 3 * dw)
    assert fused.bytes == products + 3 * logits + 28 * 256 + 2 * x + 2 * dw + dw + weight


def test_exponentials_are_those_counted():
    """Within a tenth: the statistics have one more a thread and pass."""
    golden = aot.family("losses").read_golden()
    for case in points.cases():
        share = {"forward": 0.5, "backward": 0.5, "both": 1.0}[case.op]
        model = share * losses_work.cross_entropy_work(1, case.V, 2).exponentials / case.V
        counted = golden[case.name]["loop"]["EX2"] / (case.launch.REPEAT * 16 // points.TYPES[case.dtype])
        assert model == pytest.approx(counted, rel=0.1), case.name


class Moved(TorchDispatchMode):
    """Bytes of the large tensors that torch's operators read or write; of a loss only what it writes."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.bytes = elements, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read = () if "nll_loss" in func.__name__ else args
        if not func.is_view:
            tensors = [t for t in (*read, *(out if isinstance(out, tuple) else (out,))) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.nbytes for t in tensors if t.numel() == self.elements)
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_chain_moves_what_the_model_says(dtype):
    logits, targets = random(6, 50).to(dtype).requires_grad_(), torch.arange(6)
    with Moved(300) as moved:
        F.cross_entropy(logits.float(), targets).backward()
    assert moved.bytes == losses_work.chain_bytes(6, 50, dtype.itemsize)


@pytest.mark.parametrize("V", [65, 50257, 50304, 131072])
@pytest.mark.parametrize("sizes", [(2, 2), (2, 4), (4, 4)])
def test_chunks(V, sizes):
    """Within their bytes, in whole tiles, and about equal."""
    assert chunk_rows(0, 768, V, *sizes) == 1
    for N in (1, 1000, 8192, 65536):
        rows = chunk_rows(N, 768, V, *sizes)
        assert rows * padded(V) * sizes[0] <= MOST_BYTES <= 256e6
        chunks = -(-N // rows)
        assert rows % 128 == 0 and chunks * rows - N < 128 * chunks
    assert chunk_rows(65536, 768, 10**9, *sizes) == 1  # not a row would fit


@pytest.mark.parametrize("N", [8192, 16384, 65536])
def test_memory_beyond_the_gradients(N):
    """At most 256 MB, but for what a wide model's table costs beside: 1.1 GB of a copy, or 2.1 GB of the sum."""
    for sizes in ((2, 2), (2, 4), (4, 4)):
        assert losses_work.linear_extra_bytes(N, 768, 50304, *sizes) <= 256e6
    C, V = 4096, 131072
    assert losses_work.linear_extra_bytes(N, C, V, 4, 4) <= 256e6
    assert losses_work.linear_extra_bytes(N, C, V, 2, 4) <= 256e6 + 2 * V * C
    assert losses_work.linear_extra_bytes(N, C, V, 2, 2) == 4 * V * C


class Nothing:
    """In place of a kernel, which allocates nothing."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


def most_memory(function) -> int:
    """Bytes on a CPU, as the allocator tells the profiler."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        function()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    now, most = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("d", [1.0, 0.5])
@pytest.mark.parametrize("N, rows", [(512, 64), (500, 128)])
def test_memory_is_that_of_the_model(N, rows, d, monkeypatch):
    """In fp32: on a CPU products of narrow types have copies of their own. Logits of all rows would be seen."""
    for name in ("both", "forward", "scale"):
        monkeypatch.setattr(losses_rows, name, Nothing())
    C, V = 64, 4000
    x, weight, targets = random(N, C).float(), random(V, C).float(), torch.arange(N)

    def step():
        leaves = x.requires_grad_(), weight.requires_grad_()
        loss = linear_cross_entropy.linear_cross_entropy(*leaves, targets, chunk=rows)
        torch.autograd.grad(loss, leaves, torch.tensor(d))

    step()
    gradients = 4 * (N * C + V * C)
    model = losses_work.linear_extra_bytes(N, C, V, 4, 4, rows)
    # besides: what counts the live targets, a few bytes a row
    assert model <= most_memory(step) - gradients <= model + 16 * N + 1024
    assert model < 0.3 * 4 * N * V

    with torch.no_grad():
        most = most_memory(lambda: linear_cross_entropy.linear_cross_entropy(x, weight, targets, chunk=rows))
    assert most <= model + 32 * N


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_of_the_chain(dtype):
    N, C, V = 512, 8, 4000
    leaves = random(N, C).to(dtype).requires_grad_(), random(V, C).to(dtype).requires_grad_()

    def step():
        torch.autograd.grad(F.cross_entropy(F.linear(*leaves).float(), torch.arange(N)), leaves)

    step()
    assert most_memory(step) == pytest.approx(losses_work.chain_extra_bytes(N, V), rel=0.01)


def test_every_vocabulary_has_a_row():
    for architecture, itemsize, widest in ROWS:
        for V in (1, widest, widest - 1):
            row, sizes = tile(architecture, itemsize, V)
            assert sizes["VECTOR"] * itemsize == 16 and sizes["LANES"] == 32 * row.num_warps
        assert tile(architecture, itemsize, widest)[0] is ROWS[architecture, itemsize, widest]


def test_the_gate_goes_red():
    case = points.Case(90, "both", "bf16", 50304)
    loop = dict.fromkeys(points.COUNTED, 0) | {
        "EX2": 33, "MUFU": 33, "LDG": 4, "LDG128": 4, "STG": 2, "STG128": 2, "all": 238,
    }  # fmt: skip
    good = gate.Figures(32, 0, 32, 8, True, loop)
    point = points.point_of(case)
    assert gate.broken(point, good) == []
    faults = {
        "spills": replace(good, stack_bytes=8),
        "16-byte loads": replace(good, loop=loop | {"LDG": 5}),
        "16-byte stores": replace(good, loop=loop | {"STG128": 1}),
        "one exponential an element": replace(good, loop=loop | {"EX2": 48, "MUFU": 48}),
        "threads do not meet": replace(good, loop=loop | {"SHFL": 5}),
        "bytes on their way": replace(good, registers=96),
        "at most 15.75 instructions an element": replace(good, loop=loop | {"all": 253}),
    }
    for rule, figures in faults.items():
        assert gate.broken(point, figures) == [rule]
    assert len(aot.family("losses").points()) <= 100


def test_hot_loops_are_those_without_masks():
    masked = ["LDG.E.128 R1", "MUFU.EX2 R1", "ISETP.LT R1"]
    whole, stored = ["LDG.E.128 R1", "MUFU.EX2 R1"], ["LDG.E.128 R1", "MUFU.EX2 R1", "STG.E.128 R1"]
    assert points.hot("both", [masked, whole, stored], []) == whole + stored
    assert points.hot("forward", [masked, whole, stored], []) == whole
    with pytest.raises(AssertionError, match="whole tiles"):
        points.hot("backward", [masked, whole], [])
