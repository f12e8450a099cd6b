"""Nets half way between those that were trained on and those that they started from, as a weights folder.

    python bench/mean_nets.py --run W --stage canal --out NEW [--share 0.5]

W is a run whose nets started from W/start (join_real.py --run). The mean of the weights can keep more of what a net
knew before, and lose little of what it has learnt since (Wortsman et al., "Robust fine-tuning", CVPR 2022). NEW is
W/start with these nets of the trained folds in place of its own. Its manifest keeps everything else but the scores,
which were of other nets; the part ``domain`` is to be fitted anew (fit_domain.py).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from osteograde.models.manifest import Scores, read_manifest, sha256, write_manifest


def mean(new: Mapping[str, torch.Tensor], old: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """``share`` of the new tensors and the rest of the old ones, in float32, stored as the new ones are; whole numbers
    are the new ones. KeyError where the nets have different tensors."""
    return {
        name: (share * tensor.float() + (1 - share) * old[name].float()).to(tensor.dtype)
        if tensor.is_floating_point() else tensor
        for name, tensor in new.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.5)
    args = parser.parse_args()
    shutil.copytree(args.run / "start", args.out)
    manifest = read_manifest(args.out)
    files = dict(manifest.files)
    for name in (name for name in files if name.startswith(f"locate/{args.stage}/")):
        path = args.out / name
        save_file(mean(load_file(args.run / name), load_file(path), args.share), path)
        files[name] = replace(files[name], sha256=sha256(path), bytes=path.stat().st_size)
        print(f"{name}: {args.share:g} of {args.run / name}, the rest of {args.run / 'start' / name}")
    write_manifest(args.out, replace(manifest, files=files, scores=Scores()))


if __name__ == "__main__":
    main()
