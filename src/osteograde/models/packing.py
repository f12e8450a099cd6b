"""Convolutions of nets that only answer, on a CPU: kernels in oneDNN's own layout, the activation in the same pass.

Torch reorders the kernels of a convolution each time it is called, and where it may use one thread, as inference does
here, it sends batches of fewer than 16 images through 1 x 1 convolutions by a slower way than oneDNN. Larger batches
gain nothing. The padding of TensorFlow's nets, which torch would copy every image for, becomes part of the kernel. The
operators are those that ``torch.compile`` calls on a CPU; they need no compiler. Where torch has none
of them, or somebody asks for gradients, the convolution is torch's own. Answers differ in the last digits of float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional

_Padding = tuple[tuple[int, int], ...]

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
        """conv: padded by zeros, by given numbers or as TensorFlow pads. activation: one that ``is_fusible``."""
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
        self.activation, self.is_same = activation, isinstance(conv, Conv2dSame)
        self.train(conv.training)
        self._packed: dict[_Padding, torch.Tensor] = {}

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether a convolution can be packed."""
        is_plain = type(conv) is nn.Conv2d or (type(conv) is Conv2dSame and conv.dilation == (1, 1))
        return is_plain and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        padding = self._padding(images)
        around = [before for before, _ in padding]
        fits = len(images) < SMALL and images.dtype == torch.float32 and images.device.type == "cpu"
        if not fits or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not has_packing():
            weight = self._kernel(padding)
            return self.activation(
                functional.conv2d(images, weight, self.bias, self.stride, around, self.dilation, self.groups)
            )
        if padding not in self._packed:
            self._packed[padding] = torch.ops.mkldnn._reorder_convolution_weight(
                self._kernel(padding).detach(), around, self.stride, self.dilation, self.groups
            )
        kernel, (name, arguments) = self._packed[padding], _FUSED[type(self.activation)]
        return torch.ops.mkldnn._convolution_pointwise(
            images, kernel, self.bias, around, self.stride, self.dilation, self.groups, name, arguments, ""
        )

    def _padding(self, images: torch.Tensor) -> _Padding:
        """For rows and columns: how much is padded on both sides, and by how much the kernel is longer in front.

        Where TensorFlow pads one more behind than in front, a kernel with a zero in front sees the same images.
        """
        if not self.is_same:
            return tuple((int(padding), 0) for padding in self.padding)
        found = []
        for axis in range(2):
            size, kernel, stride = images.shape[axis + 2], self.kernel_size[axis], self.stride[axis]
            whole = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            found.append(((whole + 1) // 2, whole % 2))
        return tuple(found)

    def _kernel(self, padding: _Padding) -> torch.Tensor:
        (_, rows), (_, columns) = padding
        return functional.pad(self.weight, (columns, 0, rows, 0)) if rows or columns else self.weight

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}  # packed kernels can be neither copied nor stored
