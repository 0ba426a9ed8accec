"""Graphs in layers keep their order, show every edge and hide none; bars are degrees."""

import sys
import xml.etree.ElementTree as ET
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba

from timm_topo import plot
from timm_topo.generators import complete, random, residual, watts_strogatz
from timm_topo.plot import layers as module
from timm_topo.plot.layers import layers
from timm_topo.wiring import Wiring

SPARSE = Wiring(5, [(0, 1), (0, 2), (1, 3), (2, 3), (0, 4), (3, 4)])
DEAD = Wiring(7, [(0, 2), (2, 4), (1, 4), (4, 6), (0, 6)])  # nobody feeds 1; 3 and 5 are alone


def branches(rows: int = 8, columns: int = 6) -> Wiring:
    """Columns of branches that feed all of the next column, and the output."""
    last = rows * columns + 1
    edges = [(0, 1 + i) for i in range(rows)] + [(last - 1 - i, last) for i in range(rows)]
    for start in range(1, last - rows, rows):
        block = range(start, start + rows)
        edges += [(i, j + rows) for i in block for j in block]
    return Wiring(last + 1, edges)


LARGE = {
    'complete': complete(26),
    'branches': branches(),
    'sixty': random(60, 300 / 1770, seed=1),
    'randwire': watts_strogatz(32, 4, 0.75, seed=1),
}


@st.composite
def dags(draw) -> Wiring:
    n = draw(st.integers(2, 9))
    pairs = [(i, j) for j in range(n) for i in range(j)]
    return Wiring(n, draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True)))


def weights_of(wiring: Wiring) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(wiring.num_edges)


def places(axes) -> dict[int, np.ndarray]:
    """Where nodes are drawn."""
    marks = [c for c in axes.collections if 'node-' in (c.get_gid() or '')]
    found = {int(c.get_gid().split('-')[-1]): c.get_offsets()[0].data for c in marks}
    assert len(found) == len(marks)
    return found


def edges(axes) -> dict:
    """Patch by edge."""
    found = {tuple(map(int, p.get_gid().split('-')[-2:])): p for p in axes.patches}
    assert len(found) == len(axes.patches)
    return found


def longest_paths(wiring: Wiring) -> list[int]:
    length = [0] * wiring.num_nodes
    for source, target in wiring.edges:  # sorted by target
        length[target] = max(length[target], length[source] + 1)
    return length


def crossings(wiring: Wiring, order: list[list[int]]) -> int:
    """Pairs of edges between the same two layers that cross, pair by pair."""
    at = {node: (x, y) for x, layer in enumerate(order) for y, node in enumerate(layer)}
    lines = [(at[s], at[t]) for s, t in wiring.edges]
    return sum(
        a[0][0] == b[0][0] and a[1][0] == b[1][0] and a[0][1] < b[0][1] and a[1][1] > b[1][1]
        for a in lines
        for b in lines
    )


# -- where things are -----------------------------------------------------------------------------


@given(dags())
def test_every_edge_goes_to_the_right_and_joins_its_nodes(wiring):
    (axes,) = plot.layered_graph(wiring, weights_of(wiring)).axes
    at = places(axes)
    assert at.keys() == set(range(wiring.num_nodes))
    assert len({tuple(place) for place in at.values()}) == wiring.num_nodes
    assert [node for node in at if at[node][0] <= at[0][0]] == [0]
    last = wiring.num_nodes - 1
    assert [node for node in at if at[node][0] >= at[last][0]] == [last]
    drawn = edges(axes)
    assert drawn.keys() == set(wiring.edges)
    for (source, target), patch in drawn.items():
        assert at[source][0] < at[target][0]
        ends = patch.get_path().vertices[[0, -1]]
        np.testing.assert_array_equal(ends, [at[source], at[target]])


@pytest.mark.parametrize('name', LARGE)
def test_the_layer_is_the_longest_path_from_the_input(name):
    wiring = LARGE[name]
    assert not wiring.dead_nodes()
    (axes,) = plot.layered_graph(wiring, weights_of(wiring)).axes
    at, paths = places(axes), longest_paths(wiring)
    assert [at[node][0] for node in range(wiring.num_nodes)] == paths


