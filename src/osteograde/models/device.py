"""The device that nets run on, and how this process uses memory.

A device is chosen by computing something on it, because drivers do list GPUs that cannot compute. Freed memory is kept
by the process, because getting it back from the operating system takes longer than decoding a scan into it.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch.nn import functional

from osteograde.errors import UserError

CHOICES = "auto, cpu, cuda or cuda:N"


def pick(name: str) -> torch.device:
    """The device called ``name``: "auto" takes the first GPU that computes rightly, else the CPU.

    Raises UserError for another word, and for a GPU asked for by name that cannot compute.
    """
    if name == "auto":
        gpu = torch.device("cuda:0")
        return torch.device("cpu") if fault(gpu) else gpu
    kind, _, number = name.partition(":")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (":" in name and not (number.isascii() and number.isdigit())):
        raise UserError(f"--device is {name!r}; expected {CHOICES}")
    gpu = torch.device(kind, int(number or 0))
    if reason := fault(gpu):
        raise UserError(f"--device {name}: {reason}; use --device cpu, or auto to take what works")
    return gpu


def fault(device: torch.device) -> str:
    """Why ``device`` cannot compute, "" if it can: a small convolution there is compared with the CPU's result."""
    if device.type == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without GPU support"
    grid = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    kernel = torch.linspace(-1, 1, 4 * 3 * 3 * 3).reshape(4, 3, 3, 3)
    try:
        answer = functional.conv2d(grid.to(device), kernel.to(device), padding=1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        answer = answer.cpu()
    except RuntimeError as error:  # no driver, no such GPU, no code for its generation, out of memory
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    worst = float((answer - functional.conv2d(grid, kernel, padding=1)).abs().max())
    # TF32 keeps 10 bits of mantissa; sums here stay below 10.
    return "" if worst < 0.05 else f"a small convolution is off by {worst:.3g}; expected the CPU's answer"


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_BYTES = (32 << 20) - (64 << 10)  # the largest block that still moves glibc's threshold is 32 MiB


def keep_freed_memory() -> None:
    """Raise glibc's mmap threshold by one large allocation: it then keeps freed blocks up to that size.

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
