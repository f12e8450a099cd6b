"""A detector as locator: torchvision's Faster R-CNN finds boxes, which are rendered to maps like the heatmap's.

Shape legend: N slices (of all stacks of a batch), B stacks, L landmarks, C landmark channels (detector class c + 1),
H W input pixels, h w map pixels. Boxes are (x0, y0, x1, y1) in input pixels, as torchvision has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn, fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from osteograde.errors import UserError
from osteograde.models.backbones import adapt_first_conv
from osteograde.models.locators.base import LocatorBatch, heatmap_loss, start_of, target_parts

VARIANTS = {  # name: (detector, the classifier whose ImageNet weights fit its trunk)
    "resnet50_v2": (fasterrcnn_resnet50_fpn_v2, "resnet50"),
    "mobilenet": (fasterrcnn_mobilenet_v3_large_fpn, "mobilenet_v3_large"),
}
_FLOOR = 1e-6  # score of a place without any detection
_REACH = 0.75  # slices: a box is taught on slices this near to its point


class _AsItIs(GeneralizedRCNNTransform):
    """Batches images at their own size: upscaling to 800 pixels, the default, costs ten times the work."""

    def resize(
        self, image: torch.Tensor, target: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        return image, target


class FasterRcnnLocator(nn.Module):
    """(N, in_channels, H, W) -> log scores (N, channels, H / stride, W / stride).

    variant: "resnet50_v2" or "mobilenet". box_px: (height, width) of the box taught around a point, input pixels; the
    smallest anchors are 32 px, so a box below about 20 px is hard to learn. box_mm: in its place (height, width) in mm
    of the box of every channel, in images that are field_mm wide. proposals: kept per image; the default of 1000 is
    most of a detector's cost. Raises ValueError for an unknown variant, boxes in mm without a field, or of other
    channels.
    """

    def __init__(
        self,
        variant: str,
        channels: int,
        box_px: tuple[float, float] = (32.0, 32.0),
        in_channels: int = 4,
        stride: int = 4,
        *,
        proposals: int = 100,
        box_mm: Sequence[tuple[float, float]] = (),
        field_mm: float = 0.0,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise UserError(f"Faster R-CNN variant {variant!r}; expected one of {sorted(VARIANTS)}")
        if box_mm and (len(box_mm) != channels or field_mm <= 0):
            raise UserError(
                f"Faster R-CNN: {len(box_mm)} boxes in mm and a field of {field_mm:g} mm; expected {channels} boxes, "
                "one for each channel, and the width of the image"
            )
        self.config: dict[str, Any] = {
            "kind": "faster_rcnn",
            "variant": variant,
            "channels": channels,
            "box_px": [float(side) for side in box_px],
            "in_channels": in_channels,
            "stride": stride,
            "proposals": proposals,
        }
        self.channels, self.stride, self.box_px = channels, stride, (float(box_px[0]), float(box_px[1]))
        self.box_mm = [[float(height), float(width)] for height, width in box_mm]
        self.field_mm = float(field_mm)
        if self.box_mm:  # what older weights do not have is left out of their config
            self.config |= {"box_mm": self.box_mm, "field_mm": self.field_mm}
        make, _ = VARIANTS[variant]
        self.detector = make(
            weights=None,
            weights_backbone=None,
            num_classes=channels + 1,
            rpn_post_nms_top_n_test=proposals,
            rpn_post_nms_top_n_train=2 * proposals,
            box_score_thresh=0.01,
            box_detections_per_img=10 * channels,
        )
        adapt_first_conv(self.detector.backbone.body, in_channels)
        self.detector.transform = _AsItIs(0, 0, image_mean=[0.5] * in_channels, image_std=[0.25] * in_channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maps(images)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Log scores (N, C, h, w): per class, the highest of score x gaussian around each detected box's centre."""
        training = self.detector.training
        self.detector.eval()
        found = self.detector(list(images))
        self.detector.train(training)
        return torch.stack([self._rendered(boxes, images.shape[-2:]) for boxes in found])

    def loss(self, batch: LocatorBatch) -> torch.Tensor:
        """In training mode the sum of the detector's four losses; in eval mode the heatmap loss of the maps, which
        compares with other locators. Teaches the slices with boxes, and as many drawn from the others."""
        if not self.training:
            return heatmap_loss(self.maps(batch.images), batch)
        boxes = self._boxes(batch)
        positive = torch.tensor([len(b["labels"]) > 0 for b in boxes])
        other = (~positive).nonzero()[:, 0]
        other = other[torch.randperm(len(other))[: max(int(positive.sum()), 1)]]
        chosen = torch.cat([positive.nonzero()[:, 0], other]).tolist()
        parts = self.detector([batch.images[n] for n in chosen], [boxes[n] for n in chosen])
        return torch.stack(list(parts.values())).sum()

    def sizes(self, width: int, device: torch.device) -> torch.Tensor:
        """(C, 2): height and width in pixels of the box of every channel, in images of ``width`` pixels."""
        if not self.box_mm:
            return torch.tensor([self.box_px] * self.channels, device=device)
        return torch.tensor(self.box_mm, device=device) * (width / self.field_mm)

    def _boxes(self, batch: LocatorBatch) -> list[dict[str, torch.Tensor]]:
        """torchvision's targets, one per slice."""
        height, width = batch.images.shape[-2:]
        labelled = target_parts(batch, (height // self.stride, width // self.stride)).labelled[batch.stack]
        order = torch.arange(len(batch.stack), device=batch.stack.device)
        order = order - start_of(batch.stack, len(batch.points))[batch.stack]
        points = batch.points[batch.stack]
        shown = labelled & ((points[..., 0] - order[:, None]).abs() <= _REACH)
        halves = self.sizes(width, points.device).to(points.dtype).flip(1)[batch.channel] / 2
        targets = []
        for n in range(len(order)):
            centre = points[n, shown[n]][:, [2, 1]] + 0.5  # torchvision counts pixel edges, we count centres
            half = halves[shown[n]]
            box = torch.cat([centre - half, centre + half], 1).clamp_min(0)
            box = torch.minimum(box, box.new_tensor([width, height, width, height]))
            targets.append({"boxes": box, "labels": batch.channel[shown[n]] + 1})
        return targets

    def _rendered(self, found: dict[str, torch.Tensor], size: torch.Size) -> torch.Tensor:
        """Detections of one slice -> (C, h, w)."""
        boxes, labels, scores = found["boxes"].float(), found["labels"], found["scores"].float()
        h, w = size[0] // self.stride, size[1] // self.stride
        sigma = (self.sizes(size[1], boxes.device).amin(1) / 4)[labels - 1][:, None]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5
        rows, columns = ((torch.arange(n, device=boxes.device) + 0.5) * self.stride - 0.5 for n in (h, w))
        down = torch.exp(-0.5 * ((rows - centre[:, 1:]) / sigma) ** 2)
        along = torch.exp(-0.5 * ((columns - centre[:, :1]) / sigma) ** 2)
        blobs = scores[:, None, None] * down[..., None] * along[:, None]  # (detections, h, w)
        maps = boxes.new_zeros((self.channels, h, w))
        place = (labels - 1)[:, None, None].expand_as(blobs)
        return torch.log(maps.scatter_reduce(0, place, blobs, "amax") + _FLOOR)
