"""timm_topo's networks as detectron2 backbones.

Importing this package registers the builders ``build_topo_backbone``, ``build_topo_fpn_backbone``
and ``build_retinanet_topo_fpn_backbone``, the meta architectures ``TopoRCNN`` and
``TopoRetinaNet`` and the built-in data sets ``topo_digits_train`` and ``topo_digits_val``, and lets
detectron2's ``DetectionCheckpointer`` read what timm trained.
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
    from .build import (
        build_retinanet_topo_fpn_backbone,
        build_topo_backbone,
        build_topo_fpn_backbone,
    )
    from .checkpoint import load_timm_weights
    from .config import add_topo_config
    from .lazy import zoo
    from .meta_arch import TopologyLoss, TopoRCNN, TopoRetinaNet
    from .optim import topo_optimizer_params

__all__ = [
    'TopoBackbone',
    'TopoRCNN',
    'TopoRetinaNet',
    'TopologyLoss',
    'add_topo_config',
    'build_retinanet_topo_fpn_backbone',
    'build_topo_backbone',
    'build_topo_fpn_backbone',
    'data',
    'load_timm_weights',
    'topo_optimizer_params',
    'zoo',
]
