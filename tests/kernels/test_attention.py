"""The launcher of the attention kernels."""

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize(
    "heads, S, multiprocessors, splits",
    [(8, 8192, 132, 32), (8, 32768, 132, 33), (64, 32768, 132, 5), (512, 32768, 132, 1), (1, 100, 132, 1)],
)
def test_a_decode_fills_the_device_with_parts_worth_their_launch(heads, S, multiprocessors, splits):
    from kernels.attention import default_splits

    assert default_splits(heads, S, multiprocessors) == splits
    assert splits == 1 or S / splits >= 256 and heads * splits < 2 * multiprocessors + heads
