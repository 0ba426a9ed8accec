"""Accuracy of networks that lost edges or nodes (TopoNet, Fig. 4)."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .style import FAINT, INK, LOOKS, MOST_SERIES, check_series, number, styled

#: Columns in words, with the line and the filling of marks.
_COLUMNS = {
    'top1': ('', '-', 'full'),
    'top1_recalibrated': (', new statistics', '--', 'none'),
    'top1_retrained': (', retrained', '-.', 'left'),
}


@styled
def damage_curves(rows: Mapping[str, Sequence[Mapping]], baseline: float) -> Figure:
    """Accuracy over the share of edges removed (TopoNet, Fig. 4 right).

    Several rows of one label and share, such as of random removal with several seeds, are one
    point: their mean, with a bar from lowest to highest. Marks tell labels apart, line styles
    and the filling of marks columns.

    Args:
        rows: By label, each row with ``removed``, the share of edges in [0, 1], and any of ``top1``
            (as it is), ``top1_recalibrated`` (with new batch-norm statistics) and
            ``top1_retrained``; numbers or text. An empty text or None is a gap in the line, rows
            without the column are passed over. At most 6 lines, one per label and column that has
            a value.
        baseline: Accuracy before.

    Raises:
        ValueError: No label, a label without rows or accuracies, too many lines, a share that is
            missing or outside [0, 1], or what is not a number.
    """
    rows = {label: list(of_label) for label, of_label in rows.items()}
    check_series(rows, 'damage_curves')
    baseline = accuracy(baseline, 'baseline')
    lines = {
        (label, column): points
        for label, of_label in rows.items()
        for column, points in _points(label, of_label).items()
    }
    if len(lines) > MOST_SERIES:
        names = ', '.join(label + _COLUMNS[column][0] for label, column in lines)
        raise ValueError(
            f'damage_curves shows at most {MOST_SERIES} lines, got {len(lines)}: {names}'
        )
    fig = Figure(figsize=(6, 3.8))
    axes = fig.subplots()
    looks = dict(color=INK, linewidth=1, linestyle=(0, (1, 1.5)))
    key = {'nothing removed': axes.axhline(baseline, **looks)}
    for (label, column), points in lines.items():
        colour, _, marker = LOOKS[list(rows).index(label)]
        words, line, filling = _COLUMNS[column]
        look = dict(color=colour, marker=marker, linestyle=line, fillstyle=filling)
        key[label + words] = mean_and_range(axes, points, look | {'markerfacecoloralt': 'white'})
    axes.set_xlabel('edges removed (%)')
    axes.set_ylabel('top-1 (%)')
    axes.grid(axis='y', color='#e3e5e8', linewidth=0.8)
    legend = fig.legend(
        key.values(), key.keys(), loc='outside upper center', ncols=2, handlelength=4
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return fig


def _points(label: str, rows: list[Mapping]) -> dict[str, dict[float, list[float]]]:
    """Accuracies by column and percent, of columns that have any."""
    columns = {column: {} for column in _COLUMNS}
    for i, row in enumerate(rows):
        share = required(row, 'removed', f'row {i} of {label!r}')
        if not 0 <= share <= 1:
            raise ValueError(
                f'row {i} of {label!r} has removed={share:g}; it is a share of the edges in [0, 1]'
            )
        for column in columns.keys() & row.keys():
            columns[column].setdefault(100 * share, []).append(number(row[column], column))
    columns = {name: points for name, points in columns.items() if _any(points.values())}
    if not columns:
        raise ValueError(f'{label!r} has no value of {", ".join(_COLUMNS)}')
    return columns


@styled
def node_damage(rows: Sequence[Mapping], baseline: float) -> Figure:
    """Change of accuracy when a node is removed, node by node (TopoNet, Fig. 4 left).

    A small plot per stage, or one plot with lines between the stages if there are more than 6.
    Several rows of one node are one bar: their mean, with a line from lowest to highest.

    Args:
        rows: Each with ``stage`` (its name), ``node`` (its id, ascending in topological order) and
            ``top1``; numbers or text, gaps empty or None.
        baseline: Accuracy before.

    Raises:
        ValueError: No row with an accuracy, a column that is missing, or what is not a number.
    """
    baseline = accuracy(baseline, 'baseline')
    stages = {}
    for i, row in enumerate(rows):
        node = required(row, 'node', f'row {i}')
        if node != int(node):
            raise ValueError(f'row {i} has node={row["node"]!r}, which is no id of a node')
        if 'stage' not in row or 'top1' not in row:
            missing = 'stage' if 'stage' not in row else 'top1'
            raise ValueError(f'row {i} has no column {missing!r}; there are: {", ".join(row)}')
        change = number(row['top1'], 'top1') - baseline
        stages.setdefault(str(row['stage']), {}).setdefault(int(node), []).append(change)
    if not _any(values for nodes in stages.values() for values in nodes.values()):
        raise ValueError('node_damage needs at least one row with a value of top1, got none')
    stages = {stage: dict(sorted(nodes.items())) for stage, nodes in stages.items()}
    fig = _together(stages) if len(stages) > MOST_SERIES else _side_by_side(stages)
    fig.supylabel(f'top-1, change from {baseline:.2f}% (points)', fontsize=9)
    fig.supxlabel('node removed', fontsize=9)
    return fig


def _side_by_side(stages: Mapping[str, Mapping[int, list]]) -> Figure:
    widths = [max(len(nodes), 6) + 1 for nodes in stages.values()]
    width = float(np.clip(0.16 * sum(widths) + 0.8, 4.5, 10))
    fig = Figure(figsize=(width, 3))
    grid = fig.subplots(1, len(stages), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (stage, nodes) in zip(grid, stages.items()):
        _bars(axes, nodes, 0)
        step = math.ceil(0.22 * sum(widths) / width)  # a label needs 0.22 inches
        _ticks(axes, [(x, node) for x, node in enumerate(nodes)][::step])
        axes.set_xlim(-0.8, max(len(nodes), 6) - 0.2)
        axes.set_title(stage, parse_math=False)
    return fig


def _together(stages: Mapping[str, Mapping[int, list]]) -> Figure:
    fig = Figure(figsize=(10, 3.2))
    axes = fig.subplots()
    start, ticks = 0, []
    for stage, nodes in stages.items():
        if start:
            axes.axvline(start - 1, color=FAINT, linewidth=0.9)
        _bars(axes, nodes, start)
        last = start + len(nodes) - 1
        ticks += [(start, min(nodes)), (last, max(nodes))][: len(nodes)]
        axes.text(
            (start + last) / 2, 1.02, stage, transform=axes.get_xaxis_transform(), ha='center',
            parse_math=False,
        )  # fmt: skip
        start = last + 3
    _ticks(axes, ticks)
    axes.set_xlim(-1, start - 2)
    return fig


def _bars(axes: Axes, nodes: Mapping[int, list], start: int) -> None:
    means, lows, highs = summary(nodes.values())
    at = np.arange(start, start + len(nodes))
    axes.bar(at, means, width=0.8, color='#8fb4d9', edgecolor=INK, linewidth=0.5)
    several = highs > lows
    axes.vlines(at[several], lows[several], highs[several], color=INK, linewidth=0.9)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(axis='y', color='#e3e5e8', linewidth=0.8)
    axes.set_axisbelow(True)


def _ticks(axes: Axes, ticks: list[tuple[int, int]]) -> None:
    axes.set_xticks([x for x, _ in ticks], [str(node) for _, node in ticks])
    axes.tick_params(axis='x', length=0)


def mean_and_range(axes: Axes, points: Mapping[float, list[float]], look: dict) -> Line2D:
    """A line through the means, with a bar from lowest to highest where there are several."""
    at = np.array(sorted(points))
    means, lows, highs = summary(points[x] for x in at)
    (line,) = axes.plot(at, means, **look)
    several = highs > lows
    if several.any():
        spread = [(means - lows)[several], (highs - means)[several]]
        bars = dict(fmt='none', ecolor=look['color'], elinewidth=0.9, capsize=2.5)
        axes.errorbar(at[several], means[several], spread, **bars)
    return line


def summary(groups: Iterable[Sequence[float]]) -> np.ndarray:
    """Mean, lowest and highest ``(3, n)`` of groups without their gaps; NaN where all are gaps."""
    known = [[value for value in group if not math.isnan(value)] or [math.nan] for group in groups]
    return np.array([[np.mean(v), min(v), max(v)] for v in known]).T


def required(row: Mapping, column: str, where: str) -> float:
    """The number in a column that has to be there."""
    if column not in row:
        raise ValueError(f'{where} has no column {column!r}; there are: {", ".join(row)}')
    if math.isnan(value := number(row[column], column)):
        raise ValueError(f'{where} has {column}={row[column]!r}; it must be a finite number')
    return value


def accuracy(value: float, name: str) -> float:
    """A finite number."""
    if math.isnan(value := number(value, name)):
        raise ValueError(f'{name} must be a finite number, got {value}')
    return value


def _any(groups: Iterable[Sequence[float]]) -> bool:
    return any(not math.isnan(value) for group in groups for value in group)
