"""The process of learning: matrices, accuracy and animations of the snapshots that are given."""

import sys

import numpy as np
import pytest
import torch
from matplotlib.animation import PillowWriter
from PIL import Image

from timm_topo import plot
from timm_topo.generators import complete, residual
from timm_topo.wiring import Wiring

WIRING = complete(4)
STAGES = {'first': WIRING, 'second $': residual(7, 2)}


def history(count: int, wiring: Wiring = WIRING) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, wiring.num_edges))


# -- strip ----------------------------------------------------------------------------------------


def matrices(fig) -> list[tuple[str, np.ndarray]]:
    """Titles and weights of the matrices."""
    found = []
    for axes in fig.axes:
        cells = [c.get_array() for c in axes.collections if c.get_label() == 'edges']
        found += [(axes.get_title(), *cells)] if cells else []
    return found


@pytest.mark.parametrize(
    ('epochs', 'count', 'shown'),
    [
        (range(11), 6, [0, 2, 4, 6, 8, 10]),
        (range(11), 3, [0, 5, 10]),
        (range(12), 2, [0, 11]),
        ([0, 0.25, 0.5, 1, 7.5], 6, [0, 1, 2, 3, 4]),
        ([3], 6, [0]),
    ],
)
def test_the_strip_shows_first_last_and_evenly_what_is_between(epochs, count, shown):
    weights = history(len(epochs))
    drawn = matrices(plot.process_strip(epochs, weights, WIRING, count=count))
    assert len(drawn) == len(shown)
    for (title, array), t in zip(drawn, shown):
        assert title == f'{epochs[t]:g} epoch' + 's' * (epochs[t] != 1)
        np.testing.assert_array_equal(array, weights[t])


@pytest.mark.parametrize('snapshots', [7, 8, 13, 100, 101])
def test_the_strip_shows_no_snapshot_twice(snapshots):
    drawn = matrices(plot.process_strip(range(snapshots), history(snapshots), WIRING))
    epochs = [int(title.split()[0]) for title, _ in drawn]
    assert len(set(epochs)) == 6
    gaps = np.diff(epochs)
    assert gaps.max() - gaps.min() <= 1
    assert (epochs[0], epochs[-1]) == (0, snapshots - 1)


def test_the_strip_has_one_scale():
    weights = torch.tensor(history(3), dtype=torch.bfloat16, requires_grad=True)
    fig = plot.process_strip([0, 1, 2], weights, WIRING, title='a $x')
    limits = {c.get_clim() for a in fig.axes for c in a.collections if c.get_label() == 'edges'}
    assert limits == {(-weights.abs().max().item(), weights.abs().max().item())}
    assert fig.get_suptitle() == 'a $x'


# -- retrained ------------------------------------------------------------------------------------


def test_accuracy_of_retraining_is_mean_and_range_per_epoch():
    rows = [
        {'epoch': '10', 'top1': '91'},
        {'epoch': '0.5', 'top1': '85'},
        {'epoch': 2, 'top1': ''},
        {'epoch': '10', 'top1': '92'},
        {'epoch': 10.0, 'top1': None},
    ]
    (axes,) = plot.retrained(rows).axes
    at, means = axes.lines[0].get_data()
    assert list(at) == [0.5, 2, 10]
    np.testing.assert_array_equal(means, [85, np.nan, 91.5])
    (bars,) = axes.containers
    assert [s.tolist() for s in bars.lines[2][0].get_segments()] == [[[10, 91], [10, 92]]]


# -- animation ------------------------------------------------------------------------------------


def frames(path) -> list[np.ndarray]:
    with Image.open(path) as image:
        assert image.format == 'GIF'
        pictures = []
        for t in range(image.n_frames):
            image.seek(t)
            pictures.append(np.array(image.convert('RGB')))
    return pictures


@pytest.mark.parametrize('several', [False, True])
def test_an_animation_has_a_frame_per_snapshot(tmp_path, several, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)  # importing it would fail
    epochs = [0, 0.25, 1]
    weights = {name: history(3, wiring) for name, wiring in STAGES.items()}
    wiring = STAGES
    if not several:
        weights, wiring = weights['first'], WIRING
    path = plot.animate(epochs, weights, wiring, tmp_path / 'new' / 'a.GIF', seconds=1.5)
    assert path == tmp_path / 'new' / 'a.GIF'
    assert [file.name for file in path.parent.iterdir()] == ['a.GIF']
    pictures = frames(path)
    assert len(pictures) == 3
    with Image.open(path) as image:
        assert image.info['duration'] == 500
    assert all((picture[0, 0] == 255).all() for picture in pictures)  # on white


