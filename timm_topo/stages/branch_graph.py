"""Blocks of parallel branches, where each branch reads some of those before (MaskConnect)."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import torch
from torch import Tensor, nn

from ..connectivity import Connectivity, all_weights
from ..wiring import Wiring
from .stage import Stage, checkpointed

__all__ = ['BranchGraph', 'layered']


def layered(sizes: Sequence[int]) -> Wiring:
    """Layers of nodes, each of which reads all nodes of the layer before.

    Args:
        sizes: Nodes per layer between input and output.

    >>> layered([2, 2]).edges
    ((0, 1), (0, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 5), (4, 5))
    """
    stops = list(accumulate([1, *sizes, 1]))
    layers = [range(stop - size, stop) for size, stop in zip([1, *sizes, 1], stops)]
    edges = [(s, t) for k in range(1, len(layers)) for t in layers[k] for s in layers[k - 1]]
    return Wiring(stops[-1], tuple(edges))


class BranchGraph(Stage):
    """A graph whose nodes are the branches of blocks, each reading branches of the block before.

    A block's branches run at once, as grouped convolutions, and what the branches of the next one
    read is a product with the matrix of edge weights per block (one over branches, one over their
    shortcuts), not a sum per node. The last
    node reads the branches of the last block.

    Activation checkpointing is per block. Surgery copies the blocks.

    Args:
        wiring: Node 0, then the branches block by block, then the output; without dead nodes and
            with edges only from one block to the next.
        connectivity: The rule that weighs the edges; weights that depend on the image are not
            supported.
        entry: Graph input -> x_0, which the first block reads.
        nodes: The blocks, :class:`timm_topo.nodes.BranchBlock`.
        block_levels: Level of each block, ascending from 0; by default all 0.
        node_ids: Ids the N nodes had before pruning; by default ``0 .. N - 1``.
        level_sizes: Nodes per level before pruning; by default those there are.

    Raises:
        ValueError: As for :class:`Stage`; an edge that skips a block; a rule that needs the
            features of the image.
    """

    def __init__(
        self,
        wiring: Wiring,
        connectivity: Connectivity,
        entry: nn.Module,
        nodes: Sequence[nn.Module],
        block_levels: Sequence[int] | None = None,
        node_ids: Sequence[int] | None = None,
        level_sizes: Sequence[int] | None = None,
    ):
        if connectivity.needs_context:
            raise ValueError(
                f'{type(connectivity).__name__} reads the features of the image, which have '
                'several widths in a graph over several resolutions; use a static rule'
            )
        sizes = [1, *(block.branches for block in nodes), 1]
        super().__init__(wiring, connectivity, entry, nodes, sum(sizes) - 2, node_ids)
        self.by_node = True
        self.stops = list(accumulate(sizes))
        layer = [k for k, size in enumerate(sizes) for _ in range(size)]
        skipping = [edge for edge in wiring.edges if layer[edge[1]] != layer[edge[0]] + 1]
        if skipping:
            raise ValueError(f'edges lead from a block to the next, not {skipping[0]}')
        self.block_levels = [0] * len(nodes) if block_levels is None else list(block_levels)
        in_order = sorted(self.block_levels) == self.block_levels and self.block_levels[0] == 0
        if len(self.block_levels) != len(nodes) or not in_order:
            raise ValueError(
                f'{len(nodes)} blocks need a level each, ascending from 0: {block_levels}'
            )
        by_layer = [self.block_levels[0], *self.block_levels, self.block_levels[-1]]
        self.levels = [by_layer[k] for k in layer]
        counts = [self.levels.count(level) for level in range(self.levels[-1] + 1)]
        self.level_sizes = list(counts if level_sizes is None else level_sizes)
        device = next(iter(connectivity.state_dict().values())).device
        self.fan_out, *later = (
            EdgeMatrix(
                wiring,
                range(stop - size - before, stop - size),
                range(stop - size, stop),
                device,
            )
            for before, size, stop in zip(sizes, sizes[1:], self.stops[1:])
        )
        self.matrices = nn.ModuleList(later)

    def run(
        self, x: Tensor, levels: Sequence[int] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The equation, block by block; of the maps only those at the ends of ``levels``.

        The map of a level is the mean of what the branches of the next block read; of the last
        level of all, the graph output.

        Args:
            x: Graph input.
            levels: Ascending, by default the last; blocks after the last of them do not run.

        Returns:
            A map per level, and the weights as for :meth:`Stage.run`.
        """
        weights = all_weights(self.connectivity)
        levels, taken = levels or [self.block_levels[-1]], []
        x = self.entry(x)
        x = x[:, None] * self.fan_out(weights).to(x.dtype)[:, :, None, None]
        for k, (block, matrix) in enumerate(zip(self.nodes, self.matrices)):
            level = self.block_levels[k]
            if level <= levels[-1]:
                x = checkpointed(self, _through, block, x, matrix(weights))
                ends = k + 1 == len(self.block_levels) or self.block_levels[k + 1] > level
                if ends and level in levels:
                    taken.append(x.mean(1))
        return taken, [weights[start:stop] for start, stop in self.wiring.in_edges[1:]]

    def cut(self, level: int) -> None:
        """Drop the blocks after ``level``, in place: its feature is the graph output then.

        Wiring and rule stay those of the whole graph, which can no longer be pruned.
        """
        count = sum(at <= level for at in self.block_levels)
        self.nodes, self.matrices = self.nodes[:count], self.matrices[:count]
        self.block_levels = self.block_levels[:count]

    def edge_macs(self) -> list[Fraction]:
        return [
            Fraction(self.fan_out.num_edges, self.fan_out.rows),
            *(2 * Fraction(matrix.num_edges, matrix.rows) for matrix in self.matrices),
        ]

    def rebuild(
        self, wiring: Wiring, connectivity: Connectivity, kept: Sequence[int]
    ) -> 'BranchGraph':
        if len(self.nodes) != len(self.stops) - 2:
            raise RuntimeError('a graph that was cut off keeps its edges: prune it before')
        starts = zip(self.stops, self.stops[1:-1])
        return BranchGraph(
            wiring,
            connectivity,
            self.entry,
            [
                block.select([node - start for node in kept if start <= node < stop])
                for block, (start, stop) in zip(self.nodes, starts)
            ],
            self.block_levels,
            node_ids=[self.node_ids[node] for node in kept],
            level_sizes=self.level_sizes,
        )


