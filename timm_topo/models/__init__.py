"""Networks, a table of variants each, and their timm entry points."""

from .toponet import TopoNet
from .toporesnet import ResNetCifar

__all__ = ['ResNetCifar', 'TopoNet']
