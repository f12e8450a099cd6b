"""Check whether this environment can do the work, by doing some: convolutions on GPUs, files read back, hashes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osteograde.errors import UserError

PYTHON = ((3, 11), (3, 13))
# What DICOM files come in. The first five are made and read back here, of the others pydicom is asked.
SYNTAXES = {
    "1.2.840.10008.1.2.1": "uncompressed",
    "1.2.840.10008.1.2.5": "RLE lossless",
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2": "implicit",
    "1.2.840.10008.1.2.2": "big-endian",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless, first order",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K lossless",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
}
NATIVE, RLE, _, IMPLICIT, BIG_ENDIAN = MADE = list(SYNTAXES)[:5]
MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``fault``: why the kit cannot work here; "" if nothing is wrong."""

    what: str
    found: str
    fault: str = ""


def main() -> int:
    """Print every finding; 0 if the kit can work here, else 2 with the faults on stderr."""
    findings = examine(Path.cwd())
    for finding in findings:
        print(f"{finding.what:<28} {finding.found}" + (f"   <- {finding.fault}" if finding.fault else ""))
    faults = [f"{finding.what}: {finding.fault}" for finding in findings if finding.fault]
    if faults:
        print(f"not usable: {'; '.join(faults)}", file=sys.stderr)
        return 2
    print("usable")
    return 0


def examine(folder: Path) -> list[Finding]:
    """All findings; weights are looked for in ``folder``/weights, beside the package and where they are fetched to."""
    found = [interpreter(), *packages(), *machine(folder), data()]
    if any(finding.found == MISSING for finding in found):
        return found  # what is left needs those packages
    return [*found, *devices(), *decoders(), *weights(folder)]


def interpreter() -> Finding:
    version, (low, high) = sys.version_info[:2], PYTHON
    span = f"expected {low[0]}.{low[1]} to {high[0]}.{high[1]}"
    return Finding("python", platform.python_version(), "" if low <= version <= high else span)


def packages() -> list[Finding]:
    """Every package the installed metadata asks for, against its lowest version."""
    try:
        wanted = importlib.metadata.requires("osteograde") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("osteograde", "not installed, run from its source", "")]
    return [_package(line) for line in wanted if "extra ==" not in line]


def _package(requirement: str) -> Finding:
    name, floor = re.fullmatch(r"([\w.-]+)(?:>=([\d.]+))?.*", requirement).groups()  # type: ignore[union-attr]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, MISSING, f"pip install {name}")
    old = floor is not None and _numbers(version) < _numbers(floor)
    return Finding(name, version, f"older than {floor}" if old else "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def machine(folder: Path) -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return [
        Finding("CPU cores", f"{cores} usable of {os.cpu_count()}"),
        Finding("memory", f"{memory:.1f} GiB"),
        Finding("free disk", f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB in {folder}"),
    ]


def devices() -> list[Finding]:
    """Each GPU, tried by a convolution that is compared with the CPU's. A broken one is no fault: auto skips it."""
    import torch

    from osteograde.models import device

    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.device("cuda", index)
        memory = torch.cuda.get_device_properties(gpu).total_memory / 2**30
        state = device.fault(gpu) or "computes rightly"
        found.append(Finding(str(gpu), f"{torch.cuda.get_device_name(gpu)}, {memory:.0f} GiB: {state}"))
    return [*found, Finding("--device auto is", str(device.pick("auto")))]


def decoders() -> list[Finding]:
    return [_decoder(uid, name) for uid, name in SYNTAXES.items()]


def _decoder(uid: str, name: str) -> Finding:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    from osteograde.imaging.dicom import rle

    if uid in MADE:
        right = np.array_equal(_round_trip(uid), _sample())
        by = f", by {rle.decoder()}" if uid == RLE else ""
        return Finding(name, f"read back right{by}" if right else "read back wrong", "" if right else "pixels differ")
    decoder = get_decoder(uid)
    if decoder.is_available:
        return Finding(name, f"available, by {' or '.join(decoder.available_plugins)}")
    missing = "; ".join(decoder.missing_dependencies)
    return Finding(name, f"not available ({missing}): such files are counted as no_decoder_{UID(uid).keyword}")


def _sample() -> np.ndarray:
    return (np.arange(16 * 24, dtype=np.uint16).reshape(16, 24) * 37) % 4096


def _round_trip(uid: str) -> np.ndarray:
    """(16, 24) pixels written as a DICOM file of that transfer syntax and read again as every file is read here."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    from osteograde.imaging.dicom.read import read_slice

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(NATIVE)
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3"
    made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = 16, 24, 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.PixelData = _sample().astype(">u2" if uid == BIG_ENDIAN else "<u2").tobytes()
    with tempfile.TemporaryDirectory(prefix="osteograde-") as folder:
        path = Path(folder) / "1.dcm"
        if uid == RLE:
            made.compress(UID(RLE), generate_instance_uid=False)
        made.file_meta.TransferSyntaxUID = UID(uid)
        made.save_as(path, implicit_vr=uid == IMPLICIT, little_endian=uid != BIG_ENDIAN, enforce_file_format=True)
        return read_slice(path).pixels


def weights(folder: Path) -> list[Finding]:
    """Every weights/*/manifest.json, each file's hash checked."""
    from osteograde.models import bundle, shipped

    places = dict.fromkeys(((folder / "weights").resolve(), *(place.resolve() for place in shipped.places())))
    found = []
    for manifest in sorted(path for place in places for path in place.glob("*/manifest.json")):
        try:
            manifest_of = bundle.verify(manifest.parent)
            found.append(Finding(f"weights/{manifest.parent.name}", f"hashes right, task {manifest_of.task}"))
        except (UserError, OSError) as error:
            found.append(Finding(f"weights/{manifest.parent.name}", "damaged", str(error)))
    return found or [Finding("weights", "none found; osteograde weights list tells which there are")]


def data() -> Finding:
    place = os.environ.get("OSTEOGRADE_DATA", "")
    if not place:
        return Finding("OSTEOGRADE_DATA", "not set: tests on real scans look in ../shared/data")
    return Finding("OSTEOGRADE_DATA", f"{place}, {'present' if Path(place).is_dir() else 'no such folder'}")
