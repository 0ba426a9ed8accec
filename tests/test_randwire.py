"""RandWire's small regime: printed multiply-adds, the equation, who reads the stage input."""

import networkx as nx
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.models import group_parameters
from torch import Tensor, nn

import timm_topo
from timm_topo.analysis.cost import count_flops
from timm_topo.analysis.prune import prune
from timm_topo.generators import barabasi_albert, complete, erdos_renyi, sequential, watts_strogatz
from timm_topo.models import RandWire
from timm_topo.wiring import Wiring

#: The input feeds the output.
DIRECT = Wiring(3, ((0, 1), (0, 2), (1, 2)))
SMALL = dict(num_nodes=9, channels=4, features=6, num_classes=3)


def small(**options) -> RandWire:
    return timm.create_model('test_randwire', **{**SMALL, **options})


# -- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'wiring', 'printed'),
    [
        ('randwire_ba_small', None, 582),
        ('randwire_ws_small', None, 572),
        ('dgnet_randwire_small', None, 611),
        ('randwire_complete_small', None, 611),
        ('randwire_er_small', None, 582),  # usual
        ('randwire_er_small', {'name': 'erdos_renyi', 'seed': 305}, 602),
    ],
)
def test_multiply_adds_are_those_of_table_4(name, wiring, printed):
    """Convolutions alone, cut off as DG-Net's other counts are."""
    model = timm.create_model(name, **({'wiring': wiring} if wiring else {}))
    assert int(count_flops(model).conv / 1e6) == printed


def test_305_is_the_first_seed_with_one_source_node():
    sources = [len(erdos_renyi(34, 0.2, seed).succs(0)) for seed in range(306)]
    assert sources.index(1) == 305
    assert max(set(sources), key=sources.count) == 5  # the usual number


@pytest.mark.parametrize(
    ('name', 'edges'),
    [
        ('randwire_er_small', erdos_renyi(34, 0.2, 1).edges),
        ('randwire_ba_small', barabasi_albert(34, 5, 1).edges),
        ('randwire_ws_small', watts_strogatz(34, 4, 0.75, 1).edges),
    ],
)
def test_all_stages_have_the_same_graph(name, edges):
    model = timm.create_model(name, device='meta')
    assert [stage.wiring.edges for stage in model.stages] == [edges] * 3


def test_a_ba_graph_starts_from_isolated_nodes_not_from_a_star():
    """What networkx starts from since 2.6 has one source node and makes 602 M."""
    m, n = 5, 32
    star = nx.barabasi_albert_graph(n, m, seed=1)
    sources = [v for v in star if not any(u < v for u in star[v])]
    assert len(sources) == 1
    wiring = timm.create_model('randwire_ba_small', device='meta').stages[0].wiring
    assert wiring.succs(0) == tuple(range(1, m + 1))
    assert wiring.num_edges - m - len(wiring.preds(33)) == m * (n - m)


# -- the equation ---------------------------------------------------------------------------------


def node(module: nn.Module, x: Tensor, stride: int) -> Tensor:
    """BN(PW(DW3x3(ReLU(x)))) with functions alone."""
    x = F.conv2d(F.relu(x), module.conv_dw.weight, stride=stride, padding=1, groups=x.shape[1])
    bn = module.bn
    x = F.conv2d(x, module.conv_pw.weight)
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


def naive(model: RandWire, x: Tensor) -> list[Tensor]:
    """Stem and stage outputs, from the spec."""
    x = model.stem[2](F.relu(model.stem[0](x)))
    features = [x]
    for stage in model.stages:
        wiring = stage.wiring
        logits = iter(stage.connectivity.alpha)
        maps = {}
        for j in range(1, wiring.num_nodes - 1):
            sources = wiring.preds(j)
            if sources == (0,):
                maps[j] = node(stage.nodes[j - 1], x, 2)
                continue
            weights = [torch.sigmoid(next(logits)) if len(sources) > 1 else 1 for _ in sources]
            total = sum(w * maps[s] for w, s in zip(weights, sources))
            maps[j] = node(stage.nodes[j - 1], total, 1)
        assert next(logits, None) is None
        last = [maps[j] for j in wiring.preds(wiring.num_nodes - 1)]
        x = sum(last) / len(last)
        features.append(x)
    return features


