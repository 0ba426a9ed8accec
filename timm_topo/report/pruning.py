"""The page that shows a wiring before and after pruning; ``tools/demo.py`` writes one."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .. import plot
from ..analysis.compare import Cut
from ..analysis.prune import PruneReport, StageCut, edge_weights, relative_weights
from ..extras import needs
from ..stages import graph_stages
from ..wiring import Wiring
from .html import Report

with needs('timm-topo[analysis]'):
    from matplotlib.figure import Figure

__all__ = ['add_networks', 'add_pruning', 'add_summary', 'add_wiring', 'before_and_after']

_QUANTITY = 'weight relative to the strongest in-edge'


def add_summary(
    page: Report,
    epochs: int,
    seed: int,
    measured: Mapping[str, dict],
    batch_size: int,
    difference: float,
) -> None:
    """What was done, and the four numbers that count.

    Args:
        page: The page.
        epochs: Of each training.
        seed: Of both.
        measured: Of :func:`timm_topo.analysis.compare.measure`: of the learned wiring, of it
            pruned, of that shrunk, and of the residual wiring.
        batch_size: Images per pass.
        difference: Between PyTorch and onnxruntime.
    """
    before, pruned, after, residual = measured.values()
    page.text(
        'A small TopoNet (Yuan et al., ECCV 2020) was trained on 1,442 real scans of handwritten '
        'digits. Every stage starts as a complete graph; each edge has a weight that training '
        'learns and an L1 penalty that grows with the in-degree makes sparse. The residual '
        f'wiring of the same nodes had the same {epochs} epochs. Accuracy is on 355 scans '
        f'that were not trained on. One run with seed {seed}: differences of a few tenths '
        'of a point are noise. The folder of this page also holds the training runs, the pruned '
        "network (timm_topo.load('pruned')), the shrunk one and shrunk.onnx, on which onnxruntime "
        f'agrees with PyTorch to {difference:.1g}.'
    )
    others = f'learned {before["score"]:.1f}%, pruned {pruned["score"]:.1f}%'
    page.facts(
        [
            ('top-1, pruned and shrunk', f'{after["score"]:.1f}%',
             f'{others}, residual {residual["score"]:.1f}%'),
            ('edges', f'{after["edges"]}', f'of {before["edges"]}'),
            ('parameters', f'{after["parameters"]:,}', f'of {before["parameters"]:,}'),
            ('time', f'{after["ratio"]:.2f} x', f'{after["ms"]:.1f} ms for {batch_size} images'),
        ]
    )  # fmt: skip


def add_networks(page: Report, measured: Mapping[str, dict], batch_size: int, threads: int) -> None:
    """Table of :func:`timm_topo.analysis.compare.measure`."""
    page.section('Networks')
    page.table(
        ['network', 'top-1 (%)', 'edges', 'nodes', 'parameters', 'M multiply-adds', 'ms', 'ratio'],
        [
            [label, f'{m["score"]:.2f}', m['edges'], m['nodes'], f'{m["parameters"]:,}',
             f'{m["mflops"]:.2f}', f'{m["ms"]:.2f}', f'{m["ratio"]:.2f}']
            for label, m in measured.items()
        ],
        caption=f'Median time of a forward pass of {batch_size} images on {threads} CPU thread(s), '
        'measured in turn in one run. Nodes include the input and output of each stage.',
    )  # fmt: skip


def add_wiring(page: Report, model: nn.Module, pruned: nn.Module, report: PruneReport) -> None:
    """Adjacency before and after, distribution of the weights, and the graphs that are left."""
    page.section('What was learned')
    page.figure(
        before_and_after(model, pruned, report),
        caption='Edge weights per stage, learned (above) and after pruning (below). Each row is '
        'divided by its largest magnitude: batch norm makes the scale of a sum irrelevant, so only '
        'the ratios within a row say which sources a node listens to.',
        alt='Adjacency matrices of all stages before and after pruning',
    )
    page.figure(
        plot.weight_histogram(
            {f'stage {i}': w for i, w in enumerate(edge_weights(model).values(), start=1)}
        ),
        caption='Distribution of the edge weights themselves after training; all started at 1. A '
        'sole in-edge bears no penalty and stays there.',
        alt='Histogram of edge weights per stage',
    )
    for i, cut in enumerate(report.stages, start=1):
        wiring, weights = _left(model, pruned, cut)
        page.figure(
            plot.graph(wiring, weights, title=f'stage {i}', quantity=_QUANTITY),
            caption=f'Stage {i} after pruning: {cut.edges[1]} of {cut.edges[0]} edges and '
            f'{cut.nodes[1]} of {cut.nodes[0]} nodes; widths are relative to the strongest in-edge '
            'of each node.',
            alt=f'Graph of stage {i} with edges as wide as their weights',
        )


def before_and_after(model: nn.Module, pruned: nn.Module, report: PruneReport) -> Figure:
    """Relative weights of all stages, and below of what is left of them, on the same nodes."""
    panels = [
        plot.Panel(
            f'stage {i}, learned',
            stage.wiring,
            relative_weights(stage.wiring, edge_weights(model)[name]),
        )
        for i, (name, stage) in enumerate(graph_stages(model).items(), start=1)
    ]
    panels += [
        plot.Panel(f'stage {i}, pruned', *_left(model, pruned, cut))
        for i, cut in enumerate(report.stages, start=1)
    ]
    return plot.adjacency(panels, columns=len(report.stages), quantity=_QUANTITY)


def _left(model: nn.Module, pruned: nn.Module, cut: StageCut) -> tuple[Wiring, Tensor]:
    """What is left of a stage, on its original nodes: the wiring and the relative weights."""
    kept = [node for node in range(cut.nodes[0]) if node not in cut.removed]
    edges = graph_stages(pruned)[cut.name].wiring.edges
    wiring = graph_stages(model)[cut.name].wiring.subgraph((kept[s], kept[t]) for s, t in edges)
    weights = edge_weights(pruned)[cut.name]  # in the same order, for kept is ascending
    return wiring, relative_weights(wiring, weights)


def add_pruning(page: Report, cuts: Sequence[Cut], chosen: str, report: PruneReport) -> None:
    """What each step of :func:`timm_topo.analysis.compare.prune_sweep` cost."""
    page.section('Pruning')
    page.text(f'Chosen: {chosen}. In it, the {str(report).splitlines()[-1].strip()}.')
    page.table(
        ['edges removed', 'edges left', 'parameters', 'top-1 (%)', 'with new BN statistics (%)'],
        [
            [f'{cut.fraction:.0%}', cut.report.edges[1], f'{cut.report.parameters[1]:,}',
             f'{cut.at_once:.2f}', f'{cut.recalibrated:.2f}']
            for cut in cuts
        ],
        caption='Weakest edges first, without any training.',
    )  # fmt: skip
