"""Loaded studies kept on disk as bytes, so that each file is decoded once, however many nets learn from it.

An entry is one ``.npy`` with all voxels of a study (memory-mapped when read) and one ``.json`` with the position and
geometry of every stack in it. The key of an entry is a hash of the names, sizes and times of the study's files, so
input that changed is read again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.imaging.geometry import Volume
from osteograde.pipeline.load import Loaded, load_study
from osteograde.tasks.spec import Point, Study, Task

VERSION = 3  # change it when reading or windowing changes


def cached(study: Study, task: Task, folder: Path, *, map: Callable[..., Iterable] = map) -> Loaded:
    """The study as ``load_study`` reads it. It is taken from ``folder`` if it is there and its files are unchanged;
    otherwise it is read and written there. map: see ``load_study``."""
    key = key_of(study)
    voxels_path, sidecar_path = folder / f"{study.id}.npy", folder / f"{study.id}.json"
    if sidecar_path.is_file():
        sidecar = json.loads(sidecar_path.read_text(encoding="utf-8"))
        if sidecar["key"] == key:
            return _open(study, sidecar, voxels_path)
    loaded = load_study(study, task, map=map)
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = _write(loaded, voxels_path) | {"key": key}
    part = sidecar_path.with_suffix(f".{uuid.uuid4().hex}.part")  # several processes may read a study at once
    part.write_text(json.dumps(sidecar), encoding="utf-8")
    part.replace(sidecar_path)  # last: voxels without a sidecar are not read
    return _open(study, sidecar, voxels_path)


def key_of(study: Study) -> str:
    """The hash that changes when the study would be read otherwise: of its marks, files and VERSION."""
    digest = hashlib.sha256(
        f"{VERSION} {study.marks} {study.notes} {[(s.spacing_mm, s.side) for s in study.series]}".encode()
    )
    for series in study.series:
        files = series.files or (sorted(series.folder.iterdir()) if series.folder.is_dir() else ())
        for path in files:
            stat = path.stat()
            digest.update(f"{series.view}/{series.id}/{path.name}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _write(loaded: Loaded, path: Path) -> dict[str, Any]:
    """Write the voxels of a study as one flat array, and return what its sidecar holds."""
    stacks, arrays, start = [], [], 0
    for view, volumes in loaded.volumes.items():
        for volume in volumes:
            entry = {"view": view, "start": start, "shape": list(volume.voxels.shape), "series": volume.series}
            stacks.append(entry | {"to_mm": volume.to_mm.tolist(), "frame": volume.frame, "names": list(volume.names)})
            arrays.append(np.ascontiguousarray(volume.voxels).ravel())
            start += volume.voxels.size
    part = path.with_suffix(f".{uuid.uuid4().hex}.part.npy")
    np.save(part, np.concatenate(arrays) if arrays else np.zeros(0, np.uint8))
    part.replace(path)
    return {
        "stacks": stacks,
        "faults": dict(loaded.faults),
        "views": list(loaded.volumes),
        "marks": {name: point.mm.tolist() for name, point in loaded.marks.items()},
        "absent": sorted(loaded.absent),
    }


def _open(study: Study, sidecar: dict[str, Any], path: Path) -> Loaded:
    """The study of a cache entry; its voxels are views of the memory-mapped array."""
    flat = np.load(path, mmap_mode="r", allow_pickle=False)
    volumes: dict[str, list[Volume]] = {view: [] for view in sidecar["views"]}
    for stack in sidecar["stacks"]:
        size = int(np.prod(stack["shape"]))
        volumes[stack["view"]].append(
            Volume(
                voxels=flat[stack["start"] : stack["start"] + size].reshape(stack["shape"]),
                to_mm=np.array(stack["to_mm"]),
                frame=stack["frame"],
                series=stack["series"],
                names=tuple(stack["names"]),
            )
        )
    marks = {name: Point(np.array(mm)) for name, mm in sidecar["marks"].items()}
    stacks = {view: tuple(view_volumes) for view, view_volumes in volumes.items()}
    return Loaded(study, stacks, Counter(sidecar["faults"]), marks, frozenset(sidecar["absent"]))