@given(
    rule=st.sampled_from(['erdos_renyi', 'barabasi_albert', 'watts_strogatz']),
    nodes=st.integers(7, 12), seed=st.integers(0, 999),
)  # fmt: skip
def test_a_network_computes_the_equation(rule, nodes, seed, randomise):
    options = {'barabasi_albert': {'m': 2}, 'watts_strogatz': {'k': 2}}.get(rule, {'p': 0.4})
    wiring = {'name': rule, 'seed': seed, **options}
    model = randomise(small(num_nodes=nodes, wiring=wiring)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = naive(model, x)
        for got, one in zip(model.forward_intermediates(x)[1], expected, strict=True):
            assert torch.allclose(got, one, rtol=1e-6, atol=1e-6)  # means in float32
        features = F.relu(model.final[0](F.relu(expected[-1])))
        assert torch.allclose(model.forward_features(x), features, rtol=1e-6, atol=1e-6)


def test_the_complete_graph_follows_the_common_rule(randomise, naive_stage):
    """Node 1 reads the stage input, all others what the projection makes of it as well."""
    model = randomise(small(wiring='complete', projection=True)).eval()
    x = model.stem(torch.randn(2, 3, 32, 32))
    for stage in model.stages:
        assert stage.wiring == complete(9)
        assert stage.first_reads_input
        with torch.no_grad():
            expected = naive_stage(stage, x)
            got = stage(x)
        assert torch.allclose(got, expected, atol=1e-4)
        x = got


def test_routers_have_their_complete_graph():
    model = small(wiring='complete', projection=True, connectivity='router')
    matrices = timm_topo.adjacency(model, torch.randn(2, 3, 32, 32))
    assert [m.shape for m in matrices.values()] == [(2, 9, 9)] * 3


# -- surgery, features, errors --------------------------------------------------------------------


@pytest.mark.parametrize('options', [{}, dict(wiring='complete', projection=True)])
@pytest.mark.parametrize('fraction', [0.2, 0.5])
def test_pruned_networks_compute_the_same_and_come_back(options, fraction, randomise, tmp_path):
    model = randomise(small(**options)).eval()
    keep = {}
    for name, stage in (('stages.0', 0), ('stages.1', 1), ('stages.2', 2)):
        wiring = model.stages[stage].wiring
        kept = torch.rand(wiring.num_edges) > fraction
        for start, stop in wiring.in_edges[1:]:  # every node keeps a source: nothing is starved
            kept[start] |= not kept[start:stop].any()
        keep[name] = kept
    smaller, report = prune(model, keep=keep)
    assert report.exact
    assert report.difference <= 1e-5 * max(1, report.scale)
    again = timm_topo.load(timm_topo.save(smaller, tmp_path / 'saved')).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), smaller.eval()(x))


def test_features_have_the_strides_of_the_paper():
    model = timm.create_model('test_randwire', features_only=True)
    maps = model(torch.randn(1, 3, 64, 64))
    assert [x.shape[1:] for x in maps] == [(8, 16, 16), (8, 8, 8), (16, 4, 4), (32, 2, 2)]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


def test_the_last_convolution_goes_with_the_head():
    model = timm.create_model('test_randwire')
    x = torch.randn(2, 3, 64, 64)
    assert model.forward_features(x).shape == (2, 32, 2, 2)
    assert model.num_features == 32
    model.prune_intermediate_layers([1, 3])
    assert not list(model.final.parameters())
    model.prune_intermediate_layers([2])
    assert model.forward_features(x).shape == (2, 16, 4, 4)
    assert model.num_features == 16


@pytest.mark.parametrize('name', ['test_randwire', 'test_toponet', 'test_maskconnect_resnext'])
def test_features_stop_early(name):
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, 64, 64)
    everything = model.forward_intermediates(x, intermediates_only=True)
    for level, one in enumerate(everything):
        last, (taken,) = model.forward_intermediates(x, [level], stop_early=True)
        assert torch.equal(taken, one)
        assert last.shape[2:] == one.shape[2:]
    assert torch.equal(last, model.forward_features(x))


@pytest.mark.parametrize('coarse', [False, True])
def test_every_parameter_is_in_a_layer_group(coarse):
    model = timm.create_model('test_randwire')
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    grouped = sorted(parameter for group in groups.values() for parameter in group)
    assert grouped == sorted(n for n, _ in model.named_parameters())


@pytest.mark.parametrize(
    ('options', 'error', 'told'),
    [
        (dict(wiring='complete'), ValueError, 'reads the stage input beside other nodes'),
        (dict(wiring=DIRECT, num_nodes=3), ValueError, 'takes projection=True'),
        (dict(connectivity='router'), ValueError, 'only with projection=True'),
        (dict(wiring='ring'), ValueError, "unknown wiring 'ring'"),
        (dict(channels=0), ValueError, 'channels must be an integer from 1 on, got 0'),
        (dict(projection='no'), TypeError, "projection must be True or False, got 'no'"),
        (dict(node_ids=[[0, 8]] * 3), ValueError, r'needs as many node_ids, got \[0, 8\]'),
        (dict(features='a'), ValueError, "features must be an integer from 1 on, got 'a'"),
        (dict(sparsity='l2'), ValueError, "unknown sparsity 'l2'"),
    ],
)
def test_bad_options(options, error, told):
    with pytest.raises(error, match=told):
        small(**options)


def test_a_chain_is_a_wiring_too():
    assert small(wiring=sequential(4), num_nodes=4)(torch.randn(2, 3, 32, 32)).shape == (2, 3)
