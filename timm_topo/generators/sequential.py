"""One node after the other."""

from ..wiring import Wiring
from .base import register_wiring

__all__ = ['sequential']


@register_wiring('sequential')
def sequential(num_nodes: int) -> Wiring:
    """A chain: every node feeds the next one only.

    >>> sequential(3).edges
    ((0, 1), (1, 2))
    """
    return Wiring(num_nodes, tuple((i, i + 1) for i in range(num_nodes - 1)))
