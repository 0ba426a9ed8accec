"""Watts-Strogatz graphs (RandWire, Xie et al., 2019)."""

import networkx as nx

from ..checks import check_probability
from ..wiring import Wiring
from .attach import computing_nodes, oriented
from .base import register_wiring

__all__ = ['watts_strogatz']


@register_wiring('watts_strogatz')
def watts_strogatz(num_nodes: int, k: int = 4, p: float = 0.75, seed: int = 0) -> Wiring:
    """WS(k, p) on the N - 2 computing nodes (``networkx.connected_watts_strogatz_graph``).

    Raises:
        ValueError: ``p`` outside [0, 1], or not 2 <= k <= N - 2.
    """
    check_probability('p', p)
    n = computing_nodes(num_nodes)
    if not isinstance(k, int) or not 2 <= k <= n:
        raise ValueError(
            f'k must be an integer in 2..{n} for {num_nodes} nodes ({n} computing), got {k}'
        )
    graph = nx.connected_watts_strogatz_graph(n, k, p, tries=200, seed=seed)
    return oriented(num_nodes, graph)
