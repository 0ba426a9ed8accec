"""The yardstick measures what it says."""

import copy
import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from timm_topo.analysis import benchmark
from timm_topo.analysis.benchmark import SUITES, markdown, suite, write_json
from timm_topo.analysis.memory import keep_freed_memory, peak_memory, saved_memory
from timm_topo.analysis.prune import prune
from timm_topo.executors import kernels, naive_sum, nodes_alone
from timm_topo.stages import graph_stages


@pytest.mark.parametrize('name', ['test_toponet', 'test_dagnet', 'test_randwire', 'toporesnet20'])
def test_the_naive_sum_is_the_network(name, randomise):
    model = randomise(timm.create_model(name, num_classes=5)).double()
    naive, x = naive_sum(model), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(naive.eval()(x), model.eval()(x))
    for one in (model, naive):
        one(x).square().mean().backward()
    for mine, theirs in zip(model.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize('name', ['test_toponet', 'toporesnet20'])
def test_the_floor_is_the_nodes_one_after_another(name, randomise):
    """On a graph with few edges too, and then all of them learn."""
    model = randomise(timm.create_model(name, num_classes=5)).double()
    for stage in graph_stages(model).values():
        for parameter in stage.connectivity.parameters():
            nn.init.uniform_(parameter)
    model = prune(model, fraction=0.5, relative=True)[0]
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    floor = nodes_alone(model).train()
    floor(x).square().mean().backward()
    assert all(p.grad is not None for stage in graph_stages(floor).values()
               for p in stage.nodes.parameters())  # fmt: skip
    expected = copy.deepcopy(model).train()
    for stage in graph_stages(expected).values():
        first = [] if stage.first_reads_input else [stage.entry]
        stage.forward = nn.Sequential(*first, *stage.nodes).forward
    torch.testing.assert_close(nodes_alone(model).train()(x), expected(x))


@pytest.mark.parametrize('name', ['test_toponet', 'test_dagnet'])
def test_the_floor_of_a_complete_graph_is_the_network_of_its_last_edges(name, randomise):
    model = randomise(timm.create_model(name, num_classes=5)).double().eval()
    for stage in graph_stages(model).values():
        last = [stop - 1 for start, stop in stage.wiring.in_edges if stop > start]
        weights = torch.zeros(stage.wiring.num_edges, dtype=torch.float64)
        weights[last] = 1
        stage.connectivity.pass_weights = lambda weights=weights: weights
        rule = stage.connectivity
        rule.forward = lambda node, *_, w=weights, r=rule: w[r.spans[node][0] : r.spans[node][1]]
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(nodes_alone(model)(x), model(x))


ROOT = Path(__file__).parents[1]


def test_the_floor_of_nodes_that_change_the_shape_runs():
    """A second node that reads the stage input has no map of that shape before it."""
    model = timm.create_model('test_randwire', num_classes=5)
    floor = nodes_alone(model).train()
    floor(torch.randn(2, 3, 64, 64)).square().mean().backward()
    for stage in graph_stages(floor).values():
        count = stage.wiring.num_nodes
        first = [n for n in range(count) if set(stage.wiring.preds(n)) == {0}]
        for node in range(max(first), count - 1):
            assert all(p.grad is not None for p in stage.nodes[node - 1].parameters())


@pytest.mark.parametrize('baseline', [naive_sum, nodes_alone])
@pytest.mark.parametrize(
    ('name', 'options', 'told'),
    [
        ('test_maskconnect_resnext', {}, 'nodes are not computed one by one'),
        ('test_toponet', {'connectivity': 'router'}, 'edge weights depend on the image'),
    ],
)
def test_what_is_no_static_sum_of_maps_has_no_baseline(baseline, name, options, told):
    model = baseline(timm.create_model(name, **options))
    with pytest.raises(ValueError, match=told):
        model(torch.randn(1, 3, 64, 64))


def test_saved_memory_counts_every_storage_once():
    """Two convolutions keep what they read: the image and one map of the same size."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    images = torch.randn(2, 3, 8, 8)
    assert saved_memory(model, images) == 2 * images.numel() * 4
    twice = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Identity(), nn.ReLU(), nn.ReLU())
    assert saved_memory(twice, images) == 3 * images.numel() * 4  # image, first and second ReLU


def test_peak_memory_is_more_than_what_autograd_keeps():
    shape = (64, 3, 96, 96)
    kept = saved_memory(timm.create_model('test_toponet'), torch.randn(shape))
    assert peak_memory('test_toponet', 'ours', shape) > 0.8 * kept > 0


def test_freed_memory_is_kept_on_request():
    """A process that frees 100 MiB and takes them again gets no new pages."""
    program = (
        'import resource, sys, torch, timm_topo.analysis.memory as m\n'
        'if sys.argv[1] == "keep": m.keep_freed_memory()\n'
        'def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
        'for _ in range(4): torch.ones(100 << 18)\n'
        'before = faults(); torch.ones(100 << 18)\n'
        'print(faults() - before)'
    )
    kept, given_back = (
        int(subprocess.check_output([sys.executable, '-c', program, how])) for how in ('keep', 'no')
    )
    assert kept < 100 < given_back


def test_another_c_library_says_that_it_cannot(monkeypatch):
    monkeypatch.setattr(ctypes, 'CDLL', lambda _: object())
    with pytest.raises(OSError, match='this C library has no mallopt'):
        keep_freed_memory()
    refusing = SimpleNamespace(mallopt=lambda *_: 0)
    monkeypatch.setattr(ctypes, 'CDLL', lambda _: refusing)
    with pytest.raises(OSError, match='mallopt refused'):
        keep_freed_memory()


def test_times_are_of_both_modes_and_relative_to_the_first(monkeypatch):
    for name, model in (('_MAIN', 'test_toponet'), ('_PLAIN', 'test_resnet')):
        monkeypatch.setattr(benchmark, name, model)
    rows = suite('main', 1)
    assert {row['suite'] for row in rows} == {'main'}
    assert {row['of'].split(', ')[1] for row in rows} == {'forward', 'forward and backward'}
    by_network = {}
    for row in rows:
        by_network.setdefault(row['network'], []).append(row)
    assert list(by_network) == [
        'test_resnet', 'test_toponet', 'test_toponet, naive sum', 'test_toponet, nodes alone'
    ]  # fmt: skip
    assert [row['ratio'] for row in by_network['test_resnet']] == [1, 1]
    for forward, training in by_network.values():
        assert min(training['ms'], forward['ms']) > 0


def test_a_benchmark_of_different_functions_is_void(monkeypatch):
    for name, model in (('_MAIN', 'test_toponet'), ('_PLAIN', 'test_resnet')):
        monkeypatch.setattr(benchmark, name, model)
    monkeypatch.setattr(benchmark, 'naive_sum', nodes_alone)
    with pytest.raises(RuntimeError, match='the benchmark is void'):
        suite('main', 1)


def test_an_unknown_suite_is_named():
    with pytest.raises(ValueError, match=r"unknown suite 'all'; known: main, cifar"):
        suite('all')


def test_tables_and_json(tmp_path):
    rows = [
        {'suite': 'a', 'of': 'x', 'network': 'n', 'ratio': 1.5},
        {'suite': 'a', 'of': 'x', 'network': 'm', 'ratio': 2},
        {'suite': 'b', 'of': 'y', 'network': 'n', 'ms': 3},
    ]
    tables = markdown(rows).split('\n\n')
    assert tables[0] == '**a: x**'
    assert tables[1].splitlines() == [
        '| network | ratio |',
        '|---|---|',
        '| n | 1.5 |',
        '| m | 2 |',
    ]
    assert tables[3].splitlines()[-1] == '| n | 3 |'
    write_json(rows, tmp_path / 'b.json', torch='2.x')
    assert json.loads((tmp_path / 'b.json').read_text()) == {'torch': '2.x', 'rows': rows}
    assert [path.name for path in tmp_path.iterdir()] == ['b.json']


def test_make_bench_runs_known_suites():
    (named,) = re.findall(r'--suite ([a-z ]+?) \\', (ROOT / 'Makefile').read_text())
    assert set(named.split()) == {name for name in SUITES if not name.startswith('gpu')}


def test_rewired_networks_stand_beside_their_own(monkeypatch):
    monkeypatch.setattr(benchmark, '_REWIRED', ('test_convnext',))
    rows = suite('rewired', 1)
    networks = ['test_convnext', 'test_convnext, re-wired']
    assert [row['network'] for row in rows] == 3 * networks
    assert list(dict.fromkeys(row['of'] for row in rows)) == [
        '1 x 224 px, forward', '8 x 224 px, forward', '8 x 224 px, forward and backward'
    ]  # fmt: skip
    assert [row['ratio'] for row in rows[::2]] == [1.0] * 3


def test_creation_is_counted_by_convolution(monkeypatch):
    for name, model in (('_MAIN', 'test_toponet'), ('_PLAIN', 'test_resnet')):
        monkeypatch.setattr(benchmark, name, model)
    monkeypatch.setattr(benchmark, '_ROUTED', 'test_dagnet')
    monkeypatch.setattr(benchmark, '_run_python', lambda program: None)
    rows = suite('start', 1)
    assert [row['network'] for row in rows if row['of'] == 'import'] == ['timm', 'timm_topo']
    made = {(row['of'], row['network']): row for row in rows if row['of'] != 'import'}
    assert len(made) == 8
    row = made['creation on meta', 'test_toponet']
    weights = timm.create_model('test_toponet').state_dict()
    assert row['convolutions'] == sum(w.ndim == 4 for w in weights.values())
    assert row['ms each'] == pytest.approx(row['ms'] / row['convolutions'], abs=0.01)


def test_pruned_networks_are_beside_the_whole_and_their_own_nodes(monkeypatch):
    monkeypatch.setattr(benchmark, '_MAIN', 'test_toponet')
    monkeypatch.setattr(benchmark, '_PERCENT', (20, 40))
    rows = suite('pruned', 1)
    tables = {}
    for row in rows:
        tables.setdefault(row['of'], []).append(row['network'])
    some = ['20% of edges removed', '40% of edges removed']
    modes = [', forward', ', forward and backward']
    assert tables == {
        **{'8 images of 224 px' + mode: ['test_toponet', *some] for mode in modes},
        **{label + mode: ['its nodes alone', label] for label in some for mode in modes},
    }


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(('name', 'tables', 'networks'), [('gpu', 4, 4), ('gpu-compile', 1, 3)])
def test_every_precision_layout_and_kernel_is_timed(name, tables, networks, monkeypatch):
    """On CPU, and without compiling."""
    for constant, model in (('_MAIN', 'test_toponet'), ('_PLAIN', 'test_resnet')):
        monkeypatch.setattr(benchmark, constant, model)
    monkeypatch.setattr(benchmark, '_GPU_BATCH', (2, 32))
    monkeypatch.setattr(torch, 'compile', lambda model: model)
    rows = SUITES[name](1, 'cpu')
    assert len({(row['of'], row['network']) for row in rows}) == len(rows) == tables * 2 * networks
    assert all(row['images/s'] > 0 for row in rows)
    with pytest.raises(ValueError, match=f"suite '{name}' needs device cuda, got 'cpu'"):
        suite(name)


def test_kernels_are_as_by_default_after_the_suite(monkeypatch):
    """What a suite measured does not stay on."""
    for constant, model in (('_MAIN', 'test_toponet'), ('_PLAIN', 'test_resnet')):
        monkeypatch.setattr(benchmark, constant, model)
    monkeypatch.setattr(benchmark, '_GPU_BATCH', (2, 32))
    SUITES['gpu'](1, 'cpu')
    assert kernels._enabled is None
