"""Topologies of the optimization process: snapshots of edge weights, and training them anew."""

import copy
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_post_hook

import timm_topo
from timm_topo.analysis.history import (
    read_edge_weights,
    read_snapshot,
    snapshot_updates,
    write_edge_weights,
)
from timm_topo.analysis.process import set_edge_weights
from timm_topo.analysis.tables import read_csv
from timm_topo.connectivity.fixed import FixedConnectivity
from timm_topo.experiments import cache, process
from timm_topo.experiments.process import retrain_snapshots
from timm_topo.generators import random
from timm_topo.stages import graph_stages
from timm_topo.training import loop
from timm_topo.training.log import RunLog
from timm_topo.training.loop import train
from timm_topo.training.options import parse_args
from timm_topo.training.restore import restore

EDGES = 6  # of one graph of four nodes: no other parameter has this shape
SIZES = ['num_nodes=(4,)', 'widths=(8,)', 'strides=(2,)', 'stem_width=4', 'stem_kernel=3']
ROUTED = 'connectivity=["router","alpha"]'
COMMON = [
    '--model', 'test_toponet', '--img-size', '16', '--train-images', '80', '-b', '16',
    '-vb', '360', '-j', '0', '--no-aug', '--lr', '0.2', '--no-tensorboard',
]  # fmt: skip


def argv(output: Path, *extra, model=()) -> list[str]:
    """Five batches an epoch."""
    options = [*COMMON, '--output', output, '--experiment', 'run', *extra]
    return [*map(str, options), '--model-kwargs', *SIZES, *model]


def run(output: Path, *extra, model=()) -> Path:
    return train(parse_args(argv(output, *extra, model=model)))['folder']


def from_saved(output: Path, folder: Path, *extra) -> list[str]:
    options = [*COMMON, '--output', output, '--experiment', 'new', '--from-saved', folder, *extra]
    return [*map(str, options)]


def history(folder: Path) -> tuple[list, np.ndarray]:
    epochs, weights = read_edge_weights(folder)
    return epochs, weights['stages.0']


def checkpoint(folder: Path, name: str = 'last') -> dict:
    return torch.load(folder / f'{name}.pth.tar')


