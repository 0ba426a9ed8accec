"""The page about one network, of any kind: what ``topo report`` writes."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from .. import plot
from ..analysis.cost import Flops, Latency, input_size_of
from ..analysis.metrics import stage_characteristics
from ..analysis.prune import edge_weights
from ..analysis.routing import StageRouting, class_offsets, routing_metrics
from ..connectivity import connectivity_name
from ..executors import adjacency
from ..stages import Stage, graph_stages, is_routed
from .html import Report

__all__ = ['Findings', 'damage_figures', 'network_page']

_LAYERED = 400  # edges up to which a graph is drawn in layers beside its matrix
_SAMPLES = 4  # images that differ most in the way they go


@dataclass
class Findings:
    """What was measured of a network; a page has the sections for which there is something.

    Attributes:
        flops: Multiply-adds of an image.
        latency: By batch size.
        threads: With how many threads, or on which device.
        top1: Accuracy in percent.
        data: What it was measured on.
        images: Preprocessed images ``(B, C, H, W)`` over which weights that depend on the image are
            averaged, and whose ways are compared.
        shown: The same as people see them, ``(H, W, 3)`` bytes each.
        routes: By stage name, as from :func:`timm_topo.analysis.routing.routing`.
        classes: Names of the classes.
        damage: As :meth:`timm_topo.experiments.damage.Damage.run` returns it.
        training: Rows of ``summary.csv``.
        snapshots: Numbers of epochs and weights ``(T, E)`` by stage name, as from
            :func:`timm_topo.analysis.history.read_edge_weights`.
    """

    flops: Flops
    latency: Mapping[int, Latency]
    threads: str
    top1: float | None = None
    data: str | None = None
    images: Tensor | None = None
    shown: Sequence[np.ndarray] = ()
    routes: Mapping[str, StageRouting] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    damage: Mapping | None = None
    training: Sequence[Mapping] = ()
    snapshots: tuple[Sequence[float], Mapping[str, np.ndarray]] | None = None


def network_page(model: nn.Module, title: str, found: Findings) -> Report:
    """A page about ``model``.

    Args:
        model: A model with graph stages, in evaluation mode.
        title: Heading.
        found: What was measured.

    Raises:
        ValueError: The model has no graph stage.
    """
    stages = graph_stages(model)
    routed = is_routed(model)
    weights = {} if routed and found.images is None else edge_weights(model, found.images)
    page = Report(title)
    _summary(page, model, stages, found)
    page.section('Graphs')
    _stages(page, stages, weights)
    if weights:
        _graphs(page, stages, weights, routed)
        _weights(page, stages, weights)
    else:
        page.text(
            'The weights of this network depend on the image and no images were given, so edges '
            'are not weighed here.'
        )
    _degrees(page, stages, weights)
    _characteristics(page, stages)
    if found.routes:
        _routes(page, model, stages, found)
    if found.damage:
        _damage(page, found.damage)
    if found.training or found.snapshots:
        _training(page, stages, found)
    _costs(page, model, found)
    return page


# -- what it is -----------------------------------------------------------------------------------


def _summary(page: Report, model: nn.Module, stages: Mapping, found: Findings) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    batch, time = next(iter(found.latency.items()))
    edges = sum(stage.wiring.num_edges for stage in stages.values())
    nodes = sum(stage.wiring.num_nodes for stage in stages.values())
    size = 'x'.join(map(str, input_size_of(model)))
    page.text(
        f'{model.pretrained_cfg["architecture"]}, images {size}, {model.num_classes} classes.'
    )
    facts = [
        ('edges', f'{edges:,}', f'{nodes} nodes in {_counted(len(stages), "graph")}'),
        ('parameters', f'{parameters:,}', f'{_learned(model)} of them edge weights'),
        ('multiply-adds', f'{found.flops.total / 1e6:,.1f} M', 'of one image'),
        ('time', f'{time.median:.1f} ms', f'for {_counted(batch, "image")}, {found.threads}'),
    ]
    if found.top1 is not None:
        facts.insert(0, ('top-1', f'{found.top1:.2f}%', found.data or ''))
    page.facts(facts)


def _stages(page: Report, stages: Mapping[str, Stage], weights: Mapping[str, Tensor]) -> None:
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


def _panel(name: str, stage: Stage, weights: Tensor) -> plot.Panel:
    levels = stage.levels if stage.levels[-1] else None
    return plot.Panel(name, stage.wiring, weights, stage.node_ids, levels)


def _graphs(
    page: Report, stages: Mapping[str, Stage], weights: Mapping[str, Tensor], routed: bool
) -> None:
    mean = ' Weights depend on the image: these are means.' if routed else ''
    for name, stage in stages.items():
        panel = _panel(name, stage, weights[name])
        if stage.wiring.num_edges <= _LAYERED:
            page.figure(
                plot.layered_graphs([panel], limit=plot.shared_limit([panel])),
                caption=f'{name}, in layers after the longest path from its input. The wider an '
                f'edge, the larger |weight|; negative ones are dashed.{mean}',
                alt=f'Graph of {name}: {stage.wiring.num_nodes} nodes, '
                f'{stage.wiring.num_edges} edges, as wide as their weights',
            )
    panels = [_panel(name, stage, weights[name]) for name, stage in stages.items()]
    for some in _parts(panels, 6):
        page.figure(
            plot.adjacency(some),
            caption='Adjacency matrices: row = node that reads, column = node that is read. '
            f'Hatched: no edge.{mean}',
            alt='Adjacency matrices of ' + ', '.join(panel.title for panel in some),
        )


def _weights(page: Report, stages: Mapping[str, Stage], weights: Mapping[str, Tensor]) -> None:
    page.section('Edge weights')
    for names in _parts(list(stages), plot.MOST_SERIES):
        page.figure(
            plot.weight_histogram({name: weights[name] for name in names}),
            caption='Distribution of |edge weight|.',
            alt='Histograms of edge weights of ' + ', '.join(names),
        )
    stored = {
        f'{name}: {what}': values
        for name, stage in stages.items()
        for what, values in _stored(stage, weights[name]).items()
    }
    for names in _parts(list(stored), plot.MOST_SERIES):
        values = {name: stored[name] for name in names}
        one_sided = all((of >= 0).all() for of in values.values())
        page.figure(
            plot.weight_histogram(values, one_sided, quantity='stored value'),
            caption='What the rule stores per edge, of which it makes the weights.',
            alt='Histograms of ' + ', '.join(names),
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


def _degrees(page: Report, stages: Mapping[str, Stage], weights: Mapping[str, Tensor]) -> None:
    page.section('Degrees')
    for names in _parts(list(stages), plot.MOST_SERIES):
        given = [weights.get(name, torch.ones(stages[name].wiring.num_edges)) for name in names]
        panels = [_panel(name, stages[name], of) for name, of in zip(names, given)]
        page.figure(
            plot.degrees(panels),
            caption='In-degree of every node (up) and out-degree (down, hatched).',
            alt='Degrees of the nodes of ' + ', '.join(names),
        )


def _characteristics(page: Report, stages: Mapping[str, Stage]) -> None:
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


# -- what it does ---------------------------------------------------------------------------------


def _routes(page: Report, model: nn.Module, stages: Mapping[str, Stage], found: Findings) -> None:
    page.section('Images')
    metrics = routing_metrics(found.routes)
    page.facts(
        [
            ('edges open', f'{metrics["open_edges"]:.1f}%', 'mean over images'),
            ('nodes computed', f'{metrics["computed_nodes"]:.1f}%', 'mean over images'),
        ]
    )
    rows = []
    for name, route in found.routes.items():
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
    for names in _parts(list(found.routes), plot.MOST_SERIES):
        page.figure(
            plot.weight_histogram(
                {name: found.routes[name].spread for name in names}, quantity='spread'
            ),
            caption='How much weights differ between images: standard deviation per edge.',
            alt='Histograms of the spread of edge weights of ' + ', '.join(names),
        )
    if not any(route.spread.any() for route in found.routes.values()):
        page.text('All images take the same way.')
        return
    widest = max(found.routes, key=lambda name: found.routes[name].spread.mean().item())
    stage, route = stages[widest], found.routes[widest]
    if len(route.by_class) > 1:
        offsets = class_offsets(route, found.classes, limit=6)
        panels = [_panel(label, stage, offset) for label, offset in offsets.items()]
        page.figure(
            plot.layered_graphs(panels, columns=min(3, len(panels)), quantity='weight minus mean'),
            caption=f'{widest}: edges that images of a class use more (solid) or less (dashed) '
            'than all images; the classes that differ most.',
            alt='Graphs of ' + ', '.join(offsets),
        )
    if len(found.shown) >= 2:
        matrices = adjacency(model, found.images[: len(found.shown)])
        _extremes(page, widest, stage, found, matrices)


def _extremes(
    page: Report, name: str, stage: Stage, found: Findings, matrices: Mapping[str, Tensor]
) -> None:
    """The images whose ways through the network differ most, and their ways."""
    flat = torch.cat([value.flatten(1) for value in matrices.values()], 1)
    chosen = _farthest(flat, _SAMPLES)
    page.figure(
        plot.contact_sheet(
            {'images': [found.shown[i] for i in chosen]}, [f'image {i}' for i in chosen]
        ),
        caption='The images whose edge weights differ most, over all graphs.',
        alt='Images ' + ', '.join(map(str, chosen)),
    )
    sources, targets = zip(*stage.wiring.edges)
    of_edges = matrices[name][:, targets, sources]
    panels = [_panel(f'image {i}', stage, of_edges[i] - of_edges.mean(0)) for i in chosen]
    page.figure(
        plot.layered_graphs(panels, columns=2, quantity='weight minus mean'),
        caption=f'{name}: edges that these images use more (solid) or less (dashed) than all.',
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


def _damage(page: Report, damage: Mapping) -> None:
    page.section('Damage')
    curves = {}
    first, *rest = damage['edges']
    for row in rest:
        curves.setdefault(row['order'], [{**first, 'removed': 0.0}]).append(row)
    for figure in damage_figures(curves, damage['top1']):
        page.figure(
            figure,
            caption='Accuracy over the share of edges removed.',
            alt='Curves of accuracy over the share of edges removed',
        )
    if damage['nodes']:
        page.figure(
            plot.node_damage(damage['nodes'], damage['top1']),
            caption='Change of accuracy when one node is removed, without training.',
            alt='Bars: change of accuracy per node removed',
        )


def _training(page: Report, stages: Mapping[str, Stage], found: Findings) -> None:
    page.section('Training')
    if found.training:
        known = set().union(*found.training)
        keys = [key for key in ('train_task_loss', 'train_sparsity', 'eval_top1') if key in known]
        page.figure(
            plot.curves({'run': found.training}, keys),
            caption='Loss without the L1 term, the L1 sum, and accuracy, per epoch.',
            alt='Training curves',
        )
    epochs, weights = found.snapshots or ((), {})
    for name, history in weights.items():
        if len(epochs) > 1 and name in stages and history.shape[1] == stages[name].wiring.num_edges:
            page.figure(
                plot.process_strip(epochs, history, stages[name].wiring, title=name),
                caption=f'{name}: edge weights after so many epochs.',
                alt=f'Adjacency matrices of {name} over training',
            )


def _costs(page: Report, model: nn.Module, found: Findings) -> None:
    page.section('Costs')
    size = model.pretrained_cfg['input_size']
    page.table(
        ['of one image', 'M multiply-adds'],
        [[kind, f'{getattr(found.flops, kind) / 1e6:,.2f}']
         for kind in ('conv', 'linear', 'edges', 'total')],
        caption=f'Multiply-adds at {size[1]}x{size[2]} px: convolutions, linear layers, weighted '
        'sums over edges.',
    )  # fmt: skip
    page.table(
        ['images per pass', 'ms', 'first quartile', 'third quartile', 'images/s'],
        [
            [batch, f'{time.median:.2f}', f'{time.low:.2f}', f'{time.high:.2f}',
             f'{1000 * batch / time.median:,.0f}']
            for batch, time in found.latency.items()
        ],
        caption=f'Measured time of a forward pass, {found.threads}.',
    )  # fmt: skip


def damage_figures(curves: Mapping[str, Sequence[Mapping]], baseline: float) -> list:
    """One figure of all curves, or one per measurement if these are too many."""
    measured = ('top1', 'top1_recalibrated', 'top1_retrained')
    lines = {(label, key) for label, rows in curves.items() for row in rows for key in measured
             if key in row}  # fmt: skip
    if len(lines) <= plot.MOST_SERIES:
        return [plot.damage_curves(curves, baseline)]
    figures = []
    for key in measured:
        own = {
            label: [{n: row[n] for n in ('removed', key)} for row in rows if key in row]
            for label, rows in curves.items()
        }
        own = {label: rows for label, rows in own.items() if rows}
        if own:
            figures.append(plot.damage_curves(own, baseline))
    return figures


def _parts(items: Sequence, size: int) -> list:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _counted(number: int, what: str) -> str:
    return f'{number} {what}' if number == 1 else f'{number} {what}s'


def _learned(model: nn.Module) -> int:
    """Parameters of the rules."""
    rules = [stage.connectivity for stage in graph_stages(model).values()]
    return sum(p.numel() for rule in rules for p in rule.parameters())


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f'{round(value, 9):.4g}'
