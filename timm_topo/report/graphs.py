"""The graphs of a network on a page: what they are, their weights, degrees, characteristics."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import plot
from ..analysis.metrics import stage_characteristics
from ..connectivity import connectivity_name
from ..stages import Stage
from .html import Report

__all__ = [
    'add_characteristics',
    'add_degrees',
    'add_graphs',
    'add_histograms',
    'add_weights',
    'panel_of',
]

_LAYERED = 400  # edges up to which a graph is drawn in layers beside its matrix
_MATRICES = 6  # in one figure


def add_graphs(
    page: Report, stages: Mapping[str, Stage], weights: Mapping[str, Tensor], routed: bool
) -> None:
    """Section with a table of the graphs and, where there are weights, drawings of them.

    Args:
        page: Where to.
        stages: By name.
        weights: Edge weights ``(E,)`` by the same names, or none.
        routed: Whether they are means over images.
    """
    page.section('Graphs')
    _table(page, stages, weights)
    if not weights:
        page.text(
            'The weights of this network depend on the image and no images were given, so edges '
            'are not weighed here.'
        )
        return
    mean = ' Weights depend on the image: these are means.' if routed else ''
    panels = [panel_of(name, stage, weights[name]) for name, stage in stages.items()]
    for panel in panels:
        nodes, edges = panel.wiring.num_nodes, panel.wiring.num_edges
        if edges <= _LAYERED:
            page.figure(
                plot.layered_graphs([panel], limit=plot.shared_limit([panel])),
                caption=f'{panel.title}, in layers after the longest path from its input. The '
                f'wider an edge, the larger |weight|; negative ones are dashed.{mean}',
                alt=f'Graph of {panel.title}: {nodes} nodes, {edges} edges, as wide as their '
                'weights',
            )
    for some in _parts(panels, _MATRICES):
        page.figure(
            plot.adjacency(some),
            caption='Adjacency matrices: row = node that reads, column = node that is read. '
            f'Hatched: no edge.{mean}',
            alt='Adjacency matrices of ' + ', '.join(panel.title for panel in some),
        )


def _table(page: Report, stages: Mapping[str, Stage], weights: Mapping[str, Tensor]) -> None:
    rows = []
    for name, stage in stages.items():
        row = [name, stage.wiring.num_nodes, sum(stage.level_sizes), stage.wiring.num_edges,
               f'{stage.wiring.density:.2f}', connectivity_name(stage.connectivity)]  # fmt: skip
        of = weights.get(name)
        cells = [None] * 3
        if of is not None:
            size = of.abs()
            cells = [f'{size.quantile(0.5):.3g}', f'{size.max():.3g}', int((of == 0).sum())]
        rows.append([*row, *cells])
    page.table(
        ['graph', 'nodes', 'before pruning', 'edges', 'density', 'rule', 'median |weight|',
         'largest |weight|', 'zeros'],
        rows,
        caption='The graphs of the network; nodes include the input and output of each. Density is '
        'the share of the edges of the complete graph.',
    )  # fmt: skip


def panel_of(title: str, stage: Stage, weights: Tensor) -> plot.Panel:
    """The graph of a stage, its nodes named as before pruning, with weights ``(E,)``."""
    levels = stage.levels if stage.levels[-1] else None
    return plot.Panel(title, stage.wiring, weights, stage.node_ids, levels)


def add_weights(page: Report, stages: Mapping[str, Stage], weights: Mapping[str, Tensor]) -> None:
    """Section about the distribution of weights and of what they are made from."""
    page.section('Edge weights')
    add_histograms(page, weights, 'edge weights of ', 'Distribution of |edge weight|.')
    stored = {
        f'{name}: {what}': values
        for name, stage in stages.items()
        for what, values in _stored(stage, weights[name]).items()
    }
    add_histograms(
        page,
        stored,
        alt='',
        caption='What the rule stores per edge, of which it makes the weights.',
        quantity='stored value',
        magnitude=all((of >= 0).all() for of in stored.values()),
    )


def _stored(stage: Stage, weights: Tensor) -> dict[str, Tensor]:
    """One number per edge that is not the weight itself: masks, arguments of tanh."""
    values = {name: getattr(stage.connectivity, name) for name in stage.connectivity.per_edge}
    return {
        name: value.detach().cpu()
        for name, value in values.items()
        if value.ndim == 1 and len(value)  # edges that always weigh 1 may have none
        and value.is_floating_point() and not torch.equal(value.detach(), weights)
    }  # fmt: skip


def add_histograms(
    page: Report,
    values: Mapping[str, Tensor],
    alt: str,
    caption: str,
    quantity: str = 'edge weight',
    magnitude: bool = True,
) -> None:
    """Histograms of one number per edge, in as many figures as it takes.

    Args:
        page: Where to.
        values: ``(E,)`` by label.
        alt: What they are of, before the labels.
        caption: Text below each figure.
        quantity: Name of the counted values.
        magnitude: Whether to count without the sign.
    """
    for labels in _parts(list(values), plot.MOST_SERIES):
        some = {label: values[label] for label in labels}
        page.figure(
            plot.weight_histogram(some, magnitude, quantity=quantity),
            caption=caption,
            alt=f'Histograms of {alt}{", ".join(labels)}',
        )


def add_degrees(page: Report, stages: Mapping[str, Stage], weights: Mapping[str, Tensor]) -> None:
    """Section about the degrees of nodes."""
    page.section('Degrees')
    for names in _parts(list(stages), plot.MOST_SERIES):
        given = [weights.get(name, torch.ones(stages[name].wiring.num_edges)) for name in names]
        panels = [panel_of(name, stages[name], of) for name, of in zip(names, given)]
        page.figure(
            plot.degrees(panels),
            caption='In-degree of every node (up) and out-degree (down, hatched).',
            alt='Degrees of the nodes of ' + ', '.join(names),
        )


def add_characteristics(page: Report, stages: Mapping[str, Stage]) -> None:
    """Section with the numbers of :func:`timm_topo.analysis.metrics.stage_characteristics`."""
    page.section('Characteristics')
    columns = {name: stage_characteristics(stage) for name, stage in stages.items()}
    names = dict.fromkeys(key for row in columns.values() for key in row)
    page.table(
        ['characteristic', *columns],
        [
            [key, *(_short(row[key]) if key in row else None for row in columns.values())]
            for key in names
        ],
        caption='Of each graph from input to output, as in Janik & Nowak, Tables 1 and 2.',
    )


def _parts(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f'{round(value, 9):.4g}'
