"""Exports: onnxruntime computes what torch does, GraphML has the edges; or no file appears."""

import copy
import os
from pathlib import Path

import networkx as nx
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import timm_topo  # noqa: F401  registers the models
from timm_topo.analysis import export
from timm_topo.analysis.export import export_graphml, export_onnx
from timm_topo.analysis.outputs import named_outputs
from timm_topo.analysis.prune import edge_weights, freeze_edge_weights, prune
from timm_topo.executors import adjacency
from timm_topo.stages import Offset, compact, graph_stages

SIZE = (3, 16, 16)


def tiny(randomise, **options) -> nn.Module:
    sizes = dict(num_nodes=(4, 3), widths=(4, 6), strides=(1, 2), stem_width=4, num_classes=5)
    return randomise(timm.create_model('test_toponet', **{**sizes, **options})).eval()


def pruned(model: nn.Module) -> nn.Module:
    """Without node 1 of the first stage, which nobody reads any more."""
    keep = {
        f'stages.{i}': torch.ones(s.wiring.num_edges).bool() for i, s in enumerate(model.stages)
    }
    for gone in ((1, 2), (1, 3)):
        keep['stages.0'][model.stages[0].wiring.edges.index(gone)] = False
    smaller, _ = prune(model, keep=keep, probe=torch.zeros(1, *SIZE))
    assert smaller.stages[0].wiring.num_nodes == 3
    return smaller


