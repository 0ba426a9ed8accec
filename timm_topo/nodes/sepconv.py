"""The node of TopoNet (section 4.2): ReLU, separable 3x3 convolution, batch norm."""

from collections.abc import Callable

from timm.layers import create_conv2d
from torch import nn

from .base import LayeredNode, NodeLayers, ShortcutEntry, StageParts, register_node
from .conv_norm import ConvNorm

__all__ = ['SepConvEntry', 'SepConvNode', 'sepconv_parts']


class SepConvNode(LayeredNode):
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

    per_block = 4  # 12, 18, 24, 12 of them are what ResNet-50's 3, 4, 6, 3 blocks are

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
        spatial = dict(stride=stride, dilation=dilation, padding=dilation)
        self.conv_dw = create_conv2d(in_chs, in_chs, 3, depthwise=True, **spatial, **dd)
        self.conv_pw = create_conv2d(in_chs, out_chs, 1, **dd)
        self.bn = norm_layer(out_chs, **dd)

    def layers(self) -> NodeLayers:
        return NodeLayers(self.act, (self.conv_dw, self.conv_pw), self.bn)


class SepConvEntry(ShortcutEntry):
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
        dd = {'device': device, 'dtype': dtype}
        # the shortcut reads the stage input too: not in place
        node = SepConvNode(in_chs, out_chs, stride, dilation, False, norm_layer, **dd)
        super().__init__(node, ConvNorm(in_chs, out_chs, 1, stride, norm_layer, **dd))


@register_node('sepconv')
def sepconv_parts(
    in_chs: int, out_chs: int, num_nodes: int, stride: int, dilation: int, **kwargs
) -> StageParts:
    """A stage of :class:`SepConvNode` behind a :class:`SepConvEntry`.

    Args:
        in_chs: Channels of the stage input.
        out_chs: Channels of the stage.
        num_nodes: Computing nodes.
        stride: Stride of the stage.
        dilation: Dilation of the 3x3 convolutions.
        **kwargs: ``norm_layer``, ``device``, ``dtype``.
    """
    return StageParts(
        entry=SepConvEntry(in_chs, out_chs, stride, dilation, **kwargs),
        nodes=[
            SepConvNode(out_chs, out_chs, dilation=dilation, **kwargs) for _ in range(num_nodes)
        ],
    )
