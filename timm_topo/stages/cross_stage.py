"""One wiring over several resolutions (Janik & Nowak, section 3 and Fig. 1)."""

from collections.abc import Mapping, Sequence
from operator import lt

from torch import nn

from ..connectivity import Connectivity
from ..wiring import Wiring
from .graph_stage import GraphStage

__all__ = ['CrossStageGraph', 'jumps']


def jumps(
    wiring: Wiring, levels: Sequence[int], reads: Sequence[int] | None = None
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
    """x_j = node_j(c_j + sum_i a_ij T_i(x_i)), T_i from the level of x_i to the level of node j.

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

    Attributes:
        jumps: (source node, later level) of each transition.
        places: Place of each map among the maps of a pass, by node and level.

    Raises:
        ValueError: As for :class:`GraphStage`; levels or transitions that do not fit the wiring; a
            rule that needs the features of the image.
    """

    def __init__(
        self,
        wiring: Wiring,
        connectivity: Connectivity,
        entry: nn.Module,
        nodes: Sequence[nn.Module],
        levels: Sequence[int],
        transitions: Mapping[tuple[int, int], nn.Module],
        node_ids: Sequence[int] | None = None,
        level_sizes: Sequence[int] | None = None,
        reads: Sequence[int] | None = None,
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
        self.jumps = pairs
        self.transitions = nn.ModuleList(transitions[pair] for pair in pairs)
        self.transitions_of = [
            [k for k, (source, _) in enumerate(pairs) if source == node]
            for node in range(wiring.num_nodes)
        ]
        self.places = {}  # among the maps, by node and level
        for node, level in enumerate(levels):
            self.places[node, level] = len(self.places)
            for k in self.transitions_of[node]:
                self.places[pairs[k]] = len(self.places)
        self.map_index = tuple(
            tuple(self.places[source, reads[node]] for source in wiring.preds(node))
            for node in range(wiring.num_nodes)
        )

    def rebuild(
        self, wiring: Wiring, connectivity: Connectivity, kept: Sequence[int]
    ) -> 'CrossStageGraph':
        levels, reads = ([of[node] for node in kept] for of in (self.levels, self.reads))
        by_jump = dict(zip(self.jumps, self.transitions))
        return CrossStageGraph(
            wiring,
            connectivity,
            self.entry,
            [self.nodes[node - 1] for node in kept[1:-1]],
            levels,
            {
                (source, level): by_jump[kept[source], level]
                for source, level in jumps(wiring, levels, reads)
            },
            node_ids=[self.node_ids[node] for node in kept],
            level_sizes=self.level_sizes[: levels[-1] + 1],
            reads=reads,
        )
