"""Convolutions of nets that only answer, on a CPU: kernels in oneDNN's own layout, the activation in the same pass.

Torch reorders the kernels of a convolution each time it is called, and where it may use one thread, as inference does
here, it sends batches of fewer than 16 images through 1 x 1 convolutions by a slower way than oneDNN. Larger batches
gain nothing. The operators are those that ``torch.compile`` calls on a CPU; they need no compiler. Where torch has none
of them, or somebody asks for gradients, the convolution is torch's own. Answers differ in the last digits of float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

SMALL = 16  # images; batches from this size on are left to torch
_FUSED: dict[type[nn.Module], tuple[str, list[float]]] = {  # activation -> its name and arguments in oneDNN
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


def is_fusible(activation: nn.Module) -> bool:
    """Whether a convolution can do this activation in its own pass."""
    return type(activation) in _FUSED


@cache
def has_packing() -> bool:
    """Whether this build of torch can pack kernels."""
    names = ("_reorder_convolution_weight", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


class PackedConv2d(nn.Conv2d):
    """A trained convolution and the activation after it; its parameters are not changed any more."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        """conv: padded by zeros and given in numbers. activation: one that ``is_fusible``."""
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.activation = activation
        self.train(conv.training)
        self._packed: torch.Tensor | None = None

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether a convolution can be packed."""
        return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fits = len(images) < SMALL and images.dtype == torch.float32 and images.device.type == "cpu"
        if not fits or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not has_packing():
            return self.activation(
                functional.conv2d(images, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            )
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight.detach(), self.padding, self.stride, self.dilation, self.groups
            )
        name, arguments = _FUSED[type(self.activation)]
        return torch.ops.mkldnn._convolution_pointwise(
            images, self._packed, self.bias, self.padding, self.stride, self.dilation, self.groups, name, arguments, ""
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # packed kernels can be neither copied nor stored
