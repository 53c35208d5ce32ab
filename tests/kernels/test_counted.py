"""The page on the kernels shows the counts of the golden file, and they say what the page concludes from them."""

import json
from pathlib import Path

from kernels import counted

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"


def test_the_page_shows_what_was_counted():
    shown = PAGE.read_text().partition("<!-- counted -->\n")[2].partition("<!-- end -->")[0]
    assert shown == counted.table(), "python -m kernels.counted prints the table for docs/kernels.md"


def test_consmax_keeps_the_exponential_and_drops_what_a_row_statistic_takes():
    golden = json.loads(counted.GOLDEN.read_text())
    softmax, consmax = (golden[f"sm_90 forward {kind} D128 bf16"] for kind in ("softmax", "consmax"))
    assert (softmax["BM"], softmax["BN"]) == (consmax["BM"], consmax["BN"])
    assert consmax["loop"]["EX2"] == consmax["BM"] * consmax["BN"] // (32 * consmax["num_warps"])
    assert all(consmax["loop"][name] == 0 < softmax["loop"][name] for name in ("FMUL", "FADD", "FMNMX", "SHFL"))
    assert consmax["loop"]["all"] < 0.55 * softmax["loop"]["all"]
