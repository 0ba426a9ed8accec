"""Wirings and their edge weights (TopoNet, Fig. 2 and 3)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from ..wiring import Wiring
from .style import (
    FAINT,
    INK,
    NEGATIVE,
    POSITIVE,
    check_series,
    columns_for,
    finite_vector,
    limit_of,
    styled,
)

_HATCH = '#7d848c'
_LEVELS = ('white', '#dfe6ee', '#bccbdc', '#9bb2cb')  # nodes, resolution by resolution
_ARC = (Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4)
COLOURS = 'RdBu_r'  # red positive, blue negative, white 0; as dark at both ends
_FLAT = 0.05  # negative weights below this share of the scale get no minus sign


@dataclass(frozen=True)
class Panel:
    """One matrix of :func:`adjacency`, or one drawing of :func:`graphs`.

    To compare before and after pruning on the same nodes, give the masked wiring:
    ``Panel('pruned', wiring.subgraph(e for e, k in zip(wiring.edges, keep) if k), weights[keep])``.

    Args:
        title: Its heading.
        wiring: N nodes, E >= 1 edges.
        weights: ``(E,)`` in the order of ``wiring.edges``: a sequence, array or tensor.
        labels: ``(N,)`` names of the nodes, such as their ids before pruning; their ids by default.
        levels: ``(N,)`` ascending, the resolution of each node: nodes of later ones are drawn
            darker, with a line between. None: one resolution.

    Raises:
        ValueError: No edge, a wrong number of weights, labels or levels, or a weight that is not
            finite.
    """

    title: str
    wiring: Wiring
    weights: Any
    labels: Sequence | None = None
    levels: Sequence[int] | None = None

    def __post_init__(self):
        if self.levels is not None and len(self.levels) != self.wiring.num_nodes:
            raise ValueError(f'{self.wiring} needs as many levels as nodes, got {len(self.levels)}')
        object.__setattr__(self, 'weights', _edge_vector(self.wiring, self.weights))
        object.__setattr__(self, 'labels', _node_labels(self.wiring, self.labels))


@styled
def adjacency(
    panels: Sequence[Panel],
    columns: int | None = None,
    limit: float | None = None,
    quantity: str = 'edge weight',
) -> Figure:
    """Adjacency matrices, rows = targets, columns = sources (TopoNet, Fig. 2 and 3).

    One colour scale for all: white 0, red positive, blue negative and marked with a minus sign
    (from 5% of the scale on). Edges that the wiring does not have are hatched; places where no
    edge can be are blank.

    Args:
        panels: Graphs, row by row.
        columns: Panels per row, at most 3 by default. Two rows, before and after: all panels
            before, then all after, and their number here.
        limit: |weight| of full colour; by default the largest.
        quantity: Meaning of the colours.

    Raises:
        ValueError: No panel, or ``columns`` or ``limit`` not positive.
    """
    panels, columns = check_panels(panels, columns, 'adjacency')
    rows = math.ceil(len(panels) / columns)
    largest = max(np.abs(panel.weights).max() for panel in panels)
    norm = Normalize(-limit_of(limit, largest), limit_of(limit, largest))
    side = min(3.0, 9.0 / columns)
    fig = Figure(figsize=(columns * side + 1.0, rows * (side + 0.25) + 0.3))
    grid = fig.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels):
        draw_matrix(axes, panel, norm, side)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    fig.colorbar(
        ScalarMappable(norm, COLOURS),
        ax=grid,
        label=quantity,
        extend='both' if largest > norm.vmax else 'neither',
        fraction=0.05,
        aspect=15 * rows,
    )
    matrix_key(fig, panels, norm)
    return fig


def draw_matrix(axes: Axes, panel: Panel, norm: Normalize, side: float) -> None:
    """Draw edge weights as cells; cells without an edge are hatched."""
    n, wiring = panel.wiring.num_nodes, panel.wiring
    hatched = dict(facecolor='none', edgecolor=_HATCH, hatch='/////', linewidth=0)
    axes.add_collection(PolyCollection(_cells(_absent(wiring)), label='absent', **hatched))
    coloured = dict(array=panel.weights, norm=norm, cmap=COLOURS, edgecolor=FAINT, linewidth=0.4)
    axes.add_collection(PolyCollection(_cells(wiring.edges), label='edges', **coloured))
    for dark in (False, True):
        marked = _marked(panel, norm) & ((panel.weights < -0.6 * norm.vmax) == dark)
        source, target = np.array(wiring.edges)[marked].T
        size = min(36 * side / n, 9)  # half a cell, in points
        colour = 'white' if dark else INK
        look = dict(s=size**2, marker='_', linewidth=0.9, color=colour)
        axes.scatter(source, target, label='minus', **look)
    step = math.ceil(n / (3 * side))
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect='equal')
    axes.set(xlabel='source', ylabel='target')
    axes.set_xticks(range(0, n, step), panel.labels[::step], parse_math=False)
    axes.set_yticks(range(0, n, step), panel.labels[::step], parse_math=False)
    axes.set_title(panel.title, parse_math=False)


def matrix_key(fig: Figure, panels: list[Panel], norm: Normalize) -> None:
    """Explain minus signs and hatches, where there are any."""
    key = {}
    if any(_marked(panel, norm).any() for panel in panels):
        key['negative'] = Line2D([], [], color=INK, marker='_', linestyle='none', markersize=7)
    if any(_absent(panel.wiring) for panel in panels):
        key['no edge'] = Patch(facecolor='none', edgecolor=_HATCH, hatch='/////', linewidth=0.5)
    if key:
        fig.legend(list(key.values()), list(key), loc='outside lower center', ncols=2)


def _marked(panel: Panel, norm: Normalize) -> np.ndarray:
    return panel.weights < -_FLAT * norm.vmax


def _absent(wiring: Wiring) -> list[tuple[int, int]]:
    """Pairs in order that are no edge."""
    present = set(wiring.edges)
    return [pair for pair in combinations(range(wiring.num_nodes), 2) if pair not in present]


def _cells(edges: Sequence[tuple[int, int]]) -> list:
    """Unit squares ``(4, 2)`` around (source, target)."""
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    return [corners + edge for edge in edges]


@styled
def graph(
    wiring: Wiring,
    weights: Any,
    title: str = '',
    labels: Sequence | None = None,
    limit: float | None = None,
    quantity: str = 'edge weight',
) -> Figure:
    """A stage as a graph: nodes in order on a line, positive edges above, negative below, dashed.

    Width and opacity grow with |weight|, so weak edges are faint. Dead nodes are hollow.

    Args:
        wiring: N nodes, E >= 1 edges.
        weights: ``(E,)`` in the order of ``wiring.edges``: a sequence, array or tensor.
        title: Heading.
        labels: ``(N,)`` names of the nodes; their ids by default.
        limit: |weight| of full width, to compare figures; by default the largest.
        quantity: Meaning of the widths.

    Raises:
        ValueError: No edge, a wrong number of weights or labels, a weight that is not finite, or
            ``limit`` not positive.
    """
    return _draw_graphs([Panel(title, wiring, weights, labels)], 1, limit, quantity)


@styled
def graphs(
    panels: Sequence[Panel],
    columns: int | None = None,
    limit: float | None = None,
    quantity: str = 'edge weight',
) -> Figure:
    """Stages as graphs, drawn as by :func:`graph` on one scale: the paths of classes, say.

    Args:
        panels: Graphs, row by row.
        columns: Drawings per row, at most 3 by default.
        limit: |weight| of full width; by default the largest.
        quantity: Meaning of the widths.

    Raises:
        ValueError: No panel, or ``columns`` or ``limit`` not positive.
    """
    return _draw_graphs(*check_panels(panels, columns, 'graphs'), limit, quantity)


def check_panels(
    panels: Sequence[Panel], columns: int | None, name: str
) -> tuple[list[Panel], int]:
    """The panels as a list, and how many a row has."""
    panels = list(panels)
    if not panels:
        raise ValueError(f'{name} needs at least one Panel, got none')
    columns = columns_for(len(panels)) if columns is None else columns
    if columns < 1:
        raise ValueError(f'columns must be at least 1, got {columns}')
    return panels, columns


def shared_limit(panels: Sequence[Panel]) -> float | None:
    """Largest |weight| of an edge that shares its node with others, as a ``limit`` of figures.

    A node's only in-edge may weigh 1 where all others are far below. None, if there are no others.
    """
    shared = [
        abs(weight)
        for panel in panels
        for (_, target), weight in zip(panel.wiring.edges, panel.weights)
        if panel.wiring.in_degrees[target] > 1 and weight
    ]
    return max(shared, default=None)


def _draw_graphs(
    panels: Sequence[Panel], columns: int, limit: float | None, quantity: str
) -> Figure:
    limit = limit_of(limit, max(np.abs(panel.weights).max() for panel in panels))
    rows, nodes = math.ceil(len(panels) / columns), max(p.wiring.num_nodes for p in panels)
    fig = Figure()
    grid = fig.subplots(rows, columns, squeeze=False).flat
    tops, bottoms = [], []
    for number, (axes, panel) in enumerate(zip(grid, panels)):
        order = np.argsort(np.abs(panel.weights), kind='stable')  # strong edges on top
        above = panel.weights[order] >= 0
        prefix = f'{number}-' if len(panels) > 1 else ''
        tops.append(_draw_arcs(axes, panel, order[above], limit, prefix))
        bottoms.append(_draw_arcs(axes, panel, order[~above], limit, prefix))
        _draw_nodes(axes, panel, prefix)
        axes.set_title(panel.title, parse_math=False)
    for axes in fig.axes:
        axes.set(xlim=(-1.6, nodes + 0.6), ylim=(-max(bottoms), max(tops)))
        axes.set_axis_off()
    width, height = 0.34 * nodes + 1.4, 0.2 * (max(tops) + max(bottoms)) + 0.4
    fig.set_size_inches(np.clip(columns * width, 5, 10), 0.7 + rows * np.clip(height, 1.3, 5.3))
    edge_key(fig, panels, limit, quantity)
    return fig


def edge_key(fig: Figure, panels: Sequence[Panel], limit: float, quantity: str) -> None:
    """Explain the widths of edges, and the looks of negative ones where there are any."""
    negative = any((panel.weights < 0).any() for panel in panels)
    shown = [limit, limit / 2] + [-limit / 2] * negative
    key = [Line2D([], [], **edge_look(w, limit)) for w in shown]
    names = [f'{w:.2g}'.replace('-', '\u2212') for w in shown]
    fig.legend(
        key, names, title=quantity, title_fontsize=9,
        loc='outside lower center', ncols=3, handlelength=3.5,
    )  # fmt: skip


def edge_look(weight: float, limit: float) -> dict:
    """Red and solid, or blue and dashed; wide and opaque as |weight| nears ``limit``."""
    strength = min(abs(weight) / limit, 1)
    return dict(
        color=(*to_rgb(POSITIVE if weight >= 0 else NEGATIVE), 0.1 + 0.9 * strength),
        linewidth=0.4 + 3.2 * strength,
        linestyle='-' if weight >= 0 else (0, (3, 1.2)),
    )


def _draw_arcs(axes: Axes, panel: Panel, edges, limit: float, prefix: str) -> float:
    """Draw edges of one sign; returns how far from the line they reach."""
    reach, wiring, weights = 1.1, panel.wiring, panel.weights
    for e in edges:
        source, target = wiring.edges[e]
        height = (target - source) ** 0.75
        reach = max(reach, height + 0.3)
        control = math.copysign(4 / 3 * height, weights[e] if weights[e] else 1)
        axes.add_patch(
            PathPatch(
                Path([(source, 0), (source, control), (target, control), (target, 0)], _ARC),
                fill=False, capstyle='butt', gid=f'{prefix}edge-{source}-{target}',
                **edge_look(weights[e], limit),
            )
        )  # fmt: skip
    return reach


def _draw_nodes(axes: Axes, panel: Panel, prefix: str) -> None:
    levels = panel.levels or [0] * panel.wiring.num_nodes
    for node in range(1, panel.wiring.num_nodes):
        if levels[node] > levels[node - 1]:
            draw_border(axes, node - 0.5)
    draw_nodes(axes, panel, [(node, 0) for node in range(panel.wiring.num_nodes)], prefix)


def draw_border(axes: Axes, x: float) -> None:
    """A line between nodes of two resolutions."""
    axes.axvline(x, color=FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)


def draw_nodes(axes: Axes, panel: Panel, places: Sequence, prefix: str, area: float = 200) -> None:
    """Nodes at ``(N, 2)`` places, ``area`` in points; dead ones hollow."""
    dead, last = set(panel.wiring.dead_nodes()), panel.wiring.num_nodes - 1
    levels = panel.levels or [0] * panel.wiring.num_nodes
    for node, (label, (x, y)) in enumerate(zip(panel.labels, places)):
        end = node in (0, last)
        fill = _LEVELS[min(levels[node], len(_LEVELS) - 1)]
        axes.scatter(
            x, y, s=area, marker='s' if end else 'o', zorder=3, gid=f'{prefix}node-{node}',
            facecolor=INK if end and node not in dead else 'white' if node in dead else fill,
            edgecolor=FAINT if node in dead else INK,
            linestyle='--' if node in dead else '-',
        )  # fmt: skip
        axes.text(
            x, y, label, color='#767c84' if node in dead else 'white' if end else INK,
            fontsize=7.5 * math.sqrt(area / 200), ha='center', va='center_baseline', zorder=4,
            parse_math=False,
        )  # fmt: skip
        if end:
            side, word = (1, 'output') if node else (-1, 'input')
            axes.annotate(
                word, (x, y), (side * (4 + math.sqrt(area) / 2), 0), textcoords='offset points',
                ha='left' if node else 'right', va='center_baseline',
            )  # fmt: skip


@styled
def weight_histogram(
    series: Mapping[str, Any],
    magnitude: bool = True,
    bins: int = 31,
    title: str = '',
    quantity: str = 'edge weight',
) -> Figure:
    """Histograms of edge weights, one below the other on the same axes (TopoNet, Fig. 3).

    Args:
        series: Weights ``(E,)`` by label, at most 6; E may differ.
        magnitude: Whether to count |weight|, else weight over a range symmetric about 0.
        bins: Number of bins.
        title: Heading.
        quantity: Name of the counted values.

    Raises:
        ValueError: No or too many series, a series that is empty or not finite, or ``bins`` < 1.
    """
    values = {label: finite_vector(w, f'series {label!r}') for label, w in series.items()}
    check_series(values, 'weight_histogram')
    if bins < 1:
        raise ValueError(f'bins must be at least 1, got {bins}')
    top = max(np.abs(v).max() for v in values.values()) or 1.0
    edges = np.linspace(0 if magnitude else -top, top, bins + 1)
    fig = Figure(figsize=(7, 1.25 * len(values) + 0.8))
    grid = fig.subplots(len(values), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (label, vector) in zip(grid, values.items()):
        counts, _ = np.histogram(np.abs(vector) if magnitude else vector, edges)
        axes.stairs(counts, edges, fill=True, facecolor='#8fb4d9', edgecolor=INK, linewidth=0.7)
        axes.set_title(f'{label}: {len(vector)} edges', loc='left', fontsize=9, parse_math=False)
    grid[-1].set(xlabel=f'|{quantity}|' if magnitude else quantity, xlim=edges[[0, -1]])
    grid[-1].yaxis.set_major_locator(MaxNLocator(4, integer=True))
    fig.supylabel('number of edges', fontsize=9)
    fig.suptitle(title, fontsize=10, parse_math=False)
    return fig


def _edge_vector(wiring: Wiring, weights: Any) -> np.ndarray:
    vector = finite_vector(weights, str(wiring))
    if wiring.num_edges == 0:
        raise ValueError(f'{wiring} has no edge to show')
    if len(vector) != wiring.num_edges:
        raise ValueError(f'{wiring} needs {wiring.num_edges} weights, got {len(vector)}')
    return vector


def _node_labels(wiring: Wiring, labels: Sequence | None) -> list[str]:
    names = [str(label) for label in (range(wiring.num_nodes) if labels is None else labels)]
    if len(names) != wiring.num_nodes:
        raise ValueError(f'{wiring} needs {wiring.num_nodes} node labels, got {len(names)}')
    return names
