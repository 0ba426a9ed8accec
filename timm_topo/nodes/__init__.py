"""What a node computes.

``NODES`` holds, by name, the function that makes the entry and the nodes of a stage:
``parts(in_chs, out_chs, num_nodes, stride, dilation, norm_layer=..., device=..., dtype=...)``.
"""

from .base import LayeredNode, NodeLayers, ShortcutEntry, StageParts
from .branches import BranchBlock
from .conv import ConvNode, conv_parts
from .conv_norm import ConvNorm
from .conv_residual import ConvResidualNode, conv_residual_parts
from .sepconv import SepConvEntry, SepConvNode, sepconv_parts
from .subsample import Subsample

__all__ = [
    'NODES',
    'BranchBlock',
    'ConvNode',
    'ConvNorm',
    'ConvResidualNode',
    'LayeredNode',
    'NodeLayers',
    'SepConvEntry',
    'SepConvNode',
    'ShortcutEntry',
    'StageParts',
    'Subsample',
]

NODES = {'sepconv': sepconv_parts, 'conv': conv_parts, 'conv_residual': conv_residual_parts}
