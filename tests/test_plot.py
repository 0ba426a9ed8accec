"""Pictures show what they are given, told by more than colour, and refuse what they cannot show."""

import csv
import io
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from timm_topo.generators import complete, residual
from timm_topo.plot import (
    Panel,
    adjacency,
    curves,
    graph,
    graphs,
    to_svg,
    weight_histogram,
)
from timm_topo.wiring import Wiring

SPARSE = Wiring(5, [(0, 1), (0, 2), (1, 3), (2, 3), (0, 4), (3, 4)])


def random_weights(wiring: Wiring) -> torch.Tensor:
    return torch.randn(wiring.num_edges)


def dense(wiring: Wiring, weights: torch.Tensor) -> np.ndarray:
    """Matrix [target, source], NaN where there is no edge; edge by edge."""
    matrix = np.full((wiring.num_nodes, wiring.num_nodes), np.nan)
    for (source, target), weight in zip(wiring.edges, weights.tolist()):
        matrix[target, source] = weight
    return matrix


def collections(axes, label: str) -> list:
    return [c for c in axes.collections if c.get_label() == label]


def centres(collection) -> list[tuple[int, int]]:
    """(source, target) of the cells of a collection."""
    boxes = [path.get_extents() for path in collection.get_paths()]
    return [(round((b.x0 + b.x1) / 2), round((b.y0 + b.y1) / 2)) for b in boxes]


def drawn_matrix(axes, n: int) -> np.ndarray:
    (cells,) = collections(axes, 'edges')
    matrix = np.full((n, n), np.nan)
    for (source, target), value in zip(centres(cells), cells.get_array()):
        matrix[target, source] = value
    return matrix


def panel_axes(fig) -> list:
    return [axes for axes in fig.axes if axes.get_xlabel() == 'source']


def arcs(fig) -> dict[tuple[int, int], object]:
    """Patch by edge."""
    patches = [p for p in fig.axes[0].patches if (p.get_gid() or '').startswith('edge-')]
    found = {tuple(int(end) for end in p.get_gid().split('-')[1:]): p for p in patches}
    assert len(found) == len(patches)
    return found


def luminance(colour) -> float:
    red, green, blue = to_rgb(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# -- adjacency ------------------------------------------------------------------------------------


@pytest.mark.parametrize('wiring', [complete(7), residual(9, 2), SPARSE], ids=str)
def test_adjacency_shows_the_dense_matrix_with_rows_as_targets(wiring):
    weights = random_weights(wiring)
    (axes,) = panel_axes(adjacency([Panel('a', wiring, weights)]))
    np.testing.assert_array_equal(
        drawn_matrix(axes, wiring.num_nodes), dense(wiring, weights.double())
    )
    top, bottom = axes.get_ylim()[::-1]
    assert top < bottom  # row 0 above, as in a matrix


def test_adjacency_hatches_exactly_the_pairs_that_are_no_edge():
    (axes,) = panel_axes(adjacency([Panel('a', SPARSE, [0.0] * 6)]))
    (absent,) = collections(axes, 'absent')
    pairs = {(s, t) for t in range(5) for s in range(t)}
    assert set(centres(absent)) == pairs - set(SPARSE.edges)
    assert absent.get_hatch()


def test_adjacency_shows_weight_zero_other_than_no_edge():
    fig = adjacency([Panel('a', SPARSE, [0.0, 1, 1, 1, 1, 1])])
    fig.draw_without_rendering()
    (cells,) = collections(panel_axes(fig)[0], 'edges')
    assert cells.get_facecolor()[0][:3].min() > 0.95  # white, but filled and outlined
    assert cells.get_facecolor()[0][3] == 1
    assert cells.get_hatch() is None
    assert len(cells.get_edgecolor()) == 1


def test_adjacency_panels_share_one_scale_symmetric_about_zero():
    wiring = complete(4)
    fig = adjacency([Panel('a', wiring, [0.5] * 6), Panel('b', wiring, [-2.0] * 6)])
    limits = {collections(axes, 'edges')[0].get_clim() for axes in panel_axes(fig)}
    assert limits == {(-2.0, 2.0)}
    assert len(fig.axes) == 3  # two panels and one colour bar


def test_adjacency_colours_of_opposite_weights_are_equally_dark():
    fig = adjacency([Panel('a', complete(3), [-1.0, 0.0, 1.0])])
    fig.draw_without_rendering()
    (cells,) = collections(panel_axes(fig)[0], 'edges')
    negative, zero, positive = (luminance(colour[:3]) for colour in cells.get_facecolor())
    assert zero - max(negative, positive) > 0.7
    assert abs(negative - positive) < 0.1


def test_adjacency_marks_negative_weights_without_colour():
    weights = [1.0, -0.5, -0.9, 0.2, -0.01, 0.0]  # the fifth is below 5% of the scale
    wiring = complete(4)
    (axes,) = panel_axes(adjacency([Panel('a', wiring, weights)]))
    marks = [tuple(xy) for c in collections(axes, 'minus') for xy in c.get_offsets()]
    assert sorted(marks) == sorted([wiring.edges[1], wiring.edges[2]])


def test_adjacency_explains_only_marks_that_are_there():
    def key(weights, wiring):
        fig = adjacency([Panel('a', wiring, weights)])
        return [text.get_text() for legend in fig.legends for text in legend.get_texts()]

    assert key([1.0] * 3, complete(3)) == []
    assert key([-1.0] * 3, complete(3)) == ['negative']
    assert key([1.0] * 6, SPARSE) == ['no edge']


def test_adjacency_with_columns_puts_before_above_after():
    wiring = complete(4)
    titles = ['before 1', 'before 2', 'after 1', 'after 2']
    fig = adjacency([Panel(t, wiring, random_weights(wiring)) for t in titles], columns=2)
    axes = panel_axes(fig)
    assert [a.get_title() for a in axes] == titles
    cells = [a.get_subplotspec() for a in axes]
    assert [(c.rowspan.start, c.colspan.start) for c in cells] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(('count', 'shape'), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (7, (3, 3))])
