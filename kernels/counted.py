"""The counts that ConSmax and softmax are compared by, from the golden file of a Triton version, as a Markdown table.

python -m kernels.counted
"""

import json
from pathlib import Path

VERSION = "3.7.1"
GOLDEN = Path(__file__).parent / "golden" / f"triton-{VERSION}" / "attention.json"
NAMES = ("HGMMA", "EX2", "FFMA", "FMUL", "FADD", "FMNMX", "SHFL")
ROWS = [
    (op, kind, flag)
    for op in ("forward", "d_queries", "d_keys")
    for kind, flag in (("softmax", ""), ("consmax", ""), ("consmax", "clamp"))
]


def table(D: int = 128) -> str:
    """`a score`: all instructions over those that a warp computes an exponential with, so that tiles compare."""
    golden = json.loads(GOLDEN.read_text())
    lines = ["| kernel | kind | tile | " + " | ".join(NAMES) + " | all | a score | registers | shared, bytes |"]
    lines.append("|---|---|---|" + "---:|" * (len(NAMES) + 4))
    for op, kind, flag in ROWS:
        found = golden.get(f"sm_90 {op} {kind} D{D} bf16 {flag}".rstrip())
        if found is None:
            continue
        loop, tile = found["loop"], found["BM"] * found["BN"]
        scores = tile / (32 * found["num_warps"])
        cells = [op, f"{kind}, clamped" if flag else kind, f"{found['BM']} x {found['BN']}"]
        cells += [str(loop[name]) for name in (*NAMES, "all")]
        cells += [f"{loop['all'] / scores:.1f}", str(found["registers"]), f"{found['shared_bytes']:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