def _through(block: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """What the branches of the next block read, from what the branches of ``block`` read."""
    inner, beside = block(x)
    return block.mix(inner, beside, weights)


class EdgeMatrix(nn.Module):
    """The weights of all edges between two layers as a matrix, 0 where there is no edge.

    Args:
        wiring: The wiring.
        sources: Nodes of the layer that is read.
        targets: Nodes of the layer that reads.
        device: Where its index lives.
    """

    def __init__(
        self, wiring: Wiring, sources: range, targets: range, device: torch.device | None = None
    ):
        super().__init__()
        self.rows, self.columns = len(targets), len(sources)
        self.start, self.stop = wiring.in_edges[targets[0]][0], wiring.in_edges[targets[-1]][1]
        self.num_edges = self.stop - self.start
        self.complete = self.num_edges == self.rows * self.columns
        own = {edge: k for k, edge in enumerate(wiring.edges[self.start : self.stop])}
        self.places = [[own.get((s, t), self.num_edges) for s in sources] for t in targets]
        places = torch.empty(self.rows, self.columns, dtype=torch.long, device=device)
        self.register_buffer('index', None if self.complete else places, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the buffer that follows from the wiring."""
        if self.index is not None:
            self.index.copy_(torch.tensor(self.places))

    def forward(self, weights: Tensor) -> Tensor:
        """``(E,)`` -> ``(targets, sources)``."""
        own = weights[self.start : self.stop]
        index = self.index
        if index is None:
            return own.view(self.rows, self.columns)
        return torch.cat([own, own.new_zeros(1)])[index]