def test_adjacency_shows_every_panel_whatever_their_number(count, shape):
    fig = adjacency([Panel(str(i), complete(3), [1.0] * 3) for i in range(count)])
    axes = panel_axes(fig)
    assert len(axes) == count
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == shape


def test_adjacency_of_all_zero_weights_has_a_scale():
    fig = adjacency([Panel('a', complete(3), torch.zeros(3))])
    assert collections(panel_axes(fig)[0], 'edges')[0].get_clim() == (-1.0, 1.0)


@pytest.mark.parametrize('n', [4, 14, 26])
@pytest.mark.parametrize('count', [1, 3])
def test_adjacency_tick_labels_do_not_overlap(n, count):
    wiring = complete(n)
    fig = adjacency([Panel('a', wiring, random_weights(wiring))] * count)
    fig.draw_without_rendering()
    for axes in panel_axes(fig):
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [tick.get_window_extent() for tick in ticks]
            assert len(boxes) >= 4
            assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_panel_labels_name_the_nodes():
    panel = Panel('a', complete(3), [1.0] * 3, labels=[0, 4, 9])
    (axes,) = panel_axes(adjacency([panel]))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ['0', '4', '9']


@pytest.mark.parametrize('kind', [list, tuple, np.array, torch.tensor], ids=lambda k: k.__name__)
def test_weights_may_be_sequence_array_or_tensor(kind):
    panel = Panel('a', complete(3), kind([1.0, -2.0, 0.5]))
    assert panel.weights.tolist() == [1.0, -2.0, 0.5]


def test_weights_may_be_a_parameter_in_half_precision():
    alpha = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16))
    assert Panel('a', complete(3), alpha).weights.tolist() == [1.0, -2.0, 0.5]


# -- graph ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('wiring', [complete(26), residual(9, 2), SPARSE], ids=str)
def test_graph_draws_every_edge_once_and_every_node(wiring):
    fig = graph(wiring, random_weights(wiring))
    assert arcs(fig).keys() == set(wiring.edges)
    for (source, target), arc in arcs(fig).items():
        ends = arc.get_path().vertices[[0, -1]]
        assert ends.tolist() == [[source, 0], [target, 0]]
    nodes = {c.get_gid() for c in fig.axes[0].collections}
    assert nodes == {f'node-{node}' for node in range(wiring.num_nodes)}


def test_graph_edges_are_wider_and_more_opaque_the_stronger_they_are():
    wiring = complete(12)
    weights = random_weights(wiring)
    drawn = arcs(graph(wiring, weights))
    strongest_first = weights.abs().argsort(descending=True).tolist()
    widths = [drawn[wiring.edges[e]].get_linewidth() for e in strongest_first]
    opacities = [drawn[wiring.edges[e]].get_edgecolor()[3] for e in strongest_first]
    for values in (widths, opacities):
        assert values == sorted(set(values), reverse=True)  # strictly
    assert widths[0] > 6 * widths[-1]


