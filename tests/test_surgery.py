"""Whatever is cut out of whichever network, what is left computes what the masked network does."""

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import timm_topo
from timm_topo.analysis.cost import input_size_of
from timm_topo.analysis.export import export_onnx
from timm_topo.analysis.prune import (
    DisconnectedError,
    edge_mask,
    mask_edges,
    prune,
    retrainable,
)
from timm_topo.stages import Offset, graph_stages

EXACT = {'rtol': 0, 'atol': 1e-9}


def rewired(base: str, rule='alpha', **options) -> nn.Module:
    plain = timm.create_model(base, num_classes=5, **options)
    return timm_topo.rewire(plain, rule, exact=False)


NETWORKS = {
    'toponet': lambda: timm.create_model('test_toponet', num_classes=5),
    'conv nodes': lambda: timm.create_model('test_toponet', num_classes=5, node='conv'),
    'tanh': lambda: timm.create_model('test_toponet', num_classes=5, connectivity='tanh'),
    'masks': lambda: timm.create_model(
        'test_toponet', num_classes=5, connectivity={'name': 'mask', 'fan_in': 2}
    ),
    'routers': lambda: timm.create_model('test_toponet', num_classes=5, connectivity='router'),
    'whole network': lambda: timm.create_model('test_dagnet', num_classes=5),
    'randwire': lambda: timm.create_model('test_randwire', num_classes=5),
    'blocks of masks': lambda: timm.create_model('test_maskconnect_resnet', num_classes=5),
    'rewired mobilenet': lambda: rewired('mobilenetv2_035'),
    'rewired convnext': lambda: rewired('test_convnext'),
    'rewired resnet': lambda: rewired('test_resnet'),
    'rewired resnetv2': lambda: rewired('resnetv2_cifar20'),
}
SIZE = (3, 32, 32)


@pytest.fixture(scope='module')
def network(randomise):
    """Function that makes a network by its name above, weights far from their initial values."""
    made = {}

    def network(name: str) -> nn.Module:
        if name not in made:
            torch.manual_seed(1)
            model = randomise(NETWORKS[name]())
            with torch.no_grad():
                for own_name, parameter in model.named_parameters():
                    if own_name.endswith('.mask'):
                        parameter.uniform_(0, 1)
                    elif parameter.abs().max() < 1e-3 and not own_name.endswith('.tau'):
                        parameter.normal_(0, 0.3)  # last layers of residual branches
            made[name] = model.double().eval()
        return copy.deepcopy(made[name])

    return network


def images(size=SIZE) -> Tensor:
    return torch.randn(2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def masked_outputs(model: nn.Module, keep: dict[str, Tensor], x: Tensor) -> Tensor:
    with mask_edges(model, keep):
        return model(x)


def at_random(model: nn.Module, seed: int, share: float) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(stage.wiring.num_edges, generator=draw) > share
        for name, stage in graph_stages(model).items()
    }


def starving(model: nn.Module) -> dict[str, Tensor]:
    """In every stage one node, if one can be spared, loses its in-edges and is read on."""
    keep = {}
    for name, stage in graph_stages(model).items():
        wiring = stage.wiring
        keep[name] = torch.ones(wiring.num_edges, dtype=torch.bool)
        for node in range(1, wiring.num_nodes - 1):
            fed = torch.tensor([target != node for _, target in wiring.edges])
            left = wiring.subgraph(e for e, stays in zip(wiring.edges, fed) if stays)
            if 0 not in left.dead_nodes():
                keep[name] = fed
                break
    assert any(not mask.all() for mask in keep.values())
    return keep


# -- threshold, fraction, any edges at all --------------------------------------------------------


@pytest.mark.parametrize('name', NETWORKS)
@settings(max_examples=8)
@given(seed=st.integers(0, 999), share=st.floats(0.1, 0.7))
def test_any_edges_may_go(name, seed, share, network):
    model = network(name)
    keep = at_random(model, seed, share)
    try:
        pruned, report = prune(model, keep=keep, probe=images())
    except DisconnectedError:
        return
    assert report.exact
    torch.testing.assert_close(pruned(images()), masked_outputs(model, keep, images()), **EXACT)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_node_that_nobody_feeds_may_go(name, network):
    model = network(name)
    keep = starving(model)
    pruned, report = prune(model, keep=keep, probe=images())
    assert report.exact
    assert any(stage.folded for stage in report.stages)
    assert any(isinstance(module, Offset) for module in pruned.modules())
    torch.testing.assert_close(pruned(images()), masked_outputs(model, keep, images()), **EXACT)


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('how', ['threshold', 'fraction'])
def test_threshold_and_fraction_take_the_edges_they_name(name, how, network):
    model = network(name)
    for amount in (0.6, 0.4, 0.2, 0.1, 0.05, 0.02):  # the most that cuts no stage in two
        keep = edge_mask(model, **{how: amount}, images=images())
        try:
            pruned, report = prune(model, **{how: amount}, probe=images(), images=images())
        except DisconnectedError:
            continue
        break
    assert report.exact
    torch.testing.assert_close(pruned(images()), masked_outputs(model, keep, images()), **EXACT)


@pytest.mark.parametrize('name', NETWORKS)
def test_without_folding_starved_nodes_make_a_difference(name, network):
    model = network(name)
    keep = starving(model)
    pruned, report = prune(model, keep=keep, probe=images(), fold=False)
    difference = (pruned(images()) - masked_outputs(model, keep, images())).abs().max().item()
    assert difference > 1e-6
    assert report.difference == pytest.approx(difference)
    assert not report.exact
    assert not any(isinstance(module, Offset) for module in pruned.modules())


# -- branches -------------------------------------------------------------------------------------


