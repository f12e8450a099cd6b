"""Linux namespaces for one program: no network, /kaggle at its real paths, the input read-only.

    python -I jail.py SPEC.json

SPEC holds ``root`` (an empty folder), ``mounts`` {path: [folder, "ro" or "rw"]}, ``tmp``, ``environment``, ``command``.
The rest of the file system is as it is. Standard library only: it runs alone, in the process that becomes the program.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

NEWNS, NEWUSER, NEWNET, NEWIPC = 0x00020000, 0x10000000, 0x40000000, 0x08000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
NOATIME, RELATIME, ST_RELATIME = 1024, 1 << 21, 4096
REFUSED = 97  # exit code where the system does not allow namespaces
INPUT = "/kaggle/input"


def main(spec_file: str) -> None:
    """Become the command of the specification. Exits with REFUSED where the system does not allow it."""
    spec: dict[str, Any] = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    try:
        _enter()
        _build(Path(spec["root"]), spec["mounts"], spec["tmp"], spec["command"][0])
        os.chroot(spec["root"])
        os.chdir("/kaggle/working")
    except OSError as error:
        print(f"no namespaces: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    os.execve(spec["command"][0], spec["command"], spec["environment"])


def _enter() -> None:
    user, group = os.getuid(), os.getgid()
    _call("unshare", NEWUSER | NEWNS | NEWNET | NEWIPC)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", "/", flags=REC | PRIVATE)


def _build(root: Path, mounts: dict[str, list[str]], tmp: str, program: str) -> None:
    """A root that shows everything that is there, and /kaggle as a session has it."""
    _mount("tmpfs", root, "tmpfs")
    for entry in Path("/").iterdir():
        here = root / entry.name
        if entry.is_symlink():
            here.symlink_to(entry.readlink())
        elif entry.is_dir() and entry.name != "kaggle":
            here.mkdir()
            own_tmp = entry.name == "tmp" and not program.startswith("/tmp/")
            _mount(tmp if own_tmp else str(entry), here, flags=BIND | (0 if own_tmp else REC))
    inside = root / INPUT[1:]
    inside.mkdir(parents=True)
    _mount("tmpfs", inside, "tmpfs")
    for path, (folder, mode) in mounts.items():
        target = root / path[1:]
        target.mkdir(parents=True, exist_ok=True)
        _mount(folder, target, flags=BIND)
        if mode == "ro":
            _read_only(target)
    _read_only(inside)


def _read_only(target: Path) -> None:
    """Remount read-only, keeping the flags that a namespace of a user may not drop."""
    had = os.statvfs(target).f_flag
    kept = had & (NOSUID | NODEV | NOEXEC | NOATIME) | (RELATIME if had & ST_RELATIME else 0)
    _mount("none", target, flags=BIND | REMOUNT | RDONLY | kept)


def _mount(source: str, target: str | Path, kind: str = "", flags: int = 0) -> None:
    words = [os.fsencode(word) if word else None for word in (source, str(target), kind)]
    _call("mount", *words, ctypes.c_ulong(flags), None)


def _call(name: str, *args: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


if __name__ == "__main__":
    main(sys.argv[1])