def test_graph_draws_strong_edges_over_weak_ones():
    wiring = complete(12)
    weights = random_weights(wiring)
    strength = dict(zip(wiring.edges, weights.abs().tolist()))
    for sign in (1, -1):
        order = [
            strength[edge]
            for edge, arc in arcs(graph(wiring, weights)).items()
            if arc.get_path().vertices[1, 1] * sign > 0
        ]
        assert order == sorted(order)


def test_graph_tells_signs_by_side_line_and_colour():
    wiring = complete(8)
    weights = random_weights(wiring)
    drawn = arcs(graph(wiring, weights))
    looks = {True: set(), False: set()}
    for edge, weight in zip(wiring.edges, weights.tolist()):
        arc = drawn[edge]
        above = arc.get_path().vertices[1, 1] > 0
        assert above == (weight > 0)
        looks[above].add((str(arc.get_linestyle()), arc.get_edgecolor()[:3]))
    assert len(looks[True]) == len(looks[False]) == 1
    (positive,), (negative,) = looks.values()
    assert positive[0] != negative[0]
    assert positive[1] != negative[1]


def test_graph_keeps_all_arcs_and_nodes_inside():
    wiring = complete(26)
    fig = graph(wiring, random_weights(wiring))
    axes = fig.axes[0]
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    for arc in arcs(fig).values():
        box = arc.get_path().get_extents()
        assert low < box.y0 <= box.y1 < high
        assert left < box.x0 <= box.x1 < right


def test_graph_marks_input_output_and_dead_nodes():
    wiring = Wiring(5, [(0, 2), (2, 4), (1, 4)])  # nobody feeds 1, 3 is alone
    fig = graph(wiring, [1.0, 1.0, 1.0])
    nodes = {c.get_gid(): c for c in fig.axes[0].collections}
    dashed = {name for name, c in nodes.items() if c.get_linestyle()[0][1] is not None}
    assert dashed == {'node-1', 'node-3'}
    square = nodes['node-0'].get_paths()[0]
    assert nodes['node-4'].get_paths()[0].vertices.shape == square.vertices.shape
    assert nodes['node-2'].get_paths()[0].vertices.shape != square.vertices.shape
    assert {'input', 'output'} <= {text.get_text() for text in fig.axes[0].texts}


def test_graph_with_a_common_limit_compares_widths():
    one = arcs(graph(complete(3), [1.0, 0.5, 0.5], limit=2))
    two = arcs(graph(complete(3), [2.0, 1.0, 0.5], limit=2))
    assert one[0, 1].get_linewidth() == two[0, 2].get_linewidth() < two[0, 1].get_linewidth()


# -- histogram ------------------------------------------------------------------------------------


def test_graphs_draw_every_panel_on_one_scale():
    panels = [Panel('a', complete(3), [1.0, 0.5, 0.5]), Panel('b', SPARSE, [-2.0, 1, 1, 1, 1, 1])]
    fig = graphs(panels, columns=2)
    assert [axes.get_title() for axes in fig.axes] == ['a', 'b']
    first, second = ({patch.get_gid(): patch for patch in axes.patches} for axes in fig.axes)
    assert set(first) == {f'0-edge-{i}-{j}' for i, j in complete(3).edges}
    assert set(second) == {f'1-edge-{i}-{j}' for i, j in SPARSE.edges}
    widths = [arc.get_linewidth() for arc in (first['0-edge-0-1'], second['1-edge-0-2'])]
    strongest = second['1-edge-{}-{}'.format(*SPARSE.edges[0])].get_linewidth()
    assert widths[0] == widths[1] < strongest
    limits = [(axes.get_xlim(), axes.get_ylim()) for axes in fig.axes]
    assert limits[0] == limits[1]


def bars(axes) -> tuple[np.ndarray, np.ndarray]:
    (steps,) = axes.patches
    return steps.get_data().values, steps.get_data().edges


@pytest.mark.parametrize('magnitude', [True, False])
def test_histogram_counts_every_weight_once_in_its_bin(magnitude):
    series = {'a': torch.randn(325), 'b': torch.randn(40), 'c': torch.zeros(7)}
    fig = weight_histogram(series, magnitude=magnitude, bins=9)
    assert len(fig.axes) == 3
    for axes, weights in zip(fig.axes, series.values()):
        counts, edges = bars(axes)
        values = weights.abs() if magnitude else weights
        for i, count in enumerate(counts):
            last = i == len(counts) - 1
            inside = (values >= edges[i]) & (
                values <= edges[i + 1] if last else values < edges[i + 1]
            )
            assert count == inside.sum()
        assert counts.sum() == len(weights)


