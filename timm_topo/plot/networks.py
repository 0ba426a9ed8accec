"""Many networks: thresholds, accuracy, weights over time, likeness (Janik & Nowak, Fig. 2-6)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from .style import FAINT, INK, LOOKS, check_series, finite_vector, number, styled

__all__ = [
    'accuracy_bars',
    'contact_sheet',
    'embedding',
    'similarity_matrix',
    'threshold_curves',
    'weight_history',
]

_HATCHES = ('', '////', '....', 'xxxx', '\\\\\\\\', '++++')
_MOST_LINES = 400  # of weight_history: more is a blot


@styled
def threshold_curves(rows: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Accuracy and edges left per threshold, mean and range over the networks (Fig. 2a).

    Args:
        rows: By label, at most 6, rows of :func:`timm_topo.analysis.compare.threshold_sweep` of one
            or several networks: ``threshold``, ``connected``, ``top1``, ``top1_masked`` and
            ``sparsity``, numbers or text.

    Raises:
        ValueError: No or too many labels, a label without rows, or text that is not a number.
    """
    rows = {label: list(of_label) for label, of_label in rows.items()}
    check_series(rows, 'threshold_curves')
    taus = sorted({number(row['threshold'], 'threshold') for r in rows.values() for row in r})
    fig = Figure(figsize=(8.2, 3.4))
    left, right = fig.subplots(1, 2)
    broken = False
    for (label, of_label), (colour, line, marker) in zip(rows.items(), LOOKS):
        look = dict(color=colour, linestyle=line, marker=marker)
        scores, shares, cut = {}, {}, []
        for row in of_label:
            at = taus.index(number(row['threshold'], 'threshold'))
            connected = bool(number(row['connected'], 'connected'))
            score = number(row['top1' if connected else 'top1_masked'], 'top1')
            scores.setdefault(at, []).append(score)
            shares.setdefault(at, []).append(1 - number(row['sparsity'], 'sparsity'))
            cut += [] if connected else [(at, score)]
        _range(left, scores, label, look)
        _range(right, shares, label, look)
        broken |= bool(cut)
        left.scatter(*zip(*cut) if cut else ([], []), marker='x', s=50, color=INK, zorder=3)
    for axes in (left, right):
        axes.set_xticks(range(len(taus)), [f'{tau:g}' for tau in taus], rotation=45)
        axes.set_xlabel('threshold on |edge weight|')
        axes.grid(axis='y', color='#e3e5e8', linewidth=0.8)
    right.set_yscale('log')
    left.set_title('evaluation top-1 (%)')
    right.set_title('share of edges left')
    handles, labels = left.get_legend_handles_labels()
    if broken:
        handles.append(Line2D([], [], color=INK, marker='x', linestyle='none', markersize=6))
        labels.append('input and output cut apart')
    legend = fig.legend(handles, labels, loc='outside upper center', ncols=3, handlelength=3.5)
    _plain(legend.get_texts())
    return fig


def _range(axes: Axes, values: Mapping[int, list], label: str, look: dict) -> None:
    """Means as a line, least to most as a band."""
    at = sorted(values)
    axes.plot(at, [np.mean(values[i]) for i in at], label=label, **look)
    low, high = ([f(values[i]) for i in at] for f in (min, max))
    axes.fill_between(at, low, high, color=look['color'], alpha=0.15, linewidth=0)


@styled
def accuracy_bars(
    scores: Mapping[str, Mapping[str, Sequence[float]]], quantity: str = 'evaluation top-1 (%)'
) -> Figure:
    """Mean and standard deviation over networks, bars side by side per group (Fig. 2b).

    Args:
        scores: By group (data set), by kind (at most 6: full, thresholded...), one value per
            network. A kind may be missing in a group.
        quantity: Meaning of the values.

    Raises:
        ValueError: No group, no or too many kinds, or values that are missing or not finite.
    """
    kinds = list(dict.fromkeys(kind for group in scores.values() for kind in group))
    check_series({kind: [0] for kind in kinds}, 'accuracy_bars')
    values = {kind: _by_group(scores, kind) for kind in kinds}
    width = 0.8 / len(kinds)
    fig = Figure(figsize=(max(4.5, 1.2 + 0.42 * len(kinds) * len(scores)), 3.3))
    axes = fig.subplots()
    lowest = math.inf
    for k, (kind, (colour, _, _)) in enumerate(zip(kinds, LOOKS)):
        means = np.array([v.mean() for v in values[kind].values()])
        spread = [v.std(ddof=1) if len(v) > 1 else math.nan for v in values[kind].values()]
        lowest = min(lowest, (means - np.nan_to_num(spread)).min())
        axes.bar(
            [g + (k - (len(kinds) - 1) / 2) * width for g in values[kind]], means, width,
            yerr=spread, label=kind, color=colour, edgecolor='white', hatch=_HATCHES[k],
            error_kw=dict(ecolor=INK, capsize=2, linewidth=0.9),
        )  # fmt: skip
    axes.set_xticks(range(len(scores)), list(scores), parse_math=False)
    axes.tick_params(axis='x', length=0)
    top = max(axes.get_ylim()[1], 1e-9)
    axes.set_ylim(max(0.0, lowest - 0.15 * (top - lowest)), top)
    axes.set_ylabel(quantity)
    legend = fig.legend(loc='outside upper center', ncols=min(len(kinds), 4))
    _plain(legend.get_texts())
    return fig


def _by_group(scores: Mapping[str, Mapping], kind: str) -> dict[int, np.ndarray]:
    vectors = {}
    for g, (name, group) in enumerate(scores.items()):
        if kind in group:
            vectors[g] = finite_vector(group[kind], f'{kind} of {name}')
            if not len(vectors[g]):
                raise ValueError(f'{kind} of {name} is empty')
    return vectors


