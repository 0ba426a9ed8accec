"""The command ``topo``: numbers against ones from elsewhere, one line per failure, no debris."""

import argparse
import copy
import importlib
import json
import math
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import timm_topo
from timm_topo.analysis.cost import count_flops
from timm_topo.analysis.int8 import export_int8
from timm_topo.analysis.prune import edge_mask, edge_weights, prune, recalibrate
from timm_topo.analysis.tables import read_csv, read_numbers
from timm_topo.checkpoint import FORMAT
from timm_topo.cli import COMMANDS, main
from timm_topo.connectivity.router import RouterConnectivity
from timm_topo.data import load_dataset
from timm_topo.executors import adjacency
from timm_topo.experiments import damage as damage_module
from timm_topo.report import network as network_page
from timm_topo.stages import graph_stages
from timm_topo.training.evaluate import accuracy, eval_loader, evaluate, image_batches
from timm_topo.training.loop import train
from timm_topo.training.options import parse_args
from timm_topo.training.restore import restore

ROOT = Path(__file__).parents[1]
SIZES = dict(num_nodes=(4, 5), widths=(4, 6), strides=(2, 2), stem_width=4, stem_kernel=3)
KWARGS = [f'{name}={value}'.replace(' ', '') for name, value in SIZES.items()]
OF_RUNS = ('training', 'process', 'animation')


# -- networks, data and runs ----------------------------------------------------------------------


@torch.no_grad()
def tiny(**options) -> nn.Module:
    """Two graphs whose edges all weigh something else; for images of 16 px and three classes."""
    torch.manual_seed(3)
    model = timm.create_model('test_toponet', **{**SIZES, 'num_classes': 3, **options})
    for module in model.modules():
        if isinstance(module, RouterConnectivity):
            module.weight.normal_()
            module.bias.normal_()
        elif isinstance(module, nn.BatchNorm2d):
            module.bias.normal_(0, 0.5)
    for stage in model.stages:
        if hasattr(stage.connectivity, 'alpha'):
            stage.connectivity.alpha.uniform_(-1, 1)
    channels = options.get('in_chans', 3)
    model.pretrained_cfg = {
        **model.pretrained_cfg, 'input_size': (channels, 16, 16), 'crop_pct': 1.0
    }  # fmt: skip
    return model.eval()


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape)
    path.write_bytes(head + array.tobytes())


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
    """24 images to train on, 31 to validate on, of 16 px and 3 classes, in MNIST format."""
    folder = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for stem, count in (('train', 24), ('t10k', 31)):
        labels = (np.arange(count) % 3).astype(np.uint8)
        images = rng.integers(0, 200, (count, 16, 16), dtype=np.uint8)
        for image, label in zip(images, labels):
            image[:, 5 * label : 5 * label + 4] = 255
        write_idx(folder / f'{stem}-images-idx3-ubyte', images)
        write_idx(folder / f'{stem}-labels-idx1-ubyte', labels)
    return folder


@pytest.fixture(scope='session')
def on(data) -> list[str]:
    """Options that name the data."""
    return ['--dataset', 'idx', '--data-dir', str(data)]


@pytest.fixture(scope='session')
def validation(data):
    return load_dataset('idx', data, 'validation')


@pytest.fixture(scope='session')
def networks(tmp_path_factory) -> dict[str, Path]:
    """Saved networks by what is special about them."""
    folder = tmp_path_factory.mktemp('networks')
    models = {
        'net': tiny(),
        'routed': tiny(connectivity=['router', 'alpha']),
        'grey': tiny(in_chans=1),
        'plain': timm.create_model('test_resnet', num_classes=3),
        'whole': timm.create_model('dagnet', num_nodes=6, channels=2, num_classes=3),
    }
    return {name: timm_topo.save(model, folder / name) for name, model in models.items()}


@pytest.fixture
def net(networks) -> Path:
    return networks['net']


def arguments(data: Path, output: Path, *extra) -> list[str]:
    """A run of two batches an epoch."""
    common = dict(
        dataset='idx', data_dir=data, workers=0, batch_size=12, lr=0.05, epochs=1, output=output,
        experiment='run',
    )  # fmt: skip
    options = [f'--{key.replace("_", "-")}={value}' for key, value in common.items()]
    return [*options, '--no-aug', '--no-tensorboard', *map(str, extra)]


PREPARED = ('--img-size', 20, '--crop-pct', 0.8, '--mean', 0.1, 0.2, 0.3, '--std', 0.4, 0.5, 0.6)
AVERAGED = ('--model-ema', '--model-ema-decay', 0.6)


def run_of(data: Path, output: Path, *extra) -> Path:
    return train(parse_args(arguments(data, output, *extra)))['folder']


@pytest.fixture(scope='session')
def finished(data, tmp_path_factory) -> Path:
    """A run with preprocessing of its own and averaged weights."""
    model = ('--model', 'test_toponet', '--model-kwargs', *KWARGS)
    extra = ('--epochs', 2, *PREPARED, *AVERAGED, '--snapshot-interval', 0.5)
    return run_of(data, tmp_path_factory.mktemp('finished'), *model, *extra)


@pytest.fixture
def topo(capsys):
    """Function that runs a command in this process: exit status, standard output and error."""

    def topo(*args) -> tuple[int, str, str]:
        capsys.readouterr()  # what was said before
        try:
            status = main([*map(str, args)])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return topo


@pytest.fixture
def told(topo):
    """Function that runs a command with ``--json``: what it says, one object and nothing else."""

    def told(*args) -> dict:
        at = list(map(str, args)).index('--') if '--' in args else len(args)
        status, out, err = topo(*args[:at], '--json', *args[at:])
        assert status == 0, err
        assert out.count('\n') == 1
        result = json.loads(out, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))
        assert isinstance(result, dict)
        return result

    return told


def assert_one_error(result: tuple[int, str, str], match: str) -> None:
    status, out, err = result
    assert (status, out) == (1, '')
    (line,) = err.strip().splitlines()
    assert line.startswith('error: ')
    assert re.search(match, line), line


def assert_usage(result: tuple[int, str, str], match: str) -> None:
    status, out, err = result
    assert (status, out) == (2, '')
    assert err.startswith('usage: topo')
    assert re.search(match, err.splitlines()[-1]), err


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def edges_of(model: nn.Module) -> dict[str, dict[tuple[int, int], float]]:
    """Weights by edge, between ids from before pruning, by stage."""
    return {
        name: {
            (stage.node_ids[s], stage.node_ids[t]): weight.item()
            for (s, t), weight in zip(stage.wiring.edges, stage.connectivity.edge_weights())
        }
        for name, stage in graph_stages(model).items()
    }


def process(*args, code: str | None = None, **kwargs) -> subprocess.Popen:
    """``python -m timm_topo``, or other code, on its own and elsewhere."""
    start = ['-m', 'timm_topo'] if code is None else ['-c', code]
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'}
    return subprocess.Popen(
        [sys.executable, *start, *map(str, args)],
        env={**env, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs,
    )  # fmt: skip


# -- all commands ---------------------------------------------------------------------------------


@pytest.fixture(params=COMMANDS)
def command(request):
    """The module of a command."""
    return importlib.import_module(f'timm_topo.cli.{request.param}')


def name_of(command) -> str:
    return command.__name__.rpartition('.')[2]


def examples_in(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith('  topo ')]


def test_the_list_of_commands_explains_them(topo):
    status, out, err = topo('--help')
    assert (status, err) == (0, '')
    for name, what in COMMANDS.items():
        assert re.search(rf'^  {name} +{re.escape(what)}$', out, re.M)


def test_examples_of_the_list_are_ones_that_work(topo, check_example):
    lines = examples_in(topo('--help')[1])
    assert len(lines) == 5
    for line in lines:
        check_example(line)


def test_every_command_explains_itself(topo, command, check_example):
    status, out, err = topo(name_of(command), '--help')
    assert (status, err) == (0, '')
    assert out.startswith(f'usage: topo {name_of(command)} ')
    lines = examples_in(out)
    assert lines
    for line in lines:
        assert f'{line} '.startswith(f'topo {name_of(command)} ')
        check_example(line)


def test_the_installed_command_is_this_one():
    text = (ROOT / 'setup.py').read_text(encoding='utf-8')
    module, name = re.search(r"'topo = ([\w.]+):(\w+)'", text).groups()
    assert getattr(importlib.import_module(module), name) is main


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (('inspct', 'net'), r"argument COMMAND: invalid choice: 'inspct' \(choose from '?train"),
        (('inspect',), 'required: NETWORK'),
        (('evaluate', 'net'), 'give data: --dataset NAME or --data-dir DIR'),
        (('inspect', 'net', '--edge-weights'), 'unrecognized arguments: --edge-weights'),
    ],
)
def test_wrong_usage_is_2(topo, args, match):
    assert_usage(topo(*args), match)


def test_no_command_shows_the_list(topo):
    assert topo() == topo('--help')


def test_options_may_stand_anywhere(net, told, tmp_path):
    expected = told('plot', 'adjacency', net, '-o', tmp_path / 'a.svg')
    for args in (('-o', tmp_path / 'a.svg', 'adjacency', net),
                 ('adjacency', '-o', tmp_path / 'a.svg', '--relative', net)):  # fmt: skip
        assert told('plot', *args) == expected


