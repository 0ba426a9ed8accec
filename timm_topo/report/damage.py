"""Damage on a page: accuracy over edges and nodes removed."""

from collections.abc import Mapping, Sequence

from .. import plot
from ..extras import needs
from .html import Report

with needs('timm-topo[analysis]'):
    from matplotlib.figure import Figure

__all__ = ['add_damage', 'damage_figures']

_MEASURED = ('top1', 'top1_recalibrated', 'top1_retrained')


def add_damage(page: Report, damage: Mapping) -> None:
    """Section about what :meth:`timm_topo.experiments.damage.Damage.run` returned."""
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


def damage_figures(curves: Mapping[str, Sequence[Mapping]], baseline: float) -> list[Figure]:
    """One figure of all curves, or one per measurement if these are too many."""
    lines = {(label, key) for label, rows in curves.items() for row in rows for key in _MEASURED
             if key in row}  # fmt: skip
    if len(lines) <= plot.MOST_SERIES:
        return [plot.damage_curves(curves, baseline)]
    figures = []
    for key in _MEASURED:
        own = {
            label: [{n: row[n] for n in ('removed', key)} for row in rows if key in row]
            for label, rows in curves.items()
        }
        own = {label: rows for label, rows in own.items() if rows}
        if own:
            figures.append(plot.damage_curves(own, baseline))
    return figures