@styled
def weight_history(epochs: Sequence[int], weights: Any, kept: Sequence[bool]) -> Figure:
    """|edge weight| over training: of edges that stay (left) and that go (right) (Fig. 3).

    Args:
        epochs: Numbers of epochs done, T of them.
        weights: ``(T, E)``; of many edges every so manieth is drawn.
        kept: ``(E,)``, which edges stay.

    Raises:
        ValueError: Shapes that do not fit.
    """
    weights = np.abs(np.asarray(weights, dtype=float))
    kept = np.asarray(kept, dtype=bool)
    if weights.ndim != 2 or weights.shape != (len(epochs), len(kept)):
        raise ValueError(
            f'{len(epochs)} epochs and {len(kept)} edges need weights of that shape, got '
            f'{weights.shape}'
        )
    fig = Figure(figsize=(8.2, 3.1))
    grid = fig.subplots(1, 2, sharey=True)
    for axes, chosen, title in ((grid[0], kept, 'stay'), (grid[1], ~kept, 'go')):
        lines = weights[:, chosen]
        every = math.ceil(lines.shape[1] / _MOST_LINES) or 1
        alpha = 0.25 + 0.6 / math.sqrt(max(1, lines.shape[1] // every))
        axes.plot(epochs, lines[:, ::every], color=LOOKS[0][0], linewidth=0.9, alpha=alpha)
        axes.set_title(f'edges that {title}: {lines.shape[1]}')
        axes.set_xlabel('epochs')
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    grid[0].set_ylabel('|edge weight|')
    grid[0].set_ylim(bottom=0)
    return fig


@styled
def similarity_matrix(matrix: Any, labels: Sequence[str]) -> Figure:
    """Pairwise similarity of networks, in blocks of one label each (Fig. 5).

    Args:
        matrix: ``(n, n)`` from 0 to 1, as from :func:`timm_topo.analysis.metrics.similarity`.
        labels: What each network was trained on; equal ones side by side.

    Raises:
        ValueError: Shapes that do not fit.
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.ndim != 2 or matrix.shape != (len(labels), len(labels)):
        raise ValueError(f'{len(labels)} networks need as square a matrix, got {matrix.shape}')
    fig = Figure(figsize=(4.9, 4.2))
    axes = fig.subplots()
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap='Blues')
    starts = [i for i in range(len(labels)) if i == 0 or labels[i] != labels[i - 1]]
    stops = [*starts[1:], len(labels)]
    for edge in starts[1:]:
        axes.axhline(edge - 0.5, color=INK, linewidth=0.9)
        axes.axvline(edge - 0.5, color=INK, linewidth=0.9)
    middles = [(a + b - 1) / 2 for a, b in zip(starts, stops)]
    names = [labels[start] for start in starts]
    axes.set_yticks(middles, names, parse_math=False)
    axes.set_xticks(middles, names, rotation=30, ha='right', parse_math=False)
    axes.tick_params(length=0)
    fig.colorbar(image, label='similarity')
    return fig


@styled
def embedding(points: Any, labels: Sequence[str], axis: str = 'principal component') -> Figure:
    """Networks as points in the plane, a colour and a mark per label (Fig. 6).

    Args:
        points: ``(n, 2)``, as from :func:`timm_topo.analysis.metrics.embed`.
        labels: What each network was trained on, at most 6 different ones.
        axis: Meaning of the axes.

    Raises:
        ValueError: Shapes that do not fit, or no or too many labels.
    """
    points = np.asarray(points, dtype=float)
    if points.shape != (len(labels), 2):
        raise ValueError(f'{len(labels)} networks need as many points, got {points.shape}')
    known = dict.fromkeys(labels)
    check_series({label: [0] for label in known}, 'embedding')
    fig = Figure(figsize=(5.2, 3.6))
    axes = fig.subplots()
    for label, (colour, _, marker) in zip(known, LOOKS):
        own = points[[one == label for one in labels]]
        axes.scatter(*own.T, color=colour, marker=marker, s=34, label=label, edgecolor='white')
    axes.set_xlabel(f'{axis} 1')
    axes.set_ylabel(f'{axis} 2')
    legend = fig.legend(loc='outside right upper')
    _plain(legend.get_texts())
    return fig


@styled
def contact_sheet(rows: Mapping[str, Sequence], captions: Sequence[str] = ()) -> Figure:
    """Images of data sets, a row each.

    Args:
        rows: By name of the data set, arrays ``(H, W)`` or ``(H, W, 3)`` of bytes; None leaves a
            place empty.
        captions: Heads of the columns: names of the classes.

    Raises:
        ValueError: No row, or a row without images.
    """
    if not rows or not all(len(images) for images in rows.values()):
        raise ValueError('contact_sheet needs images in every row')
    columns = max(len(images) for images in rows.values())
    fig = Figure(figsize=(0.8 * columns + 1.2, 0.85 * len(rows) + 0.4))
    grid = fig.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (name, images) in zip(grid, rows.items()):
        for axes, image in zip(row, images):
            if image is not None:
                axes.imshow(
                    np.asarray(image), cmap='gray', vmin=0, vmax=255, interpolation='nearest'
                )
        row[0].set_axis_on()
        row[0].xaxis.set_major_locator(NullLocator())
        row[0].yaxis.set_major_locator(NullLocator())
        row[0].spines[:].set_color(FAINT)
        row[0].set_ylabel(name, rotation=0, ha='right', va='center', parse_math=False)
    for axes, caption in zip(grid[0], captions):
        axes.set_title(caption, fontsize=8, parse_math=False)
    return fig


def _plain(texts) -> None:
    for text in texts:
        text.set_parse_math(False)