#: What commands need beside a network.
NEEDED = {
    'plot': ('-o', 'x.svg'), 'prune': ('--fraction', 0.1, '-o', 'x'), 'report': ('-o', 'x.html'),
    'export': ('-o', 'x.onnx'), 'damage': ('-o', 'x', '--dataset', 'idx'), 'retrain': ('-o', 'x',
    '--snapshots'), 'evaluate': ('--dataset', 'idx'), 'sweep': ('--dataset', 'idx'),
    'routing': ('--dataset', 'idx'), 'shrink': ('--time', 0.9, '-o', 'x', '--dataset', 'idx'),
}  # fmt: skip


def needed(name: str, net) -> tuple:
    """Arguments with which a command starts."""
    if name == 'train':
        return ()
    if name == 'table':
        return ('x.yaml', '-o', 'x')
    return (*(('graph',) if name == 'plot' else ()), net, *NEEDED.get(name, ()))


def test_nothing_may_stand_behind_two_dashes_where_nothing_is_trained(topo, command):
    name = name_of(command)
    if name != 'train' and not getattr(command, 'TRAINS', False):
        result = topo(name, *needed(name, 'net'), '--', '--epochs', 3)
        assert_usage(result, 'nothing may follow --, got --epochs 3')


def test_ctrl_c_is_130_and_says_how_to_go_on(topo, command, monkeypatch, net):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, 'run', interrupt)
    name = name_of(command)
    status, out, err = topo(name, *needed(name, net))
    assert (status, out) == (130, '')
    goes_on = {
        'damage': '; the same command goes on where it was',
        'report': '; the same command goes on where damage was',
        'retrain': '; the same command goes on where it was',
        'shrink': '; the same command goes on where it was',
        'sweep': '; with --csv the same command goes on where it was',
        'table': '; the same command goes on where it was',
        'train': '; go on from the last whole epoch with --resume auto',
    }
    assert err == f'\ninterrupted{goes_on.get(name, "")}\n'


def test_our_own_bugs_show_where_they_are(topo, monkeypatch, net):
    module = importlib.import_module('timm_topo.cli.inspect')
    monkeypatch.setattr(module, 'run', lambda args: {}['missing'])
    with pytest.raises(KeyError):
        topo('inspect', net)


def test_json_has_no_values_that_json_does_not_have(told, monkeypatch, net):
    """Numbers that are not finite are null, tuples lists, paths and keys text."""
    module = importlib.import_module('timm_topo.cli.inspect')
    odd = {'a': math.nan, 'b': (1, -math.inf, True), 3: {'c': Path('x') / 'y', 'd': None}}
    monkeypatch.setattr(module, 'run', lambda args: odd)
    assert told('inspect', net) == {
        'a': None, 'b': [1, None, True], '3': {'c': os.path.join('x', 'y'), 'd': None}
    }  # fmt: skip


def test_as_a_process_it_prints_what_it_prints_here(net, told, tmp_path):
    running = process('inspect', net, '--json', cwd=tmp_path)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, err) == (0, '')
    assert json.loads(out) == told('inspect', net)


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no such pipes')
def test_a_reader_that_goes_away_is_no_reason_to_complain(net):
    """As ``topo inspect net | head -0``."""
    running = process('inspect', net)
    running.stdout.close()
    err = running.stderr.read()
    assert (running.wait(timeout=120), err) == (1, '')


# -- inspect --------------------------------------------------------------------------------------


def test_inspect_says_what_a_network_is(net, told, validation, on):
    model = tiny()
    flops = count_flops(model)
    result = told('inspect', net, *on, '--edges', '--characteristics')
    stages = result.pop('stages')
    assert result == {
        'network': str(net),
        'architecture': 'test_toponet',
        'input_size': [3, 16, 16],
        'num_classes': 3,
        'parameters': parameters(model),
        'multiply_adds': {'conv': flops.conv, 'linear': flops.linear, 'edges': flops.edges},
        'top1': accuracy(model, validation),
    }
    for stage, (name, weights), nodes in zip(stages, edges_of(model).items(), (4, 5), strict=True):
        shown, expected = stage.pop('characteristics'), dict(nodes=nodes, edges=len(weights))
        expected |= dict(name=name, rule='alpha', node='SepConvNode', density=1, levels=1)
        assert stage.items() >= {**expected, 'node_ids': list(range(nodes))}.items()
        assert [((s, t), w) for s, t, w in stage['edge_weights']] == list(weights.items())
        sizes = np.abs(list(weights.values()))
        assert stage['weights'] == {
            'least': sizes.min(), 'median': pytest.approx(np.median(sizes)),
            'largest': sizes.max(), 'negative': sum(w < 0 for w in weights.values()), 'zero': 0,
        }  # fmt: skip
        graph = nx.DiGraph(weights.keys())
        paths = [len(path) - 1 for path in nx.all_simple_paths(graph, 0, nodes - 1)]
        assert shown['log_paths'] == pytest.approx(math.log(len(paths)))
        assert (shown['mean_path'], shown['max_path']) == (np.mean(paths), max(paths))
        assert shown['edge_connectivity'] == nx.edge_connectivity(graph, 0, nodes - 1)


def test_inspect_prints_the_same_as_text(net, topo, told, on):
    result = told('inspect', net, *on)
    status, out, err = topo('inspect', net, *on, '--edges', '--characteristics')
    assert (status, err) == (0, '')
    first, second, third, _, head, *rows = out.splitlines()
    assert first == f'{net}: test_toponet, input 3x16x16, 3 classes'
    total = sum(result['multiply_adds'].values()) / 1e6
    edges = result['multiply_adds']['edges'] / 1e6
    assert second == (
        f'{result["parameters"]:,} parameters, {total:.2f} M multiply-adds ({edges:.2f} M of them '
        'for edges)'
    )
    assert third == f'top-1 {result["top1"]:.2f}%'
    columns = ['name', 'nodes', 'edges', 'density', 'rule', 'node', '|weight| least', 'median']
    assert re.split(r'  +', head) == [*columns, 'largest', 'negative', 'zero']
    for row, stage in zip(rows, result['stages']):
        weights = stage['weights']
        shown = [f'{weights[name]:.4g}' for name in ('least', 'median', 'largest')]
        counts = [str(weights[name]) for name in ('negative', 'zero')]
        facts = [stage['name'], str(stage['nodes']), str(stage['edges']), '1']
        assert row.split() == [*facts, 'alpha', 'SepConvNode', *shown, *counts]
    for (source, target), weight in edges_of(tiny())['stages.1'].items():
        assert re.search(rf'^ +{source} +{target}  {re.escape(f"{weight:+.6f}")}$', out, re.M)
    assert f'log_paths {math.log(8):.4g}' in out


def test_inspect_without_data_or_options_says_no_more(net, topo, told):
    result = told('inspect', net)
    assert result['top1'] is None
    assert not any({'edge_weights', 'characteristics'} & stage.keys() for stage in result['stages'])
    _, out, _ = topo('inspect', net)
    assert 'top-1' not in out
    assert len(out.splitlines()) == 6


def test_inspect_averages_weights_that_depend_on_the_image(networks, topo, told, data, on):
    status, out, err = topo('inspect', networks['routed'])
    assert (status, err) == (0, '')
    assert 'edge weights depend on the image: --dataset averages them' in out
    stages = told('inspect', networks['routed'], '--edges')['stages']
    assert not any('weights' in stage for stage in stages)
    assert [weight for _, _, weight in stages[0]['edge_weights']] == [None] * 6
    model = tiny(connectivity=['router', 'alpha'])
    loader = eval_loader(model, load_dataset('idx', data, 'train'))
    images = torch.cat([x for x, _ in loader])
    shown = told('inspect', networks['routed'], '--edges', *on)['stages']
    for stage, matrices in zip(shown, adjacency(model, images).values(), strict=True):
        for source, target, weight in stage['edge_weights']:
            expected = matrices[:, target, source].mean().item()
            assert weight == pytest.approx(expected, abs=1e-6)
    status, out, err = topo('inspect', networks['routed'], *on, '--edges')
    assert (status, err) == (0, '')
    assert 'depend on the image' not in out


def test_inspect_tells_ids_from_before_and_levels(networks, told, topo, tmp_path):
    topo('prune', networks['net'], '--threshold', 0.3, '-o', tmp_path / 'out')
    model = timm_topo.load(tmp_path / 'out')
    stages = told('inspect', tmp_path / 'out', '--edges')['stages']
    for stage, weights in zip(stages, edges_of(model).values(), strict=True):
        assert [(s, t) for s, t, _ in stage['edge_weights']] == list(weights)
    (stage,) = told('inspect', networks['whole'])['stages']
    assert (stage['levels'], stage['nodes'], stage['edges']) == (3, 6, 15)


def test_a_grey_network_is_evaluated_on_grey_images(networks, told, data, on):
    expected = accuracy(tiny(in_chans=1), load_dataset('idx', data, 'validation', 'L'))
    assert told('inspect', networks['grey'], *on)['top1'] == expected


# -- prune ----------------------------------------------------------------------------------------


