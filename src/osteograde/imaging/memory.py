"""Memory that was given back stays with the process, so that the next scan does not have to be paged in anew."""

from __future__ import annotations

import ctypes

import numpy as np

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_BYTES = (32 << 20) - (64 << 10)  # the largest block that still moves glibc's threshold is 32 MiB


def keep_freed_memory() -> None:
    """Tell the allocator by example: glibc keeps freed blocks up to the largest that it ever had to return.

    Until then every array beyond 128 kB comes from the operating system as new pages, and touching those costs more
    than decoding into them (reading a study: 51 ms, afterwards 35). Elsewhere this does nothing.
    """
    np.empty(_BYTES, np.uint8)


def keep_all_freed_memory() -> None:
    """The same without a limit, by glibc's own switches: for training, whose steps ask for the same blocks for hours.

    The activations of a batch are larger than what ``keep_freed_memory`` reaches, and new pages for them are a third of
    a step on a CPU (MobileNetV2, 32 images of 144 x 288: 81 ms each, afterwards 56). Elsewhere this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
