"""The executor: one wiring at one resolution (TopoNet, section 3.1 and Algorithm 1)."""

from collections.abc import Sequence
from typing import List

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..connectivity import Connectivity
from ..wiring import Wiring
from .aggregate import aggregate

__all__ = ['GraphStage']

torch.fx.wrap('aggregate')  # a leaf for symbolic tracing: it looks at shapes


class GraphStage(nn.Module):
    """x_0 = entry(x);  x_j = node_j(sum_i a_ij x_i);  output = sum_i a_i x_i.

    Args:
        wiring: N nodes without dead ones.
        connectivity: The rule that weighs the edges of ``wiring``.
        entry: Stage input -> x_0; resizes and projects.
        nodes: The N - 2 computing nodes in order. Each receives a map of its own, which it may
            overwrite.

    Raises:
        ValueError: Dead nodes in the wiring, or a number of nodes or edges that does not fit it.
    """

    preds: List[List[int]]

    def __init__(
        self,
        wiring: Wiring,
        connectivity: Connectivity,
        entry: nn.Module,
        nodes: Sequence[nn.Module],
    ):
        super().__init__()
        dead = wiring.dead_nodes()
        if dead:
            raise ValueError(f'nodes {list(dead)} of {wiring} are dead; remove them with prune()')
        if len(nodes) != wiring.num_nodes - 2:
            raise ValueError(
                f'{wiring} has {wiring.num_nodes - 2} computing nodes, got {len(nodes)}'
            )
        if connectivity.wiring != wiring:
            raise ValueError(f'the connectivity was built for a wiring other than {wiring}')
        self.wiring = wiring
        self.preds = [list(wiring.preds(node)) for node in range(wiring.num_nodes)]
        self.needs_context = connectivity.needs_context
        self.grad_checkpointing = False
        self.entry = entry
        self.nodes = nn.ModuleList(nodes)
        self.connectivity = connectivity

    def forward(self, x: Tensor) -> Tensor:
        """Stage input ``(B, C_in, H_in, W_in)`` -> stage output ``(B, C, H, W)``."""
        if not torch.jit.is_scripting():
            if self.grad_checkpointing and torch.is_grad_enabled() and not torch.jit.is_tracing():
                return checkpoint(self.run, x, use_reentrant=False)
        return self.run(x)

    @torch.jit.unused
    def select(self, edges: Sequence[int]) -> 'GraphStage':
        """A stage with only some edges, and without the nodes that are dead then.

        Modules are shared with this stage; the edge weights are copies.

        Args:
            edges: Indices into ``wiring.edges``.

        Raises:
            ValueError: The edges leave no path from input to output.
        """
        wiring, kept = self.wiring.subgraph(self.wiring.edges[e] for e in edges).prune()
        index = {edge: e for e, edge in enumerate(self.wiring.edges)}
        stage = GraphStage(
            wiring,
            self.connectivity.select(wiring, [index[kept[s], kept[t]] for s, t in wiring.edges]),
            self.entry,
            [self.nodes[node - 1] for node in kept[1:-1]],
        )
        stage.grad_checkpointing = self.grad_checkpointing
        return stage.train(self.training)

    def run(self, x: Tensor) -> Tensor:
        """The equation, without activation checkpointing."""
        features = [self.entry(x)]
        pooled = self.pool(features, [])
        for i, node in enumerate(self.nodes):
            features.append(node(self.gather(features, pooled, i + 1)))
            pooled = self.pool(features, pooled)
        return self.gather(features, pooled, len(self.nodes) + 1)

    def gather(self, features: List[Tensor], pooled: List[Tensor], node: int) -> Tensor:
        """Input of ``node``: the weighted sum of its predecessors' features."""
        inputs = [features[source] for source in self.preds[node]]
        if self.needs_context:
            context = torch.stack([pooled[source] for source in self.preds[node]], 1)
            return aggregate(inputs, self.connectivity(node, context))
        return aggregate(inputs, self.connectivity(node))

    def pool(self, features: List[Tensor], pooled: List[Tensor]) -> List[Tensor]:
        """Append the spatial mean ``(B, C)`` of the newest map, if the rule asks for it."""
        if self.needs_context:
            pooled.append(features[-1].mean((2, 3)))
        return pooled
