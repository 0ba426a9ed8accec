"""The executor: one wiring at one resolution (TopoNet, section 3.1 and Algorithm 1)."""

from collections.abc import Sequence
from typing import List, Optional

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..connectivity import Connectivity
from ..wiring import Wiring
from .aggregate import aggregate

__all__ = ['GraphStage', 'graph_stages']

torch.fx.wrap('aggregate')  # a leaf for symbolic tracing: it looks at shapes


class GraphStage(nn.Module):
    """x_0 = entry(x);  x_j = node_j(sum_i a_ij x_i);  output = sum_i a_i x_i.

    With ``raw_entry``, node 1 reads the stage input itself, x_1 = node_1(a_01 x): the first block
    of a residual stage, which resizes and projects like the shortcut beside it (here the entry).

    Args:
        wiring: N nodes without dead ones.
        connectivity: The rule that weighs the edges of ``wiring``.
        entry: Stage input -> x_0; resizes and projects. Not kept where nobody reads x_0.
        nodes: The N - 2 computing nodes in order. Each receives a map of its own, which it may
            overwrite.
        raw_entry: Whether node 1 reads the stage input instead of x_0.
        node_ids: Ids the N nodes had before pruning; by default ``0 .. N - 1``.

    Raises:
        ValueError: Dead nodes in the wiring, or a number of nodes, edges or ids that does not fit.
    """

    preds: List[List[int]]

    def __init__(
        self,
        wiring: Wiring,
        connectivity: Connectivity,
        entry: nn.Module,
        nodes: Sequence[nn.Module],
        raw_entry: bool = False,
        node_ids: Optional[Sequence[int]] = None,
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
        self.node_ids = list(range(wiring.num_nodes) if node_ids is None else node_ids)
        if len(self.node_ids) != wiring.num_nodes or sorted({0, *self.node_ids}) != self.node_ids:
            raise ValueError(f'{wiring} needs as many node ids, ascending from 0, got {node_ids}')
        if raw_entry and not nodes:
            raise ValueError(f'{wiring} has no computing node that could read the stage input')
        self.wiring = wiring
        self.raw_entry = raw_entry
        self.preds = [list(wiring.preds(node)) for node in range(wiring.num_nodes)]
        self.needs_context = connectivity.needs_context
        self.grad_checkpointing = False
        unread = raw_entry and wiring.succs(0) == (1,) and not connectivity.needs_context
        self.entry = nn.Identity() if unread else entry
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
            raw_entry=self.raw_entry and kept[1] == 1,
            node_ids=[self.node_ids[node] for node in kept],
        )
        stage.grad_checkpointing = self.grad_checkpointing
        return stage.train(self.training)

    def run(self, x: Tensor) -> Tensor:
        """The equation, without activation checkpointing."""
        features = [self.entry(x)]
        pooled = self.pool(features, [])
        for i, node in enumerate(self.nodes):
            sources = [x] if self.raw_entry and i == 0 else features
            features.append(node(self.gather(sources, pooled, i + 1)))
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


def graph_stages(model: nn.Module) -> dict[str, GraphStage]:
    """The graph stages of a model by module name.

    Raises:
        ValueError: There is none.
    """
    stages = {n: module for n, module in model.named_modules() if isinstance(module, GraphStage)}
    if not stages:
        raise ValueError(f'{type(model).__name__} has no graph stage')
    return stages