@given(dags() | st.builds(random, st.just(14), st.just(0.3), st.integers(0, 99)))
def test_ordering_never_adds_crossings(wiring):
    order = layers(wiring)
    assert sorted(chain(*order)) == list(range(wiring.num_nodes))
    assert crossings(wiring, order) <= crossings(wiring, [sorted(layer) for layer in order])


def test_crossings_that_are_needless_go():
    tangled = Wiring(8, [(0, 1), (0, 2), (0, 3), (1, 6), (2, 5), (3, 4), (4, 7), (5, 7), (6, 7)])
    order = layers(tangled)
    assert crossings(tangled, [sorted(layer) for layer in order]) == 3
    assert crossings(tangled, order) == 0


@pytest.mark.parametrize('wiring', [*LARGE.values(), complete(60)], ids=str)
def test_nodes_do_not_overlap_and_all_is_inside(wiring):
    fig = plot.layered_graph(wiring, weights_of(wiring))
    fig.draw_without_rendering()
    (axes,) = fig.axes
    at = np.array([places(axes)[node] for node in range(wiring.num_nodes)])
    points = axes.transData.transform(at) * 72 / fig.dpi
    away = np.hypot(*(points[:, None] - points).T) + 1e9 * np.eye(len(points))
    diameter = max(c.get_sizes()[0] for c in axes.collections) ** 0.5
    assert away.min() > 1.2 * diameter
    assert diameter > (10 if wiring.num_edges < 1000 else 8)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert left < at[:, 0].min() < at[:, 0].max() < right
    for patch in axes.patches:
        box = patch.get_path().get_extents()
        assert low < box.y0 <= box.y1 < high


def hidden(wiring: Wiring) -> int:
    """How many edges pass behind nodes of others."""
    fig = plot.layered_graph(wiring, weights_of(wiring))
    fig.draw_without_rendering()
    (axes,) = fig.axes
    at = axes.transData.transform([places(axes)[n] for n in range(wiring.num_nodes)])
    radius, count = 7 * fig.dpi / 72, 0
    for ends, patch in edges(axes).items():
        (curve,) = patch.get_path().transformed(axes.transData).to_polygons(closed_only=False)
        curve = np.concatenate([np.linspace(a, b, 9) for a, b in pairwise(curve)])
        others = np.delete(at, ends, axis=0)
        count += np.hypot(*(curve[:, None] - others).T).min() < radius
    return count


@pytest.mark.parametrize('name', ['sixty', 'randwire'])
def test_edges_keep_clear_of_nodes(name, monkeypatch):
    wiring = LARGE[name]
    few = hidden(wiring)
    monkeypatch.setattr(module, '_BENDS', (1,))
    monkeypatch.setattr(module, '_SKEWS', (0,))
    assert few < 0.15 * hidden(wiring)
    assert few < 0.05 * wiring.num_edges


def test_nodes_on_one_line_make_the_picture_of_arcs():
    wiring = complete(26)
    assert hidden(wiring) == 0
    weights = weights_of(wiring)
    (axes,) = plot.layered_graph(wiring, weights).axes
    assert [tuple(place) for place in places(axes).values()] == [(x, 0) for x in range(26)]
    heights = {}
    for weight, (source, target) in zip(weights, wiring.edges):
        box = edges(axes)[source, target].get_path().get_extents()
        assert (box.y1 if weight < 0 else box.y0) == pytest.approx(0)
        heights.setdefault(target - source, set()).add(round(box.height, 6))
    assert [len(of_span) for of_span in heights.values()] == [1] * 25
    by_span = [heights[span].pop() for span in range(1, 26)]
    assert by_span[0] == 0  # straight
    assert by_span == sorted(set(by_span))


def test_signs_are_told_by_side_line_and_colour():
    wiring = Wiring(4, [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)])
    (axes,) = plot.layered_graph(wiring, [1.0, -1.0, -1.0, 1.0, 1.0]).axes
    drawn = edges(axes)
    assert drawn[0, 1].get_linestyle() != drawn[1, 2].get_linestyle()
    assert drawn[0, 1].get_edgecolor()[:3] != drawn[1, 2].get_edgecolor()[:3]
    assert drawn[0, 2].get_path().get_extents().y0 < -0.5  # negative, so below
    assert drawn[1, 3].get_path().get_extents().y1 > 0.5


