"""Which edges images take: open edges and computed nodes per image, mean weights per class."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..executors import adjacency
from ..stages import graph_stages
from ..wiring import Wiring

__all__ = ['StageRouting', 'class_offsets', 'routing', 'routing_metrics']


@dataclass(frozen=True)
class StageRouting:
    """How a set of images went through one stage.

    Attributes:
        wiring: The wiring of the stage, E edges.
        open_edges: Number of open edges per image, ``(images,)``.
        computed_nodes: Number of computing nodes that ran per image, ``(images,)``.
        mean: Mean weight of each edge, ``(E,)``; a closed edge counts 0.
        spread: Standard deviation over the images, ``(E,)``.
        by_class: Mean weights ``(E,)`` by label.
    """

    wiring: Wiring
    open_edges: Tensor
    computed_nodes: Tensor
    mean: Tensor
    spread: Tensor
    by_class: dict[int, Tensor]

    def __str__(self) -> str:
        edges, nodes = self.open_edges.double(), self.computed_nodes.double()
        return (
            f'{edges.mean():.1f} of {self.wiring.num_edges} edges open '
            f'({edges.min():.0f} to {edges.max():.0f}), {nodes.mean():.1f} of '
            f'{self.wiring.num_nodes - 2} nodes computed ({nodes.min():.0f} to {nodes.max():.0f}), '
            f'weights spread over images by {self.spread.mean():.3f}'
        )


def routing(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], limit: int | None = None
) -> dict[str, StageRouting]:
    """Follow images through every stage of ``model``, in evaluation mode.

    Args:
        model: A model with graph stages, not compiled.
        batches: Images ``(B, C, H, W)`` and labels ``(B,)``, as from a timm loader.
        limit: Stop after the batch that reaches this number of images.

    Returns:
        By stage name.

    Raises:
        ValueError: No images, or no graph stage.
    """
    stages = graph_stages(model)
    weights, labels = {name: [] for name in stages}, []
    for images, target in batches:
        for name, matrices in adjacency(model, images).items():
            targets = [t for _, t in stages[name].wiring.edges]
            sources = [s for s, _ in stages[name].wiring.edges]
            weights[name].append(matrices[:, targets, sources].float().cpu())
        labels.append(target.cpu())
        if limit is not None and sum(map(len, labels)) >= limit:
            break
    if not labels:
        raise ValueError('routing needs at least one batch of images')
    labels = torch.cat(labels)
    return {
        name: _summary(stage.wiring, torch.cat(weights[name]), labels)
        for name, stage in stages.items()
    }


def _summary(wiring: Wiring, weights: Tensor, labels: Tensor) -> StageRouting:
    is_open = weights != 0
    computed = torch.zeros(len(weights), dtype=torch.long)
    for start, stop in wiring.in_edges[1:-1]:
        computed += is_open[:, start:stop].any(1)
    return StageRouting(
        wiring=wiring,
        open_edges=is_open.sum(1),
        computed_nodes=computed,
        mean=weights.mean(0),
        spread=weights.std(0, correction=0),
        by_class={int(c): weights[labels == c].mean(0) for c in labels.unique()},
    )


def routing_metrics(routes: dict[str, StageRouting]) -> dict[str, float]:
    """Percent of all edges open and of all computing nodes computed, mean over the images."""
    edges = sum(route.wiring.num_edges for route in routes.values())
    nodes = sum(route.wiring.num_nodes - 2 for route in routes.values())
    is_open = sum(route.open_edges for route in routes.values()).double().mean().item()
    computed = sum(route.computed_nodes for route in routes.values()).double().mean().item()
    return {
        'open_edges': 100 * is_open / edges,
        'computed_nodes': 100 * computed / nodes if nodes else 100.0,
    }


def class_offsets(
    route: StageRouting,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> dict[str, Tensor]:
    """Which edges classes use more or less than the average image: their mean minus that of all.

    Args:
        route: A stage, as from :func:`routing`.
        names: Names of the labels, in label order; the labels themselves by default.
        classes: Names of those to return, in this order; by default all, the most different first.
        limit: At most so many of the default.

    Returns:
        ``(E,)`` by class name.

    Raises:
        ValueError: No image was of one of ``classes``.
    """
    label = {str(names[c]) if names else str(c): c for c in route.by_class}
    unknown = sorted(set(classes or ()) - set(label))
    if unknown:
        raise ValueError(f'no images of the classes {unknown}; there are {", ".join(label)}')
    offsets = {name: route.by_class[c] - route.mean for name, c in label.items()}
    order = sorted(offsets, key=lambda name: -offsets[name].norm().item())
    return {name: offsets[name] for name in classes or order[:limit]}