def branches(randomise, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = randomise(timm.create_model('test_maskconnect_resnext', num_classes=5)).double().eval()
    with torch.no_grad():
        model.dag.connectivity.mask.uniform_(0, 1)
    return model


@pytest.mark.parametrize('seed', range(3))
def test_branches_that_nobody_reads_go(seed, randomise):
    model = branches(randomise, seed)
    keep = edge_mask(model, threshold=0)
    pruned, report = prune(model, threshold=0, probe=images())
    assert report.exact
    torch.testing.assert_close(pruned(images()), masked_outputs(model, keep, images()), **EXACT)


def test_starved_branches_are_reported(randomise):
    """What they emit changes with how many branches a reader averages: nothing stands for it."""
    model = branches(randomise)
    weights = model.dag.connectivity.edge_weights()
    wiring = model.dag.wiring
    target = next(t for (s, t), w in zip(wiring.edges, weights) if w and s in (1, 2, 3, 4))
    keep = {
        'dag': torch.tensor([w != 0 and t != target for (_, t), w in zip(wiring.edges, weights)])
    }
    read = any(keep['dag'][e] for e, (s, _) in enumerate(wiring.edges) if s == target)
    pruned, report = prune(model, keep=keep, probe=images())
    assert read
    assert target in report.stages[0].starved
    assert not report.exact
    difference = (pruned(images()) - masked_outputs(model, keep, images())).abs().max().item()
    assert report.difference == pytest.approx(difference)


# -- closed routers -------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(12))
def test_nodes_that_closed_routers_never_run_go(seed, network):
    """With a threshold, a node without open in-edges is not computed: there is nothing to fold."""
    model = network('routers')
    for stage in graph_stages(model).values():
        with torch.no_grad():
            stage.connectivity.tau.uniform_(0.05, 0.6)
    keep = at_random(model, seed, 0.3)
    for name, stage in graph_stages(model).items():  # the last edge of the output stays
        keep[name][-1] = keep[name][0] = True
        keep[name][stage.wiring.edges.index((0, stage.wiring.num_nodes - 1))] = True
    pruned, report = prune(model, keep=keep, probe=images())
    assert report.exact
    assert not any(isinstance(module, Offset) for module in pruned.modules())
    torch.testing.assert_close(pruned(images()), masked_outputs(model, keep, images()), **EXACT)


# -- afterwards -----------------------------------------------------------------------------------


def starved(model: nn.Module) -> nn.Module:
    """Pruned so that constants stand for nodes."""
    return prune(model, keep=starving(model), probe=images())[0]


@pytest.mark.parametrize('name', ['toponet', 'whole network', 'rewired mobilenet'])
def test_constants_are_saved_and_read_by_timm_alone(name, network, tmp_path):
    model = starved(network(name)).float()
    timm_topo.save(model, tmp_path / 'net')
    x = images().float()
    for again in (
        timm_topo.load(tmp_path / 'net').eval(),
        timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval(),
    ):
        assert any(isinstance(module, Offset) for module in again.modules())
        torch.testing.assert_close(again(x), model(x))
    fresh = timm_topo.load(tmp_path / 'net', pretrained=False)
    assert not any(isinstance(module, Offset) for module in fresh.modules())


def test_weights_without_the_constants_are_refused(network):
    model = starved(network('toponet'))
    state = {name: v for name, v in model.state_dict().items() if 'offset' not in name}
    with pytest.raises(RuntimeError, match=r'Missing key.*offset'):
        model.load_state_dict(state)


@pytest.mark.parametrize('name', ['offsets.99.value', 'offsets.x.value', 'offset.value'])
def test_constants_of_nodes_that_are_not_there_are_refused(name, network):
    model = network('toponet')
    state = {**model.state_dict(), f'stages.0.{name}': torch.zeros(24, 1, 1)}
    with pytest.raises(RuntimeError, match=f'Unexpected key.*{name}'):
        model.load_state_dict(state)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_with_constants_trains(name, network):
    model = starved(network(name)).train()
    before = {n: b.clone() for n, b in model.named_buffers() if 'offset' in n}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(images()).logsumexp(1).mean().backward()
    optimizer.step()
    assert before
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers() if n in before)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_checkpointing_and_channels_last_see_the_constants(network):
    model = starved(network('toponet'))
    expected = model(images())
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x), expected, **EXACT)
    for name in ('toponet', 'whole network'):
        model = starved(network(name)).train()
        grads = []
        for enable in (False, True):
            one = copy.deepcopy(model)
            one.set_grad_checkpointing(enable)
            one(images()).logsumexp(1).mean().backward()
            grads.append([p.grad for p in one.parameters() if p.grad is not None])
        for plain, recomputed in zip(*grads, strict=True):
            torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize('name', ['toponet', 'whole network', 'rewired mobilenet'])
def test_a_network_with_constants_is_exported(name, network, tmp_path):
    model = starved(network(name)).float()
    x = images().float()
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
    if name == 'toponet':
        export_onnx(model, tmp_path / 'net.onnx', SIZE)


def test_from_scratch_there_are_no_constants(network):
    model = starved(network('toponet'))
    assert any(isinstance(module, Offset) for module in model.modules())
    for alpha in ('reset', 'keep', 'frozen'):
        fresh = retrainable(model, alpha)
        assert not any(isinstance(module, Offset) for module in fresh.modules())


def test_the_input_of_the_network_is_the_probe_by_default(network):
    model = network('toponet')
    keep = starving(model)
    x = images(input_size_of(model))
    pruned, report = prune(model, keep=keep)
    assert report.exact
    torch.testing.assert_close(pruned(x), masked_outputs(model, keep, x), **EXACT)
