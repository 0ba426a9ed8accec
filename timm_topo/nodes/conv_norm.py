"""Convolution and normalisation, no activation: stems and projections."""

from collections.abc import Callable

from timm.layers import create_conv2d
from torch import Tensor, nn

__all__ = ['ConvNorm']


class ConvNorm(nn.Module):
    """BN(conv(x)), the convolution without bias.

    A pointwise convolution of fewer than 8 channels reads every stride-th pixel instead of having
    a stride: with channels last, oneDNN's gradient of the latter writes behind its memory on CPUs
    without AVX-512 (PyTorch 2.14).

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
        self.subsample = stride if kernel_size == 1 and in_chs < 8 else 1
        spatial = dict(stride=stride // self.subsample, padding=kernel_size // 2)
        self.conv = create_conv2d(in_chs, out_chs, kernel_size, **spatial, **dd)
        self.bn = norm_layer(out_chs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.subsample > 1:
            x = x[:, :, :: self.subsample, :: self.subsample].clone()  # which keeps the layout
        return self.bn(self.conv(x))
