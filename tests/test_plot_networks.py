"""Pictures of many networks show the numbers they are given, told by more than colour."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from timm_topo import plot
from timm_topo.generators import complete, sequential
from timm_topo.wiring import Wiring


def texts(fig) -> str:
    return ' | '.join(t.get_text() for t in fig.findobj(lambda a: hasattr(a, 'get_text')))


def sweep(threshold: float, top1: float, sparsity: float, connected: int = 1) -> dict:
    row = dict(threshold=threshold, connected=connected, sparsity=sparsity, top1_masked=top1)
    return {**row, 'top1': top1 if connected else ''}


SWEEP = {
    'easy': [
        sweep(0.01, 90, 0.2), sweep(0.1, 80, 0.5), sweep(0.01, 94, 0.4), sweep(0.1, 10, 0.9, 0),
    ],
    'hard': [{k: str(v) for k, v in sweep(0.01, 60, 0.1).items()}],
}  # fmt: skip


def test_thresholds_show_mean_and_range():
    fig = plot.threshold_curves(SWEEP)
    left, right = fig.axes
    lines = {line.get_label(): line for line in left.lines if line.get_label()[0] != '_'}
    assert list(lines['easy'].get_ydata()) == [92, 45]
    assert list(lines['hard'].get_ydata()) == [60]
    assert [label.get_text() for label in left.get_xticklabels()] == ['0.01', '0.1']
    band = left.collections[0].get_paths()[0].vertices
    assert {*band[:, 1]} >= {90, 94, 10, 80}
    shares = right.lines[0].get_ydata()
    assert list(shares) == pytest.approx([0.7, 0.3])
    assert right.get_yscale() == 'log'
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines.values()}
    assert len(looks) == 2
    assert len({look[2] for look in looks}) == 2  # told apart without colour


def test_a_graph_that_fell_apart_is_marked():
    fig = plot.threshold_curves(SWEEP)
    crosses = [
        c for c in fig.axes[0].collections if len(c.get_offsets()) and c.get_label()[0] == '_'
    ]
    marked = [tuple(offset) for c in crosses for offset in c.get_offsets().tolist()]
    assert (1.0, 10.0) in marked
    assert (1.0, 45.0) not in marked
    assert 'input and output cut apart' in texts(fig)
    whole = {'easy': SWEEP['easy'][:2]}
    assert 'cut apart' not in texts(plot.threshold_curves(whole))


def test_bars_are_means_with_deviations():
    scores = {'easy': {'full': [90, 92], 'rerun': [80]}, 'hard': {'full': [50, 56, 62]}}
    fig = plot.accuracy_bars(scores)
    (axes,) = fig.axes
    full, rerun = axes.containers[1], axes.containers[3]
    assert [bar.get_height() for bar in full] == [91, 56]
    assert [bar.get_height() for bar in rerun] == [80]
    assert rerun[0].get_x() > full[0].get_x() + 0.99 * full[0].get_width()
    assert rerun[0].get_x() < full[1].get_x()
    assert len({bar.get_hatch() for bar in (full[0], rerun[0])}) == 2
    assert not axes.containers[2].lines[2][0].get_segments()[0].size  # none of one value
    segments = axes.containers[0].lines[2][0].get_segments()
    spread = [segment[:, 1].tolist() for segment in segments]
    assert spread == [pytest.approx([91 - 2**0.5, 91 + 2**0.5]), pytest.approx([50, 62])]
    assert [label.get_text() for label in axes.get_xticklabels()] == ['easy', 'hard']
    assert 0 < axes.get_ylim()[0] < 50


def test_weights_are_split_into_those_that_stay_and_those_that_go():
    weights = np.array([[0.5, 0.5, -0.5], [0.4, 0.1, -0.7]])
    fig = plot.weight_history([0, 1], weights, [True, False, True])
    stay, go = fig.axes
    assert sorted(tuple(line.get_ydata()) for line in stay.lines) == [(0.5, 0.4), (0.5, 0.7)]
    assert [tuple(line.get_ydata()) for line in go.lines] == [(0.5, 0.1)]
    assert (stay.get_title(), go.get_title()) == ('edges that stay: 2', 'edges that go: 1')
    many = plot.weight_history([0, 1], np.ones((2, 1770)), np.ones(1770, bool))
    assert 300 < len(many.axes[0].lines) <= 400


def test_similarity_is_drawn_in_blocks():
    matrix = np.arange(9).reshape(3, 3) / 9
    fig = plot.similarity_matrix(matrix, ['a', 'a', 'b'])
    axes = fig.axes[0]
    assert np.array_equal(axes.images[0].get_array(), matrix)
    assert axes.images[0].get_clim() == (0, 1)
    assert [line.get_ydata()[0] for line in axes.lines[:1]] == [1.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['a', 'b']
    assert list(axes.get_yticks()) == [0.5, 2]


def test_points_of_an_embedding_have_marks_of_their_label():
    points = np.array([[0, 1], [2, 3], [4, 5]])
    fig = plot.embedding(points, ['b', 'a', 'b'], axis='UMAP')
    (axes,) = fig.axes
    drawn = {c.get_label(): c.get_offsets().tolist() for c in axes.collections}
    assert drawn == {'b': [[0, 1], [4, 5]], 'a': [[2, 3]]}
    marks = [len(c.get_paths()[0].vertices) for c in axes.collections]
    assert len(set(marks)) == 2
    assert axes.get_xlabel() == 'UMAP 1'


def test_contact_sheets_leave_places_empty():
    images = [np.full((4, 4), 9, np.uint8), None, np.zeros((4, 4, 3), np.uint8)]
    fig = plot.contact_sheet({'one': images, 'two': images[:1]}, ['x', 'y', 'z'])
    assert [len(axes.images) for axes in fig.axes] == [1, 0, 1, 1, 0, 0]
    assert np.array_equal(fig.axes[0].images[0].get_array(), images[0])
    assert [axes.get_title() for axes in fig.axes[:3]] == ['x', 'y', 'z']
    assert fig.axes[3].get_ylabel() == 'two'


def test_nodes_of_later_resolutions_are_darker_behind_a_line():
    panel = plot.Panel('dag', complete(5), np.ones(10), levels=[0, 0, 1, 1, 2])
    (axes,) = plot.graphs([panel]).axes
    fills = {c.get_gid(): c.get_facecolor()[0] for c in axes.collections if c.get_gid()}
    shade = [sum(fills[f'node-{n}'][:3]) for n in (1, 2, 3)]
    assert shade[0] > shade[1] == shade[2]
    lines = [line.get_xdata()[0] for line in axes.lines]
    assert lines == [1.5, 3.5]
    (plain,) = plot.graphs([plot.Panel('one', complete(5), np.ones(10), levels=[0] * 5)]).axes
    assert not plain.lines
    white = next(c for c in plain.collections if c.get_gid() == 'node-1')
    assert tuple(white.get_facecolor()[0]) == to_rgba('white')


def test_a_sole_in_edge_does_not_set_the_scale():
    wiring = Wiring(4, [(0, 1), (0, 2), (1, 2), (2, 3)])
    panel = plot.Panel('dag', wiring, [1.0, 0.05, -0.2, 1.0])
    assert plot.shared_limit([panel]) == 0.2
    assert plot.shared_limit([plot.Panel('one', sequential(3), [1, 1])]) is None


def test_figures_are_written_whole_or_not_at_all(tmp_path):
    for name in ('a.svg', 'b.png', 'new/c.pdf', 'd.SVG', 'e'):
        fig = plot.similarity_matrix(np.eye(2), ['a', 'b'])
        path = plot.save_figure(fig, tmp_path / name)
        assert path.stat().st_size > 500
    assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'd.SVG').read_bytes()
    with pytest.raises(ValueError, match="Format 'zip' is not supported"):
        plot.save_figure(fig, tmp_path / 'f.zip')
    names = {path.name for path in tmp_path.rglob('*')}
    assert names == {'a.svg', 'b.png', 'new', 'c.pdf', 'd.SVG', 'e'}


@pytest.mark.parametrize(
    ('draw', 'told'),
    [
        (lambda: plot.threshold_curves({}), 'shows 1 to 6 series, got 0'),
        (lambda: plot.threshold_curves({'a': []}), "'a' is empty"),
        (lambda: plot.threshold_curves({'a': [{**sweep(1, 1, 1), 'sparsity': 'x'}]}), "'x', which"),
        (lambda: plot.accuracy_bars({}), 'shows 1 to 6 series, got 0'),
        (lambda: plot.accuracy_bars({'a': {'full': []}}), 'full of a is empty'),
        (lambda: plot.accuracy_bars({'a': {'full': [np.nan]}}), 'NaN or inf'),
        (lambda: plot.weight_history([0], np.ones((2, 3)), [True] * 3), r'1 epochs and 3 edges'),
        (lambda: plot.similarity_matrix(np.ones((2, 3)), 'ab'), r'2 networks .* got \(2, 3\)'),
        (lambda: plot.embedding(np.ones((2, 3)), 'ab'), r'2 networks .* got \(2, 3\)'),
        (lambda: plot.embedding(np.ones((7, 2)), 'abcdefg'), 'shows 1 to 6 series, got 7'),
        (lambda: plot.contact_sheet({}), 'needs images in every row'),
        (lambda: plot.contact_sheet({'a': []}), 'needs images in every row'),
        (lambda: plot.Panel('p', complete(3), [1] * 3, levels=[0, 1]), 'as many levels as nodes'),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_named(draw, told):
    with pytest.raises(ValueError, match=told):
        draw()
