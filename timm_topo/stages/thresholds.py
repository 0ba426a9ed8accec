"""Weights of in-edges, node by node; edges below their threshold are closed (DG-Net, Eq. 5)."""

from typing import NamedTuple

import torch
from torch import Tensor

from .executor import is_eager
from .stage import Stage

__all__ = ['InEdgeWeights', 'InEdges', 'closing_thresholds']


class InEdges(NamedTuple):
    """The in-edges of one node in one pass.

    Attributes:
        weights: ``(in_degree,)``, or ``(B, in_degree)`` with closed edges at 0.
        is_open: Which edges are open, booleans ``(B, in_degree)``; None where none can close.
    """

    weights: Tensor
    is_open: Tensor | None = None


class InEdgeWeights:
    """The in-edge weights of a stage in one pass: a rule's answers, closed where it says so.

    In evaluation, a rule with ``thresholds()`` closes edges per image: a_ij = 0 where it is below
    the threshold of its edge or where x_i was not computed. x_j is not computed for an image if
    all of its in-edges are closed. (The paper also leaves out nodes whose out-edges are all
    closed, but their weights are only known from x_j.) The output keeps its strongest edge from a
    node that was computed, so that no threshold cuts a stage with an edge (0, N-1) in two (ours);
    without that edge, an image for which no node before the output was computed gets a sum of 0.
    The output for an image does not depend on the other images of its batch, but for rounding,
    which may close an edge that is at its threshold.
    """

    def __init__(self, stage: Stage):
        self.rule, self.wiring = stage.connectivity, stage.wiring
        self.thresholds = closing_thresholds(stage)
        self.pooled: list[Tensor] = []  # g_i, (B, C), by node
        self.computed: list[Tensor] = []  # booleans (B,), by node

    def into(self, node: int, maps: list[Tensor]) -> InEdges:
        """The in-edges of ``node``; ask for the nodes in ascending order, each once.

        Args:
            node: From 1 on.
            maps: Of the nodes before it. Rules that read features need one map per node.
        """
        if not self.rule.needs_context:
            return InEdges(self.rule(node))
        self.pooled += [_pooled(x_i, self.rule.activated) for x_i in maps[len(self.pooled) :]]
        sources = self.wiring.preds(node)
        weights = self.rule(node, torch.stack([self.pooled[i] for i in sources], 1))
        return InEdges(weights) if self.thresholds is None else self._close(node, weights, maps)

    def _close(self, node: int, weights: Tensor, maps: list[Tensor]) -> InEdges:
        if node == 1:
            self.computed.append(maps[0].new_ones(maps[0].shape[:1], dtype=torch.bool))
        start, stop = self.wiring.in_edges[node]
        sources = [self.computed[i] for i in self.wiring.preds(node)]
        last = node == self.wiring.num_nodes - 1
        weights, is_open, computed = _closed(weights, self.thresholds[start:stop], sources, last)
        self.computed.append(computed)
        return InEdges(weights, is_open)


def _pooled(x: Tensor, activated: bool) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, C)``."""
    return (x.relu() if activated else x).mean((2, 3))


def _closed(
    weights: Tensor, thresholds: Tensor, sources: list[Tensor], last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the in-edges of a node ``(B, in_degree)``, which are open, and for which images.

    Args:
        weights: As a rule gives them, ``(B, in_degree)``.
        thresholds: ``(in_degree,)``.
        sources: For which images the sources were computed, booleans ``(B,)``.
        last: Whether the node is the output.
    """
    computed = torch.stack(sources, 1)
    is_open = (weights >= thresholds) & computed
    if last:
        strongest = weights.masked_fill(~computed, -1.0).argmax(1, keepdim=True)
        edges = torch.ones_like(weights, dtype=torch.long).cumsum(1) - 1  # 0, 1, 2...
        strongest = (edges == strongest) & computed
        is_open = is_open | (strongest & (is_open.sum(1, keepdim=True) == 0))
    weights = torch.where(is_open, weights, torch.zeros_like(weights))
    return weights, is_open, is_open.sum(1) > 0  # onnxruntime infers no shape of any()


# Leaves for symbolic tracing: quantized maps have no such mean, and nobody observes booleans.
torch.fx.wrap('_pooled')
torch.fx.wrap('_closed')


def closing_thresholds(stage: Stage) -> Tensor | None:
    """Thresholds ``(E,)`` below which edges close now; None if none can."""
    if not stage.needs_context or stage.connectivity.training:
        return None
    thresholds = stage.connectivity.thresholds()
    if thresholds is None or (is_eager(thresholds) and not thresholds.any()):
        return None
    return thresholds
