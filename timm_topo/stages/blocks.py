"""Nodes whose sums over the same maps are computed at once: each map is read once for all."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from ..wiring import Wiring

__all__ = ['Block', 'Edges', 'blocks']


@dataclass(frozen=True)
class Edges:
    """Edges between a few nodes and a range of others, as entries of a matrix.

    Attributes:
        numbers: Which of the wiring's.
        at: Where they are in the matrix, flat.
        shape: A row per node, a column per other node.
    """

    numbers: Tensor
    at: Tensor
    shape: tuple[int, int]

    def matrix(self, weights: Tensor) -> Tensor:
        """The weights of these edges, of those of all edges; 0 where there is no edge."""
        dense = weights.new_zeros(self.shape)
        dense.view(-1)[self.at] = weights[self.numbers]
        return dense

    def pick(self, dense: Tensor) -> Tensor:
        """The entries of these edges."""
        return dense.reshape(-1)[self.at]


@dataclass(frozen=True)
class Block:
    """Nodes ``first .. stop - 1``.

    Attributes:
        nodes: These.
        read: All their in-edges, as entries of the maps before the last of them; None for a node
            that is alone.
        before: Their in-edges from nodes before all of them.
        after: Their out-edges to computing nodes after all of them.
        ahead: Whether to sum over ``before`` at once before the first of them is computed.
        behind: Whether to sum over ``after`` at once when gradients have reached the last of them.
    """

    nodes: range
    read: Optional[Edges] = None
    before: Optional[Edges] = None
    after: Optional[Edges] = None
    ahead: bool = False
    behind: bool = False


@lru_cache(maxsize=256)
def blocks(wiring: Wiring, most: int, start: int) -> tuple[Block, ...]:
    """The computing nodes in order, up to ``most`` at a time where that reads fewer maps.

    Args:
        wiring: N nodes.
        most: Nodes of a block.
        start: The first node that may be in a block with others.
    """
    found, last = [], wiring.num_nodes - 1
    stop = last
    while stop > 1:
        first = max(stop - most, min(start, stop - 1))
        count = sum(wiring.in_degrees[first:stop])
        if stop - first == 1 or count < 2 * (stop - 1):  # a product reads what no edge needs too
            first = stop - 1
            found.append(Block(range(first, stop)))
        else:
            nodes = range(first, stop)
            read = _edges(wiring, nodes, range(stop - 1), lambda edge: edge[::-1])
            before = _edges(wiring, nodes, range(first), lambda edge: edge[::-1])
            after = _edges(wiring, nodes, range(stop, last), lambda edge: edge)
            # what is added to a sum of many is read and written once more
            ahead, behind = (
                len(edges.at) > 2 * edges.shape[1] + 4 * len(nodes) for edges in (before, after)
            )
            found.append(Block(nodes, read, before, after, ahead, behind))
        stop = first
    return tuple(found[::-1])


def _edges(wiring: Wiring, rows: range, columns: range, key: Callable) -> Edges:
    """The edges between two ranges of nodes; ``key`` puts the node of an edge's row first."""
    numbers, at = [], []
    for number, edge in enumerate(wiring.edges):
        row, column = key(edge)
        if row in rows and column in columns:
            numbers.append(number)
            at.append((row - rows.start) * len(columns) + column - columns.start)
    with torch.inference_mode(False), torch.device('cpu'):
        as_index = (torch.tensor(some, dtype=torch.long) for some in (numbers, at))
        return Edges(*as_index, (len(rows), len(columns)))
