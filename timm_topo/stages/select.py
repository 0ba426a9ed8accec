"""Smaller stages: with only some of the edges, or only what one node reads."""

from collections.abc import Sequence

from ..wiring import Wiring
from .offset import Offset, TakesOffsets
from .stage import Stage

__all__ = ['select_edges', 'until_node']


def select_edges(stage: Stage, edges: Sequence[int]) -> Stage:
    """A stage with only some edges, and without the nodes that are dead then.

    Modules are shared with ``stage``; the edge weights are copies.

    Args:
        stage: A stage; left as it is.
        edges: Indices into ``stage.wiring.edges``.

    Raises:
        ValueError: The edges leave no path from input to output.
    """
    wiring = stage.wiring
    return _on(stage, *wiring.subgraph(wiring.edges[edge] for edge in edges).prune())


def until_node(stage: Stage, node: int) -> Stage:
    """The part of a graph that ``node`` reads, directly or not, with ``node`` as its output.

    Modules are shared with ``stage``; the edge weights are copies.
    """
    edges = tuple(edge for edge in stage.wiring.edges if edge[1] <= node)
    return _on(stage, *Wiring(node + 1, edges).prune())


def _on(stage: Stage, wiring: Wiring, kept: Sequence[int]) -> Stage:
    """``stage`` on a wiring whose nodes are the nodes ``kept``, with their constants."""
    index = {edge: e for e, edge in enumerate(stage.wiring.edges)}
    edges = [index[kept[source], kept[target]] for source, target in wiring.edges]
    smaller = stage.rebuild(wiring, stage.connectivity.select(wiring, edges), kept)
    smaller.grad_checkpointing = stage.grad_checkpointing
    if isinstance(stage, TakesOffsets):
        for node, old in enumerate(kept[1:], start=1):
            offset = stage.offset(old)
            if isinstance(offset, Offset):
                smaller.set_offset(node, offset.value.clone())
    return smaller if stage.training else smaller.eval()  # modules may have modes of their own
