"""One file per paper: a table of variants and their timm entry points."""

from .toponet import TopoNet

__all__ = ['TopoNet']