def stop_at_batch(patch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C at the batch of that number, counted from 1."""
    backward, calls = loop._backward, iter(range(1, 1000))

    def interrupted(*args):
        if next(calls) == number:
            raise KeyboardInterrupt
        return backward(*args)

    patch.setattr(loop, '_backward', interrupted)


@pytest.fixture
def steps():
    """Edge weights of the one graph after every step that torch's optimizer makes."""
    seen = []

    def look(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        seen.extend(p.detach().numpy().copy() for p in parameters if p.shape == (EDGES,))

    handle = register_optimizer_step_post_hook(look)
    yield seen
    handle.remove()


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Path:
    """A run of three epochs with a snapshot after every update but the last of an epoch."""
    return run(tmp_path_factory.mktemp('finished'), '--epochs', 3, '--snapshot-interval', 0.2)


@pytest.fixture(scope='module')
def routed(tmp_path_factory) -> Path:
    """A run of two graphs, the weights of one of which depend on the image."""
    model = (ROUTED, 'num_nodes=(4,3)', 'widths=(8,8)', 'strides=(2,2)')
    output = tmp_path_factory.mktemp('routed')
    return run(output, '--epochs', 2, '--snapshot-interval', 0.5, model=model)


# -- when a snapshot is due -----------------------------------------------------------------------


@given(
    epoch=st.integers(0, 300),
    updates=st.integers(1, 60),
    interval=st.one_of(st.floats(0.001, 12), st.sampled_from([0.001, 0.1, 0.25, 1 / 3, 1, 10])),
)
def test_snapshots_are_due_at_the_updates_nearest_to_multiples_of_the_interval(
    epoch, updates, interval
):
    """Against the definition, in fractions."""
    nearest = {}
    for count in range(int(max(0, epoch - 1) / interval), int((epoch + 2) / interval) + 1):
        time = Fraction(round(count * interval * 1000), 1000)
        update = math.floor(time * updates + Fraction(1, 2))
        if epoch * updates < update <= (epoch + 1) * updates:
            nearest.setdefault(update - epoch * updates, []).append(time)
    due = snapshot_updates(epoch, updates, interval)
    assert due.keys() == nearest.keys()
    for update, time in due.items():
        if update == updates:
            assert (time, type(time)) == (epoch + 1, int)
        else:
            at = epoch + Fraction(update, updates)
            assert abs(Fraction(round(time * 1000), 1000) - at) == min(
                abs(other - at) for other in nearest[update]
            )
    times = list(due.values())
    assert times == sorted(set(times)), 'each has a name of its own'
    assert not any(float(time).is_integer() for time in times if isinstance(time, float))


def test_snapshots_come_back_by_number_whole_ones_as_ints(tmp_path):
    for done in (0, 0.25, 1, 9.5, 10, 10.125, 9999.999, 10000):
        path = write_edge_weights(tmp_path, done, {'dag': torch.full((2,), float(done))})
        assert path.name == {0.25: '0000.250.npz', 10: '0010.npz'}.get(done, path.name)
    epochs, weights = read_edge_weights(tmp_path)
    assert epochs == [0, 0.25, 1, 9.5, 10, 10.125, 9999.999, 10000]
    assert [type(n) for n in epochs] == [int, float, int, float, int, float, float, int]
    assert np.allclose(weights['dag'][:, 0], epochs)
    (tmp_path / 'edge_weights' / '0003.5.npz').write_bytes(b'no name of ours')
    write_edge_weights(tmp_path, 9.75, {'dag': torch.zeros(2)})
    assert read_edge_weights(tmp_path)[0] == [0, 0.25, 1, 9.5, 9.75], 'later ones are gone'


@pytest.mark.parametrize('done', [-1, math.nan, math.inf])
def test_a_number_of_epochs_is_a_number_from_0_on(tmp_path, done):
    with pytest.raises(ValueError, match=f'finite and >= 0, got {done}'):
        write_edge_weights(tmp_path, done, {'dag': torch.zeros(1)})


def test_files_of_networks_with_other_stages_or_sizes_are_refused(tmp_path):
    write_edge_weights(tmp_path, 0, {'a': torch.zeros(3)})
    write_edge_weights(tmp_path, 0.5, {'a': torch.zeros(3), 'b': torch.zeros(2)})
    assert np.isnan(read_edge_weights(tmp_path)[1]['b'][0]).all()
    for other in ({'a': torch.zeros(4)}, {'c': torch.zeros(3)}):
        write_edge_weights(tmp_path, 1, other)
        with pytest.raises(ValueError, match=r'0001\.npz is of another network than 0000\.npz'):
            read_edge_weights(tmp_path)
    np.savez(tmp_path / 'edge_weights' / '0001.npz', a=np.zeros((3, 1), np.float32))
    with pytest.raises(ValueError, match=r'0001\.npz is no archive of weights: a is \(3, 1\)'):
        read_edge_weights(tmp_path)


# -- what a run writes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('extra', 'updates', 'expected'),
    [
        (('--snapshot-interval', 0.2), 5, [k / 5 for k in range(11)]),
        (('--snapshot-interval', 0.25), 5, [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]),
        (('--snapshot-interval', 1 / 3, '--grad-accum-steps', 2), 3,
         [0, 0.333, 0.667, 1, 1.333, 1.667, 2]),
        (('--snapshot-interval', 0.1, '--grad-accum-steps', 2), 3,
         [0, 0.3, 0.7, 1, 1.3, 1.7, 2]),
        (('--snapshot-interval', 0.5, '--model-ema', '--model-ema-decay', 0.6), 5,
         [0, 0.5, 1, 1.5, 2]),
        (('--snapshot-interval', 1.5), 5, [0, 1.5, 2]),
        (('--snapshot-interval', 10), 5, [0, 2]),
        ((), 5, [0, 1, 2]),
    ],
)  # fmt: skip
def test_a_snapshot_holds_the_weights_of_its_update(tmp_path, steps, extra, updates, expected):
    """With an average of the weights: it is what is evaluated, and what is kept."""
    epochs, weights = history(run(tmp_path, '--epochs', 2, *extra))
    assert epochs == expected
    assert len(steps) == 2 * updates
    assert (steps[0] != steps[-1]).all()
    if '--model-ema' in extra:
        average = steps[0]
        for number, step in enumerate(steps):
            steps[number] = average = 0.6 * average + 0.4 * step
    for done, row in zip(epochs, weights):
        update = math.floor(done * updates + 0.5)
        assert np.allclose(row, steps[update - 1] if update else 1, rtol=0, atol=1e-6), done
        if '--model-ema' not in extra and update:
            assert np.array_equal(row, steps[update - 1])


@pytest.mark.parametrize('extra', [(), ('--grad-accum-steps', 2, '--model-ema')])
def test_a_resumed_run_writes_the_snapshots_of_an_uninterrupted_one(tmp_path, monkeypatch, extra):
    """Stopped in its third epoch, after a snapshot."""
    options = ('--epochs', 4, '--snapshot-interval', 0.3, *extra)
    straight = run(tmp_path / 'straight', *options)
    with monkeypatch.context() as patch:
        stop_at_batch(patch, 15)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, *options)
    stopped = history(tmp_path / 'run')[0]
    assert 2 < stopped[-1] < 3
    resumed = run(tmp_path, '--resume', 'auto', *options)
    files = {path.name: path for path in (straight / 'edge_weights').iterdir()}
    assert files.keys() == {path.name for path in (resumed / 'edge_weights').iterdir()}
    for name, path in files.items():
        with np.load(path) as theirs, np.load(resumed / 'edge_weights' / name) as ours:
            assert np.array_equal(ours['stages.0'], theirs['stages.0']), name
    states = [checkpoint(folder)['state_dict'] for folder in (resumed, straight)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_resumed_run_leaves_no_snapshots_of_the_epoch_that_was_stopped(tmp_path, monkeypatch):
    """With another interval its files are not written over."""
    with monkeypatch.context() as patch:
        stop_at_batch(patch, 10)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, '--epochs', 2, '--snapshot-interval', 0.2)
    assert history(tmp_path / 'run')[0] == [0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8]
    run(tmp_path, '--epochs', 2, '--resume', 'auto')
    assert history(tmp_path / 'run')[0] == [0, 0.2, 0.4, 0.6, 0.8, 1, 2]


