"""Barabasi-Albert graphs (RandWire, Xie et al., 2019)."""

import networkx as nx

from ..wiring import Wiring
from .attach import computing_nodes, oriented
from .base import register_wiring

__all__ = ['barabasi_albert']


@register_wiring('barabasi_albert')
def barabasi_albert(num_nodes: int, m: int = 5, seed: int = 0) -> Wiring:
    """BA(m) on the N - 2 computing nodes (``networkx.barabasi_albert_graph``).

    RandWire starts from ``m`` isolated nodes, all of which the next node joins. networkx >= 2.6
    starts from a star centred on node 0 instead, which orients differently, so the original
    start is passed explicitly.

    Raises:
        ValueError: Not 1 <= m < N - 2.
    """
    n = computing_nodes(num_nodes)
    if not isinstance(m, int) or not 1 <= m < n:
        raise ValueError(
            f'm must be an integer in 1..{n - 1} for {num_nodes} nodes ({n} computing), got {m}'
        )
    start = nx.Graph((i, m) for i in range(m))
    return oriented(num_nodes, nx.barabasi_albert_graph(n, m, seed=seed, initial_graph=start))
