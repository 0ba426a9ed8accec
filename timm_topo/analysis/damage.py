"""Graph damage: what removing nodes and edges does to a trained network (TopoNet, section 4.4).

Nothing is trained, and the network keeps its size: what is removed weighs zero. So a stage that
falls in two is still evaluated, for what the rest of the network makes of nothing.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..stages import graph_stages
from .prune import edge_mask, mask_edges, prune, recalibrate

__all__ = ['FRACTIONS', 'damage_edges', 'damage_nodes', 'is_connected', 'nodes_to_damage']

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Score = Callable[[nn.Module], float]


def nodes_to_damage(model: nn.Module) -> list[tuple[str, int]]:
    """Stage and id of every computing node, in topological order.

    Ids are those before pruning, as in ``stage.node_ids``.
    """
    return [
        (name, node) for name, stage in graph_stages(model).items() for node in stage.node_ids[1:-1]
    ]


def damage_nodes(
    model: nn.Module, score: Score, nodes: Sequence[tuple[str, int]] | None = None
) -> Iterator[dict]:
    """Remove one node at a time, with its edges, and evaluate (Fig. 4, left).

    Args:
        model: A trained model with graph stages; left as it is.
        score: Accuracy of a model, say.
        nodes: Which, as from :func:`nodes_to_damage`; by default all.

    Yields:
        Rows with ``stage``; ``node``; ``in_degree``; ``out_degree``; ``connected``, 0 if its stage
        falls in two without it; ``top1``, the score.

    Raises:
        ValueError: There is no such node.
    """
    known = nodes_to_damage(model)
    stages = graph_stages(model)
    for name, node in known if nodes is None else nodes:
        if (name, node) not in known:
            raise ValueError(f'{name!r} has no computing node {node}; stages: {", ".join(stages)}')
        stage = stages[name]
        at = stage.node_ids.index(node)
        keep = {n: torch.ones(s.wiring.num_edges, dtype=torch.bool) for n, s in stages.items()}
        keep[name] = torch.tensor([at not in edge for edge in stage.wiring.edges])
        with mask_edges(model, keep):
            top1 = score(model)
        yield {
            'stage': name,
            'node': node,
            'in_degree': stage.wiring.in_degrees[at],
            'out_degree': stage.wiring.out_degrees[at],
            'connected': int(is_connected(model, keep)),
            'top1': top1,
        }


def damage_edges(
    model: nn.Module,
    fractions: Sequence[float],
    score: Score,
    order: str = 'weakest',
    seed: int = 0,
    batches: Sequence[Tensor] = (),
    images: Tensor | None = None,
) -> Iterator[dict]:
    """Remove ever more edges and evaluate (Fig. 4, right).

    Args:
        model: A trained model with graph stages; left as it is.
        fractions: Shares of the edges to remove.
        score: Accuracy of a model, say.
        order: Which edges go first: ``'weakest'``, ``'strongest'`` or ``'random'``.
        seed: Of random order.
        batches: Images for new statistics of batch norms (see
            :func:`timm_topo.analysis.prune.recalibrate`); none: they stay as they are.
        images: See :func:`timm_topo.analysis.prune.edge_weights`.

    Yields:
        Rows with ``order``; ``seed``; ``removed``, the share that went; ``edges`` left;
        ``connected``, 0 where a stage falls in two; ``top1``, the score; and, with batches and
        while connected, ``top1_recalibrated``, the score of the pruned network with new statistics.

    Raises:
        ValueError: An unknown order, or a fraction outside [0, 1).
    """
    for fraction in fractions:
        keep = edge_mask(model, fraction=fraction, order=order, seed=seed, images=images)
        left = int(sum(mask.sum() for mask in keep.values()))
        total = sum(mask.numel() for mask in keep.values())
        row = {
            'order': order,
            'seed': seed,
            'removed': 1 - left / total,
            'edges': left,
            'connected': int(is_connected(model, keep)),
        }
        with mask_edges(model, keep):
            row['top1'] = score(model)
        if batches and row['connected']:
            smaller, _ = prune(model, keep=keep)
            row['top1_recalibrated'] = score(recalibrate(smaller, batches))
        yield row


def is_connected(model: nn.Module, keep: dict[str, Tensor]) -> bool:
    """Whether the edges that stay lead from input to output in every stage."""
    for name, stage in graph_stages(model).items():
        left = (edge for edge, stays in zip(stage.wiring.edges, keep[name].tolist()) if stays)
        if 0 in stage.wiring.subgraph(left).dead_nodes():
            return False
    return True