def test_snapshots_change_nothing_in_training(tmp_path):
    """Of a rule that clips what it stores, and draws, whenever it is asked in training."""
    model = ('connectivity={"name":"mask","fan_in":2}', 'sparsity_weight=0')
    options = ('--epochs', 2, '--model-ema', '--model-ema-decay', 0.6)
    often = run(tmp_path / 'often', *options, '--snapshot-interval', 0.2, model=model)
    rarely = run(tmp_path / 'rarely', *options, model=model)
    assert len(history(often)[0]) == 11
    for name in ('state_dict', 'state_dict_ema'):
        ours, theirs = (checkpoint(folder)[name] for folder in (often, rarely))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert (ours['stages.0.connectivity.mask'] != 0.5).any(), 'it learned'


def test_a_snapshot_in_training_leaves_the_network_as_it_is(tmp_path):
    model = network(connectivity={'name': 'mask', 'fan_in': 2}).train()
    model.head.eval()
    with torch.no_grad():
        for stage in model.stages:  # as an optimizer leaves them
            stage.connectivity.mask.copy_(torch.linspace(-0.5, 1.5, stage.wiring.num_edges))
    before = copy.deepcopy(model)
    RunLog(tmp_path, tensorboard=False).snapshot(0.5, model)
    torch.testing.assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)
    modes = [[module.training for module in m.modules()] for m in (model, before)]
    assert modes[0] == modes[1]
    _, weights = read_edge_weights(tmp_path)
    assert weights['stages.0'].tolist() == [[1, 1, 1, 0, 1, 1]], 'as evaluation reads them'
    RunLog(None).snapshot(0.5, model)  # of a process that does not write


def test_weights_that_depend_on_the_image_have_means_at_the_ends_of_epochs(routed):
    epochs, weights = read_edge_weights(routed)
    assert epochs == [0, 0.5, 1, 1.5, 2]
    assert np.isnan(weights['stages.0']).all(1).tolist() == [True, True, False, True, False]
    assert np.isfinite(weights['stages.0'][[2, 4]]).all()
    assert np.isfinite(weights['stages.1']).all()
    with np.load(routed / 'edge_weights' / '0000.500.npz') as stored:
        assert stored.files == ['stages.1']


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize('value', ['0', '-1', '-0.5', 'nan', 'inf', 'often', '', '0.0009'])
def test_an_interval_is_a_number_of_epochs(value, capsys):
    with pytest.raises(SystemExit, match='2'):
        parse_args(['--snapshot-interval', value])
    assert capsys.readouterr().err.count('error: snapshot_interval: ') == 1


@pytest.mark.parametrize('value', ['-1', 'nan', 'last'])
def test_a_snapshot_is_named_by_a_number_of_epochs(value, capsys):
    with pytest.raises(SystemExit, match='2'):
        parse_args(['--snapshot', value])
    assert 'error: snapshot: ' in capsys.readouterr().err


