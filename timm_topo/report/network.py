"""The page about one network, of any kind: what ``topo report`` writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from ..analysis.cost import Flops, Latency, input_size_of
from ..analysis.prune import edge_weights
from ..analysis.routing import StageRouting
from ..stages import graph_stages, is_routed
from .damage import add_damage
from .graphs import add_characteristics, add_degrees, add_graphs, add_weights
from .html import Report
from .images import add_images
from .training import add_curves, add_snapshots

__all__ = ['Findings', 'network_page']


@dataclass
class Findings:
    """Measurements of a network; a page has the sections for which there is something.

    Attributes:
        flops: Multiply-adds of an image.
        latency: By batch size.
        threads: With how many threads, or on which device.
        top1: Accuracy in percent.
        data: Name of the data.
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
        found: The measurements.

    Raises:
        ValueError: The model has no graph stage.
    """
    stages = graph_stages(model)
    routed = is_routed(model)
    weights = {} if routed and found.images is None else edge_weights(model, found.images)
    page = Report(title)
    _add_summary(page, model, stages, found)
    add_graphs(page, stages, weights, routed)
    if weights:
        add_weights(page, stages, weights)
    add_degrees(page, stages, weights)
    add_characteristics(page, stages)
    if found.routes:
        add_images(page, model, found.routes, found.classes, found.images, found.shown)
    if found.damage:
        add_damage(page, found.damage)
    if found.training or found.snapshots:
        page.section('Training')
    if found.training:
        add_curves(page, {'run': found.training})
    if found.snapshots:
        add_snapshots(page, stages, *found.snapshots)
    _add_costs(page, model, found)
    return page


def _add_summary(page: Report, model: nn.Module, stages: Mapping, found: Findings) -> None:
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


def _add_costs(page: Report, model: nn.Module, found: Findings) -> None:
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


def _counted(number: int, what: str) -> str:
    return f'{number} {what}' if number == 1 else f'{number} {what}s'


def _learned(model: nn.Module) -> int:
    """Parameters of the rules."""
    rules = [stage.connectivity for stage in graph_stages(model).values()]
    return sum(p.numel() for rule in rules for p in rule.parameters())
