"""Graphs on the computing nodes, attached to input and output."""

import networkx as nx

from ..wiring import Wiring

__all__ = ['attached', 'computing_nodes', 'oriented']


def computing_nodes(num_nodes: int) -> int:
    """How many of ``num_nodes`` compute: all but input and output."""
    if num_nodes < 3:
        raise ValueError(f'a random graph needs at least one computing node, got {num_nodes} nodes')
    return num_nodes - 2


def oriented(num_nodes: int, graph: nx.Graph) -> Wiring:
    """Undirected graph on computing nodes -> DAG from low to high index, shifted by the input."""
    return attached(num_nodes, {(1 + min(edge), 1 + max(edge)) for edge in graph.edges})


def attached(num_nodes: int, edges: set[tuple[int, int]]) -> Wiring:
    """Feed sourceless computing nodes from the input, let targetless ones feed the output."""
    output = num_nodes - 1
    computing = set(range(1, output))
    if not computing:
        return Wiring(num_nodes, ((0, output),))
    edges = edges | {(0, j) for j in computing - {target for _, target in edges}}
    edges = edges | {(i, output) for i in computing - {source for source, _ in edges}}
    return Wiring(num_nodes, tuple(edges))