def test_a_file_takes_the_options_as_the_command_line_does(tmp_path):
    file = tmp_path / 'c.yaml'
    file.write_text('snapshot_interval: 1e-1\nsnapshot: 7\ntrain_images: 30\n')
    args = parse_args(['-c', str(file)])
    assert (args.snapshot_interval, args.snapshot, args.train_images) == (0.1, 7, 30)
    file.write_text('snapshot_interval: 2\nsnapshot: 7.5\n')
    assert vars(parse_args(['-c', str(file)])).items() >= {
        'snapshot_interval': 2.0, 'snapshot': 7.5,
    }.items()  # fmt: skip
    assert (parse_args([]).snapshot_interval, parse_args([]).snapshot) == (1.0, None)


def test_options_of_a_run_are_defaults_that_a_file_and_the_command_line_override(tmp_path):
    made, file = tmp_path / 'args.yaml', tmp_path / 'c.yaml'
    made.write_text('epochs: 7\nlr: 0.3\nimg_size: 24\n')
    file.write_text('lr: 0.2\nimg_size:\n')
    args = parse_args(['-c', str(file), '--seed', '3'], defaults=made)
    assert (args.epochs, args.lr, args.img_size, args.seed) == (7, 0.2, None, 3)
    assert parse_args(['--epochs', '2'], made).epochs == 2


# -- giving a network its weights -----------------------------------------------------------------


def network(**options) -> torch.nn.Module:
    sizes = dict(num_nodes=(4, 3), widths=(8, 8), strides=(2, 2), stem_width=4, stem_kernel=3)
    return timm.create_model('test_toponet', **{**sizes, **options})


@pytest.mark.parametrize('rule', ['alpha', 'tanh', 'router', {'name': 'mask', 'fan_in': 2}])
def test_weights_that_are_set_are_those_the_network_computes_with(rule, randomise):
    torch.manual_seed(1)
    model = randomise(network(connectivity='alpha')).eval()
    weights = {name: torch.randn(s.wiring.num_edges) for name, s in graph_stages(model).items()}
    with torch.no_grad():
        for name, stage in graph_stages(model).items():
            stage.connectivity.alpha.copy_(weights[name])
    other = network(connectivity=rule).eval()
    kept = {k: v for k, v in model.state_dict().items() if '.connectivity.' not in k}
    other.load_state_dict(kept, strict=False)
    assert set_edge_weights(other, weights) is other
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(other(images), model(images))
    assert not any('connectivity' in name for name, _ in other.named_parameters())
    for name, stage in graph_stages(other).items():
        assert not stage.needs_context
        assert torch.equal(stage.connectivity.edge_weights(), weights[name])
        weights[name].fill_(0)
        assert stage.connectivity.edge_weights().any(), 'a copy'


def test_weights_take_the_type_of_the_network():
    model = network().bfloat16()
    set_edge_weights(model, {'stages.0': torch.zeros(6), 'stages.1': torch.zeros(3)})
    assert {s.connectivity.alpha.dtype for s in model.stages} == {torch.bfloat16}
    model(torch.randn(2, 3, 16, 16).bfloat16())


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'stages.1': None}, r'no weights for stages\.1: the stages are stages\.0, stages\.1'),
        ({'stages.2': torch.zeros(1)}, r'weights for unknown stages\.2: the stages are stages\.0,'),
        ({'stages.1': torch.zeros(4)}, r'for stages\.1 must be \(3,\), one per edge, got \(4,\)'),
        ({'stages.1': torch.zeros(3, 1)}, r'must be \(3,\), one per edge, got \(3, 1\)'),
        ({'stages.1': torch.tensor([1.0, math.nan, math.inf])},
         r'for stages\.1 must be finite, got nan for the edge from node 0 to node 2'),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_told_and_change_nothing(change, told):
    weights = {'stages.0': torch.zeros(6), 'stages.1': torch.zeros(3), **change}
    weights = {name: value for name, value in weights.items() if value is not None}
    model = network()
    with pytest.raises(ValueError, match=told):
        set_edge_weights(model, weights)
    assert not any(isinstance(s.connectivity, FixedConnectivity) for s in model.stages)


def test_a_network_without_graphs_has_no_weights_to_set():
    with pytest.raises(ValueError, match='has no graph stage'):
        set_edge_weights(timm.create_model('test_resnet'), {})


