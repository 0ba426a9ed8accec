"""The weighted sums of a stage over its table of maps, in a forward and in a backward pass.

Both follow a schedule (:mod:`.schedule`). Who computes nodes from these sums need not know it.
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache

import torch
from torch import Tensor

from ..wiring import Wiring
from .schedule import EdgeBlock, Group
from .table import Table
from .workspace import scratch

__all__ = ['BackwardSums', 'in_edge_weights', 'reads']


def in_edge_weights(wiring: Wiring, weights: Tensor, node: int) -> Tensor:
    """The weights of the in-edges of ``node``, from the weights ``(E,)`` of all edges."""
    start, stop = wiring.in_edges[node]
    return weights[start:stop]


def reads(
    table: Table, wiring: Wiring, weights: Tensor, groups: Sequence[Group]
) -> Iterator[Tensor]:
    """relu(sum_i a_ij x_i) of each computing node in order, ``(B, C, H, W)``, a map of its own.

    The map of a node must be in the table before the next sum is asked for.

    Args:
        table: The maps of the nodes.
        wiring: N nodes.
        weights: ``(E,)``.
        groups: The schedule.
    """
    for group in groups:
        with _GroupReads(table, wiring, weights, group) as group_reads:
            for node in group.nodes:
                yield group_reads[node]


class _GroupReads(AbstractContextManager):
    """relu(sum_i a_ij x_i) by node of a group, to the same bits in a forward and a backward pass.

    So ReLU gates are those of the forward pass. Maps before a node must be in the table.
    """

    def __init__(self, table: Table, wiring: Wiring, weights: Tensor, group: Group):
        self.table, self.wiring, self.weights, self.group = table, wiring, weights, group
        self.memory, self.earlier = ExitStack(), None
        if group.sums_earlier:
            self.earlier = product(table, weights, group.earlier, 0, self.memory)

    def __exit__(self, *error) -> None:
        self.memory.close()

    def __getitem__(self, node: int) -> Tensor:
        preds = self.wiring.preds(node)
        own = in_edge_weights(self.wiring, self.weights, node)
        if self.earlier is None:
            return self.table.sum(preds, own, relu=True)
        first = self.group.nodes.start
        near = bisect_left(preds, first)
        within = torch.cat([own[near:], own.new_ones(1)])
        return self.table.sum(preds[near:], within, [self.earlier[node - first]], relu=True)


def product(
    table: Table, weights: Tensor, edges: EdgeBlock, first: int, memory: ExitStack
) -> list[Tensor]:
    """Sums over ``edges`` from the map ``first`` on, in scratch memory until ``memory`` closes."""
    place = memory.enter_context(scratch(table.flat, edges.shape[0] * table.flat.shape[1]))
    return table.sums(edges.matrix(weights), first, place)


class BackwardSums:
    """The sums of a backward pass, where a node's gradient takes the place of its map.

    g_j, the gradient of the sum that node j reads, is written over x_j. So the gradient of a map
    is a sum over the same table, sum_k a_jk g_k over its readers k, and the gradient of an edge
    weight a_ij is an inner product <x_i, g_j>.

    Args:
        table: The maps of the nodes 0 .. N - 2; overwritten.
        wiring: N nodes.
        weights: ``(E,)``.
        grad_output: Gradient of the stage output, ``(B, C, H, W)``.
        groups: The schedule.
        skipped: How many first readers of node 0 read something else than the table.
        weighted: Whether gradients of the weights are wanted.

    Attributes:
        grad_weights: Gradients of the weights ``(E,)``; complete behind the last node, but for
            edges to nodes that are not in the schedule.
    """

    def __init__(
        self,
        table: Table,
        wiring: Wiring,
        weights: Tensor,
        grad_output: Tensor,
        groups: Sequence[Group],
        skipped: int,
        weighted: bool,
    ):
        self.table, self.wiring, self.weights = table, wiring, weights
        self.groups, self.skipped, self.weighted = groups, skipped, weighted
        self.last = wiring.num_nodes - 1
        self.grad_output = table.as_row(grad_output)
        self.grad_weights = torch.empty_like(weights)
        order, self.starts = _edges_by_source(wiring, weights.device)
        self.out_weights, self.one = weights[order], weights.new_ones(1)
        self._near = 0  # the first source whose inner product is taken node by node

    def nodes(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The nodes of the schedule in reverse.

        :meth:`finish` must be called for a node before the next is taken.

        Yields:
            The node; what it read, relu(sum_i a_ij x_i), computed anew; the gradient of its map.
        """
        sources = self._sources(self.last, 0)
        self._set(self.last, self.table.dots(sources, self.grad_output))
        for group in reversed(self.groups):
            first, stop = group.nodes.start, group.nodes.stop
            self._near = 0 if group.earlier is None else first
            later = [None] * len(group.nodes)
            with (
                ExitStack() as memory,
                _GroupReads(self.table, self.wiring, self.weights, group) as read,
            ):
                if group.sums_later:
                    later = product(self.table, self.weights, group.later, stop, memory)
                for node in reversed(group.nodes):
                    yield node, read[node], self.map_gradient(node, stop, later[node - first])
            if self.weighted and group.earlier is not None:
                products = group.earlier.pick(self.table.inner_products(first, stop))
                self.grad_weights[group.earlier.numbers] = products.to(self.weights.dtype)

    def finish(self, node: int, grad: Tensor, read: Tensor) -> None:
        """Replace the map of ``node`` by the gradient of its sum, 0 where ``read`` is 0."""
        sources = self._sources(node, self._near)
        self._set(node, self.table.replace_by_gradient(node, grad, read, sources))

    def map_gradient(
        self, node: int, stop: int | None = None, later: Tensor | None = None
    ) -> Tensor | None:
        """The gradient of the map of ``node``: a sum over its readers.

        Args:
            node: From 0 on; its readers are finished.
            stop: Readers from ``stop`` on are in ``later``.
            later: Their sum; None: they are added up here.
        """
        skip = self.skipped if node == 0 else 0
        weights = self.out_weights[self.starts[node] + skip : self.starts[node + 1]]
        readers, extra = self.wiring.succs(node)[skip:], []
        if readers and readers[-1] == self.last:
            readers, extra = readers[:-1], [self.grad_output]
        if later is not None:
            near = bisect_left(readers, stop)
            weights = torch.cat([weights[:near], self.one, weights[len(readers) :]])
            readers, extra = readers[:near], [later, *extra]
        return self.table.sum(readers, weights, extra) if readers or extra else None

    def _sources(self, node: int, first: int) -> tuple[int, ...]:
        """Sources of ``node`` from ``first`` on, if gradients of weights are wanted."""
        preds = self.wiring.preds(node)
        return preds[bisect_left(preds, first) :] if self.weighted else ()

    def _set(self, node: int, products: Tensor) -> None:
        """Gradients of the last in-edges of ``node``."""
        stop = self.wiring.in_edges[node][1]
        self.grad_weights[stop - len(products) : stop] = products


@lru_cache(maxsize=256)
def _edges_by_source(wiring: Wiring, device: torch.device) -> tuple[Tensor, list[int]]:
    """Edges sorted by source, then target; and the first edge of each source."""
    order = sorted(range(wiring.num_edges), key=lambda e: wiring.edges[e])
    with torch.inference_mode(False):
        order = torch.tensor(order, device=device)
    return order, [0, *itertools.accumulate(wiring.out_degrees)]