def test_histograms_are_comparable():
    fig = weight_histogram({'a': torch.randn(50), 'b': 3 * torch.randn(500)})
    first, second = fig.axes
    np.testing.assert_array_equal(bars(first)[1], bars(second)[1])
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()


def test_histogram_names_each_series_beside_it():
    fig = weight_histogram({'learned': [0.1, 0.2], '_pruned $x$': [0.3]})
    texts = [axes.get_title(loc='left') for axes in fig.axes]
    assert texts == ['learned: 2 edges', '_pruned $x$: 1 edges']


def test_histogram_of_equal_weights_has_one_full_bin():
    for value in (0.0, 1.0):
        counts, _ = bars(weight_histogram({'a': [value] * 6}).axes[0])
        assert sorted(counts)[-2:] == [0, 6]


# -- curves ---------------------------------------------------------------------------------------

SUMMARY = 'epoch,train_loss,eval_top1\n0,2.25,12.5\n1,1.5,\n2,nan,80\n3,inf,90\n'


def test_curves_draw_the_values_of_a_summary_csv():
    rows = list(csv.DictReader(io.StringIO(SUMMARY)))
    fig = curves({'a': rows}, ['train_loss', 'eval_top1'])
    loss, top1 = (axes.lines[0] for axes in fig.axes)
    assert loss.get_xdata().tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(loss.get_ydata(), [2.25, 1.5, np.nan, np.nan])
    np.testing.assert_array_equal(top1.get_ydata(), [12.5, np.nan, 80, 90])
    assert [axes.get_title() for axes in fig.axes] == ['training loss', 'evaluation top-1 (%)']


def test_curves_of_runs_differ_by_colour_line_and_marker():
    runs = {str(i): [{'epoch': 0, 'lr': i}, {'epoch': 1, 'lr': i}] for i in range(6)}
    lines = curves(runs, ['lr']).axes[0].lines
    for look in ('get_color', 'get_marker'):
        assert len({getattr(line, look)() for line in lines}) == 6
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 6


def test_curves_mark_the_last_row_of_short_and_long_runs():
    for epochs in (1, 2, 30, 100):
        rows = [{'epoch': e, 'lr': 1} for e in range(epochs)]
        start, step = curves({'a': rows}, ['lr']).axes[0].lines[0].get_markevery()
        assert (epochs - 1 - start) % step == 0
        assert 0 <= start < epochs


def test_curves_leave_a_run_without_the_column_out():
    runs = {'a': [{'epoch': 0, 'lr': 1, 'x': 2}], 'b': [{'epoch': 0, 'lr': 1}]}
    fig = curves(runs, ['lr', 'x'])
    assert [len(axes.lines) for axes in fig.axes] == [2, 1]


def test_curves_legend_names_every_run_even_with_underscore_or_dollar():
    rows = [{'epoch': 0, 'lr': 1}]
    (legend,) = curves({'_a': rows, '$b$': rows}, ['lr']).legends
    assert [text.get_text() for text in legend.get_texts()] == ['_a', '$b$']
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_curves_take_another_axis_and_other_names():
    rows = [{'removed': 0.1, 'top1': 90}, {'removed': 0.2, 'top1': 80}]
    fig = curves({'a': rows}, ['top1'], x='removed', names={'removed': 'share of edges'})
    assert fig.axes[0].lines[0].get_xdata().tolist() == [0.1, 0.2]
    assert fig.axes[0].get_xlabel() == 'share of edges'
    assert fig.axes[0].get_title() == 'top1'


# -- all figures ----------------------------------------------------------------------------------


def small_figures() -> dict:
    torch.manual_seed(0)
    wiring, weights = SPARSE, random_weights(SPARSE)
    rows = [{'epoch': e, 'lr': e} for e in range(3)]
    return {
        'adjacency': adjacency([Panel('a $ <b>', wiring, weights)] * 2),
        'graph': graph(wiring, weights, title='a $ <b>'),
        'graphs': graphs([Panel('a', wiring, weights), Panel('b', wiring, weights)]),
        'histogram': weight_histogram({'a $ <b>': weights}, title='a $ <b>'),
        'curves': curves({'a $ <b>': rows}, ['lr']),
    }