# -- training from a snapshot ---------------------------------------------------------------------

FROZEN = ('--from-saved-weights', 'frozen')


@pytest.mark.parametrize('epoch', [0, 0.4, 2, 3])
def test_a_snapshot_is_trained_from_scratch_with_its_weights_frozen(finished, tmp_path, epoch):
    epochs, weights = history(finished)
    expected = weights[epochs.index(epoch)]
    options = ('--snapshot', epoch, '--snapshot-interval', 0.2, '--epochs', 2, *FROZEN)
    result = train(parse_args(from_saved(tmp_path, finished / 'model', *options)))
    _, frozen = history(result['folder'])
    assert len(frozen) == 11
    assert (frozen == expected).all(), 'from the start to the end'
    new, old = timm_topo.load(result['model']), timm_topo.load(finished / 'model')
    assert np.array_equal(new.stages[0].connectivity.edge_weights(), expected)
    assert new.stages[0].wiring == old.stages[0].wiring
    assert not any(p.shape == (EDGES,) for p in new.parameters())
    assert not torch.equal(new.head.fc.weight, old.head.fc.weight)


def test_networks_of_all_snapshots_start_from_the_same_other_weights(finished, tmp_path):
    starts = []
    for epoch in (0, 3):
        options = ('--snapshot', epoch, '--lr', 0, '--epochs', 1, *FROZEN)
        args = parse_args(from_saved(tmp_path / str(epoch), finished / 'model', *options))
        starts.append(timm_topo.load(train(args)['model']))
    one, other = (dict(model.named_parameters()) for model in starts)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(*(model.stages[0].connectivity.edge_weights() for model in starts))
    old = timm_topo.load(finished / 'model').get_parameter('head.fc.weight')
    assert not torch.equal(one['head.fc.weight'], old)


NEEDED = r'--snapshot needs --from-saved RUN/model --from-saved-weights frozen'


@pytest.mark.parametrize(
    ('options', 'told', 'error'),
    [
        (('--snapshot', 1.3, *FROZEN), r'no edge weights after 1\.3 epochs, but after 0, 0\.2, '
         r'0\.4, 0\.6, 0\.8, 1, 1\.2, .*2\.8, 3$', FileNotFoundError),
        *((('--snapshot', 1, *how), NEEDED, ValueError) for how in (
            (), *(('--from-saved-weights', w) for w in ('keep', 'finetune', 'finetune-frozen')))),
    ],
)  # fmt: skip
def test_what_is_no_snapshot_to_train_is_refused(finished, tmp_path, options, told, error):
    with pytest.raises(error, match=told):
        train(parse_args(from_saved(tmp_path, finished / 'model', *options)))
    assert not list(tmp_path.iterdir())


def test_a_snapshot_needs_a_run(tmp_path, finished):
    with pytest.raises(ValueError, match=NEEDED):
        run(tmp_path, '--snapshot', 1)
    timm_topo.save(timm_topo.load(finished / 'model'), tmp_path / 'alone')
    with pytest.raises(FileNotFoundError, match=r'has no edge_weights/\*\.npz'):
        train(parse_args(from_saved(tmp_path, tmp_path / 'alone', '--snapshot', 1, *FROZEN)))


def test_of_many_epochs_some_are_told(tmp_path):
    for done in range(51):
        write_edge_weights(tmp_path, done, {'dag': torch.zeros(1)})
    with pytest.raises(FileNotFoundError, match=r'after 0, 1, 2, \.\.\., 48, 49, 50$'):
        read_snapshot(tmp_path, 51)


@pytest.mark.parametrize(
    ('weights', 'told'),
    [
        ({'stages.0': torch.ones(5)}, r'stages\.0 must be \(6,\), one per edge, got \(5,\)'),
        ({'dag': torch.ones(6)}, r'no weights for stages\.0: the stages are stages\.0'),
        ({'stages.0': torch.full((6,), math.nan)}, 'must be finite, got nan'),
    ],
)
def test_snapshots_of_another_network_are_refused(finished, tmp_path, weights, told):
    model = timm_topo.save(timm_topo.load(finished / 'model'), tmp_path / 'model')
    write_edge_weights(tmp_path, 1, weights)
    told = rf'edge weights that {tmp_path} had after 1 epochs do not fit {model}: .*{told}'
    with pytest.raises(ValueError, match=told):
        train(parse_args(from_saved(tmp_path, model, '--snapshot', 1, *FROZEN)))


