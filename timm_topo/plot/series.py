"""Numbers over epochs."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .style import LOOKS, check_series, columns_for, number, styled

_NAMES = {
    'train_loss': 'training loss',
    'train_task_loss': 'training loss without L1',
    'train_sparsity': 'L1 of the edge weights',
    'eval_loss': 'evaluation loss',
    'eval_top1': 'evaluation top-1 (%)',
    'eval_top5': 'evaluation top-5 (%)',
    'lr': 'learning rate',
}


@styled
def curves(
    runs: Mapping[str, Sequence[Mapping]],
    keys: Sequence[str],
    x: str = 'epoch',
    names: Mapping[str, str] | None = None,
) -> Figure:
    """One small plot per key, one line per run.

    Args:
        runs: Rows by label, at most 6 runs; a row maps columns to numbers or to text as
            ``csv.DictReader`` gives it. Empty and not finite values leave a gap.
        keys: Columns to plot. A run without a column is missing from that plot.
        x: Column of the horizontal axis.
        names: Axis labels by column, over the built-in ones.

    Raises:
        ValueError: No or too many runs, a run without rows, no keys, a column that no run has, a
            row without ``x``, or text that is not a number.
    """
    runs = {label: list(rows) for label, rows in runs.items()}
    check_series(runs, 'curves')
    if not keys:
        raise ValueError('curves needs at least one key, got none')
    columns = columns_for(len(keys))
    rows = math.ceil(len(keys) / columns)
    names = {**_NAMES, **(names or {})}
    fig = Figure(figsize=(3.2 * columns + 0.4, 2.5 * rows + 0.4))
    grid = fig.subplots(rows, columns, squeeze=False)
    for axes, key in zip(grid.flat, keys):
        _draw_curves(axes, runs, key, x)
        axes.set_xlabel(names.get(x, x), parse_math=False)
        axes.set_title(names.get(key, key.replace('_', ' ')), parse_math=False)
    for axes in grid.flat[len(keys) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], color=c, linestyle=s, marker=m) for c, s, m in LOOKS]
    legend = fig.legend(
        handles[: len(runs)],
        list(runs),
        loc='outside upper center',
        ncols=min(len(runs), 3),
        handlelength=3.5,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return fig


def _draw_curves(axes: Axes, runs: Mapping[str, list], key: str, x: str) -> None:
    known = sorted({column for rows in runs.values() for row in rows for column in row})
    for column in (x, key):
        if column not in known:
            raise ValueError(f'no run has a column {column!r}; there are: {", ".join(known)}')
    for (label, rows), (colour, line, marker) in zip(runs.items(), LOOKS):
        if not any(key in row for row in rows):
            continue
        if missing := [i for i, row in enumerate(rows) if x not in row]:
            raise ValueError(f'row {missing[0]} of run {label!r} has no column {x!r}')
        step = max(1, len(rows) // 8)  # between markers; the last row has one
        axes.plot(
            [number(row[x], x) for row in rows],
            [number(row.get(key), key) for row in rows],
            color=colour, linestyle=line, marker=marker, markevery=((len(rows) - 1) % step, step),
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == 'epoch'))
    axes.grid(axis='y', color='#e3e5e8', linewidth=0.8)
