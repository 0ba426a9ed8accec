"""Quantization of every kind of network: by onnxruntime, through ours, and by PyTorch."""

import copy

import onnx
import pytest
import timm
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.fx.passes.utils.source_matcher_utils import get_source_partitions

import timm_topo  # noqa: F401  registers the models
from timm_topo.analysis.int8 import OnnxNetwork, export_int8
from timm_topo.analysis.prune import prune, recalibrate
from timm_topo.connectivity.router import set_tau
from timm_topo.executors import adjacency
from timm_topo.stages import Offset

pytestmark = [
    pytest.mark.filterwarnings('ignore:.*re-wired is another function'),
    pytest.mark.filterwarnings('ignore:torch.ao.quantization is deprecated'),
]


def build(name: str, **options) -> nn.Module:
    return timm.create_model(name, num_classes=5, **options)


def rewired(**options) -> nn.Module:
    return build('rewired', base='test_resnet', exact=False, **options)


NETWORKS = {
    'static': lambda: build('test_toponet'),
    'pruned': lambda: build('test_dagnet'),
    'router': lambda: rewired(connectivity='router'),
    'dagnet': lambda: build('test_dagnet'),
    'maskconnect of blocks': lambda: build('test_maskconnect_resnet', num_blocks=2),
    'maskconnect of branches': lambda: build('test_maskconnect_resnext'),
    'randwire': lambda: build('test_randwire'),
    'rewired': rewired,
}


def images(count: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=draw) + torch.randn(
        count, 3, 1, 1, generator=draw
    )


@pytest.fixture(scope='module')
def network(randomise):
    """Function that makes a network by its name above, weights far from their initial values."""
    made = {}

    def network(name: str) -> nn.Module:
        if name not in made:
            torch.manual_seed(0)
            model = randomise(NETWORKS[name]()).eval()
            for own, parameter in model.named_parameters():
                if own.endswith('.mask'):
                    nn.init.uniform_(parameter)
                elif '.connectivity.' in own and parameter.ndim == 2:
                    nn.init.normal_(parameter, std=0.3)  # of routers
            recalibrate(model, [images(64)])  # so that outputs tell images apart
            made[name] = {'pruned': starved, 'router': closing}.get(name, lambda m: m)(model)
        return copy.deepcopy(made[name])

    return network


def starved(model: nn.Module) -> nn.Module:
    """Node 2 reads the constant of node 1 alone: zero padding gives its map a border."""
    edges = model.dag.wiring.edges
    keep = {'dag': torch.tensor([edge not in ((0, 1), (0, 2)) for edge in edges])}
    pruned, _ = prune(model, keep=keep, probe=images(2))
    assert any(m.value.shape[1:] == (3, 3) for m in pruned.modules() if isinstance(m, Offset))
    return pruned


def closing(model: nn.Module) -> nn.Module:
    """Some images close some edges."""
    set_tau(model, 0.45)
    matrices = adjacency(model, images(8)).values()
    assert any((m.ne(0).any(0) & m.eq(0).any(0)).any() for m in matrices)
    return model


def error(got: Tensor, expected: Tensor) -> float:
    """Of the outputs, relative to their spread over images: 1 for the mean output, always."""
    return ((got - expected).pow(2).mean() / expected.var(0).mean()).sqrt().item()


@pytest.mark.parametrize('name', NETWORKS)
@torch.no_grad()
def test_onnxruntime_quantizes_it(name, network, tmp_path):
    model = network(name)
    assert export_int8(model, tmp_path / 'new' / 'net.onnx', images(32).split(8)) < 1e-4
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['net.onnx']
    quantized = OnnxNetwork(tmp_path / 'new' / 'net.onnx')
    for batch in (1, 64):
        x = images(batch, seed=1)
        assert quantized(x).shape == (batch, 5)
    assert 0 < error(quantized(x), model(x)) < 0.5
    graph = onnx.load(tmp_path / 'new' / 'net.onnx').graph
    made = {output: node for node in graph.node for output in node.output}
    values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type == 'MatMul':  # sums over branches: their weights are no integers
            assert made[node.input[0]].op_type != 'DequantizeLinear'
    convs = [node for node in graph.node if node.op_type == 'Conv']
    assert convs
    for conv in convs:
        read, weight = (made[name] for name in conv.input[:2])
        assert read.op_type == weight.op_type == 'DequantizeLinear'
        stored, scales = (values[name] for name in weight.input[:2])
        assert str(stored.dtype) == 'int8'
        assert abs(stored.astype(int)).max() <= 64  # seven bits
        assert scales.shape == (len(stored),)


@pytest.mark.parametrize('name', ['pruned', 'router', 'maskconnect of branches'])
@torch.no_grad()
def test_pytorch_quantizes_it_in_fx_graph_mode(name, network):
    model, x = network(name), images(8)
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping('x86'), (x,))
    prepared(x)
    quantized = convert_fx(prepared)
    assert any('quantized' in type(module).__module__ for module in quantized.modules())
    assert 0 < error(quantized(x), model(x)) < 1


def test_without_images_there_is_no_file(network, tmp_path):
    with pytest.raises(ValueError, match='quantization needs calibration images, got none'):
        export_int8(network('static'), tmp_path / 'net.onnx', [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', NETWORKS)
def test_every_activation_is_a_partition_with_one_output(name, network):
    """What PyTorch's quantizers for exported programs, now in torchao, look for."""
    graph = torch.export.export(network(name), (images(2),)).module().graph
    found = get_source_partitions(graph, [nn.ReLU])[nn.ReLU]
    assert found
    assert {len(partition.output_nodes) for partition in found} == {1}
