"""A page about smaller networks made of one: accuracy over cost."""

from collections.abc import Mapping

from .. import plot
from .html import Report

__all__ = ['shrink_report']


def shrink_report(result: Mapping) -> Report:
    """The page about what :meth:`timm_topo.experiments.shrink.Shrinking.run` returned.

    Args:
        result: That, with ``network``, its name, and ``unit``, what was saved.
    """
    unit, before, rows = result['unit'], result['before'], result['rows']
    page = Report(f'{result["network"]}, smaller')
    smaller = [row for row in rows if row.get('removed')]
    page.facts(
        [
            (
                row['network'],
                f'{row.get("top1_tuned", row["top1"]):.2f}%',
                f'top-1, at {row["measured"]:.3f} of the {unit}; before {before["top1"]:.2f}%',
            )
            for row in smaller
        ]
    )
    page.section('Accuracy and cost')
    points = [before, *smaller]
    page.figure(
        plot.accuracy_over_cost(result['way'], points, unit),
        caption=f'Top-1 over {unit} relative to the network before: on the calibration images '
        'along the way, on the evaluation images where a network was chosen.',
        alt=f'Curve of accuracy over {unit}',
    )
    names = ('measured', 'predicted', 'asked')
    page.table(
        ['network', *names, 'nodes', 'parameters', 'multiply-adds', 'top-1 (%)', 'trained on (%)'],
        [
            [
                row['network'],
                *(_share(row.get(name)) for name in names),
                row.get('nodes'),
                _count(row.get('parameters')),
                _count(row.get('multiply_adds')),
                _percent(row.get('top1')),
                _percent(row.get('top1_tuned')),
            ]
            for row in (before, *rows)
        ],
        caption=f'{unit.capitalize()} relative to the network before: measured, predicted from the '
        'costs of nodes, asked for.',
    )
    page.section('What was removed')
    page.table(
        ['network', 'nodes'],
        [[row['network'], row['removed'].replace(' ', ', ')] for row in smaller],
        caption='Stage and number of each node, in the order of removal.',
    )
    return page


def _share(value: float | None) -> str | None:
    return None if value is None else f'{value:.3f}'


def _percent(value: float | None) -> str | None:
    return None if value is None else f'{value:.2f}'


def _count(value: int | None) -> str | None:
    return None if value is None else f'{value:,}'
