"""Operations of nodes. All files of this folder are imported: a kind of node is one new file."""

from ..registry import import_all
from .base import NODES, LayeredNode, NodeLayers, ShortcutEntry, StageParts, register_node
from .branches import BranchBlock
from .conv import ConvNode
from .conv_norm import ConvNorm
from .conv_residual import ConvResidualNode
from .sepconv import SepConvEntry, SepConvNode
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
    'register_node',
]

import_all(__name__, __path__)
