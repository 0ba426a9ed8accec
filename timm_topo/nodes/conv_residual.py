"""The node of Janik & Nowak (section 3, Fig. 1a): ReLU, 3x3 and norm beside a 1x1 and norm."""

from collections.abc import Callable

from timm.layers import create_conv2d
from torch import Tensor, nn

from .base import StageParts, register_node
from .conv_norm import ConvNorm

__all__ = ['ConvResidualNode', 'conv_residual_parts']


class ConvResidualNode(nn.Module):
    """BN(conv3x3(ReLU(x))) + BN(conv1x1(x)), convolutions without bias.

    With a stride it is the reduce block on edges to a lower resolution. The paper does not say that
    the residual branch has a norm; with it the network has the parameters that are printed.

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        stride: Stride of both convolutions.
        dilation: Dilation of the 3x3 convolution.
        norm_layer: Normalisation.
        device: Where parameters live.
        dtype: Their type.
    """

    per_block = 2  # convolutions of ResNet's basic block

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.act = nn.ReLU()
        spatial = dict(stride=stride, dilation=dilation, padding=dilation)
        self.conv = create_conv2d(in_chs, out_chs, 3, **spatial, **dd)
        self.bn = norm_layer(out_chs, **dd)
        self.residual = ConvNorm(in_chs, out_chs, 1, stride, norm_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.act(x))) + self.residual(x)


@register_node('conv_residual')
def conv_residual_parts(
    in_chs: int, out_chs: int, num_nodes: int, stride: int, dilation: int, **kwargs
) -> StageParts:
    """A stage of :class:`ConvResidualNode`; the entry is one too, with the stride.

    Args:
        in_chs: Channels of the stage input.
        out_chs: Channels of the stage.
        num_nodes: Computing nodes.
        stride: Stride of the stage.
        dilation: Dilation of the 3x3 convolutions.
        **kwargs: ``norm_layer``, ``device``, ``dtype``.
    """
    return StageParts(
        entry=ConvResidualNode(in_chs, out_chs, stride, dilation, **kwargs),
        nodes=[ConvResidualNode(out_chs, out_chs, 1, dilation, **kwargs) for _ in range(num_nodes)],
    )