def test_strong_edges_are_wide_opaque_and_on_top():
    wiring = LARGE['randwire']
    weights = weights_of(wiring)
    (axes,) = plot.layered_graph(wiring, weights).axes
    drawn = [edges(axes)[wiring.edges[e]] for e in np.argsort(np.abs(weights))]
    for values in (
        [patch.get_linewidth() for patch in drawn],
        [patch.get_edgecolor()[3] for patch in drawn],
        [patch.get_zorder() for patch in drawn],
    ):
        assert values == sorted(set(values))  # strictly
    nodes = [c.get_zorder() for c in axes.collections]
    assert drawn[-1].get_zorder() < min(nodes)
    assert drawn[-1].get_linewidth() > 6 * drawn[0].get_linewidth()


def test_dead_nodes_are_hollow_in_their_layer():
    (axes,) = plot.layered_graph(DEAD, [1.0] * 5).axes
    marks = {c.get_gid(): c for c in axes.collections}
    dashed = {name for name, c in marks.items() if c.get_linestyle()[0][1] is not None}
    assert dashed == {'node-1', 'node-3', 'node-5'}
    assert [places(axes)[node][0] for node in range(7)] == [0, 1, 1, 1, 2, 1, 3]
    assert {'input', 'output'} <= {text.get_text() for text in axes.texts}


def test_nodes_of_later_resolutions_are_darker_behind_a_line():
    (axes,) = plot.layered_graph(complete(5), [1.0] * 10, levels=[0, 0, 1, 1, 2]).axes
    fills = {c.get_gid(): sum(c.get_facecolor()[0][:3]) for c in axes.collections}
    assert fills['node-1'] > fills['node-2'] == fills['node-3']
    assert [line.get_xdata()[0] for line in axes.lines] == [1.5, 3.5]
    (axes,) = plot.layered_graph(SPARSE, [1.0] * 6, levels=[0, 0, 1, 1, 1]).axes
    assert not axes.lines  # nodes 1 and 2 are in one layer
    fills = {c.get_gid(): c.get_facecolor()[0] for c in axes.collections}
    assert tuple(fills['node-1']) == to_rgba('white') != tuple(fills['node-2'])


def test_several_graphs_share_one_scale():
    panels = [
        plot.Panel('a', complete(3), [1.0, 0.5, 0.5]),
        plot.Panel('b $', SPARSE, [-2.0, 1, 1, 1, 1, 1], labels='vwxyz'),
    ]
    fig = plot.layered_graphs(panels, columns=2)
    first, second = fig.axes
    assert {patch.get_gid() for patch in second.patches} == {
        f'1-edge-{i}-{j}' for i, j in SPARSE.edges
    }
    assert edges(first)[0, 1].get_linewidth() == edges(second)[0, 2].get_linewidth()
    assert edges(first)[0, 1].get_linewidth() < edges(second)[SPARSE.edges[0]].get_linewidth()
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())
    assert {*'vwxyz'} <= {text.get_text() for text in second.texts}
    assert second.get_title() == 'b $'
    key = [text.get_text() for text in fig.legends[0].get_texts()]
    assert key == ['2', '1', '\u22121']


# -- degrees --------------------------------------------------------------------------------------


def bars(axes) -> tuple[list[float], list[float]]:
    inner, outer = axes.containers
    assert [round(bar.get_x() + bar.get_width() / 2, 6) for bar in inner] == list(range(len(inner)))
    return [bar.get_height() for bar in inner], [-bar.get_height() for bar in outer]


def test_bars_are_the_degrees_of_nodes():
    wirings = {'a $': LARGE['randwire'], 'b': residual(14, 3), 'c': DEAD}
    fig = plot.degrees(wirings)
    assert len(fig.axes) == 3
    for axes, (label, wiring) in zip(fig.axes, wirings.items()):
        graph = wiring.to_networkx()
        nodes = range(wiring.num_nodes)
        expected = [graph.in_degree(n) for n in nodes], [graph.out_degree(n) for n in nodes]
        assert bars(axes) == expected
        assert axes.get_title(loc='left') == f'{label}: {wiring.num_edges} edges'
        assert axes.containers[1][0].get_hatch()
        assert not axes.containers[0][0].get_hatch()
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in fig.axes}) == 1


