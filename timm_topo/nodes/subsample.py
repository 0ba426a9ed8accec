"""Resizing without parameters: the shortcut "option A" of ResNet (He et al., 2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['Subsample']


class Subsample(nn.Module):
    """Every ``stride``-th pixel, and zeros in the channels that are new.

    Args:
        in_chs: Input channels.
        out_chs: Output channels, not fewer.
        stride: Of rows and columns.

    Raises:
        ValueError: Fewer channels than there are.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1):
        super().__init__()
        if out_chs < in_chs:
            raise ValueError(f'{in_chs} channels cannot be padded to {out_chs}')
        self.added = out_chs - in_chs
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))

    def extra_repr(self) -> str:
        return f'added={self.added}, stride={self.stride}'
