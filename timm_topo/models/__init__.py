"""Networks, a table of variants each, and their timm entry points.

All files of this folder are imported: the networks of a paper are one new file.
"""

from ..registry import import_all
from . import dgnet, topomobilenet
from .cross_stage import CrossStageNet
from .dagnet import DagNet
from .families import Rewired
from .maskconnect import MaskConnectResNet
from .maskconnect_resnext import MaskConnectResNeXt
from .randwire import RandWire
from .rewired import rewire, unwire
from .staged import StagedNet
from .toponet import TopoNet
from .toporesnet import ResNetCifar, ResNetV2Cifar

__all__ = [
    'CrossStageNet',
    'DagNet',
    'MaskConnectResNeXt',
    'MaskConnectResNet',
    'RandWire',
    'ResNetCifar',
    'ResNetV2Cifar',
    'Rewired',
    'StagedNet',
    'TopoNet',
    'dgnet',
    'rewire',
    'topomobilenet',
    'unwire',
]

import_all(__name__, __path__)