def test_svg_is_valid_and_the_same_every_time():
    for first, second in zip(small_figures().values(), small_figures().values()):
        svg = to_svg(first)
        assert ET.fromstring(svg).tag == '{http://www.w3.org/2000/svg}svg'
        assert svg == to_svg(second)


def test_svg_ids_are_unique_within_a_figure():
    for fig in small_figures().values():
        ids = [e.get('id') for e in ET.fromstring(to_svg(fig)).iter() if e.get('id')]
        assert len(ids) == len(set(ids))


def test_svg_of_a_complete_graph_of_26_nodes_is_light():
    wiring = complete(26)
    weights = random_weights(wiring)
    assert len(to_svg(graph(wiring, weights))) < 200_000
    assert len(to_svg(adjacency([Panel('a', wiring, weights)]))) < 200_000


def test_figures_do_not_depend_on_the_settings_of_the_user():
    svg = to_svg(small_figures()['graph'])
    with matplotlib.rc_context({'font.size': 20, 'axes.titlesize': 30, 'svg.fonttype': 'none'}):
        assert to_svg(small_figures()['graph']) == svg


def test_figures_leave_the_settings_of_the_user_alone():
    before = dict(matplotlib.rcParams)
    small_figures()
    assert dict(matplotlib.rcParams) == before


def test_figures_need_no_pyplot(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)  # importing it would fail
    for fig in small_figures().values():
        to_svg(fig)


# -- bad input ------------------------------------------------------------------------------------

ROWS = [{'epoch': 0, 'lr': 1}]
MANY = {str(i): [1.0] for i in range(7)}


@pytest.mark.parametrize(
    ('draw', 'message'),
    [
        (lambda: adjacency([]), 'at least one Panel, got none'),
        (lambda: adjacency([Panel('a', SPARSE, [1.0] * 6)], columns=0), 'at least 1, got 0'),
        (lambda: adjacency([Panel('a', SPARSE, [1.0] * 6)], limit=0), 'positive, got 0'),
        (lambda: Panel('a', SPARSE, [1.0] * 5), r'needs 6 weights, got 5'),
        (lambda: Panel('a', SPARSE, [1.0] * 7), r'needs 6 weights, got 7'),
        (lambda: Panel('a', SPARSE, torch.ones(2, 3)), r'shape \(E,\), got \(2, 3\)'),
        (lambda: Panel('a', SPARSE, [1.0] * 5 + [np.nan]), '1 weights that are NaN or inf'),
        (lambda: Panel('a', SPARSE, [1.0] * 6, labels='abcd'), 'needs 5 node labels, got 4'),
        (lambda: Panel('a', Wiring(3, []), []), 'num_edges=0.* has no edge'),
        (lambda: graph(SPARSE, []), r'needs 6 weights, got 0'),
        (lambda: graphs([]), 'graphs needs at least one Panel, got none'),
        (lambda: graphs([Panel('', SPARSE, [1.0] * 6)], 0), 'columns must be at least 1, got 0'),
        (lambda: graph(SPARSE, [1.0] * 6, limit=-1), 'positive, got -1'),
        (lambda: graph(SPARSE, [1.0] * 6, labels=[1]), 'needs 5 node labels, got 1'),
        (lambda: weight_histogram({}), 'weight_histogram shows 1 to 6 series, got 0'),
        (lambda: weight_histogram(MANY), '1 to 6 series, got 7'),
        (lambda: weight_histogram({'a': []}), "'a' is empty"),
        (lambda: weight_histogram({'a': [np.inf]}), "series 'a' has 1 weights that are NaN"),
        (lambda: weight_histogram({'a': [1.0]}, bins=0), 'bins must be at least 1, got 0'),
        (lambda: curves({}, ['lr']), 'curves shows 1 to 6 series, got 0'),
        (lambda: curves({'a': []}, ['lr']), "'a' is empty"),
        (lambda: curves({'a': ROWS}, []), 'at least one key'),
        (lambda: curves({'a': ROWS}, ['loss']), "column 'loss'; there are: epoch, lr"),
        (lambda: curves({'a': ROWS}, ['lr'], x='step'), "column 'step'; there are: epoch, lr"),
        (lambda: curves({'a': [*ROWS, {'lr': 2}]}, ['lr']), "row 1 of run 'a' has no .*'epoch'"),
        (lambda: curves({'a': [{'epoch': 0, 'lr': 'x'}]}, ['lr']), "'lr' holds 'x', which is not"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_what_would_be_right(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