def test_degrees_may_be_weighted():
    weights = torch.tensor([0.5, -2.0, 1.0, 0.25, -1.0, 4.0])
    panel = plot.Panel('same', SPARSE, weights, labels='vwxyz')
    graph = SPARSE.to_networkx()
    for (source, target), weight in zip(SPARSE.edges, weights.abs().tolist()):
        graph[source][target]['w'] = weight
    fig = plot.degrees([panel, panel], weighted=True)
    assert len(fig.axes) == 2
    inner, outer = bars(fig.axes[1])
    assert inner == [graph.in_degree(n, 'w') for n in range(5)]
    assert outer == [graph.out_degree(n, 'w') for n in range(5)]
    counts, _ = bars(plot.degrees([panel]).axes[0])
    assert counts == [0, 1, 1, 2, 2]
    names = [tick.get_text() for tick in fig.axes[0].get_xticklabels()]
    assert names == [*'vwxyz']


# -- all figures ----------------------------------------------------------------------------------


def figures() -> dict:
    panel = plot.Panel('a $ <b>', LARGE['randwire'], weights_of(LARGE['randwire']))
    return {
        'one': plot.layered_graph(panel.wiring, panel.weights, title=panel.title),
        'two': plot.layered_graphs([panel, plot.Panel('b', DEAD, [1.0] * 5)]),
        'degrees': plot.degrees([panel, panel], weighted=True),
    }


def test_svg_is_the_same_every_time_and_names_every_part_once(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)  # importing it would fail
    for name, (first, second) in zip(figures(), zip(figures().values(), figures().values())):
        svg = plot.to_svg(first)
        assert svg == plot.to_svg(second)
        ids = [e.get('id') for e in ET.fromstring(svg).iter() if e.get('id')]
        assert len(ids) == len(set(ids))
        if name == 'one':
            wiring = LARGE['randwire']
            parts = {f'edge-{i}-{j}' for i, j in wiring.edges}
            assert {i for i in ids if i[:5] == 'edge-'} == parts
            parts = {f'node-{i}' for i in range(wiring.num_nodes)}
            assert {i for i in ids if i[:5] == 'node-'} == parts


ONES = [1.0] * 6


@pytest.mark.parametrize(
    ('draw', 'told'),
    [
        (lambda: plot.layered_graphs([]), 'layered_graphs needs at least one Panel, got none'),
        (lambda: plot.layered_graphs([plot.Panel('', SPARSE, ONES)], 0), 'at least 1, got 0'),
        (lambda: plot.layered_graph(SPARSE, ONES[1:]), 'needs 6 weights, got 5'),
        (lambda: plot.layered_graph(SPARSE, np.ones((2, 3))), r'shape \(E,\), got \(2, 3\)'),
        (lambda: plot.layered_graph(SPARSE, [np.nan, *ONES[1:]]), '1 weights that are NaN'),
        (lambda: plot.layered_graph(SPARSE, ONES, limit=0), 'positive, got 0'),
        (lambda: plot.layered_graph(SPARSE, ONES, labels='ab'), 'needs 5 node labels, got 2'),
        (lambda: plot.layered_graph(SPARSE, ONES, levels=[0]), 'as many levels as nodes, got 1'),
        (lambda: plot.degrees({}), 'degrees shows 1 to 6 series, got 0'),
        (lambda: plot.degrees([]), 'degrees shows 1 to 6 series, got 0'),
        (lambda: plot.degrees({str(i): SPARSE for i in range(7)}), '1 to 6 series, got 7'),
        (lambda: plot.degrees({'a': Wiring(2, [])}), 'num_edges=0.* has no edge'),
        (lambda: plot.degrees({'a': SPARSE}, weighted=True), 'need a sequence of Panel'),
    ],
)
def test_what_cannot_be_shown_is_refused(draw, told):
    with pytest.raises(ValueError, match=told):
        draw()
