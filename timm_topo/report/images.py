"""How the edges of a network depend on images, on a page."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .. import plot
from ..analysis.routing import StageRouting, class_offsets, routing_metrics
from ..executors import adjacency
from ..stages import Stage, graph_stages
from .graphs import add_histograms, panel_of
from .html import Report

__all__ = ['add_images']

_CLASSES = 6  # that differ most
_SAMPLES = 4  # images that differ most in the way they go


def add_images(
    page: Report,
    model: nn.Module,
    routes: Mapping[str, StageRouting],
    classes: Sequence[str] | None,
    images: Tensor | None,
    shown: Sequence[np.ndarray],
) -> None:
    """Section about the ways of images; arguments as in :class:`.network.Findings`."""
    page.section('Images')
    _open_edges(page, routes)
    add_histograms(
        page,
        {name: route.spread for name, route in routes.items()},
        alt='the spread of edge weights of ',
        caption='How much weights differ between images: standard deviation per edge.',
        quantity='spread',
    )
    if not any(route.spread.any() for route in routes.values()):
        page.text('All images take the same way.')
        return
    widest = max(routes, key=lambda name: routes[name].spread.mean().item())
    stage = graph_stages(model)[widest]
    if len(routes[widest].by_class) > 1:
        offsets = class_offsets(routes[widest], classes, limit=_CLASSES)
        _offsets(
            page,
            [panel_of(label, stage, offset) for label, offset in offsets.items()],
            columns=min(3, len(offsets)),
            caption=f'{widest}: edges that images of a class use more (solid) or less (dashed) '
            'than all images; the classes that differ most.',
        )
    if len(shown) >= 2:
        _extremes(page, widest, stage, shown, adjacency(model, images[: len(shown)]))


def _open_edges(page: Report, routes: Mapping[str, StageRouting]) -> None:
    """How many edges are open and how many nodes are computed."""
    metrics = routing_metrics(routes)
    page.facts(
        [
            ('edges open', f'{metrics["open_edges"]:.1f}%', 'mean over images'),
            ('nodes computed', f'{metrics["computed_nodes"]:.1f}%', 'mean over images'),
        ]
    )
    rows = []
    for name, route in routes.items():
        edges, nodes = route.open_edges.tolist(), route.computed_nodes.tolist()
        rows.append(
            [name, route.wiring.num_edges, f'{statistics.fmean(edges):.1f}', min(edges), max(edges),
             f'{statistics.fmean(nodes):.1f}', min(nodes), max(nodes), f'{route.spread.mean():.3f}']
        )  # fmt: skip
    page.table(
        ['graph', 'edges', 'open, mean', 'least', 'most', 'nodes computed, mean', 'least', 'most',
         'spread of weights'],
        rows,
        caption=f'Over {len(route.open_edges)} images. Spread: standard deviation of a weight over '
        'images, mean of all edges.',
    )  # fmt: skip


def _extremes(
    page: Report,
    name: str,
    stage: Stage,
    shown: Sequence[np.ndarray],
    matrices: Mapping[str, Tensor],
) -> None:
    """The images whose ways through the network differ most, and their ways."""
    flat = torch.cat([value.flatten(1) for value in matrices.values()], 1)
    chosen = _farthest(flat, _SAMPLES)
    page.figure(
        plot.contact_sheet({'images': [shown[i] for i in chosen]}, [f'image {i}' for i in chosen]),
        caption='The images whose edge weights differ most, over all graphs.',
        alt='Images ' + ', '.join(map(str, chosen)),
    )
    sources, targets = zip(*stage.wiring.edges)
    of_edges = matrices[name][:, targets, sources]
    _offsets(
        page,
        [panel_of(f'image {i}', stage, of_edges[i] - of_edges.mean(0)) for i in chosen],
        columns=2,
        caption=f'{name}: edges that these images use more (solid) or less (dashed) than all.',
    )


def _offsets(page: Report, panels: Sequence[plot.Panel], columns: int, caption: str) -> None:
    """Graphs whose weights are those of some images less the mean."""
    page.figure(
        plot.layered_graphs(panels, columns=columns, quantity='weight minus mean'),
        caption=caption,
        alt='Graphs of ' + ', '.join(panel.title for panel in panels),
    )


def _farthest(points: Tensor, count: int) -> list[int]:
    """The two points farthest apart, then always the one farthest from those chosen."""
    distances = torch.cdist(points[None].double(), points[None].double())[0]
    first = int(distances.argmax())
    chosen = [first // len(points), first % len(points)]
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distances[chosen].amin(0).argmax()))
    return chosen[: len(points)]
