"""Routing statistics, their log and the command, against counts by hand."""

import csv
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import timm_topo
from timm_topo.analysis.cost import latency
from timm_topo.analysis.routing import class_offsets, routing, routing_metrics
from timm_topo.connectivity.router import RouterConnectivity, set_tau
from timm_topo.executors import adjacency, record_adjacency
from timm_topo.sparsity import edge_penalty, sparsity_loss
from timm_topo.stages import graph_stages
from timm_topo.task import TopoTask
from timm_topo.training.loop import train
from timm_topo.training.options import parse_args

ROOT = Path(__file__).parents[1]


@torch.no_grad()
def varied(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, RouterConnectivity):
            module.weight.normal_(0, 2)
            module.bias.normal_()
    return model.eval()


def tiny(**options) -> nn.Module:
    sizes = dict(num_nodes=(4, 5), widths=(8, 12), strides=(2, 2), stem_width=8, num_classes=10)
    return timm.create_model('test_toponet', connectivity='router', **{**sizes, **options})


def batches(count: int = 3) -> list:
    return [(torch.randn(4, 3, 32, 32), torch.tensor([0, 2, 2, 1])) for _ in range(count)]


# -- statistics -----------------------------------------------------------------------------------


def test_statistics_are_those_of_the_matrices():
    model, data = varied(tiny()), batches()
    set_tau(model, 0.5)
    routes = routing(model, data)
    labels = torch.cat([target for _, target in data])
    for name, stage in graph_stages(model).items():
        matrix = torch.cat([adjacency(model, images)[name] for images, _ in data])
        route = routes[name]
        assert route.wiring == stage.wiring
        assert route.open_edges.tolist() == [int((m != 0).sum()) for m in matrix]
        assert route.computed_nodes.tolist() == [int((m[1:-1] != 0).any(1).sum()) for m in matrix]
        for e, (source, target) in enumerate(stage.wiring.edges):
            column = matrix[:, target, source]
            torch.testing.assert_close(route.mean[e], column.mean())
            torch.testing.assert_close(route.spread[e], column.std(correction=0))
            for label in (0, 1, 2):
                torch.testing.assert_close(route.by_class[label][e], column[labels == label].mean())
        assert route.by_class.keys() == {0, 1, 2}
    is_open = sum(int(route.open_edges.sum()) for route in routes.values())
    computed = sum(int(route.computed_nodes.sum()) for route in routes.values())
    assert 0 < computed < 12 * 5
    metrics = routing_metrics(routes)
    assert metrics['open_edges'] == pytest.approx(100 * is_open / (12 * 16))
    assert metrics['computed_nodes'] == pytest.approx(100 * computed / (12 * 5))


def test_an_open_network_is_all_open_and_says_so():
    routes = routing(tiny().eval(), batches(1))
    assert routing_metrics(routes) == {'open_edges': 100.0, 'computed_nodes': 100.0}
    assert str(routes['stages.0']).startswith('6.0 of 6 edges open (6 to 6), 2.0 of 2 nodes comp')


def test_the_limit_ends_after_the_batch_that_reaches_it():
    seen = []

    def counted():
        for batch in batches(5):
            seen.append(batch)
            yield batch

    routes = routing(tiny().eval(), counted(), limit=6)
    assert len(seen) == 2
    assert len(routes['stages.1'].open_edges) == 8


def test_classes_differ_from_the_mean_of_all_the_most_different_first():
    route = routing(varied(tiny()), batches())['stages.1']
    offsets = class_offsets(route, names=['ant', 'bee', 'cow'])
    assert offsets.keys() == {'ant', 'bee', 'cow'}
    norms = [offset.norm() for offset in offsets.values()]
    assert norms == sorted(norms, reverse=True)
    for name, label in (('ant', 0), ('bee', 1), ('cow', 2)):
        torch.testing.assert_close(offsets[name], route.by_class[label] - route.mean)
    assert (
        list(class_offsets(route, limit=2)) == [str('abc'.index(name[0])) for name in offsets][:2]
    )
    assert list(class_offsets(route, classes=['2', '0'])) == ['2', '0']


def test_no_images_and_no_stages_are_refused():
    with pytest.raises(ValueError, match='routing needs at least one batch'):
        routing(tiny(), [])
    with pytest.raises(ValueError, match='ResNet has no graph stage'):
        routing(timm.create_model('resnet18'), batches(1))


# -- time on given images -------------------------------------------------------------------------


