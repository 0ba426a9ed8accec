"""The equation: one wiring at one resolution (TopoNet, section 3.1 and Algorithm 1)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..connectivity import Connectivity
from ..wiring import Wiring
from .aggregate import aggregate
from .offset import TakesOffsets
from .stage import Stage, checkpointed
from .thresholds import InEdges, InEdgeWeights

__all__ = ['GraphStage', 'node_step']

torch.fx.wrap('aggregate')  # a leaf for symbolic tracing: it looks at shapes


def node_step(stage: 'GraphStage', node: int, inputs: list[Tensor], into: InEdges) -> Tensor:
    """x_j = node_j(c_j + sum_i a_ij x_i), and the last node without an operation."""
    total = stage.offset(node)(aggregate(inputs, into.weights))
    return total if node == stage.wiring.num_nodes - 1 else stage.nodes[node - 1](total)


class GraphStage(TakesOffsets, Stage):
    """x_0 = entry(x);  x_j = node_j(c_j + sum_i a_ij x_i);  output = c + sum_i a_i x_i.

    The constants c are 0 but in pruned networks (:class:`TakesOffsets`). With
    ``first_reads_input``, node 1 reads the stage input itself, x_1 = node_1(a_01 x): the first
    block of a residual stage, which resizes and projects like the shortcut beside it (here the
    entry). In evaluation, a rule with ``thresholds()`` closes edges per image
    (:class:`InEdgeWeights`).

    Args:
        wiring: N nodes without dead ones.
        connectivity: The rule that weighs the edges of ``wiring``.
        entry: Stage input -> x_0; resizes and projects. Not kept where no node reads x_0.
        nodes: The N - 2 computing nodes in order. Each receives a map of its own, which it may
            overwrite.
        first_reads_input: Whether node 1 reads the stage input instead of x_0.
        node_ids: Ids the N nodes had before pruning; by default ``0 .. N - 1``.
        whole_blocks: Whether nodes have shortcuts of their own: where one is taken out, what it
            read goes on in its place.

    Attributes:
        map_index: For each node, the places of what it reads among the maps.
        transitions: Modules that take maps to later levels; none at one resolution.

    Raises:
        ValueError: Dead nodes in the wiring, or a number of nodes, edges or ids that does not fit.
    """

    def __init__(
        self,
        wiring: Wiring,
        connectivity: Connectivity,
        entry: nn.Module,
        nodes: Sequence[nn.Module],
        first_reads_input: bool = False,
        node_ids: Sequence[int] | None = None,
        whole_blocks: bool = False,
    ):
        if first_reads_input and not nodes:
            raise ValueError(f'{wiring} has no computing node that could read the stage input')
        super().__init__(wiring, connectivity, entry, nodes, len(nodes), node_ids)
        self.first_reads_input, self.whole_blocks = first_reads_input, whole_blocks
        if self.entry_is_unread and not connectivity.needs_context:
            self.entry = nn.Identity()
        self.map_index = tuple(wiring.preds(node) for node in range(wiring.num_nodes))
        self.transitions = nn.ModuleList()
        self.transitions_of: list[list[int]] = [[] for _ in range(wiring.num_nodes)]
        self.clear_offsets()

    @property
    def entry_is_unread(self) -> bool:
        """Whether no node reads x_0."""
        return self.first_reads_input and self.wiring.succs(0) == (1,)

    def run(
        self, x: Tensor, step: Callable[..., Tensor] = node_step
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The equation; see :meth:`Stage.run`.

        Args:
            x: Stage input.
            step: What computes the map of one node.
        """
        return self.propagate(x, self.entry(x), step)

    def propagate(
        self, x: Tensor, x_0: Tensor, step: Callable[..., Tensor] = node_step
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The equation from x_0 on."""
        if self.by_node:
            step = partial(checkpointed, self, step)
        edges, maps, weights = InEdgeWeights(self), self.spread(0, x_0), []
        for node in range(1, self.wiring.num_nodes):
            into = edges.into(node, maps)
            x_j = step(self, node, self.inputs(node, x, maps), into)
            maps += self.spread(node, x_j)
            weights.append(into.weights)
        return maps, weights

    def inputs(self, node: int, x: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """The maps that ``node`` reads, in the order of its in-edges."""
        if self.first_reads_input and node == 1:
            return [x]
        return [maps[index] for index in self.map_index[node]]

    def spread(self, node: int, x_j: Tensor) -> list[Tensor]:
        """The map of ``node``, followed by its transitions to later levels."""
        later = self.transitions_of[node]
        return [x_j, *(checkpointed(self, self.transitions[k], x_j) for k in later)]

    def edge_macs(self) -> list[int]:
        return list(self.wiring.in_degrees[1:])

    def rebuild(
        self, wiring: Wiring, connectivity: Connectivity, kept: Sequence[int]
    ) -> 'GraphStage':
        return GraphStage(
            wiring,
            connectivity,
            self.entry,
            [self.nodes[node - 1] for node in kept[1:-1]],
            first_reads_input=self.first_reads_input and kept[1] == 1,
            node_ids=[self.node_ids[node] for node in kept],
            whole_blocks=self.whole_blocks,
        )
