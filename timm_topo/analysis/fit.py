"""How wide a network must be to have a given number of parameters (Janik & Nowak, section 4)."""

from collections.abc import Callable

import torch
from torch import nn

from .cost import count_parameters

__all__ = ['fit_channels']

_MOST = 2**16  # channels: more than any network has


def fit_channels(build: Callable[[int], nn.Module], parameters: int) -> int:
    """The number of channels whose network comes nearest to ``parameters``.

    Args:
        build: Makes the network for a number of channels; its parameters grow with it. Called on
            the meta device: nothing is computed.
        parameters: How many there should be.

    Raises:
        ValueError: ``parameters`` is less than half of what one channel takes, or more than any
            network has.
    """

    def count(channels: int) -> int:
        with torch.device('meta'):
            return count_parameters(build(channels))

    least = count(1)
    if parameters < least / 2:
        raise ValueError(f'{parameters:,} parameters: with one channel there are {least:,} already')
    high = 1
    while count(high) < parameters and high < _MOST:
        high *= 2
    if count(high) < parameters:
        raise ValueError(f'{parameters:,} parameters: {high:,} channels have {count(high):,}')
    low = high // 2
    while high - low > 1:  # count(low) < parameters <= count(high)
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return min((c for c in (low, high) if c), key=lambda c: abs(count(c) - parameters))
