"""Whole blocks as nodes: the plain network, what is left where blocks go, and back."""

import copy

import pytest
import timm
import torch
from torch import nn

import timm_topo
from timm_topo.analysis.prune import prune
from timm_topo.connectivity import build_connectivity
from timm_topo.stages import GraphStage, graph_stages, without_node
from timm_topo.wiring import Wiring

NAMES = ('resnet_cifar20', 'resnetv2_cifar20', 'regnetx_002', 'mobilenetv3_small_050')
DOUBLE = torch.float64


def plain(name: str, randomise) -> nn.Module:
    return randomise(timm.create_model(name, num_classes=5)).to(DOUBLE)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, dtype=DOUBLE)


@pytest.mark.parametrize('wiring', ['complete', 'sequential'])
@pytest.mark.parametrize('name', NAMES)
def test_same_function_and_gradients_where_blocks_are_nodes(name, wiring, randomise):
    model = plain(name, randomise).train()
    graph = timm_topo.rewire(model, wiring=wiring, nodes='block')
    x = images()
    losses = []
    for network in (model, graph):
        torch.manual_seed(1)
        losses.append(network(x).square().sum())
        losses[-1].backward()
    assert torch.allclose(*losses, rtol=1e-9)
    names = graph.plain_names()
    mine = {names[own]: p.grad for own, p in graph.named_parameters() if names[own]}
    theirs = {own: p.grad for own, p in model.named_parameters()}
    assert mine.keys() == theirs.keys()
    for own, grad in theirs.items():
        assert torch.allclose(mine[own], grad, rtol=1e-6, atol=1e-8 * grad.abs().max()), own


def test_edges_from_earlier_blocks_start_at_zero_and_learn(randomise):
    graph = timm_topo.rewire(plain('resnet_cifar20', randomise), nodes='block')
    graph(images()).square().sum().backward()
    for stage in graph_stages(graph).values():
        alpha, grads = stage.connectivity.alpha, stage.connectivity.alpha.grad
        latest = torch.tensor([target - source == 1 for source, target in stage.wiring.edges])
        assert alpha.tolist() == latest.double().tolist()
        assert (grads != 0).all()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('wiring', ['complete', 'sequential'])
def test_a_block_that_goes_is_an_identity(name, wiring, randomise):
    """The reference is timm's network with ``nn.Identity`` in place of the block."""
    model = plain(name, randomise).eval()
    graph = timm_topo.rewire(model, wiring=wiring, nodes='block')
    stage_name, stage = max(graph_stages(graph).items(), key=lambda item: item[1].wiring.num_nodes)
    block = stage.nodes[1].origin
    parent, _, leaf = stage_name.rpartition('.')
    setattr(graph.get_submodule(parent), leaf, without_node(stage, 2))
    reference = copy.deepcopy(model)
    parent, _, leaf = block.rpartition('.')
    setattr(reference.get_submodule(parent), leaf, nn.Identity())
    x = images()
    assert torch.allclose(graph(x), reference(x), rtol=1e-9)
    back = timm_topo.unwire(graph)
    assert torch.equal(back(x), reference(x))
    assert isinstance(back.get_submodule(block), nn.Identity)


def test_pruned_and_saved(tmp_path, randomise):
    model = plain('resnet_cifar20', randomise).eval().float()
    graph = timm_topo.rewire(model, nodes='block')
    smaller, _ = prune(graph, threshold=0.0)
    edges = [stage.wiring.num_edges for stage in graph_stages(smaller).values()]
    assert edges == [stage.wiring.num_nodes - 1 for stage in graph_stages(graph).values()]
    name, stage = next(iter(graph_stages(smaller).items()))
    parent, _, leaf = name.rpartition('.')
    setattr(smaller.get_submodule(parent), leaf, without_node(stage, 1))
    timm_topo.save(smaller, tmp_path / 'saved')
    x = images().float()
    assert torch.equal(timm_topo.load(tmp_path / 'saved').eval()(x), smaller(x))


def test_way_around_a_node_weighs_the_product():
    """Against the equation, with the operation of node 2 taken for the identity."""
    wiring = Wiring.from_edges([(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4)])
    rule = build_connectivity('alpha', wiring).to(DOUBLE)
    nn.init.uniform_(rule.alpha, -1, 1)
    nodes = [nn.Conv2d(4, 4, 3, padding=1).to(DOUBLE) for _ in range(3)]
    stage = GraphStage(wiring, rule, nn.Identity(), nodes, whole_blocks=True)
    x = torch.randn(2, 4, 5, 5, dtype=DOUBLE)
    alone = copy.deepcopy(stage)
    alone.nodes[1] = nn.Identity()
    smaller = without_node(stage, 2)
    assert smaller.node_ids == [0, 1, 3, 4]
    assert torch.allclose(smaller(x), alone(x), rtol=1e-12)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(nodes='blocks'), r"unknown nodes 'blocks'; known: branch, block"),
        (dict(nodes='block', projection=True), 'keep their own shortcuts'),
        (dict(nodes='block', projected_entry=True, exact=False), 'keep their own shortcuts'),
        (dict(nodes='block', connectivity='alpha'), 'edge weights other than those of shortcuts'),
    ],
)
def test_what_blocks_do_not_take(options, message):
    with pytest.raises(ValueError, match=message):
        timm_topo.rewire(timm.create_model('resnet_cifar20'), **options)


def test_what_cannot_go(randomise):
    graph = timm_topo.rewire(plain('resnet_cifar20', randomise), nodes='block')
    stage = next(iter(graph_stages(graph).values()))
    for node in (0, stage.wiring.num_nodes - 1):
        with pytest.raises(ValueError, match='computing nodes 1 to'):
            without_node(stage, node)
    with pytest.warns(UserWarning, match='another function'):
        routed = timm_topo.rewire(
            plain('resnet_cifar20', randomise), 'router', nodes='block', exact=False
        )
    with pytest.raises(ValueError, match='depend on the image'):
        without_node(next(iter(graph_stages(routed).values())), 1)


def test_a_part_of_a_block_has_no_plain_network(randomise):
    graph = timm_topo.rewire(plain('resnetv2_cifar20', randomise).eval())
    name, stage = list(graph_stages(graph).items())[1]
    parent, _, leaf = name.rpartition('.')
    setattr(graph.get_submodule(parent), leaf, without_node(stage, 1))  # of the block that resizes
    with pytest.raises(ValueError, match='no plain network has a part of'):
        timm_topo.unwire(graph)