def test_time_is_measured_on_the_images_in_turn():
    seen, images = [], torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 32, 32)
    models = {'a': tiny(), 'b': tiny()}
    for model in models.values():
        model.register_forward_pre_hook(lambda m, args: seen.append(args[0][:, 0, 0, 0].tolist()))
    latency(models, (3, 32, 32), batch_size=2, repeats=2, images=images)
    assert seen == [[0, 1]] * 2 + [[2, 3]] * 4 + [[4, 0]] * 4


@pytest.mark.parametrize('batch', [0, 6])
def test_images_that_make_no_batch_are_refused(batch):
    with pytest.raises(ValueError, match=f'5 images make no batch of {batch}'):
        latency({'a': tiny()}, (3, 32, 32), batch, images=torch.zeros(5, 3, 32, 32))


# -- sparsity of routed weights -------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['uniform', 'adaptive'])
def test_l1_of_routed_weights_is_their_mean_over_the_batch(kind):
    model = varied(tiny()).train()
    images = torch.randn(3, 3, 32, 32)
    with record_adjacency(model) as matrices:
        model(images)
    expected = sum(
        weight * matrices[name][image, target, source].abs() / 3
        for name, stage in graph_stages(model).items()
        for (source, target), weight in zip(stage.wiring.edges, edge_penalty(stage.wiring, kind))
        for image in range(3)
    )
    torch.testing.assert_close(sparsity_loss(model, kind, matrices), expected)


def test_the_task_adds_it_and_it_shrinks_the_weights():
    model = tiny(sparsity='uniform', sparsity_weight=0.1)
    task = TopoTask(model, verbose=False)
    images, target = torch.randn(8, 3, 32, 32), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    first = task(images, target)
    torch.testing.assert_close(first['loss'], first['task_loss'] + 0.1 * first['sparsity'])
    for _ in range(5):
        optimizer.zero_grad()
        result = task(images, target)
        result['loss'].backward()
        optimizer.step()
    assert result['sparsity'] < first['sparsity'] - 0.01
    assert all('run' not in vars(stage) for stage in model.stages)


def test_without_a_batch_there_is_no_l1_of_routed_weights():
    with pytest.raises(RuntimeError, match='depend on the image: average'):
        tiny(sparsity='uniform').sparsity_loss()


# -- training -------------------------------------------------------------------------------------


def options(tmp_path, *extra: str):
    return parse_args(
        ['-c', str(ROOT / 'configs/classification/toponet_tiny_digits.yaml'), '--output',
         str(tmp_path), '--model', 'test_toponet', '--input-size', '3', '32', '32',
         '--model-kwargs', 'connectivity=router', 'sparsity=uniform', 'sparsity_weight=0.01',
         'num_nodes=(4,5)', 'widths=(8,12)', 'strides=2', 'stem_width=8',
         '--batch-size', '240', '--lr', '0.1', *extra]
    )  # fmt: skip


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp('routed')
    return train(options(folder, '--experiment', 'a', '--epochs', '2', '--model-ema'))


def test_a_run_tells_open_edges_and_computed_nodes(trained):
    rows = list(csv.DictReader((trained['folder'] / 'summary.csv').open()))
    assert len(rows) == 2
    for row in rows:
        assert 0 < float(row['eval_open_edges']) <= 100
        assert 0 <= float(row['eval_computed_nodes']) <= 100
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained['folder'])).Reload().Tags()
    for stage in ('stages.0', 'stages.1'):
        for kind in ('mean', 'least', 'most'):
            assert f'open_edges_per_image/{stage}/{kind}' in events['scalars']
            assert f'nodes_per_image/{stage}/{kind}' in events['scalars']
        assert f'open_edges_per_image/{stage}' in events['histograms']
        assert f'thresholds/{stage}' in events['histograms']
        assert f'adjacency/{stage}' in events['images']


def test_thresholds_learn_in_a_run(trained):
    model = timm_topo.load(trained['model'])
    assert all(stage.connectivity.tau.any() for stage in graph_stages(model).values())


def test_a_resumed_run_is_the_same(trained, tmp_path):
    extra = ('--experiment', 'a', '--epochs', '2', '--model-ema', '--checkpoint-hist', '2')
    train(options(tmp_path, *extra))
    first = torch.load(trained['folder'] / 'last.pth.tar', weights_only=False)
    (tmp_path / 'b').mkdir()
    early = torch.load(tmp_path / 'a' / 'checkpoint-0.pth.tar', weights_only=False)
    assert early['epoch'] == 0
    resume = str(tmp_path / 'a' / 'checkpoint-0.pth.tar')
    extra = ('--experiment', 'b', '--epochs', '2', '--model-ema', '--resume', resume)
    train(options(tmp_path, *extra))
    again = torch.load(tmp_path / 'b' / 'last.pth.tar', weights_only=False)
    for key in ('state_dict', 'state_dict_ema'):
        torch.testing.assert_close(again[key], first[key], rtol=0, atol=0)


