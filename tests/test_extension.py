"""One new file is enough for a rule, a node, a wiring, a family of timm and a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent

MINE = '''
import timm
import torch
from timm.models import StarNet, generate_default_cfgs, register_model
from torch import nn

import timm_topo
from timm_topo.connectivity import StaticConnectivity, register_connectivity
from timm_topo.generators import register_wiring
from timm_topo.models.base import create_network
from timm_topo.models.families import Rewired, register_family
from timm_topo.nodes import StageParts, register_node
from timm_topo.nodes.residual import Anatomy, register_block


@register_connectivity('softplus')
class Softplus(StaticConnectivity):
    def __init__(self, wiring):
        super().__init__(wiring)
        self.alpha = nn.Parameter(torch.zeros(self.num_edges))

    def reset_parameters(self):
        nn.init.zeros_(self.alpha)

    def squash(self, alpha):
        return nn.functional.softplus(alpha)


@register_wiring('skip_two')
def skip_two(num_nodes, reach=2):
    edges = [(i, j) for j in range(num_nodes) for i in range(max(0, j - reach), j)]
    return timm_topo.Wiring.from_edges(edges)


@register_node('plain_conv')
def plain_conv(in_chs, out_chs, num_nodes, stride, dilation, norm_layer=nn.BatchNorm2d, **dd):
    def conv(chs, stride):
        return nn.Sequential(nn.Conv2d(chs, out_chs, 3, stride, 1, **dd), norm_layer(out_chs, **dd))

    return StageParts(conv(in_chs, stride), [conv(out_chs, 1) for _ in range(num_nodes)])


class StarBranch(nn.Module):
    def __init__(self, block):
        super().__init__()
        for name, module in block.named_children():
            setattr(self, name, module)

    def forward(self, x):
        x = self.dwconv(x)
        return self.drop_path(self.dwconv2(self.g(self.act(self.f1(x)) * self.f2(x))))


register_block('starnet.Block', Anatomy(StarBranch, None))


@register_family
class RewiredStarNet(Rewired, StarNet):
    """StarNet with graph stages."""


class MyNet(timm_topo.models.TopoNet):
    """A network of its own class."""


default_cfgs = generate_default_cfgs({'my_net.untrained': dict(input_size=(3, 32, 32))})


@register_model
def my_net(pretrained=False, **kwargs):
    defaults = dict(
        num_nodes=(5, 6), widths=(8, 16), strides=(1, 2), stem_width=8, stem_stride=1,
        node='plain_conv', wiring='skip_two', connectivity='softplus', num_classes=5,
    )
    return create_network(
        MyNet, 'my_net', pretrained, defaults, kwargs, levels=lambda o: 3, feature_cls='list',
        flatten_sequential=True,
    )


__all__ = ['MyNet']
'''

USE = """
import json

import timm
import torch

import mine
import timm_topo
from timm_topo.analysis.prune import prune

torch.manual_seed(0)
x = torch.randn(2, 3, 32, 32)
model = timm.create_model('my_net')
model(x).sum().backward()
gradients = all(p.grad is not None for p in model.parameters())
weights = model.stages[0].connectivity.edge_weights().unique().tolist()
for stage in model.stages:
    steps = torch.tensor([float(j - i) for i, j in stage.wiring.edges])
    stage.connectivity.alpha.data = 1 - steps  # the chain is left
smaller, _ = prune(model.eval(), threshold=0.5)
timm_topo.save(smaller, 'saved')
again = timm_topo.load('saved').eval()
plain = timm.create_model('starnet_s1', num_classes=5).eval()
graph = timm_topo.rewire(plain)
print(json.dumps({
    'edges': [stage.wiring.num_edges for stage in model.stages],
    'left': [stage.wiring.num_edges for stage in smaller.stages],
    'weights': weights,
    'gradients': gradients,
    'same': torch.equal(smaller(x), again(x)),
    'rewired': (graph(x) - plain(x)).abs().max().item(),
    'stages': len(timm_topo.stages.graph_stages(graph)),
}))
"""


def test_one_of_each_comes_from_outside(tmp_path):
    (tmp_path / 'mine.py').write_text(MINE)
    env = {**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'}
    run = subprocess.run(
        [sys.executable, '-c', USE], cwd=tmp_path, env=env, text=True, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told['edges'] == [7, 9]  # two in-edges per node but the first two
    assert told['left'] == [4, 5]
    assert told['weights'] == [torch.nn.functional.softplus(torch.zeros(())).item()]
    assert told['gradients']
    assert told['same']
    assert told['rewired'] < 1e-5
    assert told['stages'] == 4