def test_weights_that_depend_on_the_image_cannot_be_frozen(routed, tmp_path):
    told = r'routed.* depend on the image and cannot be frozen: --from-saved-weights '
    for how, hint in (('frozen', 'keep'), ('finetune-frozen', 'finetune')):
        for options in ((), ('--snapshot', 1)) if how == 'frozen' else ((),):
            options = ('--from-saved-weights', how, *options)
            with pytest.raises(ValueError, match=told + hint):
                train(parse_args(from_saved(tmp_path, routed / 'model', *options)))
    with pytest.raises(ValueError, match='depend on the image and cannot be frozen'):
        retrain_snapshots(routed, None, None, tmp_path)


# -- training all of them -------------------------------------------------------------------------

SHORT = ('--epochs', '2')


def short(finished: Path, *extra):
    return parse_args([*SHORT, *extra], defaults=finished / 'args.yaml')


@pytest.fixture(scope='module')
def retrained(finished, tmp_path_factory) -> tuple[Path, list[dict]]:
    output = tmp_path_factory.mktemp('retrained')
    return output, retrain_snapshots(finished, (3, 0, 0.4), short(finished), output)


def test_every_snapshot_is_trained_and_told(finished, retrained):
    output, rows = retrained
    epochs, weights = history(finished)
    assert [row['epoch'] for row in rows] == [3, 0, 0.4]
    for row, name in zip(rows, ('epoch_0003', 'epoch_0000', 'epoch_0000.400'), strict=True):
        expected = weights[epochs.index(row['epoch'])]
        assert history(output / name)[0] == [0, 1, 2]
        assert (history(output / name)[1] == expected).all()
        summary = read_csv(output / name / 'summary.csv')
        assert row == {
            'epoch': row['epoch'], 'seed': 42, 'top1': float(summary[-1]['eval_top1']),
            'edges': EDGES, 'mean_abs_weight': pytest.approx(np.abs(expected).mean()),
        }  # fmt: skip
        model = timm_topo.load(output / name / 'model')
        last = checkpoint(output / name)['state_dict']
        torch.testing.assert_close(model.state_dict(), last, rtol=0, atol=0)
    told = read_csv(output / 'process.csv')
    assert [{k: float(v) for k, v in row.items()} for row in told] == rows
    assert len({row['mean_abs_weight'] for row in rows}) == 3


def test_what_is_trained_is_not_trained_again(finished, retrained, monkeypatch):
    output, rows = retrained
    monkeypatch.setattr(process, 'train', lambda args: pytest.fail('trained again'))
    (output / 'process.csv').unlink()
    assert retrain_snapshots(finished, (3, 0, 0.4), short(finished, '-j', '1'), output) == rows
    assert len(read_csv(output / 'process.csv')) == 3


def test_a_training_that_was_stopped_goes_on(finished, retrained, tmp_path, monkeypatch):
    """Five batches an epoch: stopped in the second epoch of the second network."""
    output, rows = retrained
    with monkeypatch.context() as patch:
        stop_at_batch(patch, 18)
        with pytest.raises(KeyboardInterrupt):
            retrain_snapshots(finished, (3, 0, 0.4), short(finished), tmp_path)
    assert len(read_csv(tmp_path / 'process.csv')) == 1
    assert len(read_csv(tmp_path / 'epoch_0000' / 'summary.csv')) == 1
    trained = []

    def counting(args):
        trained.append(args.experiment)
        return train(args)

    monkeypatch.setattr(process, 'train', counting)
    assert retrain_snapshots(finished, (3, 0, 0.4), short(finished), tmp_path) == rows
    assert trained == ['epoch_0000', 'epoch_0000.400']
    ours, theirs = (
        checkpoint(folder / 'epoch_0000')['state_dict'] for folder in (tmp_path, output)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_seeds_have_folders_of_their_own(finished, tmp_path):
    rows = retrain_snapshots(finished, [2], short(finished), tmp_path, seeds=(3, 4, 3))
    assert [(row['epoch'], row['seed']) for row in rows] == [(2, 3), (2, 4)]
    one, other = (
        timm_topo.load(tmp_path / 'epoch_0002' / f'seed_{seed}' / 'model') for seed in (3, 4)
    )
    assert not torch.equal(one.head.fc.weight, other.head.fc.weight)
    weights = [model.stages[0].connectivity.edge_weights() for model in (one, other)]
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ('there', 'expected'),
    [
        ([k / 5 for k in range(16)], [0, 0.8, 1.4, 2.2, 3]),
        ([0, 1, 2], [0, 1, 2]),
        ([0], [0]),
        (list(range(201)), [0, 50, 100, 150, 200]),
        ([0, 10, 20, 25], [0, 10, 20, 25]),
    ],
)
def test_five_snapshots_are_chosen_where_none_are_named(there, expected):
    assert process._spread(there, 5) == expected


