"""One wiring over several resolutions (Janik & Nowak, section 3 and Fig. 1)."""

from collections.abc import Mapping, Sequence
from operator import lt
from typing import List, Optional

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..connectivity import Connectivity
from ..wiring import Wiring
from .graph_stage import GraphStage

__all__ = ['CrossStageGraph', 'jumps']


def jumps(
    wiring: Wiring, levels: Sequence[int], reads: Optional[Sequence[int]] = None
) -> list[tuple[int, int]]:
    """Pairs (source node, later level that it feeds), sorted: the transitions a graph needs.

    Args:
        wiring: N nodes.
        levels: Level of each node.
        reads: Level at which each node reads; by default its own.

    >>> jumps(Wiring(4, ((0, 1), (0, 2), (0, 3), (1, 3))), (0, 0, 1, 1))
    [(0, 1), (1, 1)]
    """
    reads = levels if reads is None else reads
    return sorted({(s, reads[t]) for s, t in wiring.edges if reads[t] > levels[s]})


class CrossStageGraph(GraphStage):
    """x_j = node_j(sum_i a_ij T_i(x_i)), where T_i takes x_i to the level at which node j reads.

    Within a level T_i is the identity. A node has one transition per later level that it feeds,
    whatever number of edges lead there.

    Activation checkpointing is per node and transition: what is between them is computed anew.

    Args:
        wiring: N nodes without dead ones.
        connectivity: The rule that weighs the edges; weights that depend on the image are not
            supported.
        entry: Graph input -> x_0.
        nodes: The N - 2 computing nodes, as for :class:`GraphStage`.
        levels: Level of each of the N nodes, ascending from 0.
        transitions: Module by (source node, later level), one for each of :func:`jumps`.
        reads: Level at which each node reads, where a node itself goes to its own; by default
            nodes read at their own.
        node_ids: Ids the N nodes had before pruning; by default ``0 .. N - 1``.
        level_sizes: Nodes per level before pruning; by default those there are.

    Raises:
        ValueError: As for :class:`GraphStage`; levels or transitions that do not fit the wiring; a
            rule that needs the features of the image.
    """

    preds: List[List[int]]  # TorchScript inherits no annotations
    slots: List[List[int]]
    jump_from: List[int]

    def __init__(
        self,
        wiring: Wiring,
        connectivity: Connectivity,
        entry: nn.Module,
        nodes: Sequence[nn.Module],
        levels: Sequence[int],
        transitions: Mapping[tuple[int, int], nn.Module],
        node_ids: Optional[Sequence[int]] = None,
        level_sizes: Optional[Sequence[int]] = None,
        reads: Optional[Sequence[int]] = None,
    ):
        if connectivity.needs_context:
            raise ValueError(
                f'{type(connectivity).__name__} reads the features of the image, which have '
                'several widths in a graph over several resolutions; use a static rule'
            )
        if len(levels) != wiring.num_nodes or sorted(levels) != list(levels) or levels[0] != 0:
            raise ValueError(f'{wiring} needs a level per node, ascending from 0, got {levels}')
        reads = list(levels if reads is None else reads)
        late = [e for e in wiring.edges if not levels[e[0]] <= reads[e[1]] <= levels[e[1]]]
        if len(reads) != wiring.num_nodes or late:
            raise ValueError(f'nodes at levels {list(levels)} cannot read at {reads}: {late[:1]}')
        pairs = jumps(wiring, levels, reads)
        if sorted(transitions) != pairs:
            odd = sorted(set(pairs) ^ set(transitions))[0]
            raise ValueError(f'transition {odd} (node, level) is missing, or nothing passes it')
        super().__init__(wiring, connectivity, entry, nodes, node_ids=node_ids)
        self.by_node = True
        self.levels, self.reads = list(levels), reads
        counts = [self.levels.count(level) for level in range(levels[-1] + 1)]
        self.level_sizes = list(counts if level_sizes is None else level_sizes)
        if len(self.level_sizes) != len(counts) or any(map(lt, self.level_sizes, counts)):
            raise ValueError(f'levels of {counts} nodes had {self.level_sizes} before pruning')
        self.transitions = nn.ModuleList(transitions[pair] for pair in pairs)
        self.jump_from = [source for source, _ in pairs]
        self.jump_to = [level for _, level in pairs]
        at = {}  # position among the maps, by node and level
        for node, level in enumerate(levels[:-1]):
            at[node, level] = len(at)
            for source, later in pairs:
                if source == node:
                    at[node, later] = len(at)
        self.own = [at[node, level] for node, level in enumerate(levels[:-1])]
        self.slots = [[at[s, reads[t]] for s in self.preds[t]] for t in range(wiring.num_nodes)]

    def offer(self, node: int, feature: Tensor, maps: List[Tensor]) -> List[Tensor]:
        """Append the map of ``node``, then what its transitions make of it."""
        maps.append(feature)
        for k, transition in enumerate(self.transitions):
            if self.jump_from[k] == node:
                if not torch.jit.is_scripting() and self.recomputes():
                    maps.append(checkpoint(transition, feature, use_reentrant=False))
                else:
                    maps.append(transition(feature))
        return maps

    @torch.jit.unused
    def until(self, node: int) -> 'CrossStageGraph':
        """The graph of what ``node`` reads, directly or not, with that node as its output.

        Modules are shared with this graph; the edge weights are copies.
        """
        edges = tuple(edge for edge in self.wiring.edges if edge[1] <= node)
        return self._keep(*Wiring(node + 1, edges).prune())

    @torch.jit.unused
    def _with(self, wiring: Wiring, rule: Connectivity, kept: Sequence[int]) -> 'CrossStageGraph':
        levels, reads = ([of[node] for node in kept] for of in (self.levels, self.reads))
        by_pair = dict(zip(zip(self.jump_from, self.jump_to), self.transitions))
        return CrossStageGraph(
            wiring,
            rule,
            self.entry,
            [self.nodes[node - 1] for node in kept[1:-1]],
            levels,
            {pair: by_pair[kept[pair[0]], pair[1]] for pair in jumps(wiring, levels, reads)},
            node_ids=[self.node_ids[node] for node in kept],
            level_sizes=self.level_sizes[: levels[-1] + 1],
            reads=reads,
        )
