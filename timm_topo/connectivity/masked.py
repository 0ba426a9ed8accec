"""A rule with some edges taken as absent: what damage and pruning compare with."""

from torch import Tensor

from .base import Connectivity, all_weights

__all__ = ['MaskedEdges']


class MaskedEdges(Connectivity):
    """a_ji of another rule where edges are kept, else 0.

    Args:
        rule: The rule.
        keep: Booleans ``(E,)``.

    Raises:
        ValueError: Another number of booleans than edges.
    """

    def __init__(self, rule: Connectivity, keep: Tensor):
        super().__init__(rule.wiring)
        if keep.shape != (rule.num_edges,):
            raise ValueError(
                f'keep must be ({rule.num_edges},) for {rule.wiring}, got {tuple(keep.shape)}'
            )
        self.rule, self.keep = rule, keep
        self.needs_context = rule.needs_context
        self.training = rule.training

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        start, stop = self.wiring.in_edges[node]
        weights = self.rule(node) if context is None else self.rule(node, context)
        return weights * self.keep[start:stop].to(weights)

    def pass_weights(self) -> Tensor:
        weights = all_weights(self.rule)
        return weights * self.keep.to(weights)

    def edge_weights(self) -> Tensor:
        weights = self.rule.edge_weights()
        return weights * self.keep.to(weights)

    def thresholds(self) -> Tensor | None:
        return self.rule.thresholds()

    def reset_parameters(self) -> None:
        self.rule.reset_parameters()