def weakest(model: nn.Module, count: int) -> dict[str, torch.Tensor]:
    """Masks without the edges of the smallest magnitudes."""
    sizes = {(n, e): abs(w) for n, of in edges_of(model).items() for e, w in of.items()}
    gone = sorted(sizes, key=sizes.get)[:count]
    return {
        name: torch.tensor([(name, edge) not in gone for edge in edges])
        for name, edges in edges_of(model).items()
    }


def test_prune_tells_what_it_did_and_saves_it(net, told, on, validation, tmp_path):
    model = tiny()
    keep = weakest(model, 5)
    expected, _ = prune(model, keep=keep)
    result = told('prune', net, '--fraction', 0.3, '-o', tmp_path / 'out', *on)
    smaller = restore(tmp_path / 'out')
    assert edges_of(smaller) == edges_of(expected)
    assert result['output'] == str(tmp_path / 'out')
    assert (result['before']['edges'], result['before']['nodes']) == (16, 9)
    for label, one in (('before', model), ('after', smaller)):
        row = result[label]
        assert row['parameters'] == parameters(one)
        assert row['edges'] == sum(len(edges) for edges in edges_of(one).values())
        assert row['nodes'] == sum(stage.wiring.num_nodes for stage in one.stages)
        assert row['multiply_adds'] == count_flops(one).total
        assert row['top1'] == accuracy(one, validation)
        assert row['ms'] > 0
    assert result['before']['ratio'] == 1
    sizes = [abs(w) for edges in edges_of(model).values() for w in edges.values()]
    assert result['cutoff'] == sorted(sizes)[4]
    assert [cut['edges'] for cut in result['stages']] == [
        [6, smaller.stages[0].wiring.num_edges], [10, smaller.stages[1].wiring.num_edges]
    ]  # fmt: skip
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(smaller(images), expected(images))


def test_prune_in_other_orders(net, told, tmp_path):
    model = tiny()
    found = {}
    for label, args in {
        'weakest': (), 'strongest': ('--order', 'strongest'), 'one': ('--order', 'random'),
        'two': ('--order', 'random', '--seed', 2), 'two again': ('--order', 'random', '--seed', 2),
        'relative': ('--relative',),
    }.items():  # fmt: skip
        told('prune', net, '--fraction', 0.2, *args, '-o', tmp_path / label)
        found[label] = edges_of(restore(tmp_path / label))
    for label, options in {
        'strongest': dict(order='strongest'), 'one': dict(order='random', seed=0),
        'two': dict(order='random', seed=2), 'relative': dict(relative=True),
    }.items():  # fmt: skip
        keep = edge_mask(model, fraction=0.2, **options)
        assert found[label] == edges_of(prune(model, keep=keep)[0])
    assert found['two'] == found['two again']
    del found['two again']
    assert len({str(edges) for edges in found.values()}) == 5


def test_prune_folds_unless_told_not_to(net, told, tmp_path):
    """Nobody feeds nodes 1 and 3 of the second graph: one is read, its constants stay."""
    args = ('--fraction', 0.3, '--order', 'random', '--seed', 1)
    one = told('prune', net, *args, '-o', tmp_path / 'one')
    other = told('prune', net, *args, '--no-fold', '-o', tmp_path / 'other')
    names = [list(restore(tmp_path / label).state_dict()) for label in ('one', 'other')]
    assert [any('offset' in name for name in of) for of in names] == [True, False]
    assert (one['exact'], other['exact']) == (True, False)
    assert [cut['folded'] for cut in one['stages']] == [False, True]
    assert not any(cut['folded'] for cut in other['stages'])
    assert one['difference'] < 1e-5 < other['difference']


def test_prune_recalibrates_on_training_images(net, told, on, data, validation, tmp_path):
    args = ('--fraction', 0.2, '--recalibrate', 3, *on)
    result = told('prune', net, *args, '-o', tmp_path / 'out')
    expected, _ = prune(tiny(), fraction=0.2)
    recalibrate(expected, image_batches(expected, load_dataset('idx', data, 'train'), 3))
    state = timm_topo.load(tmp_path / 'out').state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())
    assert result['after']['top1'] == accuracy(expected, validation)


def test_networks_with_routers_are_pruned_by_their_means(networks, told, topo, on, data, tmp_path):
    result = topo('prune', networks['routed'], '--fraction', 0.2, '-o', tmp_path / 'out')
    assert_one_error(result, 'depend on the image: give --dataset')
    told('prune', networks['routed'], '--fraction', 0.2, '-o', tmp_path / 'out', *on)
    model = tiny(connectivity=['router', 'alpha'])
    (images,) = image_batches(model, load_dataset('idx', data, 'train'), 1)
    expected, _ = prune(model, fraction=0.2, images=images)
    smaller = restore(tmp_path / 'out')
    assert [s.wiring for s in smaller.stages] == [s.wiring for s in expected.stages]


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        ((), 'one of the arguments --threshold --fraction is required'),
        (('--fraction', 0.1, '--threshold', 0.1), 'not allowed with'),
        (('--fraction', 0.1, '--order', 'best'), r"invalid choice: 'best'"),
        (('--threshold', 0.1, '--order', 'random'), 'takes the weakest edges, not --order random'),
        (('--fraction', 0.1, '--recalibrate', 0), 'must be a whole number from 1 on'),
        (('--fraction', 0.1, '--recalibrate', 2), '--recalibrate needs --dataset'),
        (('--fraction', 'half'), "invalid float value: 'half'"),
    ],
)
def test_prune_is_told_how_to_be_used(topo, net, tmp_path, args, match):
    assert_usage(topo('prune', net, '-o', tmp_path / 'out', *args), match)
    assert os.listdir(tmp_path) == []


# -- plot -----------------------------------------------------------------------------------------

MAGIC = {'.svg': b'<?xml', '.png': b'\x89PNG', '.pdf': b'%PDF', '.gif': b'GIF8'}


@pytest.mark.parametrize('suffix', ['.svg', '.png', '.pdf'])
@pytest.mark.parametrize('kind', ['graph', 'adjacency'])
def test_plot_writes_the_file_it_is_asked_for(net, topo, told, tmp_path, kind, suffix):
    path = tmp_path / 'new' / f'a{suffix}'
    assert topo('plot', kind, net, '-o', path) == (0, f'written: {path}\n', '')
    assert path.read_bytes().startswith(MAGIC[suffix])
    assert told('plot', kind, net, '-o', path) == {'written': [str(path)]}
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize('kind', ['graph', 'arcs', 'adjacency', 'histogram', 'degrees'])
def test_plot_draws_the_weights_of_the_stages_it_is_asked_for(
    net, topo, monkeypatch, tmp_path, kind
):
    module = importlib.import_module('timm_topo.cli.plot')
    seen, draw = [], module._draw

    def spy(kind, panels):
        seen.append((kind, panels))
        return draw(kind, panels)

    monkeypatch.setattr(module, '_draw', spy)
    for args in ((), ('--stage', 'stages.1'), ('--relative',)):
        path = tmp_path / f'{len(seen)}.svg'
        assert topo('plot', kind, net, '-o', path, *args)[0] == 0
        assert path.read_text().startswith('<?xml')
    (_, both), (_, (second,)), (_, relative) = seen
    assert [panel.title for panel in both] == ['stages.0', 'stages.1']
    assert second.title == 'stages.1'
    for panel, scaled, weights in zip(both, relative, edges_of(tiny()).values(), strict=True):
        assert panel.weights == pytest.approx(list(weights.values()))
        largest = {
            node: max(abs(w) for (_, t), w in weights.items() if t == node)
            for node in {t for _, t in weights}
        }
        expected = [w / largest[t] for (_, t), w in weights.items()]
        assert scaled.weights == pytest.approx(expected)


def test_plot_of_routed_networks_needs_images(networks, topo, on, tmp_path):
    args = ('plot', 'graph', networks['routed'], '-o', tmp_path / 'a.svg')
    assert_one_error(topo(*args), 'depend on the image: give --dataset')
    assert os.listdir(tmp_path) == []
    assert topo(*args, *on)[0] == 0


@pytest.mark.parametrize('kind', OF_RUNS)
def test_plot_of_a_run(finished, topo, tmp_path, kind):
    path = tmp_path / ('a.gif' if kind == 'animation' else 'a.svg')
    stage = () if kind == 'training' else ('--stage', 'stages.1')
    assert topo('plot', kind, finished, '-o', path, *stage) == (0, f'written: {path}\n', '')
    assert path.read_bytes().startswith(MAGIC[path.suffix])


@pytest.mark.parametrize(
    ('kind', 'name', 'args', 'match'),
    [
        ('graph', 'a.gif', (), r'a\.gif is not one of \.svg, \.png, \.pdf$'),
        ('graph', 'a', (), r'a is not one of \.svg'),
        ('animation', 'a.svg', (), r'a\.svg is not one of \.gif$'),
        ('process', 'a.svg', (), 'a strip shows one stage: --stage, one of stages.0, stages.1'),
        ('graph', 'a.svg', ('--stage', 'stages.2'), "no stage 'stages.2'; the stages are stages.0"),
    ],
)
def test_plot_refuses_what_it_cannot_draw(finished, topo, tmp_path, kind, name, args, match):
    assert_one_error(topo('plot', kind, finished, '-o', tmp_path / name, *args), match)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('kind', OF_RUNS)