# -- the command ----------------------------------------------------------------------------------


def test_the_command_prints_stages_thresholds_and_draws(tool, trained, tmp_path):
    status, out, err = tool(
        'routing', trained['model'], '--dataset', 'digits', '--tau', '0.2', '0.99',
        '--repeats', '2', '--against', trained['model'], '--csv', tmp_path / 't.csv',
        '--figure', tmp_path / 'f.svg', '--batch-size', '1', '2', '--classes', '3', '5',
        '--stage', 'stages.1',
    )  # fmt: skip
    assert status == 0, err
    assert 'stages.1: ' in out
    rows = {row['network']: row for row in csv.DictReader((tmp_path / 't.csv').open())}
    assert list(rows) == ['tau 0', 'learned tau', 'tau 0.2', 'tau 0.99', str(trained['model'])]
    assert (rows['tau 0']['open_edges'], rows['tau 0']['computed_nodes']) == ('100.0', '100.0')
    assert float(rows['tau 0.99']['computed_nodes']) == 0
    assert float(rows[str(trained['model'])]['ratio at 1']) == 1
    drawing = (tmp_path / 'f.svg').read_text()
    assert [drawing.count(f'id="{n}-node-0"') for n in (0, 1, 2)] == [1, 1, 0]


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        (['--tau', '1'], 'error: tau must be in [0, 1), got 1.0\n'),
        (['--stage', 'stages.9'], "error: no stage 'stages.9'; the stages are stages.0, stages.1"),
        (['--classes', '11'], "error: no images of the classes ['11']; there are 0, 1, 2"),
        (['--dataset', 'idx', '--data-dir', 'nowhere'], 'error: '),
        (['--figure', 'f.gif'], 'error: f.gif is not one of .svg, .png, .pdf'),
    ],
)
def test_what_the_command_cannot_do_is_one_line(tool, trained, tmp_path, extra, message):
    usual = ['--dataset', 'digits', '--figure', tmp_path / 'f.png']
    status, _, err = tool('routing', trained['model'], *usual, *extra)
    assert status == 1
    assert err.startswith(message)
    assert err.count('\n') == 1


def test_a_network_without_routers_is_refused(tool, tmp_path):
    timm_topo.save(timm.create_model('test_toponet', num_classes=10), tmp_path / 'static')
    _, _, err = tool('routing', tmp_path / 'static', '--dataset', 'digits')
    assert err == f'error: {tmp_path / "static"} has no routers\n'


# -- the benchmark --------------------------------------------------------------------------------


def test_the_benchmark_tells_ratios_to_the_first_model(tool):
    status, out, err = tool(
        'benchmark', 'test_toponet', 'test_toponet:connectivity=router,num_nodes=3',
        '--batch-size', '1', '2', '--img-size', '32', '--repeats', '2', '--channels-last',
    )  # fmt: skip
    assert status == 0, err
    head, *rows = out.splitlines()
    assert head.endswith(', 32 px')
    assert [row.split()[1] for row in rows] == ['1', '1', '2', '2']
    assert [row.split()[3] == '1.00' for row in rows][::2] == [True, True]
    assert all(float(row.split()[3]) > 0 for row in rows)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['resnet_none'], "error: unknown model 'resnet_none': see timm.list_models()"),
        (['resnet18:gate'], "error: 'resnet18:gate': options are K=V, got 'gate'"),
    ],
)
def test_what_the_benchmark_cannot_do_is_one_line(tool, args, message):
    status, _, err = tool('benchmark', *args)
    assert (status, err) == (1, message + '\n')


@pytest.mark.parametrize('name', ['benchmark', 'routing'])
@pytest.mark.parametrize('option', ['--batch-size', '--repeats', '--threads'])
@pytest.mark.parametrize('value', ['0', '-1', '1.5', 'many'])
def test_counts_from_one_on_are_asked_for(tool, name, option, value):
    status, _, err = tool(name, 'a', '--dataset', 'b', option, value)
    if name == 'benchmark':
        status, _, err = tool(name, 'a', option, value)
    assert status == 2
    assert f"argument {option}: must be a whole number from 1 on, got '{value}'" in err
