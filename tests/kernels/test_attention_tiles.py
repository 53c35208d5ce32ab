"""The ranges of tiles that the attention kernels walk through, in plain Python, against every pair of query and key."""

import inspect
import itertools
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")


def plain(fault=("", "")):
    """key_range and query_range as functions of Python's integers."""
    from kernels import attention_tiles

    source = "\n".join(
        inspect.getsource(getattr(attention_tiles, name).fn).replace("@triton.jit\n", "")
        for name in ("round_down", "key_range", "query_range")
    )
    assert fault[0] in source
    names = {"tl": SimpleNamespace(maximum=max, minimum=min, constexpr=int)}
    exec(source.replace(*fault), names)
    return names["key_range"], names["query_range"]


def walked(ranges, step):
    """(start of a tile, whether it is masked)."""
    lo, a, b, hi = ranges
    for start, end, masked in ((lo, a, True), (a, b, False), (b, hi, True)):
        for first in range(start, end, step):
            yield first, masked


def check(key_range, query_range, T, S, window, BM, BN):
    def sees(row, key):
        return row < T and key < S and 0 <= row + S - T - key < (window or S + T)

    # (first row, first key) of the tiles, as the walk of the rows and that of the keys have them
    by_rows = [((m0, n0), masked) for m0 in range(0, T, BM)
               for n0, masked in walked(key_range(m0, T, S, window, BM, BN, True, window > 0), BN)]  # fmt: skip
    by_keys = [((m0, n0), masked) for n0 in range(0, S, BN)
               for m0, masked in walked(query_range(n0, T, S, window, BM, BN, True, window > 0), BM)]  # fmt: skip
    needed = {(row // BM * BM, key // BN * BN) for row in range(T) for key in range(S) if sees(row, key)}
    for tiles in (by_rows, by_keys):
        places = [place for place, _ in tiles]
        assert len(set(places)) == len(places), "a tile twice"
        assert needed <= set(places), "a tile left out"
        for (m0, n0), masked in tiles:
            assert m0 % BM == 0 and n0 % BN == 0, "a tile that is none"
            rows, keys = range(m0, min(m0 + BM, T)), range(n0, n0 + BN)
            assert masked or all(sees(row, key) for row in rows for key in keys), "a mask missed"


GRID = list(itertools.product((1, 3, 8, 13, 21), (1, 7, 8, 16, 22), (0, 1, 3, 8, 11, 40), ((4, 4), (4, 8), (8, 4))))


def test_every_pair_in_sight_is_walked_once():
    walks = plain()
    for T, S, window, tile in GRID:
        check(*walks, T, S, window, *tile)


@pytest.mark.parametrize("fault", [
    ("hi) + BM - 1", "hi)"), ("first + 1, BN", "first + 2, BN"), ("first + window, BM", "first + window + 1, BM"),
    ("first + 1 - window", "first + 2 - window"),
])  # fmt: skip
def test_a_fault_is_seen(fault):
    walks = plain(fault)
    with pytest.raises(AssertionError, match="a tile|a mask"):
        for T, S, window, tile in GRID:
            check(*walks, T, S, window, *tile)
