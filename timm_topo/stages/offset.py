"""Constants that nodes which are gone still add to a weighted sum."""

import torch
from torch import Tensor, nn

__all__ = ['Offset', 'merge', 'shrink']


class Offset(nn.Module):
    """x + c for maps x of any size, where c is the same for every image.

    c is stored as ``value`` ``(C, h, w)``. In a map of another size, its outer rows and columns
    stay at their distance from the border and the middle one is repeated: what convolutions make
    of a constant, zeros beyond the border.

    Args:
        value: ``(C, h, w)``, as from :func:`shrink`. A buffer: training leaves it as it is.
    """

    value: Tensor

    def __init__(self, value: Tensor):
        super().__init__()
        self.height, self.width = value.shape[1:]
        self.register_buffer('value', value)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> the same shape."""
        value = self.value.to(x.dtype)
        if self.height > 1:
            value = value.index_select(1, _places(x[0, 0, :, 0], self.height))
        if self.width > 1:
            value = value.index_select(2, _places(x[0, 0, 0], self.width))
        return x + value

    def extra_repr(self) -> str:
        return f'{tuple(self.value.shape)}'


def _places(line: Tensor, stored: int) -> Tensor:
    """Which of ``stored`` rows stands for each place of a line, ``(H,)``."""
    place = torch.ones_like(line, dtype=torch.long).cumsum(0) - 1
    size = place.shape[0]
    near_start = place.clamp(max=(stored - 1) // 2)
    near_end = (place + (stored - size)).clamp(min=stored // 2)
    return torch.where(2 * place < size, near_start, near_end)


def merge(one: Tensor, other: Tensor) -> Tensor:
    """The ``value`` of two offsets together."""
    larger = [max(sizes) for sizes in zip(one.shape, other.shape)]
    zeros = one.new_zeros(1, *larger)
    return Offset(other)(Offset(one)(zeros))[0]


def shrink(constant: Tensor) -> Tensor:
    """The smallest ``(C, h, w)`` that stands for a map ``(C, H, W)`` (see :class:`Offset`).

    Differences of the size of rounding do not count.

    >>> border = torch.ones(1, 7, 7)
    >>> border[:, 1:-1, 1:-1] = 2
    >>> shrink(border)
    tensor([[[1., 1., 1.],
             [1., 2., 1.],
             [1., 1., 1.]]])
    """
    tolerance = 64 * torch.finfo(constant.dtype).eps * constant.abs().max()
    for dim in (1, 2):
        size = constant.shape[dim]
        for border in range((size + 1) // 2):
            middle = constant.narrow(dim, border, size - 2 * border)
            if (middle.amax(dim) - middle.amin(dim) <= tolerance).all():
                parts = [constant.narrow(dim, 0, border + 1)]
                parts.append(constant.narrow(dim, size - border, border))
                constant = torch.cat(parts, dim)
                break
    return constant.clone()
