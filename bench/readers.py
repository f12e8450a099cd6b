"""Our reader against others on the same files, every result compared bit for bit with what was written.

    python bench/readers.py --repeats 5

One slice (file -> array), a study of 74 slices (files -> sorted volumes), and threads against processes. All readers
take turns within a repeat; a ratio is the median of the repeats' own ratios. Peers are optional: the row of one that is
not installed says so. Packages: pylibjpeg-rle with pylibjpeg, dicomsdl, SimpleITK; numba for our second row.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import cv2
import machine
import numpy as np
import pydicom
from sample_dicom import write_study

from osteograde.imaging.dicom import read_series, rle
from osteograde.imaging.dicom.fast_header import quick_read
from osteograde.imaging.dicom.read import file_contents, read_slice
from osteograde.models.device import keep_freed_memory

Reader = Callable[[Path], np.ndarray]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ALONE, BYTES = "pydicom alone", "read the bytes"


def by_pydicom(path: Path, plugin: str = "pydicom") -> np.ndarray:
    dataset = pydicom.dcmread(path)
    dataset.pixel_array_options(decoding_plugin=plugin)
    return dataset.pixel_array


def ours(path: Path) -> np.ndarray:
    found = quick_read(file_contents(path))
    if found is None:
        raise ValueError(f"{path}: the short way gave up")
    return found[1]


def by_dicomsdl(path: Path) -> np.ndarray:
    import dicomsdl

    return dicomsdl.open(str(path)).pixelData(storedvalue=True)


def by_simpleitk(path: Path) -> np.ndarray:
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0]


def compiled(reader: Reader, use: bool) -> Reader:
    """The reader with the decoder that numba compiles, or without it."""
    found = rle.accelerator()
    chosen = found if use else None

    def read(path: Path) -> np.ndarray:
        original = rle.accelerator
        rle.accelerator = lambda: chosen  # type: ignore[assignment]  # what is replaced also has a cache
        try:
            return reader(path)
        finally:
            rle.accelerator = original

    return read


def readers() -> dict[str, Reader | str]:
    """Name -> a reader, or the package that it lacks."""
    lacking = {name: name for name in ("numba", "dicomsdl", "SimpleITK", "rle") if not importlib.util.find_spec(name)}
    peers: dict[str, tuple[str, Reader]] = {
        "pydicom + pylibjpeg-rle": ("rle", partial(by_pydicom, plugin="pylibjpeg")),
        "dicomsdl": ("dicomsdl", by_dicomsdl),
        "SimpleITK": ("SimpleITK", by_simpleitk),
        "ours with numba": ("numba", compiled(ours, True)),
        "ours with numba, placed": ("numba", compiled(lambda path: read_slice(path).pixels, True)),
    }
    return {
        ALONE: by_pydicom,
        **{name: lacking.get(package) or reader for name, (package, reader) in peers.items()},
        "ours (OpenCV)": compiled(ours, False),
        "ours (OpenCV), placed": compiled(lambda path: read_slice(path).pixels, False),
        BYTES: lambda path: np.frombuffer(path.read_bytes(), np.uint8),
    }


def baseline_study(folders: list[Path]) -> list[np.ndarray]:
    """The baseline loop: every file opened for its position, opened again for its pixels, one after the other."""
    volumes = []
    for folder in folders:
        files = sorted(folder.glob("*.dcm"))
        first = pydicom.dcmread(files[0])
        row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(row, column)
        places = [np.array(pydicom.dcmread(file).ImagePositionPatient, float) @ normal for file in files]
        volumes.append(np.stack([by_pydicom(files[k]) for k in np.argsort(places)]))
    return volumes


def our_study(folders: list[Path], map: Callable = map) -> list[np.ndarray]:
    return [volume.voxels for folder in folders for volume in read_series(folder, map=map)[0]]


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    call()
    return clock() - begun


def timed(
    calls: Mapping[str, Callable[[], object]], repeats: int, base: str, clock: Callable[[], float]
) -> dict[str, tuple[float, str]]:
    """Name -> (median seconds, median of base / this within a repeat, as text); every call is warmed once. Of wall
    time on a busy machine there is no ratio."""
    for call in calls.values():
        call()
    watch = machine.Watch()
    rows = [{name: seconds(call, clock) for name, call in calls.items()} for _ in range(repeats)]
    watch.ends()
    print(f"\n{watch}")
    found = {name: median(r[base] / r[name] for r in rows) for name in calls}
    told = {
        name: watch.ratio(ratio, 1) if clock is time.perf_counter else f"{ratio:.1f}" for name, ratio in found.items()
    }
    return {name: (median(r[name] for r in rows), told[name]) for name in calls}


def table(title: str, unit: str, found: Mapping[str, tuple[float, str]], base: str, scale: float) -> None:
    print(f"\n| {title} | {unit} | {base} / this |\n|---|---|---|")
    for name, (value, ratio) in found.items():
        print(f"| {name} | {1000 * value / scale:.3f} | {ratio} |", flush=True)


def slice_table(root: Path, truth: Mapping[str, np.ndarray], repeats: int, count: int, clock: Callable) -> None:
    for name, size in (("sag_t2", 512), ("axi_t2", 384)):
        files = sorted((root / name).glob("*.dcm"), key=lambda path: int(path.stem))[:count]
        calls = {}
        for reader, read in readers().items():
            if isinstance(read, str):
                print(f"{reader}: skipped, {read} is not installed")
                continue
            exact = reader == BYTES or all(any(np.array_equal(read(f), p) for p in truth[name]) for f in files[:3])
            if not exact:
                print(f"{reader}: skipped, its pixels differ")
                continue
            calls[reader] = lambda read=read, files=files: [read(file) for file in files]
        table(f"RLE slice {size} x {size}, 1 thread", "ms", timed(calls, repeats, ALONE, clock), ALONE, len(files))


def study_table(root: Path, truth: Mapping[str, np.ndarray], repeats: int, clock: Callable) -> None:
    folders, baseline = [root / name for name in truth], "baseline loop"
    for read in (baseline_study, our_study):
        if not all(np.array_equal(a, b) for a, b in zip(read(folders), truth.values(), strict=True)):
            raise SystemExit(f"{read.__name__}: another volume than was written")
    with ThreadPoolExecutor(2) as threads, ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        calls = {
            baseline: lambda: baseline_study(folders),
            "ours, 1 thread": lambda: our_study(folders),
        }
        if clock is time.perf_counter:  # a process does not see what the others spend
            calls["ours, 2 threads"] = lambda: our_study(folders, threads.map)
            calls["ours, 2 processes, pickled"] = lambda: our_study(folders, processes.map)
        table("74 slices to sorted volumes", "ms", timed(calls, repeats, baseline, clock), baseline, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slices", type=int, default=18, help="of each size")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that is busy otherwise")
    args = parser.parse_args()
    clock = CLOCKS[args.clock]
    keep_freed_memory()
    cv2.setNumThreads(1)
    print(f"{machine.described()}, decoder here: {rle.decoder()}, {args.clock} time")
    with tempfile.TemporaryDirectory() as folder:
        truth = write_study(Path(folder))
        slice_table(Path(folder), truth, args.repeats, args.slices, clock)
        study_table(Path(folder), truth, args.repeats, clock)


if __name__ == "__main__":
    main()
