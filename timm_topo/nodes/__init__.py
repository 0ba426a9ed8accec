"""What a node computes."""

from .conv_norm import ConvNorm
from .sepconv import SepConvEntry, SepConvNode

__all__ = ['ConvNorm', 'SepConvEntry', 'SepConvNode']
