"""The node of TopoNet (section 4.2): ReLU, separable 3x3 convolution, batch norm."""

from typing import Callable

from timm.layers import create_conv2d
from torch import Tensor, nn

from .conv_norm import ConvNorm

__all__ = ['SepConvEntry', 'SepConvNode']


class SepConvNode(nn.Module):
    """BN(PW(DW3x3(ReLU(x)))). Overwrites its input where autograd allows (it owns the sum).

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        stride: Stride of the depthwise convolution.
        dilation: Its dilation.
        inplace: Whether ReLU may overwrite the input.
        norm_layer: Normalisation.
        device: Where parameters live.
        dtype: Their type.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        dilation: int = 1,
        inplace: bool = True,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.act = nn.ReLU(inplace=inplace)
        self.conv_dw = create_conv2d(
            in_chs, in_chs, 3, stride=stride, dilation=dilation, depthwise=True, **dd
        )
        self.conv_pw = create_conv2d(in_chs, out_chs, 1, **dd)
        self.bn = norm_layer(out_chs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv_pw(self.conv_dw(self.act(x))))


class SepConvEntry(nn.Module):
    """x_0 = SepConvNode(x) + BN(conv1x1(x)), both with the stage's stride.

    The paper says only that the first computing node of a graph changes the filters (section
    4.2). Of the readings tried this comes nearest to the printed counts: 23.03M parameters and
    3.93G multiply-adds against 23.23M and 3.95G.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        stride: Stride of the stage.
        dilation: Dilation of the 3x3 convolution.
        norm_layer: Normalisation.
        device: Where parameters live.
        dtype: Their type.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 2,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        # the stage input is also read by the shortcut: not in place
        self.node = SepConvNode(
            in_chs, out_chs, stride, dilation, inplace=False, norm_layer=norm_layer, **dd
        )
        self.shortcut = ConvNorm(in_chs, out_chs, 1, stride, norm_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.node(x) + self.shortcut(x)
