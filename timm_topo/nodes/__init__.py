"""What a node computes."""

from .sepconv import SepConvEntry, SepConvNode

__all__ = ['SepConvEntry', 'SepConvNode']
