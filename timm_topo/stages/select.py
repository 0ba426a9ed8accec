"""Smaller stages: with only some of the edges, or only what one node reads."""

from collections.abc import Sequence

from ..wiring import Wiring
from .offset import Offset, TakesOffsets
from .stage import Stage

__all__ = ['select_edges', 'until_node', 'without_node']


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


def without_node(stage: Stage, node: int) -> Stage:
    """A stage without one of its computing nodes.

    Where nodes are branches, the node's edges go. Where they are whole blocks, its readers read
    what it read: the weight of a new edge is the product along the way.

    Modules are shared with ``stage``; the edge weights are copies.

    Raises:
        ValueError: ``node`` is no computing node; without it there is no path from input to
            output; or the rule cannot be told the weights of new edges.
    """
    last = stage.wiring.num_nodes - 1
    if not 0 < node < last:
        raise ValueError(f'{stage.wiring} has the computing nodes 1 to {last - 1}, got {node}')
    edges = stage.wiring.edges
    if not getattr(stage, 'whole_blocks', False):
        return select_edges(stage, [e for e, edge in enumerate(edges) if node not in edge])
    if stage.needs_context:
        raise ValueError('edge weights that depend on the image have no product along the way')
    if isinstance(stage.offset(node), Offset):
        raise ValueError(f'a constant is added to what node {node} reads')
    weights = dict(zip(edges, stage.connectivity.edge_weights().tolist()))
    for reader in stage.wiring.succs(node):
        for source in stage.wiring.preds(node):
            along = weights[source, node] * weights[node, reader]
            weights[source, reader] = weights.get((source, reader), 0.0) + along
    kept = [other for other in range(last + 1) if other != node]
    place = {old: new for new, old in enumerate(kept)}
    moved = {
        (place[source], place[reader]): weight
        for (source, reader), weight in weights.items()
        if node not in (source, reader)
    }
    wiring = Wiring.from_edges(moved, last)
    weights = [moved[edge] for edge in wiring.edges]
    rule = stage.connectivity.with_weights(wiring, weights)
    return _placed(stage, stage.rebuild(wiring, rule, kept), kept)


def _on(stage: Stage, wiring: Wiring, kept: Sequence[int]) -> Stage:
    """``stage`` on a wiring whose nodes are the nodes ``kept``, with their constants."""
    index = {edge: e for e, edge in enumerate(stage.wiring.edges)}
    edges = [index[kept[source], kept[target]] for source, target in wiring.edges]
    rule = stage.connectivity.select(wiring, edges)
    return _placed(stage, stage.rebuild(wiring, rule, kept), kept)


def _placed(stage: Stage, smaller: Stage, kept: Sequence[int]) -> Stage:
    """``smaller`` with the mode and the constants of ``stage``."""
    smaller.grad_checkpointing = stage.grad_checkpointing
    if isinstance(stage, TakesOffsets):
        for node, old in enumerate(kept[1:], start=1):
            offset = stage.offset(old)
            if isinstance(offset, Offset):
                smaller.set_offset(node, offset.value.clone())
    return smaller if stage.training else smaller.eval()  # modules may have modes of their own
