"""What is known of each recipe, for ``train_folds.py TASK --list``. Nothing here is imported with torch or numpy.

hours: of a whole training, only where one was timed, with the machine. score: out-of-fold on real images unless it says
otherwise, only of nets that this recipe made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from osteograde.learning.recipes import NAMES

CPU, GPU, GPU_16 = "2 CPU cores", "one GPU", "one GPU of 16 GB"
NOT_MEASURED = "not measured"
OF_YOUR_DATA = "that of your own data"


@dataclass(frozen=True)
class About:
    """One recipe in words: what is trained, the machine it is sized for, the time it took there, and its score."""

    what: str
    machine: str
    hours: str = NOT_MEASURED
    score: str = NOT_MEASURED


def _published(net: str) -> About:
    return About(f"{net} of the published ensemble of eight (Pi et al. 2023)", GPU_16)


ABOUT: dict[str, About] = {
    "lumbar-mr": About("heatmap locators on ResNet-18, ConvNeXt-Nano graders on 2.5-D crops", GPU),
    "lumbar-mr-small": About(
        "small MobileNetV4 locators and graders; makes the shipped weights",
        CPU,
        hours="0.6",
        score="official score 0.186 on 64 phantoms, prior 0.886",
    ),
    "lumbar-medvit": About("the default's locators, MedViT graders", GPU),
    "lumbar-densenet-axial": About("DenseNet-121 on axial T2 alone; foramina on sagittal T1", GPU),
    "seed-frcnn-swin": About("published two-stage baseline: Faster R-CNN R50-FPN v2, Swin-V2-T", GPU),
    "seed-frcnn-swin-chain": About("the same with its transfer chain: spinal, left, right subarticular stenosis", GPU),
    "seed-frcnn-swin-cleaned": About("the same with its cleaning of labels, whose cost is logged", GPU),
    "spider": About("heatmap locator and two graders on EfficientNet-Lite0", CPU),
    "spider-unet": About("discs, vertebrae and canal segmented by a U-Net, the same graders", CPU),
    "spider-unet-resnet34": About("the same U-Net with a ResNet-34 encoder, the same graders", GPU),
    "spider-nnunet": About("a U-Net planned from its data, after nnU-Net, the same graders", GPU),
    "spider-faster-rcnn": About("boxes of Faster R-CNN with a MobileNetV3 pyramid, the same graders", CPU),
    "knee-xray": About("EfficientNet-Lite0 on 103 x 140 mm around the joint line", CPU),
    "knee-xray-small": About("the default's net on 96 x 128 pixels, a quick member of an ensemble", CPU),
    "knee-siamese": About("Siamese net on both parts of the joint, three seeds (Tiulpin et al. 2018)", GPU),
    "knee-siamese-small": About("the same net on parts of 64 pixels, one seed, eight epochs in bfloat16", CPU),
    "knee-densenet161": _published("DenseNet-161"),
    "knee-efficientnet-b5": _published("EfficientNet-B5"),
    "knee-efficientnet-v2-s": _published("EfficientNetV2-S"),
    "knee-regnet-y-8gf": _published("RegNetY-8GF"),
    "knee-resnet101": _published("ResNet-101"),
    "knee-resnext50": _published("ResNeXt-50"),
    "knee-shufflenet-v2-x2": _published("ShuffleNetV2 x2.0"),
    "knee-wide-resnet50-2": _published("Wide ResNet-50-2"),
    "knee-progression": About(
        "image and grade of today, the last layers learning along; makes the shipped weights",
        CPU,
        hours="0.6, shared",
        score="AUC 0.769",
    ),
    "progression-image": About(
        "the image alone, from the weights of the grade", CPU, hours="0.2, shared", score="AUC 0.736"
    ),
    "progression-scratch": About("the image alone, from random weights", CPU, hours="0.2, shared", score="AUC 0.588"),
    "progression-fusion-frozen": About(
        "image and grade of today, the trunk as the grade left it", CPU, hours="0.3, shared", score="AUC 0.767"
    ),
    "progression-fusion": About(
        "image and grade of today, the last layers learning along", CPU, hours="0.6, shared", score="AUC 0.769"
    ),
    "progression-clinical": About("image and all that OAI's tables say at baseline, for labels of your own", CPU),
    "table": About(
        "EfficientNet-Lite0 for a labels.csv of your own: small images, few steps, whatever its size",
        CPU,
        hours="0.06 of a processor for 40 images",
        score=OF_YOUR_DATA,
    ),
    "table-long": About(
        "the same on larger images, 20 passes over the data; from about 1000 images on", CPU, score=OF_YOUR_DATA
    ),
    "table-covariates": About(
        "the quick recipe that reads the table's further columns beside the image", CPU, score=OF_YOUR_DATA
    ),
    "progression-multi": About(
        "the image alone, grade and progression learnt together", CPU, hours="0.2, shared", score="AUC 0.736"
    ),
}


def lines(task: str) -> Iterator[str]:
    """One line a recipe of a task: its name, what it is, the machine, hours and score; the task's default first."""
    names = sorted(
        (name for name, its_task in NAMES.items() if its_task == task), key=lambda name: (name != task, name)
    )
    width = max(map(len, names))
    for name in names:
        about = ABOUT.get(name, About("not described", NOT_MEASURED))
        mark = " (default)" if name == task else ""
        yield f"{name:<{width}}  {about.what}{mark}; for {about.machine}; hours: {about.hours}; score: {about.score}"
