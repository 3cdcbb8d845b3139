"""Keep what is freed: a training step frees and takes gigabytes, and each page given back must be faulted in again.

On virtual machines, where a fault goes through to the host, that took most of a step's time.
"""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024
_PAD_BYTES = 64 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Tell the C library not to return freed memory to the system; return whether it has such a setting (glibc has)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_TRIM_THRESHOLD, -1), (_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_TOP_PAD, _PAD_BYTES))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
