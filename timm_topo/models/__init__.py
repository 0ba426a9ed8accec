"""Networks, a table of variants each, and their timm entry points."""

from . import dgnet, topomobilenet
from .cross_stage import CrossStageNet
from .dagnet import DagNet
from .families import Rewired
from .rewired import rewire, unwire
from .maskconnect import MaskConnectResNet, MaskConnectResNeXt
from .toponet import TopoNet
from .toporesnet import ResNetCifar, ResNetV2Cifar

__all__ = [
    'CrossStageNet',
    'DagNet',
    'MaskConnectResNeXt',
    'MaskConnectResNet',
    'ResNetCifar',
    'ResNetV2Cifar',
    'Rewired',
    'TopoNet',
    'dgnet',
    'rewire',
    'topomobilenet',
    'unwire',
]