def test_what_is_of_runs_needs_one(net, topo, tmp_path, kind):
    path = tmp_path / ('a.gif' if kind == 'animation' else 'a.svg')
    assert_one_error(topo('plot', kind, net, '-o', path), f'{kind} is of the folder of a run, not')
    assert os.listdir(tmp_path) == []


def test_a_kind_of_plot_that_does_not_exist_is_wrong_usage(net, topo, tmp_path):
    result = topo('plot', 'grph', net, '-o', tmp_path / 'a.svg')
    assert_usage(result, "argument KIND: invalid choice: 'grph'")


# -- damage ---------------------------------------------------------------------------------------

DAMAGED = ('--fractions', 0.2, 0.6, '--order', 'weakest', 'random', '--seeds', 1, 2)


def test_damage_measures_and_writes(net, told, topo, on, validation, tmp_path):
    result = told('damage', net, '-o', tmp_path / 'out', *DAMAGED, *on)
    assert result['network'] == str(net)
    assert result['top1'] == accuracy(tiny(), validation)
    assert result['edges'] == read_numbers(tmp_path / 'out' / 'edges.csv')
    assert result['nodes'] == read_numbers(tmp_path / 'out' / 'nodes.csv')
    rows = [(row['order'], row['seed'], row['asked'], row['edges']) for row in result['edges']]
    assert rows == [('none', 0, 0.0, 16), ('weakest', 0, 0.2, 13), ('weakest', 0, 0.6, 6),
                    ('random', 1, 0.2, 13), ('random', 1, 0.6, 6), ('random', 2, 0.2, 13),
                    ('random', 2, 0.6, 6)]  # fmt: skip
    smaller, _ = prune(tiny(), keep=weakest(tiny(), 3))
    assert result['edges'][1]['top1'] == accuracy(smaller, validation)
    assert [(row['stage'], row['node']) for row in result['nodes']] == [
        ('stages.0', 1), ('stages.0', 2), ('stages.1', 1), ('stages.1', 2), ('stages.1', 3)
    ]  # fmt: skip
    status, out, err = topo('damage', net, '-o', tmp_path / 'out', *DAMAGED, *on)
    assert (status, err) == (0, '')
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ['top-1', f'{result["top1"]:.2f}%']
    assert lines[2] == ['order', 'seed', 'removed', 'edges', 'connected', 'top1']
    assert [line[0] for line in lines[3:10]] == ['none', 'weakest', 'weakest', *['random'] * 4]
    assert lines[11] == ['stage', 'node', 'in_degree', 'out_degree', 'connected', 'top1']
    assert lines[-1] == ['written:', str(tmp_path / 'out')]


def test_damage_with_new_statistics_on_some_images(net, told, on, tmp_path):
    args = ('--fractions', 0.2, '--images', 10, '--recalibrate', '--no-nodes')
    result = told('damage', net, '-o', tmp_path, *args, *on)
    assert result['nodes'] == []
    assert all(row['top1'] % 10 == pytest.approx(0) for row in result['edges'])
    assert all('top1_recalibrated' in row for row in result['edges'])


def test_damage_goes_on_after_ctrl_c(net, topo, told, on, monkeypatch, tmp_path):
    made = []

    def counted(model, *args):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(model)
        return evaluate(model, *args)

    with monkeypatch.context() as patch:
        patch.setattr(damage_module, 'evaluate', counted)
        status, out, err = topo('damage', net, '-o', tmp_path / 'out', *DAMAGED, *on)
    assert (status, out) == (130, '')
    assert err == '\ninterrupted; the same command goes on where it was\n'
    assert len(read_csv(tmp_path / 'out' / 'edges.csv')) == 4
    with monkeypatch.context() as patch:
        again = []
        patch.setattr(damage_module, 'evaluate', lambda *args: again.append(1) or evaluate(*args))
        result = told('damage', net, '-o', tmp_path / 'out', *DAMAGED, *on)
    assert len(again) == 7 + 5 - 4
    straight = told('damage', net, '-o', tmp_path / 'other', *DAMAGED, *on)
    assert (result['edges'], result['nodes']) == (straight['edges'], straight['nodes'])


def test_damage_retrains_what_is_left(net, told, data, on, tmp_path):
    """Training prints; standard output is one object all the same."""
    training = ('--', '--epochs', 1, '-b', 12, '-j', 0, '--no-aug', '--no-tensorboard', '--lr', 0)
    args = ('--fractions', 0.2, '--no-nodes', '--retrain', 'finetune', *on, *training)
    result = told('damage', net, '-o', tmp_path, *args)
    model = restore(tmp_path / 'retrained' / 'weakest_0.2' / 'run')
    assert edges_of(model) == edges_of(prune(tiny(), keep=weakest(tiny(), 3))[0])
    row = result['edges'][1]
    assert row['top1_retrained'] == accuracy(model, load_dataset('idx', data, 'validation'))
    assert row == read_numbers(tmp_path / 'edges.csv')[1]
    options = (tmp_path / 'retrained' / 'weakest_0.2' / 'run' / 'args.yaml').read_text()
    assert f'data_dir: {data}\n' in options
    assert 'from_saved_weights: finetune-frozen\n' in options


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        ((), 'give data: --dataset NAME or --data-dir DIR'),
        (('--dataset', 'idx', '--', '--epochs', 3), 'options behind -- are for --retrain'),
        (('--dataset', 'idx', '--order', 'best'), "invalid choice: 'best'"),
        (('--dataset', 'idx', '--images', 0), 'must be a whole number from 1 on'),
        (('--dataset', 'idx', '--fractions', 'x'), "invalid float value: 'x'"),
    ],
)
def test_damage_is_told_how_to_be_used(topo, net, tmp_path, args, match):
    assert_usage(topo('damage', net, '-o', tmp_path / 'out', *args), match)
    assert os.listdir(tmp_path) == []


def test_damage_refuses_shares_and_options_of_training_first(net, topo, on, tmp_path):
    args = ('damage', net, '-o', tmp_path / 'out', *on)
    assert_one_error(topo(*args, '--fractions', 0.5, 1), r'must be in \(0, 1\), got 1\.0')
    status, out, err = topo(*args, '--retrain', 'scratch', '--', '--epoch-count', 3)
    assert (status, out) == (2, '')
    assert err.splitlines()[-1].endswith('error: unrecognized arguments: --epoch-count 3')
    assert os.listdir(tmp_path) == []


# -- compare --------------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def smaller(networks, tmp_path_factory) -> Path:
    """The network without the weakest fifth of its edges."""
    folder = tmp_path_factory.mktemp('smaller') / 'small'
    return timm_topo.save(prune(restore(networks['net']), fraction=0.2)[0], folder)


def test_compare_puts_networks_side_by_side(net, smaller, told, topo, on, validation, tmp_path):
    path = tmp_path / 'new' / 'c.csv'
    args = (
        f'full={net}',
        f'small={smaller}',
        '--repeats',
        2,
        '--batch-size',
        3,
        *on,
        '--csv',
        path,
    )
    result = told('compare', *args)
    assert (result['batch_size'], result['written']) == (3, [str(path)])
    table = {row['label']: row for row in read_csv(path)}
    for row, (label, folder) in zip(result['networks'], (('full', net), ('small', smaller))):
        model = restore(folder)
        edges = edges_of(model)
        assert (row['label'], row['network']) == (label, str(folder))
        assert row['top1'] == accuracy(model, validation)
        assert row['parameters'] == parameters(model)
        assert row['mflops'] == count_flops(model).total / 1e6
        assert row['edges'] == sum(map(len, edges.values()))
        assert row['nodes'] == sum(stage.wiring.num_nodes for stage in model.stages)
        assert row['graphs']['edges'] == [len(of) for of in edges.values()]
        degrees = [2 * len(e) / s.wiring.num_nodes for e, s in zip(edges.values(), model.stages)]
        assert row['graphs']['mean_degree'] == pytest.approx(degrees)
        for name in ('top1', 'parameters', 'edges', 'nodes', 'mflops', 'ms', 'ratio'):
            assert float(table[label][name]) == row[name]
        assert float(table[label]['mean_degree']) == pytest.approx(np.mean(degrees))
    assert result['networks'][0]['ratio'] == 1
    status, out, err = topo('compare', *args)
    assert (status, err) == (0, '')
    lines = {re.split(r'  +', line)[0]: re.split(r'  +', line)[1:] for line in out.splitlines()}
    assert lines[''] == ['full', 'small']
    for name, key, kind in (('top-1 (%)', 'top1', '.2f'), ('edges', 'edges', 'd'),
                            ('parameters', 'parameters', ',d')):  # fmt: skip
        assert lines[name] == [format(row[key], kind) for row in result['networks']]
    assert out.splitlines()[-1] == f'written: {path}'


def test_compare_without_data_has_no_accuracy(net, networks, topo, told):
    result = told('compare', net, networks['routed'], '--repeats', 1)
    assert [row['top1'] for row in result['networks']] == [None, None]
    assert [row['network'] for row in result['networks']] == [str(net), str(networks['routed'])]
    _, out, _ = topo('compare', net, networks['routed'], '--repeats', 1)
    assert re.search(r'^top-1 \(%\) +- +-$', out, re.M)
    assert 'written' not in out


