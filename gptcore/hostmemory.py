"""Keeps freed memory in the process.

glibc returns large freed blocks to the kernel and takes them back, page fault by page fault, in the next training step:
600 to 1,800 faults and 7 to 13 % of the time of a step of a 0.8 M-parameter model on one CPU thread. The price is that
the process stays at its peak size.
"""

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@cache
def keep_freed_memory() -> bool:
    """Tells malloc to reuse large blocks; True where the C library understood. Once a process."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))