def test_the_run_alone_is_enough(finished, tmp_path, monkeypatch):
    """Its options are those of the trainings; what it started from and saved is not."""
    asked = []

    def stop(args):
        asked.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(process, 'train', stop)
    with pytest.raises(KeyboardInterrupt):
        retrain_snapshots(finished, None, None, tmp_path)
    made = vars(parse_args([], defaults=finished / 'args.yaml'))
    changed = {name for name, value in vars(asked[0]).items() if made[name] != value}
    assert changed == {
        'output', 'experiment', 'resume', 'from_saved', 'from_saved_weights', 'snapshot', 'save',
        'snapshot_interval', 'model_kwargs',
    }  # fmt: skip
    assert asked[0].model_kwargs.keys().isdisjoint({'num_nodes', 'wiring'})
    assert (asked[0].epochs, asked[0].lr, asked[0].snapshot) == (3, 0.2, 0)


def test_a_rewired_network_is_trained_again_as_it_is(tmp_path):
    options = [*COMMON, '--img-size', '32', '--epochs', '1', '--output', tmp_path]
    options += ['--model', 'test_resnet', '--model-kwargs', 'layers=(1,2,1,2)', '--rewire', 'alpha']
    options += ['--rewire-kwargs', 'exact=False', '--experiment', 'run']
    with pytest.warns(UserWarning, match='re-wired is another function'):
        folder = train(parse_args([*map(str, options)]))['folder']
    rows = retrain_snapshots(folder, [1], None, tmp_path / 'again')
    expected = read_snapshot(folder, 1)
    model = timm_topo.load(tmp_path / 'again' / 'epoch_0001' / 'model')
    stages = graph_stages(model)
    assert stages.keys() == expected.keys()
    for name, weights in expected.items():
        assert torch.equal(stages[name].connectivity.edge_weights(), weights)
    assert rows[0]['edges'] == sum(stage.wiring.num_edges for stage in stages.values())


def test_a_wiring_drawn_by_the_seed_is_drawn_once(tmp_path):
    """What is trained again, or restored from weights beside the options, has the run's."""
    model = ('num_nodes=(8,)', "wiring={'name':'random','p':0.5}")
    folder = run(tmp_path, '--epochs', 1, '--seed', 3, '--seed-wiring', model=model)
    rows = retrain_snapshots(folder, [1], None, tmp_path / 'again', seeds=(4,))
    expected = random(8, 0.5, 3)
    trained = timm_topo.load(folder / 'model')
    assert trained.stages[0].wiring == expected != random(8, 0.5, 0)
    assert rows[0]['edges'] == expected.num_edges
    torch.save(trained.state_dict(), folder / 'weights.pth')
    assert restore(folder / 'weights.pth').stages[0].wiring == expected


def run_with(finished: Path, folder: Path, **weights: list[float]) -> Path:
    """The network and the options of a run, with other snapshots: ``epoch_1=...``."""
    timm_topo.save(timm_topo.load(finished / 'model'), folder / 'model')
    (folder / 'args.yaml').write_bytes((finished / 'args.yaml').read_bytes())
    for name, values in weights.items():
        write_edge_weights(folder, int(name[6:]), {'stages.0': torch.tensor(values)})
    return folder


def test_edges_that_weigh_0_do_not_count(finished, tmp_path):
    folder = run_with(finished, tmp_path / 'run', epoch_1=[1.0, 0.0, -0.5, 0.0, 1.0, 1.0])
    (row,) = retrain_snapshots(folder, None, short(folder, '--epochs', '1'), tmp_path / 'out')
    assert (row['edges'], row['mean_abs_weight']) == (4, pytest.approx(3.5 / 6))


def test_the_last_epoch_counts_not_the_best(finished, tmp_path, monkeypatch):
    scores = iter([50.0, 40.0])
    monkeypatch.setattr(loop, 'evaluate', lambda *_: dict(loss=1.0, top1=next(scores), top5=1.0))
    (row,) = retrain_snapshots(finished, [1], short(finished), tmp_path)
    assert row['top1'] == 40


