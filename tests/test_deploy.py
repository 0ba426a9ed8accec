"""Deployed networks: the same outputs, nothing that learns; also behind ONNX."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import timm_topo
from timm_topo.analysis.cost import input_size_of
from timm_topo.analysis.export import export_onnx
from timm_topo.analysis.prune import prune
from timm_topo.connectivity import build_connectivity
from timm_topo.deploy import DeployedStage, deploy
from timm_topo.generators import make_wiring
from timm_topo.stages import GraphStage, Stage, graph_stages
from timm_topo.wiring import Wiring

SMALL = dict(num_nodes=(5, 6), widths=(8, 8), strides=(2, 2), stem_width=8, stem_kernel=3)
NETWORKS = {
    'weighted': ('test_toponet', SMALL),
    'all ones': ('test_toponet', {**SMALL, 'connectivity': 'fixed'}),
    'pre-activation': ('resnetv2_cifar20', {}),
    'plain': ('resnet_cifar20', {}),
    'cross-stage': ('test_dagnet', {}),
    'mobile': ('mobilenetv3_small_050', {}),
    're-parametrised': ('mobileone_s0', {}),
    'random': ('test_randwire', {}),
    'masks': ('test_maskconnect_resnet', {}),
    'branches': ('test_maskconnect_resnext', {}),
    'routers': ('test_toponet', {**SMALL, 'connectivity': 'router'}),
}


def network(kind: str, randomise) -> nn.Module:
    name, options = NETWORKS[kind]
    return randomise(timm.create_model(name, num_classes=5, **options)).eval()


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
@pytest.mark.parametrize('kind', NETWORKS)
def test_same_outputs(kind, randomise):
    model = network(kind, randomise)
    size = 32 if kind in ('mobile', 're-parametrised') else input_size_of(model)[1]
    x = torch.randn(2, 3, size, size)
    before = model(x)
    deployed = deploy(model, x)
    after = deployed(x)
    assert torch.allclose(after, before, rtol=1e-4, atol=1e-5 * before.abs().max())
    assert torch.equal(model(x), before)  # left as it is
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    static = kind not in ('branches', 'routers')  # which stay as they are
    left = [module for module in deployed.modules() if isinstance(module, Stage)]
    assert bool(left) != static
    if static and kind != 'pre-activation':  # whose norms follow sums
        assert not norms(deployed)
    assert len(norms(deployed)) < len(norms(model)) or not static


@torch.no_grad()
def test_edges_of_weight_zero_cost_nothing(randomise):
    model = network('weighted', randomise)
    stage = next(iter(graph_stages(model).values()))
    stage.connectivity.alpha[3:5] = 0.0
    x = torch.randn(2, *input_size_of(model))
    deployed = deploy(model)
    found = next(m for m in deployed.modules() if isinstance(m, DeployedStage))
    assert found.wiring == prune(model, threshold=0.0)[0].stages[0].wiring
    assert torch.allclose(deployed(x), model(x), atol=1e-5)


class Overwrites(nn.Module):
    """Writes into what it reads."""

    def forward(self, x):
        return x.add_(1.0).mul_(2.0)


@torch.no_grad()
@pytest.mark.parametrize(
    'wiring',
    [
        'complete',
        'sequential',
        Wiring.from_edges([(0, 1), (1, 2), (1, 3), (2, 3), (3, 4), (3, 5), (4, 5)]),  # 2, 4 share
    ],
)
def test_nodes_may_overwrite_what_they_read(wiring, naive_stage):
    graph = make_wiring(wiring, 6)
    nodes = [Overwrites() if i % 2 else nn.Conv2d(3, 3, 1) for i in range(4)]
    stage = GraphStage(graph, build_connectivity('fixed', graph), nn.Identity(), nodes).eval()
    x = torch.randn(2, 3, 4, 4)
    expected = naive_stage(stage, x.clone())
    assert torch.allclose(DeployedStage(stage)(x), expected, atol=1e-5)


@pytest.mark.parametrize('kind', ['weighted', 'plain', 'cross-stage'])
def test_exported(kind, randomise, tmp_path):
    model = network(kind, randomise)
    x = torch.randn(3, *input_size_of(model))
    export_onnx(deploy(model), tmp_path / 'net.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.allclose(output, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_convolution_that_others_read_keeps_its_values():
    class Forked(nn.Module):
        num_classes, pretrained_cfg = 4, dict(input_size=(3, 8, 8))

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.alone, self.behind = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return (x + self.behind(self.alone(self.norm(x)))).mean((2, 3))

    model = Forked().eval()
    for norm in norms(model):
        nn.init.uniform_(norm.running_mean)
    deployed, x = deploy(model), torch.randn(2, 3, 8, 8)
    assert torch.allclose(deployed(x), model(x), atol=1e-6)
    assert isinstance(deployed.norm, nn.BatchNorm2d)
    assert isinstance(deployed.behind, nn.Identity)


def test_saving_a_deployed_network_is_refused(tmp_path, randomise):
    with pytest.raises(TypeError, match='deployed'):
        timm_topo.save(deploy(network('weighted', randomise)), tmp_path / 'net')
