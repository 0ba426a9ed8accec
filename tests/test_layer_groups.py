"""Layers of graphs against networkx's generations, and depths against plain networks."""

import networkx as nx
import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2

import timm_topo  # noqa: F401  registers the models
from timm_topo.generators import complete, erdos_renyi, watts_strogatz
from timm_topo.models.layer_groups import layer_groups

WIRINGS = [complete(7), erdos_renyi(20, 0.2, seed=1), watts_strogatz(14, 4, 0.75, seed=2)]


def layers_of(name: str, **options) -> dict[str, int]:
    with torch.device('meta'):
        model = timm.create_model(name, **options)
    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)


@pytest.mark.parametrize('wiring', WIRINGS, ids=str)
def test_a_layer_is_a_generation(wiring):
    generations = list(nx.topological_generations(wiring.to_networkx()))
    expected = {n: k - 1 for k, nodes in enumerate(generations) for n in nodes}
    nodes = range(1, wiring.num_nodes - 1)
    assert layer_groups(wiring, nodes, wiring.num_nodes) == [expected[n] for n in nodes]


@pytest.mark.parametrize('wiring', WIRINGS, ids=str)
def test_neighbouring_generations_share_layers_evenly(wiring):
    nodes = range(1, wiring.num_nodes - 1)
    alone = layer_groups(wiring, nodes, wiring.num_nodes)
    shared = dict(zip(alone, layer_groups(wiring, nodes, 3)))
    sizes = [list(shared.values()).count(layer) for layer in (0, 1, 2)]
    assert [shared[level] for level in sorted(shared)] == sorted(shared.values())
    assert sum(sizes) == len(shared)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ('name', 'plain'),
    [
        ('toponet_adaptive', 'resnet50'),
        ('toponet_ws', 'resnet50'),
        ('toporesnet20', 'resnet_cifar20'),
        ('toporesnet110', 'resnet_cifar110'),
        ('maskconnect_resnet110', 'resnet_cifar110'),
        ('maskconnect_resnext50_32x4d', 'resnext50_32x4d'),
        ('topomobilenetv2_100', 'mobilenetv2_100'),
    ],
)
def test_a_graph_has_the_layers_of_the_plain_network(name, plain):
    assert set(layers_of(name).values()) == set(layers_of(plain).values())


@pytest.mark.parametrize(
    ('name', 'least'), [('randwire_ws_small', 7e-4), ('dagnet60', 1e-4), ('test_dagnet', 0.1)]
)
def test_layer_decay_does_not_freeze_the_stem(name, least):
    with torch.device('meta'):
        model = timm.create_model(name)
    groups = create_optimizer_v2(model, opt='sgd', lr=0.1, layer_decay=0.75).param_groups
    assert min(group['lr_scale'] for group in groups) > least


def test_a_shallow_graph_has_fewer_layers_than_a_deep_one():
    flat = layers_of('test_randwire', num_nodes=34, wiring=dict(name='erdos_renyi', p=0.02))
    deep = layers_of('test_randwire', num_nodes=34, wiring='complete', projection=True)
    assert max(flat.values()) < max(deep.values())