def test_compare_takes_plain_networks_by_name(topo, told):
    """A graph has edges, a plain network has none."""
    result = told('compare', 'test_resnet', 'test_byobnet', '--repeats', 1, '--batch-size', 1)
    for row in result['networks']:
        assert row['parameters'] == parameters(timm.create_model(row['network']))
        assert (row['edges'], row['nodes'], row['graphs']) == (None, None, {})
    _, out, _ = topo('compare', 'test_resnet', 'test_byobnet', '--repeats', 1)
    assert re.search(r'^edges +- +-$', out, re.M)
    assert 'Characteristics' not in out


def test_a_name_without_weights_has_no_accuracy(net, topo, told, on, tmp_path):
    result = topo('evaluate', 'test_resnet', *on)
    assert_one_error(result, 'test_resnet is a name without weights: give test_resnet@FILE')
    plain = timm.create_model('test_resnet', num_classes=3)
    torch.save(plain.state_dict(), tmp_path / 'w.pth')
    named = f'test_resnet@{tmp_path}/w.pth'
    row = told('evaluate', named, '--model-kwargs', 'num_classes=3', *on)
    assert (row['images'], row['parameters']) == (31, parameters(plain))
    rows = told('compare', 'test_resnet', 'test_resnet', '--repeats', 1, *on)['networks']
    assert [row['top1'] for row in rows] == [None, None]


def test_compare_makes_one_column_of_a_label(net, smaller, topo):
    status, out, _ = topo('compare', f'a={net}', f'a={smaller}', '--repeats', 1)
    assert status == 0
    assert re.search(r'^edges +12\.5 ± 4\.9$', out, re.M)  # 16 and 9


def test_compare_refuses_other_inputs(net, networks, topo, tmp_path):
    path = tmp_path / 'c.csv'
    for other, size in (('grey', r'\(1, 16, 16\)'), ('whole', r'\(3, 32, 32\)')):
        result = topo('compare', net, networks[other], '--csv', path)
        assert_one_error(result, rf'networks have different inputs, .*\(3, 16, 16\).*{size}')
    assert_usage(topo('compare'), r'required: \[LABEL=\]NETWORK')
    assert os.listdir(tmp_path) == []


# -- report ---------------------------------------------------------------------------------------


def sections(path: Path) -> list[str]:
    return re.findall(r'<h2[^>]*>(.*?)</h2>', path.read_text(encoding='utf-8'))


GENERAL = ['Graphs', 'Edge weights', 'Degrees', 'Characteristics']
QUICK = ('--batch-size', 1, '--repeats', 1)


def test_report_is_a_page_about_a_network(net, topo, told, on, validation, tmp_path):
    path = tmp_path / 'new' / 'report.html'
    assert topo('report', net, '-o', path, *QUICK) == (0, f'written: {path}\n', '')
    assert sections(path) == [*GENERAL, 'Costs']
    html = path.read_text(encoding='utf-8')
    assert '<h1>net</h1>' in html
    assert f'<dd class="value">{parameters(tiny()):,}</dd>' in html
    result = told('report', net, '-o', path, '--title', 'A & B', *QUICK, *on)
    top1 = accuracy(tiny(), validation)
    assert result == {'top1': top1, 'written': [str(path)]}
    html = path.read_text(encoding='utf-8')
    assert '<h1>A &amp; B</h1>' in html
    assert f'<dd class="value">{top1:.2f}%</dd><dd class="note">idx, validation</dd>' in html


def test_report_shows_the_training_of_a_run_wherever_it_is_named(finished, topo, tmp_path):
    for number, name in enumerate(('', 'model', 'last.pth.tar')):
        path = tmp_path / f'{number}.html'
        assert topo('report', finished / name, '-o', path, *QUICK)[0] == 0
        assert sections(path) == [*GENERAL, 'Training', 'Costs']
        assert f'<h1>{name or "run"}</h1>' in path.read_text(encoding='utf-8')


def test_report_takes_damage_as_it_was_measured(net, topo, told, on, tmp_path, monkeypatch):
    """Whatever the options were: nothing of edges is measured again."""
    for number, args in enumerate(
        (DAMAGED, ('--images', 12), ('--recalibrate', '--fractions', 0.3))
    ):
        folder = tmp_path / str(number)
        told('damage', net, '-o', folder, *args, *on)
        written = {path.name: path.read_bytes() for path in folder.iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr(damage_module, 'evaluate', lambda *args: pytest.fail('measured again'))
            path = tmp_path / 'report.html'
            status, _, err = topo('report', net, '-o', path, '--damage', folder, *QUICK, *on)
        assert status == 0, err
        assert sections(path) == [*GENERAL, 'Damage', 'Costs']
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == written


def test_report_measures_damage_that_is_not_there(net, topo, on, tmp_path):
    path = tmp_path / 'report.html'
    assert topo('report', net, '-o', path, '--damage', tmp_path / 'new', *QUICK, *on)[0] == 0
    assert sections(path) == [*GENERAL, 'Damage', 'Costs']
    assert len(read_csv(tmp_path / 'new' / 'edges.csv')) == 10
    assert len(read_csv(tmp_path / 'new' / 'nodes.csv')) == 5


def test_report_follows_images_through_routed_networks(
    networks, topo, on, data, tmp_path, monkeypatch
):
    seen, real = [], network_page.network_page

    def spy(model, title, found):
        seen.append(found)
        return real(model, title, found)

    monkeypatch.setattr(network_page, 'network_page', spy)
    path = tmp_path / 'report.html'
    assert topo('report', networks['routed'], '-o', path, *QUICK, *on)[0] == 0
    assert sections(path) == [*GENERAL, 'Images', 'Costs']
    assert topo('report', networks['routed'], '-o', path, *QUICK)[0] == 0
    assert sections(path) == ['Graphs', 'Degrees', 'Characteristics', 'Costs']
    found, without = seen
    assert without.images is None
    assert found.classes == ['0', '1', '2']
    images = load_dataset('idx', data, 'validation').images
    assert len(found.shown) == len(found.images) == len(images)
    for shown in found.shown:  # what people saw, up to rounding
        off = np.abs(images.astype(int) - shown[..., 0].astype(int)).max((1, 2))
        assert off.min() <= 1
    assert {len(route.open_edges) for route in found.routes.values()} == {31}


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (('-o', 'report.htm'), r'-o report\.htm is not \.html'),
        (('-o', 'report.html', '--damage', 'x'), '--damage needs --dataset'),
        (('-o', 'report.html', '--repeats', 0), 'must be a whole number from 1 on'),
        ((), 'required: -o/--output'),
    ],
)
def test_report_is_told_how_to_be_used(topo, net, monkeypatch, tmp_path, args, match):
    monkeypatch.chdir(tmp_path)
    assert_usage(topo('report', net, *args), match)
    assert os.listdir(tmp_path) == []


# -- export ---------------------------------------------------------------------------------------


def test_export_of_graphs(smaller, told, topo, tmp_path):
    path = tmp_path / 'new' / 'a.graphml'
    expected = edges_of(restore(smaller))
    count = sum(map(len, expected.values()))
    result = told('export', smaller, '-o', path)
    assert result == {'written': [str(path)], 'nodes': result['nodes'], 'edges': count}
    graph = nx.read_graphml(path)
    assert len(graph) == result['nodes']
    found = {name: {} for name in expected}
    for source, target, weight in graph.edges(data='weight'):
        one, other = graph.nodes[source], graph.nodes[target]
        assert one['stage'] == other['stage']
        found[one['stage']][one['id'], other['id']] = weight
    assert found == expected
    text = f'{result["nodes"]} nodes, {count} edges\nwritten: {path}\n'
    assert topo('export', smaller, '-o', path) == (0, text, '')


def test_export_of_networks_asks_for_the_size_it_was_told(net, told, topo, monkeypatch, tmp_path):
    module = importlib.import_module('timm_topo.cli.export')
    asked = []

    def export(model, path, size):
        asked.append((parameters(model), path, size))
        return 1.25e-7

    monkeypatch.setattr(module, 'export_onnx', export)
    path = str(tmp_path / 'a.onnx')
    assert told('export', net, '-o', path) == {'written': [path], 'difference': 1.25e-7}
    told_ = topo('export', net, '-o', path, '--input-size', 3, 24, 32)
    assert told_ == (0, f'onnxruntime agrees with PyTorch to 1.2e-07\nwritten: {path}\n', '')
    deployed = parameters(timm_topo.deploy(tiny()))  # without norms
    assert asked == [(deployed, path, None), (deployed, path, [3, 24, 32])]