def test_a_snapshot_that_does_not_fit_stops_all_before_any_is_trained(finished, tmp_path):
    broken = [1.0, math.nan, *[1.0] * 4]
    folder = run_with(finished, tmp_path / 'run', epoch_0=[1.0] * EDGES, epoch_1=broken)
    with pytest.raises(ValueError, match=r'run had after 1 epochs do not fit its network: .* nan'):
        retrain_snapshots(folder, None, short(folder), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('extra', 'told'),
    [
        (['--model', 'dagnet'], "was trained with model 'test_toponet', not 'dagnet'"),
        (['--dataset', 'colour/digits'], "with dataset 'digits', not 'colour/digits'"),
        (['--img-size', '24'], 'with img_size 16, not 24'),
        (['--mean', '0.5'], r'with mean None, not \[0\.5\]'),
        (['--interpolation', 'nearest'], "with interpolation '', not 'nearest'"),
        (['--rewire'], "with rewire None, not 'alpha'"),
        (['--model-kwargs', 'num_nodes=(5,)'], r'with num_nodes \[4\], not \(5,\)'),
    ],
)
def test_another_network_or_data_than_the_runs_is_refused(finished, tmp_path, extra, told):
    with pytest.raises(ValueError, match=f'run was trained {told.removeprefix("was trained ")}'):
        retrain_snapshots(finished, [0], short(finished, *extra), tmp_path)
    assert not list(tmp_path.iterdir())


def test_options_that_are_not_the_runs_show_where_they_matter(finished, tmp_path):
    """Those of the command line alone, without the run as their defaults."""
    with pytest.raises(ValueError, match="with model 'test_toponet', not 'toponet_tiny_adaptive'"):
        retrain_snapshots(finished, [0], parse_args([]), tmp_path)


@pytest.mark.parametrize(
    ('epochs', 'seeds', 'told', 'error'),
    [
        ([0, 1.1], (None,), r'no edge weights after 1\.1 epochs, but after 0, ', FileNotFoundError),
        ([], (None,), 'no epochs to retrain', ValueError),
        (None, (), r'seeds are numbers, or None on its own, got \[\]', ValueError),
        (None, (None, 1), r'None on its own, got \[None, 1\]', ValueError),
    ],
)
def test_what_cannot_be_retrained_is_refused_at_once(
    finished, tmp_path, epochs, seeds, told, error
):
    with pytest.raises(error, match=told):
        retrain_snapshots(finished, epochs, None, tmp_path, seeds)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_finished_is_refused(finished, tmp_path):
    write_edge_weights(tmp_path, 0, {'stages.0': torch.ones(EDGES)})
    with pytest.raises(FileNotFoundError, match='is no finished run: model is missing'):
        retrain_snapshots(tmp_path, None, None, tmp_path / 'out')
    timm_topo.save(timm_topo.load(finished / 'model'), tmp_path / 'model')
    with pytest.raises(FileNotFoundError, match=r'is no finished run: args\.yaml is missing'):
        retrain_snapshots(tmp_path, None, None, tmp_path / 'out')


def test_other_options_or_weights_do_not_pass_for_the_old_ones(finished, retrained, tmp_path):
    output, _ = retrained
    with pytest.raises(ValueError, match=r'epoch_0003 was made with lr 0\.2, not 0\.1'):
        retrain_snapshots(finished, [3], short(finished, '--lr', '0.1'), output)
    again = run_with(finished, tmp_path / 'again', epoch_3=[1.0] * EDGES)
    with pytest.raises(ValueError, match=r'epoch_0003 was made with other edge weights than those'):
        retrain_snapshots(again, [3], short(finished), output)


def test_options_in_brackets_are_the_same_when_they_are_read_again(tmp_path):
    """YAML has no tuples."""
    options = parse_args(['--model-kwargs', 'num_nodes=(4,)'])
    folder = tmp_path / 'one'
    assert cache.pending(folder, options).resume == 'auto'
    folder.mkdir()
    (folder / 'args.yaml').write_text('model_kwargs: {num_nodes: [4]}\n')
    assert cache.pending(folder, options, seed=3).seed == 3
    (folder / 'model').mkdir()
    assert cache.pending(folder, options) is None
    other = copy.deepcopy(options)
    other.model_kwargs = {'num_nodes': (5,)}
    with pytest.raises(ValueError, match=r"made with model_kwargs \{'num_nodes': \[4\]\}, not"):
        cache.pending(folder, other)
