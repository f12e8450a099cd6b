"""A weights folder whose hashes are right; no net is ever loaded from it."""

from __future__ import annotations

from pathlib import Path

from osteograde.models import bundle
from osteograde.models.manifest import Manifest


def hashed_weights(folder: Path, task: str) -> Path:
    """Two files in folders, a manifest, a card, and a cache of training that is not to be sent."""
    files = {}
    for name in ("locate/canal/fold0.safetensors", "grade/spinal/fold0.safetensors"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(name.encode() * 50)
        files[name] = bundle.file_entry(folder, name, {})
    bundle.write_manifest(folder, Manifest(task, files, {}, 1, {}))
    (folder / "README.md").write_text("A card.\n")
    (folder / "work").mkdir()
    (folder / "work" / "cache.npy").write_bytes(b"not to be sent")
    return folder
