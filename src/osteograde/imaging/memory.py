"""Memory that was given back stays with the process, so that the next scan does not have to be paged in anew."""

from __future__ import annotations

import numpy as np

_BYTES = (32 << 20) - (64 << 10)  # the largest block that still moves glibc's threshold is 32 MiB


def keep_freed_memory() -> None:
    """Tell the allocator by example: glibc keeps freed blocks up to the largest that it ever had to return.

    Until then every array beyond 128 kB comes from the operating system as new pages, and touching those costs more
    than decoding into them (reading a study: 51 ms, afterwards 35). Elsewhere this does nothing.
    """
    np.empty(_BYTES, np.uint8)
