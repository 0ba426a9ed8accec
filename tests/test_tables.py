"""Edge weights per epoch, tables, and the number of channels for a number of parameters."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from timm_topo.analysis import tables
from timm_topo.analysis.cost import count_parameters
from timm_topo.analysis.fit import fit_channels
from timm_topo.analysis.history import read_edge_weights, write_edge_weights
from timm_topo.models import DagNet

# -- edge weights per epoch -----------------------------------------------------------------------


def test_weights_come_back_in_the_order_of_the_epochs(tmp_path):
    written = {
        done: {'dag': torch.randn(5), 'stages.0': torch.randn(2).bfloat16()}
        for done in (0, 10000, 2, 9999, 1)
    }
    for done in sorted(written):
        write_edge_weights(tmp_path, done, written[done])
    epochs, weights = read_edge_weights(tmp_path)
    assert epochs == [0, 1, 2, 9999, 10000]
    assert set(weights) == {'dag', 'stages.0'}
    for row, done in enumerate(epochs):
        assert np.array_equal(weights['dag'][row], written[done]['dag'])
        assert np.array_equal(weights['stages.0'][row], written[done]['stages.0'].float())


def test_a_resumed_run_leaves_no_later_epochs_of_the_one_before(tmp_path):
    for done in range(4):
        write_edge_weights(tmp_path, done, {'dag': torch.full((1,), float(done))})
    write_edge_weights(tmp_path, 2, {'dag': torch.full((1,), -1.0)})
    epochs, weights = read_edge_weights(tmp_path)
    assert epochs == [0, 1, 2]
    assert weights['dag'].ravel().tolist() == [0, 1, -1]


def test_weights_that_were_interrupted_are_not_read(tmp_path):
    write_edge_weights(tmp_path, 0, {'dag': torch.zeros(1)})
    (tmp_path / 'edge_weights' / '0001.part').write_bytes(b'half')
    assert read_edge_weights(tmp_path)[0] == [0]


def test_weights_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='has no edge_weights'):
        read_edge_weights(tmp_path)
    write_edge_weights(tmp_path, 0, {'dag': torch.zeros(1)})
    write_edge_weights(tmp_path, 1, {'dag': torch.zeros(2)})
    with pytest.raises(ValueError, match=r'0001.npz is of another network than 0000.npz'):
        read_edge_weights(tmp_path)
    (tmp_path / 'edge_weights' / '0001.npz').write_bytes(b'PK\x03\x04 and no more')
    with pytest.raises(ValueError, match=r'0001.npz is truncated'):
        read_edge_weights(tmp_path)


def test_a_hostile_archive_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath('hit').touch, ())

    (tmp_path / 'edge_weights').mkdir()
    np.savez(tmp_path / 'edge_weights' / '0000.npz', dag=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match='truncated or no archive of weights'):
        read_edge_weights(tmp_path)
    assert not (tmp_path / 'hit').exists()


# -- tables ---------------------------------------------------------------------------------------


def test_rows_with_different_columns_make_one_table(tmp_path):
    rows = [{'a': 1, 'b': 'x, "y"'}, {'b': 'z', 'c': 0.5}]
    path = tables.write_csv(tmp_path / 'new' / 'rows.csv', rows)
    assert tables.read_csv(path) == [
        {'a': '1', 'b': 'x, "y"', 'c': ''},
        {'a': '', 'b': 'z', 'c': '0.5'},
    ]
    assert [p.name for p in path.parent.iterdir()] == ['rows.csv']


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tables.write_csv(tmp_path / 'rows.csv', [{'a': 1}])

    class Unwritable:
        def __str__(self):
            raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        tables.write_csv(path, [{'a': 2}, {'a': Unwritable()}])
    assert tables.read_csv(path) == [{'a': '1'}]
    assert [p.name for p in tmp_path.iterdir()] == ['rows.csv'], 'nothing half-written'


#: Text that no number is written as.
words = st.text('bcdghlqrs ,"\n', min_size=1, max_size=6).filter(lambda text: text.strip())
cells = st.one_of(st.integers(), st.floats(allow_nan=False), words, st.none())


@given(rows=st.lists(st.dictionaries(st.sampled_from('abc'), cells, min_size=1), min_size=1))
def test_numbers_come_back_as_they_were_written(tmp_path_factory, rows):
    """Bit for bit and of the same type; what is None or missing is left out."""
    path = tables.write_csv(tmp_path_factory.mktemp('csv') / 'rows.csv', rows)
    expected = [{name: cell for name, cell in row.items() if cell is not None} for row in rows]
    assert repr([dict(sorted(row.items())) for row in tables.read_numbers(path)]) == repr(
        [dict(sorted(row.items())) for row in expected]
    )


def test_numbers_that_others_wrote_are_read():
    assert list(map(tables._number, ['7', '-7', '0.5', '1e-3', '100.0', 'nan', 'stages.0'])) == [
        7, -7, 0.5, 1e-3, 100.0, pytest.approx(np.nan, nan_ok=True), 'stages.0'
    ]  # fmt: skip
    assert [type(tables._number(text)) for text in ('7', '7.0', 'x')] == [int, float, str]


def test_rows_of_numbers_that_are_cut_short_are_named(tmp_path):
    (tmp_path / 'rows.csv').write_text('a,b\n1,2\n3\n')
    with pytest.raises(ValueError, match='line 3'):
        tables.read_numbers(tmp_path / 'rows.csv')
    with pytest.raises(FileNotFoundError):
        tables.read_numbers(tmp_path / 'none.csv')


def test_a_row_that_is_cut_short_is_named(tmp_path):
    (tmp_path / 'rows.csv').write_text('a,b\n1,2\n3\n')
    with pytest.raises(ValueError, match='line 3'):
        tables.read_csv(tmp_path / 'rows.csv')


def test_groups_keep_their_order():
    rows = [{'k': 'b', 'n': 1}, {'k': 'a', 'n': 2}, {'k': 'b', 'n': 3}]
    groups = tables.group(rows, 'k')
    assert {key: [row['n'] for row in own] for key, own in groups.items()} == {
        'b': [1, 3],
        'a': [2],
    }
    assert list(groups) == ['b', 'a']


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8))
def test_means_and_spreads_are_those_of_numpy(values):
    told = [float(part) for part in tables.mean_and_spread(values, 3).split(' ± ')]
    assert told[0] == pytest.approx(np.mean(values), abs=6e-4)
    spread = [np.std(values, ddof=1)] if len(values) > 1 else []
    assert told[1:] == pytest.approx(spread, abs=6e-4)


def test_columns_of_a_table_line_up():
    text = tables.text_table(['net', 'top-1'], [['a', '9.5'], ['longer', '10.25']])
    assert text.splitlines() == ['net     top-1', 'a         9.5', 'longer  10.25']


# -- channels -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def counts() -> dict[int, int]:
    """Parameters of a network by its channels."""
    with torch.device('meta'):
        return {c: count_parameters(DagNet(4, 2, c)) for c in range(1, 33)}


@given(channels=st.integers(1, 30), off=st.integers(-300, 300))
def test_channels_are_the_best_of_all(channels, off, counts):
    wanted = max(counts[channels] + off, counts[1] // 2 + 1)
    got = fit_channels(lambda c: DagNet(4, 2, c), wanted)
    assert abs(counts[got] - wanted) == min(abs(count - wanted) for count in counts.values())


def test_the_papers_network_has_the_channels_of_the_paper():
    def build(channels: int):
        return timm.create_model('dagnet60', channels=channels)

    assert fit_channels(build, 863_299) == 11


def test_too_few_parameters_are_refused():
    with pytest.raises(ValueError, match='3 parameters: with one channel there are'):
        fit_channels(lambda channels: DagNet(6, 3, channels), 3)
