"""Convolution and normalisation, no activation: stems and projections."""

from collections.abc import Callable

from timm.layers import create_conv2d
from torch import Tensor, nn

__all__ = ['ConvNorm']


class ConvNorm(nn.Module):
    """BN(conv(x)), the convolution without bias.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        kernel_size: Kernel size.
        stride: Stride.
        norm_layer: Normalisation.
        device: Where parameters live.
        dtype: Their type.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int = 1,
        stride: int = 1,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        spatial = dict(stride=stride, padding=kernel_size // 2)
        self.conv = create_conv2d(in_chs, out_chs, kernel_size, **spatial, **dd)
        self.bn = norm_layer(out_chs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))
