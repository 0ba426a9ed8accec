"""timm_topo's networks as detectron2 backbones.

Importing this package registers builders of backbones (``build_topo_fpn_backbone`` and others), the
meta architectures ``TopoRCNN``, ``TopoRetinaNet``, ``TopoFCOS``, ``TopoPanopticFPN`` and
``TopoSemanticSegmentor`` and the built-in data sets ``topo_digits_train`` and ``topo_digits_val``,
lets detectron2's ``DetectionCheckpointer`` read what timm trained, and keeps its optimizers from
decaying edge weights.
"""

from importlib.util import find_spec

from timm_topo.extras import needs

if find_spec('detectron2') is None:
    raise ImportError(
        'd2_topo needs detectron2, which is not installed; how to install it: '
        'https://detectron2.readthedocs.io/tutorials/install.html'
    )

with needs('timm-topo[detection]'):  # the packages that detectron2 needs
    from . import data  # registers the data sets
    from .backbone import TopoBackbone
    from .build import build_topo_backbone
    from .checkpoint import load_timm_weights
    from .config import add_topo_config
    from .lazy import with_topo_backbone, zoo
    from .meta_arch import (
        TopoFCOS,
        TopologyLoss,
        TopoPanopticFPN,
        TopoRCNN,
        TopoRetinaNet,
        TopoSemanticSegmentor,
    )
    from .optim import topo_optimizer_params

__all__ = [
    'TopoBackbone',
    'TopoFCOS',
    'TopoPanopticFPN',
    'TopoRCNN',
    'TopoRetinaNet',
    'TopoSemanticSegmentor',
    'TopologyLoss',
    'add_topo_config',
    'build_topo_backbone',
    'data',
    'load_timm_weights',
    'topo_optimizer_params',
    'with_topo_backbone',
    'zoo',
]
