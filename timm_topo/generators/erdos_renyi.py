"""Erdos-Renyi graphs (RandWire, Xie et al., 2019)."""

import networkx as nx

from ..checks import check_probability
from ..wiring import Wiring
from .attach import computing_nodes, oriented
from .base import register_wiring

__all__ = ['erdos_renyi']


@register_wiring('erdos_renyi')
def erdos_renyi(num_nodes: int, p: float = 0.2, seed: int = 0) -> Wiring:
    """ER(p) on the N - 2 computing nodes (``networkx.gnp_random_graph``).

    Raises:
        ValueError: ``p`` outside [0, 1], or no computing node.
    """
    check_probability('p', p)
    return oriented(num_nodes, nx.gnp_random_graph(computing_nodes(num_nodes), p, seed=seed))
