"""Pictures of damage show means and ranges of the rows they are given, and no more lines."""

import sys
from itertools import pairwise

import numpy as np
import pytest

from timm_topo import plot


def lines_by_name(fig) -> dict:
    """Lines by their name in the key."""
    (legend,) = fig.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert not any(text.get_parse_math() for text in legend.get_texts())
    lines = [line for line in fig.axes[0].lines if line.get_linestyle() != 'None']  # no caps
    assert len(lines) == len(names)
    return dict(zip(names, lines))


def ranges(axes) -> list[list[tuple[float, float]]]:
    """(x, y) of the lower and upper ends of bars from lowest to highest."""
    segments = [s for box in axes.containers for s in box.lines[2][0].get_segments()]
    return [[tuple(map(float, end)) for end in segment] for segment in segments]


ROWS = {
    'weakest $': [
        {'removed': '0.5', 'top1': '60', 'top1_retrained': ''},
        {'removed': '0.25', 'top1': '80', 'top1_retrained': '85'},
        {'removed': '0.75', 'top1': '', 'top1_retrained': '70'},
    ],
    '_random': [
        {'removed': 0.25, 'top1': 40.0, 'top1_recalibrated': None},
        {'removed': 0.5, 'top1': 30.0},
        {'removed': 0.25, 'top1': 50.0, 'top1_recalibrated': 66},
        {'removed': 0.25, 'top1': None},
        {'removed': 0.5, 'top1': 30.0},
    ],
}


# -- edges ----------------------------------------------------------------------------------------


def test_curves_of_damage_are_the_rows_in_percent():
    fig = plot.damage_curves(ROWS, 91.5)
    lines = lines_by_name(fig)
    drawn = {name: np.array(line.get_xydata()).tolist() for name, line in lines.items()}
    assert {y for _, y in drawn['nothing removed']} == {91.5}
    assert drawn['weakest $'][:2] == [[25, 80], [50, 60]]
    assert np.isnan(drawn['weakest $'][2][1])
    assert drawn['weakest $, retrained'][0] == [25, 85]
    assert np.isnan(drawn['weakest $, retrained'][1][1])
    assert drawn['_random'] == [[25, 45], [50, 30]]
    assert drawn['_random, new statistics'][0] == [25, 66]
    assert len(drawn['_random, new statistics']) == 1  # rows without the column are no gaps
    assert len(drawn) == 5  # none of columns without a value


def test_bars_of_damage_reach_from_lowest_to_highest_where_rows_differ():
    fig = plot.damage_curves(ROWS, 91.5)
    assert ranges(fig.axes[0]) == [[(25, 40), (25, 50)]]
    fig = plot.damage_curves({'a': ROWS['weakest $']}, 91.5)
    assert ranges(fig.axes[0]) == []


def test_labels_have_marks_and_columns_have_lines_of_their_own():
    lines = lines_by_name(plot.damage_curves(ROWS, 91.5))
    weakest, retrained, random = (
        lines[name] for name in ('weakest $', 'weakest $, retrained', '_random')
    )
    assert weakest.get_marker() == retrained.get_marker() != random.get_marker()
    assert weakest.get_color() == retrained.get_color() != random.get_color()
    assert weakest.get_linestyle() == random.get_linestyle() != retrained.get_linestyle()
    assert weakest.get_fillstyle() == random.get_fillstyle() != retrained.get_fillstyle()


def test_six_lines_fit_and_seven_do_not():
    row = {'removed': 0.5, 'top1': 1, 'top1_recalibrated': 2, 'top1_retrained': 3}
    fig = plot.damage_curves({'a': [row], 'b': [row]}, 9)
    assert len(lines_by_name(fig)) == 7  # with the baseline
    with pytest.raises(ValueError, match='at most 6 lines, got 7: a, a, new statistics, a, ret'):
        plot.damage_curves({'a': [row], 'b': [row], 'c': [{'removed': 0, 'top1': 1}]}, 9)


# -- nodes ----------------------------------------------------------------------------------------


def node_rows(stages: int) -> list[dict]:
    """Stages of 3 nodes, the rows in no order; node 1 has two rows, node 4 none that is known."""
    nodes = [('4', ''), (2, '88.5'), (1, 80), ('0', 92.0), (1, 90)]
    return [{'stage': f's{i} $', 'node': n, 'top1': a} for n, a in nodes for i in range(stages)]


def bars(axes) -> list[tuple[float, float]]:
    found = [(b.get_x() + b.get_width() / 2, b.get_height()) for c in axes.containers for b in c]
    return [(round(x, 6), height) for x, height in found]