def test_frames_differ_by_weights_on_a_fixed_scale(tmp_path):
    weights = np.array([[0.5] * 6, [-2.0] * 6, [0.5] * 6, [1.0] * 6])
    pictures = frames(plot.animate(range(4), weights, WIRING, tmp_path / 'a.gif'))
    heading = 40  # rows of pixels with the number of epochs
    first, *others = (picture[heading:].astype(int) for picture in pictures)
    changed = [np.abs(first - other).max(-1) > 40 for other in others]
    assert not changed[1].any()  # equal weights look equal, whatever is between
    for one in (changed[0], changed[2]):
        matrix, graph = np.split(one, [int(0.4 * one.shape[1])], axis=1)
        assert matrix.any()
        assert graph.any()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / 'a.gif'
    path.write_bytes(b'old')
    grab, grabbed = PillowWriter.grab_frame, []

    def fail_at_third(self, **options):
        if len(grabbed) == 2:
            raise RuntimeError('third frame')
        grabbed.append(grab(self, **options))

    with monkeypatch.context() as patch:
        patch.setattr(PillowWriter, 'grab_frame', fail_at_third)
        with pytest.raises(RuntimeError, match='third frame'):
            plot.animate(range(4), history(4), WIRING, path)

    def fail_half_written(self):
        self.outfile.write_bytes(b'half')
        raise OSError('disk full')

    with monkeypatch.context() as patch:
        patch.setattr(PillowWriter, 'finish', fail_half_written)
        with pytest.raises(OSError, match='disk full'):
            plot.animate(range(4), history(4), WIRING, path)
    assert path.read_bytes() == b'old'
    assert [file.name for file in tmp_path.iterdir()] == ['a.gif']
    plot.animate(range(2), history(2), WIRING, path)
    assert len(frames(path)) == 2


def test_an_animation_of_one_stage_may_be_given_by_name(tmp_path):
    weights = history(2)
    one = plot.animate([0, 1], weights, WIRING, tmp_path / 'a.gif')
    same = plot.animate([0, 1], torch.tensor(weights), WIRING, tmp_path / 'b.gif')
    assert one.read_bytes() == same.read_bytes()
    named = plot.animate([0, 1], {'s': weights}, {'s': WIRING}, tmp_path / 'c.gif')
    assert len(frames(named)) == 2


# -- bad input ------------------------------------------------------------------------------------

H = history(2)
BAD = np.where(H[1, 3] == H, np.nan, H)


def animate(*args, name: str = 'never.gif', **options):
    return plot.animate(*args, name, **options)


@pytest.mark.parametrize(
    ('draw', 'told'),
    [
        (lambda: plot.process_strip([], [], WIRING), r'must be finite and ascend, got \[\]'),
        (lambda: plot.process_strip([1, 1], H, WIRING), r'ascend, got \[1.0, 1.0\]'),
        (lambda: plot.process_strip([0, np.inf], H, WIRING), 'finite and ascend'),
        (lambda: plot.process_strip([0, 1, 2], H, WIRING), r'shape \(3, 6\), got \(2, 6\)'),
        (lambda: plot.process_strip([0, 1], H.T, WIRING), r'shape \(2, 6\), got \(6, 2\)'),
        (lambda: plot.process_strip([0, 1], H[0], WIRING), r'shape \(2, 6\), got \(6,\)'),
        (lambda: plot.process_strip([0, 1], BAD, WIRING), 'epoch 1 has 1 weights that are NaN'),
        (lambda: plot.process_strip([0, 1], H, WIRING, count=1), 'at least 2 .* got 1'),
        (lambda: plot.retrained([]), 'at least one row with a value of top1, got none'),
        (lambda: plot.retrained([{'epoch': 1, 'top1': ''}]), 'at least one row'),
        (lambda: plot.retrained([{'epoch': '', 'top1': 1}]), "row 0 has epoch=''"),
        (lambda: plot.retrained([{'top1': 1}]), "no column 'epoch'; there are: top1"),
        (lambda: plot.retrained([{'epoch': 1}]), "no column 'top1'; there are: epoch"),
        (lambda: plot.retrained([{'epoch': 1, 'top1': 'x'}]), "'top1' holds 'x'"),
        (lambda: animate([0, 1], H, WIRING, name='a.mp4'), 'writes .gif only, got a.mp4'),
        (lambda: animate([0, 1], H, WIRING, name='gif'), 'writes .gif only, got gif'),
        (lambda: animate([0, 1], H, WIRING, seconds=0), 'finite and positive, got 0'),
        (lambda: animate([0, 1], H, WIRING, seconds=np.nan), 'finite and positive, got nan'),
        (lambda: animate([0, 1], H[:, 1:], WIRING), r'shape \(2, 6\), got \(2, 5\)'),
        (lambda: animate([1, 0], H, WIRING), 'ascend'),
        (lambda: animate([0, 1], {'a': H}, {'b': WIRING}), r"\['b'\] need .* got \['a'\]"),
        (lambda: animate([0, 1], H, {'b': WIRING}), r"\['b'\] need weights of these, got \[\]"),
        (lambda: animate([0, 1], {'a': H}, WIRING), r"\['a'\] need a wiring of each, got Wiring"),
        (lambda: animate([0, 1], {}, {}), r'wirings of \[\]'),
    ],
)
def test_what_cannot_be_shown_is_refused(draw, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=told):
        draw()
    assert not list(tmp_path.iterdir())
