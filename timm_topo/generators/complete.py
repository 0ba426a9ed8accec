"""All pairs of nodes: TopoNet's search space."""

from ..wiring import Wiring
from .base import register_wiring

__all__ = ['complete']


@register_wiring('complete')
def complete(num_nodes: int) -> Wiring:
    """Every node feeds every later node: N (N - 1) / 2 edges, TopoNet's search space.

    >>> complete(14).num_edges
    91
    """
    return Wiring(num_nodes, tuple((i, j) for j in range(num_nodes) for i in range(j)))
