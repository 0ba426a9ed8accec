"""The node of ResNets on CIFAR (TopoNet, section 4.1): ReLU, 3x3 convolution, batch norm."""

from collections.abc import Callable

from timm.layers import create_conv2d
from torch import nn

from .base import LayeredNode, NodeLayers, StageParts, register_node
from .conv_norm import ConvNorm

__all__ = ['ConvNode', 'conv_parts']


class ConvNode(LayeredNode):
    """BN(conv3x3(ReLU(x))). Overwrites its input where autograd allows (it owns the sum).

    Args:
        in_chs: Input channels.
        out_chs: Output channels.
        stride: Stride of the convolution.
        dilation: Its dilation.
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
        self.act = nn.ReLU(inplace=True)
        spatial = dict(stride=stride, dilation=dilation, padding=dilation)
        self.conv = create_conv2d(in_chs, out_chs, 3, **spatial, **dd)
        self.bn = norm_layer(out_chs, **dd)

    def layers(self) -> NodeLayers:
        return NodeLayers(self.act, (self.conv,), self.bn)


@register_node('conv')
def conv_parts(
    in_chs: int, out_chs: int, num_nodes: int, stride: int, dilation: int, **kwargs
) -> StageParts:
    """A stage of :class:`ConvNode`: one 3x3 convolution of the ResNet is one node.

    The ResNet's projection becomes the entry (none where the shape stays), and its first
    convolution reads the stage input beside it.

    Args:
        in_chs: Channels of the stage input.
        out_chs: Channels of the stage.
        num_nodes: Computing nodes.
        stride: Stride of the stage.
        dilation: Dilation of the 3x3 convolutions.
        **kwargs: ``norm_layer``, ``device``, ``dtype``.
    """
    same = in_chs == out_chs and stride == 1
    return StageParts(
        entry=nn.Identity() if same else ConvNorm(in_chs, out_chs, 1, stride, **kwargs),
        nodes=[
            ConvNode(
                in_chs if node == 0 else out_chs,
                out_chs,
                stride if node == 0 else 1,
                dilation,
                **kwargs,
            )
            for node in range(num_nodes)
        ],
        first_reads_input=not same and num_nodes > 0,
    )
