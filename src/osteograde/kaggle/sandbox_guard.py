"""Runs a kernel's script and tells of what a competition forbids: the network, and writing to the input.

    python -I guard.py SCRIPT INPUT

A hook of the interpreter sees the attempt even where the script catches the error, and it cannot be taken off. It sees
this process only; the namespaces of jail.py hold for its children, too. Standard library only: it runs alone.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

MARK = "REHEARSAL"
NETWORK, WRITE = "network", "write to input"
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SENDS = {"socket.connect", "socket.sendto", "socket.sendmsg"}
LOOKS_UP = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
CHANGES = {"os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod"}


def main(script: str, root: str) -> None:
    """Run ``script`` as the main program, with a hook that ends forbidden calls by an OSError and tells of them."""

    def hook(event: str, args: tuple) -> None:
        kind, what = judge(event, args, root)
        if kind:
            os.write(2, f"{MARK}: {kind}: {event} {what}\n".encode())
            raise OSError(f"the rehearsal forbids it: {kind}, {event} {what}")

    sys.addaudithook(hook)
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")


def judge(event: str, args: tuple, root: str) -> tuple[str, str]:
    """(kind, what) of a forbidden call; ("", "") of any other."""
    if event in SENDS and not isinstance(args[-1], (str, bytes)):  # a name instead of a pair: not the network
        return NETWORK, repr(args[-1])
    if event in LOOKS_UP:
        return NETWORK, repr(args[0])
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        mode, flags = args[1] or "", args[2] or 0
        if (set(mode) & set("wax+") or flags & WRITES) and below(args[0], root):
            return WRITE, os.fsdecode(args[0])
    if event in CHANGES:
        paths = [path for path in args[:2] if isinstance(path, (str, bytes, os.PathLike))]
        if any(below(path, root) for path in paths):
            return WRITE, os.fsdecode(paths[0])
    return "", ""


def below(path: str | bytes | os.PathLike, root: str) -> bool:
    return Path(os.path.normpath(Path.cwd() / os.fsdecode(path))).is_relative_to(root)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