@pytest.mark.parametrize('stages', [1, 4, 6])
def test_nodes_have_bars_of_their_change_in_order_a_plot_per_stage(stages):
    fig = plot.node_damage(node_rows(stages), 90)
    assert [axes.get_title() for axes in fig.axes] == [f's{i} $' for i in range(stages)]
    assert len({axes.get_ylim() for axes in fig.axes}) == 1
    for axes in fig.axes:
        assert bars(axes)[:3] == [(0, 2), (1, -5), (2, -1.5)]
        assert np.isnan(bars(axes)[3][1])
        names = {int(x): t.get_text() for x, t in zip(axes.get_xticks(), axes.get_xticklabels())}
        assert names[0] == '0'
        assert names.get(3, '4') == '4'
        (several,) = (c for c in axes.collections if len(c.get_segments()))
        assert [segment.tolist() for segment in several.get_segments()] == [[[1, -10], [1, 0]]]
    assert '90.00%' in fig.get_supylabel()


def test_many_stages_are_side_by_side_with_lines_between():
    fig = plot.node_damage(node_rows(7), 90)
    (axes,) = fig.axes
    at, heights = zip(*bars(axes))
    np.testing.assert_array_equal(heights, [2, -5, -1.5, np.nan] * 7)
    assert [*at] == sorted(set(at))
    borders = [
        line.get_xdata()[0] for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[1]
    ]
    assert len(borders) == 6
    for i, border in enumerate(borders):
        assert at[4 * i + 3] < border < at[4 * i + 4]
    names = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert list(names) == [f's{i} $' for i in range(7)]
    assert all(at[4 * i] < names[f's{i} $'] < at[4 * i + 3] for i in range(7))


def test_tick_labels_of_nodes_do_not_overlap():
    rows = [
        {'stage': str(s), 'node': n, 'top1': 90 - n}
        for s, count in enumerate((14, 20, 26, 14))
        for n in range(count)
    ]
    fig = plot.node_damage(rows, 91)
    fig.draw_without_rendering()
    for axes in fig.axes:
        boxes = [tick.get_window_extent() for tick in axes.get_xticklabels()]
        assert len(boxes) >= 7
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))


# -- both -----------------------------------------------------------------------------------------


def test_svg_is_the_same_every_time(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)  # importing it would fail
    for draw in (
        lambda: plot.damage_curves(ROWS, 91.5),
        lambda: plot.node_damage(node_rows(3), 90),
        lambda: plot.node_damage(node_rows(8), 90),
    ):
        assert plot.to_svg(draw()) == plot.to_svg(draw())


ROW = {'removed': 0.5, 'top1': 1}
NODE = {'stage': 's', 'node': 0, 'top1': 1}


@pytest.mark.parametrize(
    ('draw', 'told'),
    [
        (lambda: plot.damage_curves({}, 9), 'damage_curves shows 1 to 6 series, got 0'),
        (lambda: plot.damage_curves({'a': []}, 9), "'a' is empty"),
        (lambda: plot.damage_curves({'a': [ROW]}, np.nan), 'baseline must be .* got nan'),
        (lambda: plot.damage_curves({'a': [ROW]}, 'x'), "'x', which is not a number"),
        (lambda: plot.damage_curves({'a': [ROW, {'top1': 1}]}, 9), "row 1 of 'a' .* 'removed'"),
        (lambda: plot.damage_curves({'a': [{**ROW, 'removed': ''}]}, 9), "removed=''; it must"),
        (
            lambda: plot.damage_curves({'a': [{**ROW, 'removed': 50}]}, 9),
            r'removed=50; it is',
        ),
        (lambda: plot.damage_curves({'a': [{**ROW, 'removed': -0.1}]}, 9), 'removed=-0.1'),
        (lambda: plot.damage_curves({'a': [{**ROW, 'top1': 'x'}]}, 9), "'top1' holds 'x'"),
        (lambda: plot.damage_curves({'a': [{**ROW, 'top1': ''}]}, 9), "'a' has no value of top1,"),
        (lambda: plot.node_damage([], 9), 'at least one row with a value of top1, got none'),
        (lambda: plot.node_damage([{**NODE, 'top1': None}], 9), 'at least one row'),
        (lambda: plot.node_damage([NODE], np.inf), 'baseline must be a finite number'),
        (lambda: plot.node_damage([NODE, {'node': 1, 'top1': 1}], 9), "row 1 has no .* 'stage'"),
        (
            lambda: plot.node_damage([{'stage': 's', 'top1': 1}], 9),
            "no column 'node'",
        ),
        (lambda: plot.node_damage([{'stage': 's', 'node': 1}], 9), "no column 'top1'"),
        (lambda: plot.node_damage([{**NODE, 'node': 1.5}], 9), 'node=1.5, which is no id'),
        (lambda: plot.node_damage([{**NODE, 'node': None}], 9), 'node=None; it must be a finite'),
    ],
)
def test_what_cannot_be_shown_is_refused(draw, told):
    with pytest.raises(ValueError, match=told):
        draw()