@torch.no_grad()
def test_export_in_eight_bits_tells_accuracy_before_and_after(
    net, networks, told, topo, on, validation, monkeypatch, tmp_path
):
    """The quantized network takes each class for the next here, so that accuracy changes."""

    def export_rolled(model, path, batches):
        model = copy.deepcopy(model)
        model.head.fc.weight.copy_(model.head.fc.weight.roll(1, 0))
        model.head.fc.bias.copy_(model.head.fc.bias.roll(1))
        return export_int8(model, path, batches)

    monkeypatch.setattr(
        importlib.import_module('timm_topo.cli.export'), 'export_int8', export_rolled
    )
    path = tmp_path / 'new' / 'a.onnx'
    for name, shown, images in (('net', 24, ()), ('routed', 5, ('--calibration-images', 5))):
        result = told('export', networks[name], '-o', path, '--int8', *images, *on)
        model = restore(networks[name])
        loader = eval_loader(model, validation)
        session = onnxruntime.InferenceSession(path)
        right = [
            session.run(None, {'image': x.numpy()})[0].argmax(1) == y.numpy() for x, y in loader
        ]
        before, after = accuracy(model, validation), 100 * np.concatenate(right).mean()
        assert abs(before - after) > 1
        assert result == {
            'written': [str(path)], 'difference': result['difference'], 'calibration_images': shown,
            'top1': {'before': before, 'after': pytest.approx(after)},
        }  # fmt: skip
        assert result['difference'] < 1e-4
        assert 'QuantizeLinear' in {node.op_type for node in onnx.load(path).graph.node}
    status, out, _ = topo('export', net, '-o', path, '--int8', '--input-size', 3, 24, 24, *on)
    assert status == 0
    assert re.fullmatch(
        r'onnxruntime agrees with PyTorch to \S+ before quantization\n'
        r'int8, calibrated on 24 images: top-1 \d+\.\d\d% before, \d+\.\d\d% after\n'
        rf'written: {path}\n', out
    )  # fmt: skip
    shape = onnxruntime.InferenceSession(path).get_inputs()[0].shape
    assert shape[1:] == [3, 24, 24]


def test_export_in_eight_bits_is_told_how_to_be_used(topo, net, on, tmp_path):
    assert_usage(topo('export', net, '-o', tmp_path / 'a.onnx', '--int8'), '--int8 needs --dataset')
    result = topo('export', net, '-o', tmp_path / 'a.graphml', '--int8', *on)
    assert_usage(result, r'--int8 is of \.onnx, not of .*a\.graphml')
    assert os.listdir(tmp_path) == []


def test_export_refuses_other_files_and_weights_by_image(net, networks, topo, on, tmp_path):
    path = tmp_path / 'a.graphml'
    assert_one_error(topo('export', net, '-o', 'a.xml'), r'a\.xml is neither \.onnx nor \.graphml')
    assert_one_error(topo('export', networks['routed'], '-o', path), 'on the image: give --dataset')
    assert os.listdir(tmp_path) == []
    assert topo('export', networks['routed'], '-o', path, *on)[0] == 0
    assert nx.read_graphml(path).number_of_edges() == 16


# -- retrain --------------------------------------------------------------------------------------


def training(data: Path, *extra) -> list[str]:
    options = [*('--dataset', 'idx', '--data-dir', str(data), '-b', '12', '-j', '0', '--no-aug')]
    return ['--', *options, '--no-tensorboard', '--epochs', '1', '--lr', '0', *map(str, extra)]


def test_retrain_trains_a_wiring_again_and_tells_how_well(smaller, told, topo, data, tmp_path):
    path = tmp_path / 'new' / 'again'
    args = ('retrain', smaller, '-o', path, '--weights', 'frozen', *training(data, '--epochs', 2))
    result = told(*args)
    new, old = restore(path), restore(smaller)
    assert edges_of(new) == edges_of(old)
    assert not torch.equal(new.stem.conv.weight, old.stem.conv.weight)
    rows = read_csv(path / 'summary.csv')
    scores = [float(row['eval_top1']) for row in rows]
    assert result == {
        'output': str(path), 'model': str(path / 'model'), 'epochs': 2, 'top1': scores[-1],
        'best_top1': max(scores), 'best_epoch': 1 + scores.index(max(scores)),
    }  # fmt: skip
    assert told(*args) == result, 'done: not again'
    status, out, err = topo(*args)
    assert (status, err) == (0, '')
    assert out == (
        f'top-1 {scores[-1]:.2f}% after 2 epochs, best {max(scores):.2f}% after '
        f'{result["best_epoch"]}; saved: {path / "model"}\n'
    )
    assert_one_error(
        topo('retrain', smaller, '-o', path, *training(data, '--epochs', 2)),
        'was made with from_saved_weights frozen, not reset: choose another folder',
    )


@pytest.mark.parametrize('name', ['', 'model', 'last.pth.tar'])
def test_retrain_starts_from_every_kind_of_checkpoint(finished, told, data, tmp_path, name):
    """At learning rate 0, so that the result is the start."""
    args = ('--weights', 'finetune', *training(data))
    told('retrain', finished / name, '-o', tmp_path / 'again', *args)
    old, new = restore(finished / name), restore(tmp_path / 'again')
    assert edges_of(new) == edges_of(old)
    for key, value in old.named_parameters():
        assert torch.equal(new.get_parameter(key), value), key
    for key in ('input_size', 'mean', 'std', 'crop_pct'):
        ours, theirs = (model.pretrained_cfg[key] for model in (new, old))
        assert np.array_equal(ours, theirs)


def test_retrain_of_snapshots(finished, told, topo, tmp_path):
    """With options of the run, but for those that are given."""
    args = ('retrain', finished, '-o', tmp_path / 'out', '--snapshots', 0, 1.5, '--seeds', 4)
    result = told(*args, '--', '--epochs', 1)
    assert [(row['epoch'], row['seed'], row['edges']) for row in result['rows']] == [
        (0, 4, 16), (1.5, 4, 16)
    ]  # fmt: skip
    for row, name in zip(result['rows'], ('epoch_0000', 'epoch_0001.500')):
        weights = np.load(finished / 'edge_weights' / f'{name[6:]}.npz')
        folder = tmp_path / 'out' / name / 'seed_4'
        for stage, edges in edges_of(restore(folder)).items():
            assert list(edges.values()) == weights[stage].tolist()
        summary = read_csv(folder / 'summary.csv')
        assert len(summary) == 1
        assert row['top1'] == float(summary[-1]['eval_top1'])
    assert Path(result['figure']).read_text().startswith('<?xml')
    status, out, err = topo(*args, '--', '--epochs', 1)
    assert (status, err) == (0, '')
    assert out.splitlines()[0].split() == ['epoch', 'seed', 'top1', 'edges', 'mean_abs_weight']
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [['0', '4'], ['1.5', '4']]


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        ((), 'give options of tools/train.py behind --'),
        (('--',), 'give options of tools/train.py behind --'),
        (('--seeds', 1, '--', '--epochs', 1), '--seeds goes with --snapshots'),
        (('--snapshots', '--weights', 'keep'), '--weights keep does not fit'),
        (('--snapshots', -1), 'must be a number from 0 on'),
        (('--weights', 'thaw', '--', '--epochs', 1), "invalid choice: 'thaw'"),
    ],
)
def test_retrain_is_told_how_to_be_used(topo, net, tmp_path, args, match):
    assert_usage(topo('retrain', net, '-o', tmp_path / 'out', *args), match)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ('args', 'status'),
    [
        (('--', '--dataset', 'digitz'), 1),
        (('--', '--dataset', 'idx', '--data-dir', 'nowhere'), 1),
        (('--', '--epochs'), 2),
        (('--', '--epochs', 'many'), 2),
    ],
)
@pytest.mark.parametrize('name', ['', 'last.pth.tar'])
def test_retrain_that_is_refused_leaves_nothing(finished, topo, tmp_path, name, args, status):
    code, out, err = topo('retrain', finished / name, '-o', tmp_path / 'out', *args)
    assert (code, out) == (status, '')
    assert 'Traceback' not in err
    assert os.listdir(tmp_path) == []


def test_retrain_of_snapshots_needs_a_run(net, topo, tmp_path):
    result = topo('retrain', net, '-o', tmp_path / 'out', '--snapshots', 1)
    assert_one_error(result, 'net is no finished run: model is missing')
    assert os.listdir(tmp_path) == []


# -- bad input to any command ---------------------------------------------------------------------

#: What follows the checkpoint; {out} is a folder.
REST = {
    'inspect': [],
    'evaluate': ['--dataset', 'digits'],
    'sweep': ['--dataset', 'digits', '--csv', '{out}/a.csv'],
    'routing': ['--dataset', 'digits', '--csv', '{out}/a.csv'],
    'plot': ['-o', '{out}/a.svg'],
    'prune': ['--fraction', '0.1', '-o', '{out}/a'],
    'damage': ['-o', '{out}/a', '--fractions', '0.1', '--no-nodes'],
    'retrain': ['-o', '{out}/a', '--', '--epochs', '1', '--no-tensorboard', '-j', '0'],
    'compare': ['--csv', '{out}/a.csv'],
    'report': ['-o', '{out}/a.html'],
    'export': ['-o', '{out}/a.graphml'],
}


def line_of(name: str, checkpoint: Path, out: Path, *options) -> list:
    """A command; options go before what is behind ``--``."""
    rest = [part.format(out=out) for part in REST[name]]
    at = rest.index('--') if '--' in rest else len(rest)
    if name == 'damage' and '--dataset' not in options:
        options = ('--dataset', 'digits', *options)
    named = ['graph', checkpoint] if name == 'plot' else [checkpoint]
    return [name, *named, *rest[:at], *options, *rest[at:]]


