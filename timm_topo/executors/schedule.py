"""Which sums and inner products of a stage are computed together: each map is read once for all.

A schedule is a tuple of groups of nodes. What follows from it is in :mod:`.sums`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..wiring import Wiring

__all__ = ['EdgeBlock', 'Group', 'schedule']


@dataclass(frozen=True)
class EdgeBlock:
    """The edges between a few nodes and a range of other nodes, as entries of a matrix.

    Attributes:
        numbers: Indices into ``wiring.edges``.
        positions: Places in the matrix, flat.
        shape: A row per node, a column per other node.
    """

    numbers: Tensor
    positions: Tensor
    shape: tuple[int, int]

    def matrix(self, weights: Tensor) -> Tensor:
        """The weights of these edges, from the weights of all edges; 0 where there is no edge."""
        dense = weights.new_zeros(self.shape)
        dense.view(-1)[self.positions] = weights[self.numbers]
        return dense

    def pick(self, dense: Tensor) -> Tensor:
        """The entries of these edges."""
        return dense.reshape(-1)[self.positions]


@dataclass(frozen=True)
class Group:
    """Nodes ``first .. stop - 1``, whose sums over the same maps are computed together.

    Attributes:
        nodes: The nodes.
        earlier: Their in-edges from nodes before the group; None for a single node.
        later: Their out-edges to computing nodes after the group.
        sums_earlier: Whether one product sums over ``earlier`` for all nodes.
        sums_later: Whether one product sums over ``later`` when gradients have reached the last
            node.
    """

    nodes: range
    earlier: EdgeBlock | None = None
    later: EdgeBlock | None = None
    sums_earlier: bool = False
    sums_later: bool = False


@lru_cache(maxsize=256)
def schedule(wiring: Wiring, size: int, start: int) -> tuple[Group, ...]:
    """The computing nodes in order, in groups where a group reads fewer maps than its nodes.

    Args:
        wiring: N nodes.
        size: Nodes of a group at most; 1: each node by itself.
        start: The first node that may be in a group with others.
    """
    groups, last = [], wiring.num_nodes - 1
    stop = last
    while stop > 1:
        first = max(stop - size, min(start, stop - 1))
        count = sum(wiring.in_degrees[first:stop])
        if stop - first == 1 or count < 2 * (stop - 1):  # a product also reads maps without edge
            first = stop - 1
            groups.append(Group(range(first, stop)))
        else:
            nodes = range(first, stop)
            earlier = _block(wiring, nodes, range(first), lambda edge: edge[::-1])
            later = _block(wiring, nodes, range(stop, last), lambda edge: edge)
            # a partial sum is written and read once more
            pays = (
                len(edges.positions) > 2 * edges.shape[1] + 4 * len(nodes)
                for edges in (earlier, later)
            )
            groups.append(Group(nodes, earlier, later, *pays))
        stop = first
    return tuple(groups[::-1])


def _block(wiring: Wiring, rows: range, columns: range, key: Callable) -> EdgeBlock:
    """The edges between two ranges of nodes; ``key`` puts the node of an edge's row first."""
    numbers, positions = [], []
    for number, edge in enumerate(wiring.edges):
        row, column = key(edge)
        if row in rows and column in columns:
            numbers.append(number)
            positions.append((row - rows.start) * len(columns) + column - columns.start)
    with torch.inference_mode(False), torch.device('cpu'):
        as_index = (torch.tensor(some, dtype=torch.long) for some in (numbers, positions))
        return EdgeBlock(*as_index, (len(rows), len(columns)))