def run(path: Path, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    (logits,) = session.run(['logits'], {'image': images.numpy()})
    return torch.from_numpy(np.asarray(logits))


KINDS = {'as built': lambda model: model, 'pruned': pruned, 'frozen': freeze_edge_weights}


@pytest.fixture(scope='module')
def exported(tmp_path_factory, randomise):
    """Function that exports a kind of network once: the network, the file and the difference."""
    done = {}

    def exported(kind: str) -> tuple[nn.Module, Path, float]:
        if kind not in done:
            torch.manual_seed(0)
            model = KINDS[kind](tiny(randomise))
            path = tmp_path_factory.mktemp('onnx') / 'model.onnx'
            done[kind] = model, path, export_onnx(model, path, SIZE)
        return done[kind]

    return exported


@pytest.fixture
def without_exporter(monkeypatch, exported):
    """Skip the slow part: the export of whatever model yields the file of the network as built."""
    model, path, _ = exported('as built')
    content = path.read_bytes()
    monkeypatch.setattr(export, '_export', lambda model, images, to: to.write_bytes(content))
    return model


# -- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', sorted(KINDS))
def test_onnxruntime_equals_torch_for_any_batch_size(exported, kind):
    model, path, difference = exported(kind)
    assert 0 <= difference < 1e-4
    with torch.no_grad():
        for batch in (1, 2, 3, 7):
            images = torch.randn(batch, *SIZE)
            expected = model(images)
            atol = 1e-5 * expected.abs().max().item()
            torch.testing.assert_close(run(path, images), expected, rtol=1e-4, atol=atol)


def test_the_file_is_alone_in_its_folder_and_holds_its_weights(exported):
    model, path, _ = exported('as built')
    assert [file.name for file in path.parent.iterdir()] == ['model.onnx']
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert path.stat().st_size > 2 * weights


def test_onnxruntime_is_asked_about_the_file_that_is_written(without_exporter, tmp_path):
    difference = export_onnx(without_exporter, tmp_path / 'deep/er/net.onnx', SIZE)
    images = torch.randn(2, *SIZE)
    expected = without_exporter(images).detach()
    torch.testing.assert_close(
        run(tmp_path / 'deep/er/net.onnx', images), expected, rtol=1e-4, atol=1e-4
    )
    assert difference < 1e-4


def test_an_old_file_is_replaced(without_exporter, tmp_path):
    (tmp_path / 'net.onnx').write_text('old')
    export_onnx(without_exporter, tmp_path / 'net.onnx', SIZE)
    assert run(tmp_path / 'net.onnx', torch.zeros(1, *SIZE)).shape == (1, 5)
    assert [file.name for file in tmp_path.iterdir()] == ['net.onnx']


@pytest.mark.parametrize('training', [True, False])
def test_export_in_evaluation_mode_restores_the_mode(without_exporter, tmp_path, training):
    model = without_exporter.train(training)
    model.stem.bn.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        export_onnx(model, tmp_path / 'net.onnx', SIZE)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    finally:
        model.eval()


@pytest.fixture
def size_shown(monkeypatch):
    """Stop at the exporter and show what it was asked for."""

    def show(model, images, path):
        raise RuntimeError(f'asked for {tuple(images.shape)}')

    monkeypatch.setattr(export, '_export', show)


def test_input_size_is_the_models_own_by_default(size_shown, tmp_path, randomise):
    with pytest.raises(RuntimeError, match=r'asked for \(2, 3, 96, 96\)'):
        export_onnx(tiny(randomise), tmp_path / 'net.onnx')


def test_the_default_input_has_the_channels_of_the_model(size_shown, tmp_path, randomise):
    with pytest.raises(RuntimeError, match=r'asked for \(2, 1, 96, 96\)'):
        export_onnx(tiny(randomise, in_chans=1), tmp_path / 'net.onnx')


# -- networks that return maps --------------------------------------------------------------------


class Pyramid(nn.Module):
    """What detectors have for a backbone: maps by name, with a list among them."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.pretrained_cfg = net, net.pretrained_cfg

    def forward(self, x: torch.Tensor) -> dict:
        first, *rest = self.net(x)
        return {'p2': first, 'more': rest}


def backbone(randomise) -> nn.Module:
    sizes = dict(num_nodes=(4, 3), widths=(4, 6), strides=(1, 2), stem_width=4)
    model = timm.create_model('test_toponet', features_only=True, out_indices=(0, 1, 2), **sizes)
    return randomise(model).eval()


def test_maps_are_exported_each_under_its_name(randomise, tmp_path):
    model = backbone(randomise)
    for net, names in (
        (model, ['map_0', 'map_1', 'map_2']),
        (Pyramid(model).eval(), ['p2', 'more_0', 'more_1']),
    ):
        assert 0 <= export_onnx(net, tmp_path / 'net.onnx', SIZE) < 1e-4
        session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
        assert [output.name for output in session.get_outputs()] == names
        images = torch.randn(3, *SIZE)
        got = session.run(names, {'image': images.numpy()})
        for one, expected in zip(got, model(images), strict=True):
            torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-4, atol=1e-5)


def test_one_map_that_differs_is_refused(randomise, tmp_path, monkeypatch):
    model, real = backbone(randomise), export._export

    def export_other(model, images, path):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.stages_0.connectivity.alpha[-1] += 0.01
        real(other, images, path)

    monkeypatch.setattr(export, '_export', export_other)
    with pytest.raises(RuntimeError, match=r'differs by [\d.]+ from net\.onnx in map_1'):
        export_onnx(model, tmp_path / 'net.onnx', SIZE)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match='or lists and dicts of them, not str'):
        named_outputs([torch.zeros(1), 'maps'])


# -- constants ------------------------------------------------------------------------------------


def constant() -> Offset:
    """With borders, in maps of 9 x 11."""
    edge = torch.nn.functional.conv2d(torch.ones(1, 3, 9, 11), torch.randn(4, 3, 3, 3), padding=1)
    offset = Offset(compact(edge[0]))
    assert offset.value.shape == (4, 3, 3)
    return offset.eval()


def test_at_a_fixed_size_constants_take_no_index_arithmetic():
    offset, x = constant(), torch.randn(2, 4, 9, 11)
    program = torch.export.export(offset, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    traced = torch.fx.symbolic_trace(offset)
    assert [node.op for node in traced.graph.nodes].count('call_function') == 2
    for node in program.graph.nodes:
        value = node.meta.get('val')
        assert not isinstance(value, torch.Tensor) or value.is_floating_point(), node
    for batch in (1, 3):
        x = torch.randn(batch, 4, 9, 11)
        assert torch.equal(program.module()(x), offset(x))
        assert torch.equal(traced(x), offset(x))


@pytest.mark.parametrize('strict', [False, True])
def test_at_any_size_exported_constants_keep_their_borders(strict):
    offset, sizes = constant(), {2: torch.export.Dim('height'), 3: torch.export.Dim('width')}
    x = torch.randn(2, 4, 9, 11)
    program = torch.export.export(offset, (x,), dynamic_shapes=(sizes,), strict=strict).module()
    for size in ((3, 15), (20, 4), (2, 2)):
        x = torch.randn(2, 4, *size)
        assert torch.equal(program(x), offset(x))


@pytest.mark.filterwarnings('ignore')  # of the exporter that knows opset 11
def test_constants_of_any_size_are_in_opset_11(tmp_path):
    offset, x = constant(), torch.randn(2, 4, 9, 11)
    torch.onnx.export(
        offset, (x,), tmp_path / 'net.onnx', opset_version=11, dynamo=False,
        input_names=['x'], dynamic_axes={'x': {2: 'height', 3: 'width'}},
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
    x = torch.randn(2, 4, 15, 4)
    (got,) = session.run(None, {'x': x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), offset(x))


# -- what is not ----------------------------------------------------------------------------------


def test_a_network_that_computes_something_else_is_refused(without_exporter, tmp_path, randomise):
    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match=r'the ONNX network differs by \d.* from net\.onnx'):
        export_onnx(tiny(randomise), tmp_path / 'net.onnx', SIZE)
    assert list(tmp_path.iterdir()) == []


def test_the_tolerance_is_relative_to_the_largest_output(without_exporter, tmp_path):
    with pytest.raises(RuntimeError, match='the ONNX network differs'):
        export_onnx(without_exporter, tmp_path / 'net.onnx', SIZE, tolerance=-1)
    other = timm.create_model(
        'test_toponet', num_nodes=(4, 3), widths=(4, 6), strides=(1, 2), stem_width=4, num_classes=5
    )
    other.load_state_dict(without_exporter.state_dict())
    with torch.no_grad():
        other.head.fc.weight *= 1.01
        other.head.fc.bias *= 1.01
    export_onnx(other, tmp_path / 'net.onnx', SIZE, tolerance=0.011)
    with pytest.raises(RuntimeError, match='the ONNX network differs'):
        export_onnx(other, tmp_path / 'net.onnx', SIZE, tolerance=0.009)


def test_outputs_that_are_no_numbers_are_refused(without_exporter, tmp_path, randomise):
    model = tiny(randomise)
    nn.init.constant_(model.head.fc.bias, float('nan'))
    with pytest.raises(RuntimeError, match='differs by nan'):
        export_onnx(model, tmp_path / 'net.onnx', SIZE)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_survives_a_check_that_fails(without_exporter, tmp_path):
    (tmp_path / 'net.onnx').write_text('old')
    with pytest.raises(RuntimeError, match='the ONNX network differs'):
        export_onnx(without_exporter, tmp_path / 'net.onnx', SIZE, tolerance=-1)
    assert (tmp_path / 'net.onnx').read_text() == 'old'
    assert [file.name for file in tmp_path.iterdir()] == ['net.onnx']


def test_an_exporter_that_fails_leaves_no_trace(tmp_path, monkeypatch, randomise):
    def fail(model, images, path):
        path.write_text('half of it')
        raise RuntimeError('disk full')

    monkeypatch.setattr(export, '_export', fail)
    model = tiny(randomise).train()
    with pytest.raises(RuntimeError, match='disk full'):
        export_onnx(model, tmp_path / 'net.onnx', SIZE)
    assert model.training
    assert list(tmp_path.iterdir()) == []


# -- graphs ---------------------------------------------------------------------------------------


def whole(randomise) -> nn.Module:
    """Without node 4 of nine on three levels, which nobody reads any more."""
    model = randomise(timm.create_model('dagnet', num_nodes=9, channels=2, num_classes=5)).eval()
    keep = {'dag': torch.tensor([source != 4 for source, _ in model.dag.wiring.edges])}
    smaller, _ = prune(model, keep=keep)
    assert smaller.dag.node_ids == [0, 1, 2, 3, 5, 6, 7, 8]
    return smaller


GRAPHS = {
    'as built': tiny,
    'tanh': lambda randomise: tiny(randomise, connectivity='tanh'),
    'pruned': lambda randomise: pruned(tiny(randomise)),
    'whole': whole,
}


@pytest.mark.parametrize('kind', GRAPHS)
def test_networkx_reads_the_edges_and_weights_that_were_written(kind, randomise, tmp_path):
    model = GRAPHS[kind](randomise)
    returned = export_graphml(model, tmp_path / 'new' / 'net.graphml')
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['net.graphml']
    graph = nx.read_graphml(tmp_path / 'new' / 'net.graphml')
    assert type(graph) is nx.DiGraph
    nodes, edges = {}, {}
    for name, stage in graph_stages(model).items():
        ids = stage.node_ids
        for node, level in zip(ids, stage.levels, strict=True):
            nodes[f'{name}/{node}'] = {'stage': name, 'id': node, 'level': level}
        for (s, t), weight in zip(stage.wiring.edges, edge_weights(model)[name], strict=True):
            edges[f'{name}/{ids[s]}', f'{name}/{ids[t]}'] = weight.item()
    for one in (graph, returned):
        assert dict(one.nodes(data=True)) == nodes
        assert {(s, t): weight for s, t, weight in one.edges(data='weight')} == edges
    assert nx.number_weakly_connected_components(graph) == len(graph_stages(model))
    assert len({data['level'] for data in nodes.values()}) == (3 if kind == 'whole' else 1)


def test_weights_that_depend_on_the_image_are_written_as_means(randomise, tmp_path):
    model = tiny(randomise, connectivity='router')
    with torch.no_grad():
        for stage in model.stages:
            stage.connectivity.weight.normal_()
    with pytest.raises(ValueError, match='edge weights depend on the image: give images'):
        export_graphml(model, tmp_path / 'net.graphml')
    assert list(tmp_path.iterdir()) == []
    images = torch.randn(5, *SIZE)
    export_graphml(model, tmp_path / 'net.graphml', images)
    graph = nx.read_graphml(tmp_path / 'net.graphml')
    for name, matrices in adjacency(model, images).items():
        assert matrices.std(0).max() > 1e-3
        for source, target in graph_stages(model)[name].wiring.edges:
            weight = graph.edges[f'{name}/{source}', f'{name}/{target}']['weight']
            expected = matrices[:, target, source].mean().item()
            assert weight == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('fails', ['write', 'replace'])
def test_graphs_that_cannot_be_written_leave_the_old_file(randomise, tmp_path, monkeypatch, fails):
    def fail(written, path):
        if fails == 'write':
            Path(path).write_text('half of it')
        raise OSError('disk full')

    (tmp_path / 'net.graphml').write_text('old')
    where = (nx, 'write_graphml') if fails == 'write' else (os, 'replace')
    monkeypatch.setattr(*where, fail)
    with pytest.raises(OSError, match='disk full'):
        export_graphml(tiny(randomise), tmp_path / 'net.graphml')
    assert (tmp_path / 'net.graphml').read_text() == 'old'
    assert [path.name for path in tmp_path.iterdir()] == ['net.graphml']


def test_a_network_without_graphs_has_none_to_write(tmp_path):
    with pytest.raises(ValueError, match='ResNet has no graph stage'):
        export_graphml(timm.create_model('test_resnet'), tmp_path / 'net.graphml')
    assert list(tmp_path.iterdir()) == []
