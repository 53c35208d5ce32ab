"""The worker of `benchmarks.gpu` on tiny tensors in Triton's interpreter; run by test_gpu_worker.py in a process of
its own. Prints one JSON object, what checks and the timing path say of our kernels, right and made wrong;
then what the worker prints for a unit of two points, of which the second needs a GPU."""

import io
import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

from dataclasses import asdict, replace

from benchmarks.gpu import checks, worker
from benchmarks.gpu.plan import Point, kernel_name
from kernels import attention, launch_table
from tests.bench import interpreted_block


class Clock:
    """Times that nobody measured: the n-th run takes n microseconds."""

    count = 0

    def warm(self, name, run):
        run()

    def time(self, name, run):
        self.count += 1
        return self.count * 1e-6, False


def rows(point):
    return list(worker.checked(point, "cpu", 3))


def timed(point, red=frozenset()):
    return list(worker.timed(point, "cpu", 3, set(red), Clock(), 4))


base = Point("correctness", "backward", ("triton:consmax",), 1, 2, 1, 20, 20, 16, 16, dtype="fp16")
decode = replace(base, op="decode", T=1, S=40, splits=3)
forward = replace(base, part="forward", op="forward", contestants=("triton:consmax", "sdpa-cudnn", "sdpa-math"))
backward = replace(base, part="backward", contestants=("triton:consmax@32x32x4x1",), row="d_keys")
checks.RUNS = 2
said = {"right": rows(base) + rows(decode), "timed": timed(forward)}
said["one key"] = rows(replace(base, contestants=("triton:softmax",), T=1, S=1))
said["red before"] = timed(forward, {kernel_name("consmax", 16, "", "fp16")})
said["repeats"] = rows(replace(decode, part="determinism"))
said["first and last head"] = rows(replace(decode, part="int64", B=2))

used = []
table_launch = launch_table.launch
attention.launch = lambda *args: used.append((args[1], table_launch(*args))) or used[-1][1]
said["tried"] = timed(backward)
said["used"] = sorted({(op, row.BM, row.BN) for op, row in used})

real_plan, real_decode = attention._Plan.__init__, attention.attention_decode_op


def wrong_gradient(self, *args):
    real_plan(self, *args)
    self.d_factor *= 1.05


def wrong_scale(self, *args):
    real_plan(self, *args)
    self.numbers = (self.numbers[0] * 1.05, *self.numbers[1:])


def unsteady(*args):
    unsteady.calls += 1
    return real_decode(*args) + 1e-3 * unsteady.calls


def crash(*args):
    raise RuntimeError("out of resource: shared memory")


attention._Plan.__init__ = wrong_gradient
said["wrong gradient"] = rows(base)
said["wrong gradient, timed"] = timed(replace(backward, contestants=("triton:consmax",), row=""))
attention._Plan.__init__ = wrong_scale
said["wrong scale"] = rows(decode)
said["wrong scale, timed"] = timed(forward)
attention._Plan.__init__ = real_plan
unsteady.calls = 0
attention.attention_decode_op = unsteady
said["unsteady"] = rows(replace(decode, part="determinism"))
attention.attention_decode_op = lambda q, k, v, *rest: q.new_empty(q.shape)
said["unwritten"] = rows(decode)
attention.attention_decode_op = crash
said["crash"] = rows(decode)
attention.attention_decode_op = real_decode
said["block"] = interpreted_block.said(Clock)
print(json.dumps(said), flush=True)

unit = {"points": [asdict(decode), asdict(replace(decode, part="memory"))], "device": "cpu", "red": []}
sys.stdin = io.StringIO(json.dumps(unit))
sys.exit(worker.main())