@pytest.mark.parametrize('name', REST)
def test_every_command_names_what_is_not_there(topo, tmp_path, name):
    match = 'nothing.* is no (checkpoint: there is neither a folder nor a file|saved network: con)'
    assert_one_error(topo(*line_of(name, tmp_path / 'nothing', tmp_path)), match)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', sorted(REST.keys() - {'compare', 'evaluate'}))
def test_commands_need_graphs(topo, networks, tmp_path, name):
    match = 'ResNet has no graph stage'
    if name != 'retrain':
        match = rf'plain: {match}; timm_topo\.rewire makes graphs of a network'
    assert_one_error(topo(*line_of(name, networks['plain'], tmp_path)), match)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', ['inspect', 'prune', 'damage', 'compare', 'report'])
@pytest.mark.parametrize(
    ('data_options', 'match'),
    [
        (('--dataset', 'digitz'), "unknown data set 'digitz'; known: digits"),
        (('--dataset', 'idx'), "data set 'idx' needs a folder: give --data-dir"),
        (('--dataset', 'idx', '--data-dir', 'nowhere'), 'data folder nowhere does not exist'),
        (('--dataset', 'digits', '--val-split', 'exam'), "unknown split 'exam'"),
    ],
)
def test_data_that_are_not_there_are_named(topo, net, tmp_path, name, data_options, match):
    assert_one_error(topo(*line_of(name, net, tmp_path, *data_options)), match)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', ['inspect', 'compare', 'export'])
@pytest.mark.parametrize('device', ['banana', 'cuda:77'])
def test_devices_that_are_not_there_are_named(topo, net, tmp_path, name, device):
    result = topo(*line_of(name, net, tmp_path, '--device', device))
    assert_one_error(result, f'--device {device}: .+')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', ['plot', 'prune', 'damage', 'compare', 'report', 'export'])
def test_a_disk_that_is_full_leaves_nothing_half_written(
    topo, net, on, tmp_path, monkeypatch, name
):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    options = on if name == 'damage' else ()
    line = line_of(name, net, tmp_path, *options)
    monkeypatch.setattr(os, 'replace', full)
    monkeypatch.setattr(Path, 'replace', full)
    assert_one_error(topo(*line), 'No space left on device')
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == []


# -- checkpoints that are broken or hostile -------------------------------------------------------


class Hostile:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def write_hostile(path: Path, marker: Path, how: str) -> None:
    content = {'state_dict': tiny().state_dict(), 'epoch': 0, 'args': Hostile(marker)}
    if how == 'pickle':
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == 'zip')


NOT_WEIGHTS = r'is truncated, damaged or not just weights: '


@pytest.mark.parametrize('how', ['zip', 'legacy', 'pickle'])
@pytest.mark.parametrize('options', [(), ('--model', 'test_toponet', '--model-kwargs', *KWARGS)])
def test_code_in_a_checkpoint_is_not_executed(topo, tmp_path, how, options):
    path, marker = tmp_path / 'hostile.pth.tar', tmp_path / 'executed'
    write_hostile(path, marker, how)
    assert_one_error(topo('inspect', path, *options), rf'hostile\.pth\.tar {NOT_WEIGHTS}')
    with pytest.raises(ValueError, match=NOT_WEIGHTS):
        restore(path)
    assert not marker.exists()
    if how == 'pickle':
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists(), 'it would have been noticed'


@pytest.mark.parametrize('name', REST)
def test_no_command_executes_code(topo, tmp_path, name):
    path, marker = tmp_path / 'hostile.pth.tar', tmp_path / 'executed'
    write_hostile(path, marker, 'zip')
    assert_one_error(topo(*line_of(name, path, tmp_path)), NOT_WEIGHTS)
    assert os.listdir(tmp_path) == ['hostile.pth.tar']


def test_code_in_the_options_of_a_run_is_not_executed(topo, tmp_path):
    marker = tmp_path / 'executed'
    torch.save({'state_dict': tiny().state_dict()}, tmp_path / 'last.pth.tar')
    (tmp_path / 'args.yaml').write_text(f'!!python/object/apply:os.mkdir ["{marker}"]\n')
    assert_one_error(topo('inspect', tmp_path / 'last.pth.tar'), r'args\.yaml is not YAML')
    assert not marker.exists()


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def edit_config(folder: Path, **changes) -> Path:
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, **changes}))
    return folder


def weights_file(folder: Path, model: nn.Module | None = None, **stored) -> Path:
    torch.save({'state_dict': (model or tiny()).state_dict(), **stored}, folder / 'w.pth.tar')
    return folder / 'w.pth.tar'


def saved_net(folder: Path) -> Path:
    return timm_topo.save(tiny(), folder / 'net')


def unfinished(folder: Path) -> Path:
    (folder / 'args.yaml').write_text('model: test_toponet\n')
    return folder


def namespace(**changes) -> argparse.Namespace:
    """Options as timm's ``train.py`` stores them."""
    stored = dict(
        model='test_toponet', model_kwargs=SIZES, num_classes=None, input_size=(3, 24, 24),
        img_size=None, in_chans=None, mean=None, std=None, crop_pct=None, interpolation='',
        pretrained=False, initial_checkpoint='', drop=0.0, batch_size=128, opt='sgd', amp=False,
    )  # fmt: skip
    return argparse.Namespace(**{**stored, **changes})


def other_architecture(folder: Path) -> Path:
    return edit_config(saved_net(folder), architecture='toponet_of_tomorrow')


BROKEN = {
    'empty': (lambda f: cut(weights_file(f), 0), NOT_WEIGHTS),
    'truncated': (lambda f: cut(weights_file(f), 0.6), NOT_WEIGHTS),
    'almost whole': (lambda f: cut(weights_file(f), 0.999), NOT_WEIGHTS),
    'text': (lambda f: (f / 'x.pth').write_text('no') and f / 'x.pth', NOT_WEIGHTS),
    'a list': (lambda f: torch.save([1], f / 'x.pth') or f / 'x.pth', NOT_WEIGHTS),
    'truncated network': (
        lambda f: cut(saved_net(f) / 'model.safetensors', 0.5).parent,
        r'net/model\.safetensors is truncated or damaged',
    ),
    'truncated weights': (
        lambda f: cut(saved_net(f) / 'model.safetensors', 0.5),
        r'net/model\.safetensors is truncated or damaged',
    ),
    'truncated config': (
        lambda f: cut(saved_net(f) / 'config.json', 0.5).parent,
        r'net/config\.json is not JSON: ',
    ),
    'newer format': (
        lambda f: edit_config(saved_net(f), timm_topo_format=FORMAT + 1),
        rf'net has format {FORMAT + 1}, this version reads up to {FORMAT}: upgrade timm_topo',
    ),
    'unknown architecture': (other_architecture, "'toponet_of_tomorrow', which timm does not know"),
    'another folder': (lambda f: f, r'is no saved network: config\.json is missing'),
    'half a folder': (
        lambda f: (saved_net(f) / 'model.safetensors').unlink() or f / 'net',
        r'is no saved network: model\.safetensors is missing',
    ),
    'unfinished run': (
        unfinished,
        r'is a run that has not finished: name one of its checkpoints, .*last\.pth\.tar$',
    ),
    'nothing told': (weights_file, 'does not tell of which network it is: give its name, --model'),
    'weights alone': (
        lambda f: (saved_net(f) / 'model.safetensors').rename(f / 'w.safetensors'),
        r'does not tell of which network it is: give its name, --model',
    ),
    'other weights': (
        lambda f: weights_file(f, tiny(widths=(4, 8)), args=namespace()),
        r'w\.pth\.tar is of another network than test_toponet: .*size mismatch',
    ),
    'other graphs': (
        lambda f: weights_file(f, tiny(num_nodes=(4, 4)), args=namespace()),
        r'w\.pth\.tar is of another network than test_toponet: .*stages\.1',
    ),
    'unknown model': (
        lambda f: weights_file(f, args=namespace(model='toponet_of_tomorrow')),
        r"w\.pth\.tar is of an unknown model 'toponet_of_tomorrow': see timm\.list_models\(\)",
    ),
    'a model from elsewhere': (
        lambda f: weights_file(f, args=namespace(model='hf-hub:someone/something')),
        r"unknown model 'hf-hub:someone/something'",
    ),
    'no name': (lambda f: weights_file(f, args=namespace(model=None)), 'unknown model None'),
    'a number as name': (lambda f: weights_file(f, args=namespace(model=3)), 'unknown model 3'),
    'unknown options': (
        lambda f: weights_file(f, args=namespace(model_kwargs={'nodes': 3})),
        r"w\.pth\.tar: options do not fit test_toponet: .*'nodes'",
    ),
    'no options': (
        lambda f: weights_file(f, args=namespace(model_kwargs=[1])),
        r'w\.pth\.tar: options do not fit test_toponet: ',
    ),
    'options that are no YAML': (
        lambda f: (f / 'args.yaml').write_text('model: [') and weights_file(f),
        r'args\.yaml is not YAML',
    ),
    'options of something else': (
        lambda f: (f / 'args.yaml').write_text('theme: dark\n') and weights_file(f),
        r'args\.yaml: unknown option theme',
    ),
}  # fmt: skip


