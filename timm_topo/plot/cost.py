"""Accuracy over what networks cost."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from .style import LOOKS, number, styled

__all__ = ['accuracy_over_cost']

_POINTS = {'top1': 'chosen, without training', 'top1_tuned': 'chosen, trained on'}


@styled
def accuracy_over_cost(
    way: Sequence[Mapping], chosen: Sequence[Mapping], unit: str = 'time'
) -> Figure:
    """Networks that a search passed, and those that it chose.

    Args:
        way: Rows with ``measured``, the cost relative to the first, and ``calibration_top1``, in
            percent.
        chosen: Rows with ``measured``, ``top1`` and, where it was trained on, ``top1_tuned``.
        unit: Name of the cost, for the axis.

    Raises:
        ValueError: No rows, or what is not a number.
    """
    if not way or not chosen:
        raise ValueError(f'rows of both kinds are needed, got {len(way)} and {len(chosen)}')
    fig = Figure(figsize=(6, 3.8))
    axes = fig.subplots()
    colour, line, mark = LOOKS[0]
    axes.plot(
        *_columns(way, 'measured', 'calibration_top1'), color=colour, linestyle=line, marker=mark,
        label='on the way, calibration images',
    )  # fmt: skip
    for (column, label), (colour, _, mark) in zip(_POINTS.items(), LOOKS[1:]):
        rows = [row for row in chosen if row.get(column) not in (None, '')]
        if rows:
            axes.plot(
                *_columns(rows, 'measured', column), color=colour, linestyle='none', marker=mark,
                markersize=7, label=label,
            )  # fmt: skip
    axes.invert_xaxis()
    axes.set_xlabel(f'{unit}, relative to the network before', parse_math=False)
    axes.set_ylabel('top-1 (%)')
    axes.grid(axis='y', color='#e3e5e8', linewidth=0.8)
    axes.legend(loc='best')
    return fig


def _columns(rows: Sequence[Mapping], *names: str) -> list[list[float]]:
    return [[number(row[name], name) for row in rows] for name in names]
