"""Wirings drawn in layers, for graphs of many nodes (TopoNet, Fig. 1)."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from ..wiring import Wiring
from .style import limit_of, styled
from .wirings import Panel, check_panels, draw_border, draw_nodes, edge_key, edge_look

_CURVE = (Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4)
_ROW = 2.0  # between nodes of a layer, where 1 is the height of an edge that passes one node
UNIT = 0.2  # inches
_CLEAR = 0.13  # inches from the middle of a node that an edge of others keeps, if it can
_BENDS = (1, 0.9, 1.1, 0.8, 1.2, 0.7, 1.3, 0.6, 1.4, 0.5, 0.4)  # times the usual height
_SKEWS = (0, 0.4, -0.4)  # how much higher it is at its start, lower at its end
_SWEEPS = 12


@styled
def layered_graph(
    wiring: Wiring,
    weights: Any,
    title: str = '',
    labels: Sequence | None = None,
    levels: Sequence[int] | None = None,
    limit: float | None = None,
    quantity: str = 'edge weight',
) -> Figure:
    """A stage as a graph in layers from left to right, after the longest path from the input.

    Positive edges are solid, negative ones dashed. Those that pass a layer bend, positive ones up
    and negative ones down, so that few hide behind others or behind nodes. Width and opacity grow
    with |weight|. Dead nodes are hollow. Of a complete graph it is the picture of
    :func:`timm_topo.plot.graph`.

    Args:
        wiring: N nodes, E >= 1 edges.
        weights: ``(E,)`` in the order of ``wiring.edges``: a sequence, array or tensor.
        title: Heading.
        labels: ``(N,)`` names of the nodes; their ids by default.
        levels: ``(N,)`` ascending, the resolution of each node: nodes of later ones are drawn
            darker, with a line between where all of them are to the right of it.
        limit: |weight| of full width, to compare figures; by default the largest.
        quantity: Meaning of the widths.

    Raises:
        ValueError: No edge, a wrong number of weights, labels or levels, a weight that is not
            finite, or ``limit`` not positive.
    """
    return _draw_all([Panel(title, wiring, weights, labels, levels)], 1, limit, quantity)


@styled
def layered_graphs(
    panels: Sequence[Panel],
    columns: int | None = None,
    limit: float | None = None,
    quantity: str = 'edge weight',
) -> Figure:
    """Stages drawn as by :func:`layered_graph`, on one scale.

    Args:
        panels: Graphs, row by row.
        columns: Drawings per row, at most 3 by default.
        limit: |weight| of full width; by default the largest.
        quantity: Meaning of the widths.

    Raises:
        ValueError: No panel, or ``columns`` or ``limit`` not positive.
    """
    return _draw_all(*check_panels(panels, columns, 'layered_graphs'), limit, quantity)


def layers(wiring: Wiring) -> list[list[int]]:
    """Nodes by length of the longest path from the input, the output alone in the last layer.

    Within a layer nodes are ordered such that few edges cross. A node that nobody feeds is in the
    layer after the input.
    """
    graph, last = wiring.to_networkx(), wiring.num_nodes - 1
    graph.add_edges_from((0, node) for node in range(1, last + 1) if not wiring.in_degrees[node])
    graph.add_edges_from((node, last) for node in range(last) if not wiring.out_degrees[node])
    order = best = [sorted(layer) for layer in nx.topological_generations(graph)]
    fewest = _crossings(wiring, best)
    for sweep in range(_SWEEPS):
        order = _swept(graph, order, forward=sweep % 2 == 0)
        if (crossings := _crossings(wiring, order)) < fewest:
            best, fewest = order, crossings
    return best


def _swept(graph: nx.DiGraph, order: list[list[int]], forward: bool) -> list[list[int]]:
    """Every layer sorted by the mean height of what feeds it, or of what it feeds."""
    heights = {node: height for layer in order for node, height in _spread(layer)}
    neighbours = graph.predecessors if forward else graph.successors

    def depth(node: int) -> float:
        around = [heights[other] for other in neighbours(node)] or [heights[node]]
        return -sum(around) / len(around)

    swept = []
    for layer in order if forward else reversed(order):
        swept.append(sorted(layer, key=depth))
        heights.update(_spread(swept[-1]))
    return swept if forward else swept[::-1]


def _spread(layer: Sequence[int]) -> list[tuple[int, float]]:
    """Nodes with heights, evenly about 0, the first one on top."""
    return [(node, _ROW * ((len(layer) - 1) / 2 - k)) for k, node in enumerate(layer)]


def _crossings(wiring: Wiring, order: list[list[int]]) -> int:
    """Pairs of edges that cross, of those between the same two layers."""
    at = {node: (i, k) for i, layer in enumerate(order) for k, node in enumerate(layer)}
    between = {}
    for source, target in wiring.edges:
        (i, k), (j, m) = at[source], at[target]
        between.setdefault((i, j), []).append((k, m))
    count = 0
    for edges in between.values():
        left, right = np.array(edges).T
        count += int(((left[:, None] < left) & (right[:, None] > right)).sum())
    return count


class Layout:
    """Where nodes and edges of a wiring are drawn: x in layers, y with 1 = ``UNIT`` inches.

    Args:
        wiring: What to draw.
        order: Nodes of every layer, from the top.
        step: Inches between layers.
    """

    def __init__(self, wiring: Wiring, order: list[list[int]], step: float):
        self.wiring, self.order, self.step = wiring, order, step
        self.places = np.empty((wiring.num_nodes, 2))
        for x, layer in enumerate(order):
            for node, height in _spread(layer):
                self.places[node] = x, height
        self.curve = cache(self._curve)

    def reach(self, weights: np.ndarray) -> tuple[float, float]:
        """Lowest and highest y of nodes and edges."""
        boxes = [self.curve(e, w >= 0).get_extents() for e, w in enumerate(weights)]
        low = min(self.places[:, 1].min() - 0.8, *(box.y0 - 0.3 for box in boxes))
        return low, max(self.places[:, 1].max() + 0.8, *(box.y1 + 0.3 for box in boxes))

    def _curve(self, e: int, up: bool) -> Path:
        """An edge from node to node: the further, the higher it bends, but not over others."""
        ends = list(self.wiring.edges[e])
        start, stop = self.places[ends]
        span = stop[0] - start[0]
        others = np.delete(self.places, ends, axis=0)
        others = others[(start[0] <= others[:, 0]) & (others[:, 0] <= stop[0])]
        alone = [span > 1 and len(self.order[int(x)]) == 1 for x in (start[0], stop[0])]
        lean = np.where(alone, 0, span / 4 if span > 1 else 1 / 3)  # up at once, or to the side
        best, most = None, -math.inf
        for skew, bend in product(_SKEWS, _BENDS):
            height = (4 if up else -4) / 3 * (span - 1) ** 0.75 * bend
            points = np.array([start, start, stop, stop])
            points[1:3] += [(lean[0], height * (1 + skew)), (-lean[1], height * (1 - skew))]
            if (clear := self._clearance(points, others)) > most:
                best, most = points, clear
            if span == 1 or clear >= _CLEAR:
                break
        return Path(best, _CURVE)

    def _clearance(self, points: np.ndarray, others: np.ndarray) -> float:
        """Inches between a curve and the nearest of other nodes."""
        t = np.linspace(0, 1, 2 + 8 * math.ceil(points[3, 0] - points[0, 0]))[:, None]
        parts = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        curve = sum(part * point for part, point in zip(parts, points))
        away = (curve[:, None] - others) * (self.step, UNIT)
        return np.hypot(*away.T).min(initial=math.inf)


def _draw_all(panels: Sequence[Panel], columns: int, limit: float | None, quantity: str) -> Figure:
    limit = limit_of(limit, max(np.abs(panel.weights).max() for panel in panels))
    orders = [layers(panel.wiring) for panel in panels]
    rows, depth = math.ceil(len(panels) / columns), max(map(len, orders))
    width, step = width_of(orders, columns)
    layouts = [Layout(panel.wiring, order, step) for panel, order in zip(panels, orders)]
    reaches = [layout.reach(panel.weights) for panel, layout in zip(panels, layouts)]
    low, high = min(low for low, _ in reaches), max(high for _, high in reaches)
    height = min(UNIT * (high - low), 7)
    fig = Figure(figsize=(width, 0.7 + rows * (height + 0.4)))
    grid = fig.subplots(rows, columns, squeeze=False).flat
    for number, (axes, panel, layout) in enumerate(zip(grid, panels, layouts)):
        prefix = f'{number}-' if len(panels) > 1 else ''
        draw_layers(axes, panel, layout, limit, height / (high - low), prefix)
        axes.set_title(panel.title, parse_math=False)
    for axes in fig.axes:
        axes.set(xlim=(-0.7 / step, depth - 1 + 0.7 / step), ylim=(low, high))
        axes.set_axis_off()
    edge_key(fig, panels, limit, quantity)
    return fig


def width_of(orders: Sequence[list[list[int]]], columns: int) -> tuple[float, float]:
    """Inches of a figure, and between layers: further apart the more nodes they have."""
    depth, most = max(map(len, orders)), max(len(layer) for order in orders for layer in order)
    usual = columns * (0.34 * min(1 + 0.25 * (most - 1), 3.5) * (depth - 1) + 1.4)
    width = np.clip(columns * (0.2 * (depth - 1) + 1.4), np.clip(usual, 5, 10), 14)
    return width, (width / columns - 1.4) / (depth - 1)


def draw_layers(
    axes: Axes, panel: Panel, layout: Layout, limit: float, unit: float, prefix: str = ''
) -> list[PathPatch]:
    """Draw nodes and edges; ``unit`` is the inches of 1 on the y axis. Returns the edges."""
    edges = [
        PathPatch(
            layout.curve(e, panel.weights[e] >= 0), fill=False, capstyle='butt',
            gid=f'{prefix}edge-{source}-{target}',
        )
        for e, (source, target) in enumerate(panel.wiring.edges)
    ]  # fmt: skip
    for edge in edges:
        axes.add_patch(edge)
    set_weights(edges, panel.weights, layout, limit)
    if panel.levels is not None:
        of_layers = [[panel.levels[node] for node in layer] for layer in layout.order]
        for i in range(1, len(of_layers)):
            if max(map(max, of_layers[:i])) < min(map(min, of_layers[i:])):
                draw_border(axes, i - 0.5)
    pitch = unit * _ROW if max(map(len, layout.order)) > 1 else math.inf
    area = min(14.142, 50 * layout.step, 50 * pitch) ** 2
    draw_nodes(axes, panel, layout.places, prefix, area)
    return edges


def set_weights(
    edges: Sequence[PathPatch], weights: np.ndarray, layout: Layout, limit: float
) -> None:
    """Give edges the looks of weights, the strongest on top."""
    for rank, e in enumerate(np.argsort(np.abs(weights), kind='stable')):
        edges[e].set_path(layout.curve(e, weights[e] >= 0))
        edges[e].set(zorder=1 + rank / len(edges), **edge_look(weights[e], limit))
