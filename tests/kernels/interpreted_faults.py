"""Seeded faults: a copy of the kernels with one mistake must fail the checks that a faithful copy passes."""

import sys

import attention_cases as cases
import pytest
from attention_cases import SHAPES, check, check_decode
from twins import faulty

dirty_memory = cases.dirty_memory
# name: file, text, text with the fault, kind and shape that must see it, extras
FAULTS = {
    "none": ("attention_tiles", "(distance >= 0)", "(distance >= 0)", ("consmax", "odd", "alibi")),
    "off-by-one mask": ("attention_tiles", "(distance >= 0)", "(distance > 0)", ("consmax", "odd", "")),
    "wrong scale": ("attention", "else self.scale * rate", "else self.scale", ("softmax", "odd", "")),
    "missing rescale": ("attention_forward", "acc = acc * shrink[:, None]", "acc = acc", ("softmax", "odd", "")),
    "swapped group": ("attention_forward", "g = h // G", "g = (h + 1) % H // G", ("consmax", "window", "")),
    "slope of another head": ("attention_forward", "slope_ptr + h)", "slope_ptr + h // 2)",
                              ("softmax", "odd", "alibi")),
    "slopes count from the wrong key": ("attention_forward", "slope * (rows + (S - T) - n0)", "slope * (rows - n0)",
                                        ("consmax", "window", "alibi")),
    "backward slopes": ("attention_backward", "slope * (keys - (S - T) - m0)", "slope * (keys - (S - T) - lo)",
                        ("consmax", "odd", "alibi")),
    "row shift of the backward mask": ("attention_tiles", "first = n0 + T - S", "first = n0 + T - S + 16",
                                       ("consmax", "odd", "")),
    "dropped split": ("attention_decode", "for i in range(splits):\n            acc +=",
                      "for i in range(splits - 1):\n            acc +=", ("consmax", "window", "")),
    "decode slopes": ("attention_decode", "- (t + (S - T))", "- t", ("consmax", "window", "alibi")),
}  # fmt: skip
SLOW = ("row shift of the backward mask", "backward slopes", "slope of another head", "decode slopes")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAULTS])
def test_seeded_faults_are_seen(name, tmp_path, monkeypatch):
    file, right, wrong, (kind, shape, extras) = FAULTS[name]
    twin = faulty(tmp_path, monkeypatch, "attention", file, right, wrong)
    table = sys.modules[twin.__package__ + ".launch_table"]

    def run():
        if file == "attention_decode":
            check_decode(kind, SHAPES[shape], 3, extras, twin, table)
        else:
            check(kind, SHAPES[shape], extras, twin, table)

    if name == "none":
        return run()
    with pytest.raises(AssertionError, match="error of"):
        run()