@pytest.mark.parametrize('kind', BROKEN)
def test_a_broken_checkpoint_is_one_line(topo, tmp_path, kind):
    build, match = BROKEN[kind]
    path = build(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    assert_one_error(topo('inspect', path), match)
    with pytest.raises((FileNotFoundError, ValueError), match=match):
        restore(path)
    assert sorted(tmp_path.rglob('*')) == before


# -- whose checkpoints ----------------------------------------------------------------------------


def assert_same(model: nn.Module, expected: dict) -> None:
    assert not model.training
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_a_data_folder_alone_is_a_folder_of_class_folders(topo, net, tmp_path):
    (tmp_path / 'data').mkdir()
    folder = ('--data-dir', tmp_path / 'data')
    status, out, err = topo('inspect', net, *folder)
    assert (status, out) == (1, '')
    assert err == topo('inspect', net, '--dataset', '', *folder)[2]
    assert str(tmp_path / 'data') in err


def test_the_weights_in_a_saved_network_are_that_network(tmp_path):
    model = tiny(num_classes=7)
    folder = timm_topo.save(model, tmp_path / 'net')
    assert_same(restore(folder / 'model.safetensors'), model.state_dict())


@pytest.mark.parametrize('suffix', ['.pth', '.pth.tar', '.safetensors'])
def test_weights_that_do_not_tell_their_network_are_told(topo, told, tmp_path, suffix):
    model = tiny(num_classes=7)
    path = tmp_path / f'w{suffix}'
    if suffix == '.safetensors':
        (timm_topo.save(model, tmp_path / 'net') / 'model.safetensors').rename(path)
    else:
        torch.save(model.state_dict(), path)
    options = ('--model', 'test_toponet', '--model-kwargs', *KWARGS)
    result = told('inspect', path, *options, '--edges')
    assert (result['num_classes'], result['parameters']) == (7, parameters(model))
    for stage, edges in zip(result['stages'], edges_of(model).values(), strict=True):
        assert [((s, t), w) for s, t, w in stage['edge_weights']] == list(edges.items())
    assert_same(restore(path, 'test_toponet', SIZES), model.state_dict())
    assert_same(restore(path, 'test_toponet', {**SIZES, 'num_classes': 7}), model.state_dict())
    told_ = topo('inspect', path, '--model', 'test_toponet')
    assert_one_error(told_, 'is of another network than test_toponet: ')
    assert_one_error(topo('inspect', path, '--model', 'toponett'), "an unknown model 'toponett'")
    told_ = topo('inspect', path, '--model', 'test_toponet', '--model-kwargs', 'nodes=3')
    assert_one_error(told_, "options do not fit test_toponet: .*'nodes'")


def test_a_folder_names_its_own_network(topo, net):
    result = topo('inspect', net, '--model', 'test_toponet')
    assert_one_error(result, 'net is a folder, which names its own network, not test_toponet')


@pytest.mark.parametrize(
    ('changes', 'options', 'expected'),
    [
        ({}, {}, (3, 24, 24)),
        (dict(input_size=None, img_size=40), {}, (3, 40, 40)),
        (dict(input_size=None), {}, (3, 96, 96)),
        (dict(num_classes=3, model='test_toponet.untrained'), {}, (3, 24, 24)),
        (dict(input_size=(1, 24, 24)), dict(in_chans=1), (1, 24, 24)),
        (dict(input_size=None, in_chans=1, img_size=20), dict(in_chans=1), (1, 20, 20)),
    ],
    ids=['input_size', 'img_size', 'default', 'classes', 'grey', 'in_chans'],
)
def test_checkpoints_of_timms_training_tell_their_network(
    told, on, data, tmp_path, changes, options, expected
):
    """As timm's ``train.py`` writes them; the number of classes is that of the weights."""
    model = tiny(**options)
    path = weights_file(tmp_path, model, args=namespace(**changes), arch='test_toponet', epoch=3)
    found = restore(path)
    assert_same(found, model.state_dict())
    assert found.pretrained_cfg['input_size'] == expected
    result = told('inspect', path, *on)
    assert (result['input_size'], result['num_classes']) == (list(expected), 3)
    mode = 'L' if options else 'RGB'
    model.pretrained_cfg = {**timm.create_model('test_toponet').pretrained_cfg, **{
        'input_size': expected}}  # fmt: skip
    assert result['top1'] == accuracy(model, load_dataset('idx', data, 'validation', mode))


def test_preprocessing_of_timms_training_is_restored(tmp_path):
    changes = dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], crop_pct=0.7, interpolation='nearest')
    cfg = restore(weights_file(tmp_path, args=namespace(**changes))).pretrained_cfg
    assert [tuple(cfg[name]) for name in ('mean', 'std')] == [(0.1, 0.2, 0.3), (0.4, 0.5, 0.6)]
    assert (cfg['crop_pct'], cfg['interpolation']) == (0.7, 'nearest')


def checkpoint(folder: Path, name: str = 'last') -> dict:
    return torch.load(folder / f'{name}.pth.tar')


@pytest.mark.parametrize('name', ['last', 'model_best'])
def test_checkpoints_of_our_runs_tell_their_network(finished, told, on, validation, name, tmp_path):
    """Averaged weights win; images are prepared as in training, by the options beside them."""
    stored = checkpoint(finished, name)
    raw, averaged = stored['state_dict'], stored['state_dict_ema']
    assert not torch.equal(raw['head.fc.weight'], averaged['head.fc.weight'])
    model = restore(finished / f'{name}.pth.tar')
    assert_same(model, averaged)
    cfg = model.pretrained_cfg
    assert (cfg['input_size'], cfg['crop_pct']) == ((3, 20, 20), 0.8)
    assert (tuple(cfg['mean']), tuple(cfg['std'])) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    rows = read_csv(finished / 'summary.csv')
    expected = float(rows[stored['epoch']]['eval_top1'])
    assert told('inspect', finished / f'{name}.pth.tar', *on)['top1'] == expected
    assert accuracy(model, validation) == expected
    shutil.copy(finished / f'{name}.pth.tar', tmp_path)
    assert_same(restore(tmp_path / f'{name}.pth.tar'), averaged)


def test_the_folder_of_a_run_is_its_saved_network(finished, told, on):
    assert_same(restore(finished), restore(finished / 'model').state_dict())
    one, other = (told('inspect', finished / name, *on) for name in ('', 'model'))
    assert one.pop('network') != other.pop('network')
    assert one == other


REWIRED = ('--model', 'test_resnet', '--model-kwargs', 'layers=(1,2,1,2)', '--rewire', 'tanh',
           '--rewire-kwargs', 'exact=False', 'sparsity=adaptive', '--img-size', 16)  # fmt: skip


@pytest.mark.filterwarnings('ignore:.*re-wired is another function')
def test_checkpoints_of_rewired_networks_are_restored(data, told, tmp_path):
    """Also of one that another run started from, whose options do not name what it is of."""
    first = run_of(data, tmp_path, *REWIRED)
    again = ('--from-saved', first / 'model', '--experiment', 'again', '--img-size', 16)
    second = run_of(data, tmp_path, *again, '--from-saved-weights', 'frozen')
    for folder in (first, second):
        model = restore(folder / 'last.pth.tar')
        assert isinstance(model, timm_topo.models.Rewired)
        assert_same(model, checkpoint(folder)['state_dict'])
        assert_same(restore(folder), checkpoint(folder)['state_dict'])
        rules = [stage['rule'] for stage in told('inspect', folder / 'last.pth.tar')['stages']]
        assert set(rules) == {'tanh' if folder is first else 'fixed'}
    expected, found = (edge_weights(restore(folder)) for folder in (first, second))
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


@pytest.mark.parametrize('how', ['keep', 'frozen', 'finetune', 'finetune-frozen'])
def test_checkpoints_of_networks_trained_again_are_restored(data, smaller, tmp_path, how):
    start = ('--from-saved', smaller, '--from-saved-weights', how, *AVERAGED)
    folder = run_of(data, tmp_path, *start, '--epochs', 2)
    model = restore(folder / 'last.pth.tar')
    assert_same(model, checkpoint(folder)['state_dict_ema'])
    assert [s.wiring for s in model.stages] == [s.wiring for s in restore(smaller).stages]
    options = (folder / 'args.yaml').read_text()
    (folder / 'args.yaml').write_text(options.replace(str(smaller), str(tmp_path / 'gone')))
    assert_same(restore(folder / 'last.pth.tar'), model.state_dict())


def test_weights_of_another_network_beside_the_options_of_a_run_are_refused(
    finished, smaller, tmp_path
):
    path = weights_file(tmp_path, tiny(widths=(4, 8)))
    for name, text in (
        ('test_toponet', (finished / 'args.yaml').read_text()),
        (smaller, f'model: resnet18\nfrom_saved: {smaller}\n'),
    ):
        (tmp_path / 'args.yaml').write_text(text)
        with pytest.raises(ValueError, match=f'is of another network than {name}: '):
            restore(path)
