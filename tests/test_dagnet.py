"""One graph over several resolutions: counts, the equation, transitions, surgery, features."""

import copy
import math

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
from timm_topo.analysis.cost import count_flops, count_parameters
from timm_topo.analysis.metrics import stage_sizes
from timm_topo.analysis.prune import DisconnectedError, edge_weights, prune, retrainable
from timm_topo.connectivity import build_connectivity
from timm_topo.executors import adjacency
from timm_topo.generators import complete, erdos_renyi, random
from timm_topo.models import DagNet
from timm_topo.nodes import ConvNorm, ConvResidualNode
from timm_topo.sparsity import sparsity_loss
from timm_topo.stages import CrossStageGraph, graph_stages, jumps, select_edges, until_node
from timm_topo.wiring import Wiring


def dag(**options) -> DagNet:
    sizes = dict(num_nodes=9, num_stages=3, channels=2)
    return timm.create_model('dagnet', **{**sizes, **options})


# -- counts ---------------------------------------------------------------------------------------


def test_dagnet60_has_the_parameters_of_the_paper_part_by_part():
    model = timm.create_model('dagnet60', device='meta')
    graph = model.dag
    assert count_parameters(graph.entry) == 374
    nodes = count_parameters(graph.nodes) + count_parameters(model.output)
    assert nodes + count_parameters(graph.connectivity) == 514_875
    assert count_parameters(graph.connectivity) == 1769
    assert count_parameters(graph.transitions) == 347_600
    assert len(graph.transitions) == 60
    assert count_parameters(model.head) == 450
    assert count_parameters(model) == 863_299
    assert f'{count_parameters(model) / 1e3:.1f}k' == '863.3k'  # as printed, Table 1


def test_dagnet60_runs_its_stages_at_32_16_and_8_pixels():
    model = timm.create_model('dagnet60').eval()
    maps = timm.create_model('dagnet60', features_only=True)(torch.randn(1, 3, 32, 32))
    assert [tuple(x.shape[1:]) for x in maps] == [(11, 32, 32), (22, 16, 16), (44, 8, 8)]
    assert model.dag.levels == [0] * 20 + [1] * 20 + [2] * 20


@given(
    per_stage=st.integers(1, 4), stages=st.integers(1, 4), channels=st.integers(1, 5),
    weigh_sole=st.booleans(),
)  # fmt: skip
def test_parameters_follow_the_formula(per_stage, stages, channels, weigh_sole):
    """Blocks by their shapes, one transition per node and later stage, scalars per edge."""
    n = per_stage * stages
    if n < 2:
        return
    rule = {'name': 'tanh', 'weigh_sole': weigh_sole}
    model = DagNet(n, stages, channels, connectivity=rule, device='meta')
    width = [channels * 2 ** (i // per_stage) for i in range(n)]

    def block(inputs, outputs):
        return inputs * outputs * (9 + 1) + 4 * outputs

    expected = block(3, channels) + sum(block(w, w) for w in width[1:])
    for source in range(n - 1):
        for stage in range(source // per_stage + 1, stages):
            expected += block(width[source], channels * 2**stage)
    expected += n * (n - 1) // 2 - (not weigh_sole)  # only node 1 has a sole in-edge
    assert count_parameters(model) == expected + 10 * width[-1] + 10


def test_flops_of_sums_count_every_edge_at_the_resolution_where_it_ends():
    model = dag(num_nodes=6, channels=2)
    pixels = {0: 2 * 32 * 32, 1: 4 * 16 * 16, 2: 8 * 8 * 8}
    edges = sum(pixels[t // 2] for t in range(6) for _ in range(t))
    assert count_flops(model).edges == edges


# -- the equation ---------------------------------------------------------------------------------


def block(module: ConvResidualNode, x: Tensor) -> Tensor:
    """The node from the spec, with functions alone."""
    stride = module.conv.stride
    left = F.conv2d(F.relu(x), module.conv.weight, stride=stride, padding=1)
    right = F.conv2d(x, module.residual.conv.weight, stride=stride)
    return norm(module.bn, left) + norm(module.residual.bn, right)


def norm(bn: nn.Module, x: Tensor) -> Tensor:
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


def naive(model: DagNet, x: Tensor) -> dict[int, Tensor]:
    """Maps of all nodes, edge by edge, from the spec; a transition is computed for every edge."""
    graph, maps = model.dag, {0: block(model.dag.entry, x)}
    weights = dict(zip(graph.wiring.edges, graph.connectivity.edge_weights()))
    pairs = jumps(graph.wiring, graph.levels)
    for node in range(1, graph.wiring.num_nodes):
        total = 0
        for source in graph.wiring.preds(node):
            read = maps[source]
            if graph.levels[node] > graph.levels[source]:
                at = pairs.index((source, graph.levels[node]))
                read = block(graph.transitions[at], read)
            total = total + weights[source, node] * read
        module = model.output if node == graph.wiring.num_nodes - 1 else graph.nodes[node - 1]
        maps[node] = block(module, total)
    return maps


@given(
    n=st.sampled_from([6, 9, 12]), p=st.floats(0, 1), seed=st.integers(0, 999),
    rule=st.sampled_from(['tanh', 'alpha', 'sigmoid', {'name': 'tanh', 'weigh_sole': False}]),
)  # fmt: skip
def test_a_network_computes_the_equation_on_any_wiring(n, p, seed, rule, randomise):
    wiring = random(n, p, seed)
    wiring = wiring if not wiring.dead_nodes() else complete(n)
    model = randomise(dag(num_nodes=n, wiring=wiring, connectivity=rule)).double().eval()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = naive(model, x)
        assert torch.allclose(model.forward_features(x), expected[n - 1], rtol=1e-9, atol=1e-9)
        levels = model.forward_intermediates(x, intermediates_only=True)
    ends = [n // 3 - 1, 2 * n // 3 - 1, n - 1]
    for got, node in zip(levels, ends):
        assert torch.allclose(got, expected[node], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('size', [(32, 32), (33, 31), (17, 40), (5, 5)])
def test_odd_sizes_meet_whatever_way_they_are_reduced(size):
    """2 -> 1 -> 0.5 and 2 -> 0.5 at once give maps of one size."""
    out = dag(num_nodes=8, num_stages=4).forward_features(torch.randn(2, 3, *size))
    assert tuple(out.shape[2:]) == tuple(math.ceil(side / 8) for side in size)


def test_a_transition_runs_once_however_many_edges_pass_it():
    model, calls = dag(), []
    for k, transition in enumerate(model.dag.transitions):
        transition.register_forward_hook(lambda *_, k=k: calls.append(k))
    model(torch.randn(1, 3, 16, 16).repeat(2, 1, 1, 1))
    assert sorted(calls) == list(range(len(model.dag.transitions)))
    assert len(calls) == 3 * 2 + 3  # from stage 0 to 1 and 2, from 1 to 2


def test_a_random_graph_of_randwire_runs():
    model = dag(num_nodes=12, wiring={'name': 'watts_strogatz', 'k': 4, 'p': 0.5, 'seed': 3})
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_gradients_reach_every_parameter_and_checkpointing_changes_none():
    model = dag().double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    gradients = []
    for checkpointing in (False, True):
        twin = copy.deepcopy(model)
        twin.set_grad_checkpointing(checkpointing)
        twin(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in twin.parameters()])
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients[0])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients))


def test_checkpointing_keeps_what_nodes_read_and_not_what_is_inside():
    """Bytes that autograd saves; the graph as a whole, computed anew at once, would save less and
    then need all of it."""
    model = dag(num_nodes=12, channels=8)
    x = torch.randn(4, 3, 32, 32)
    saved = {}
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        held = {}

        def pack(tensor, held=held):
            held[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(x).sum()
        saved[checkpointing] = sum(held.values())
        inner = []
        for module in (*model.dag.nodes, *model.dag.transitions):
            module.register_forward_pre_hook(lambda *_, inner=inner: inner.append(1))
        output.backward()
        once = len(model.dag.nodes) + len(model.dag.transitions)
        assert len(inner) == (once if checkpointing else 0)
    assert saved[True] < 0.5 * saved[False]


@pytest.mark.parametrize('node', ['sepconv', 'conv', 'conv_residual'])
def test_any_kind_of_node_makes_a_network(node, tmp_path, randomise):
    model = randomise(dag(node=node)).eval()
    x = torch.randn(2, 3, 32, 32)
    assert model(x).shape == (2, 10)
    timm_topo.save(prune(model, fraction=0.3)[0], tmp_path / 'net')
    assert timm_topo.load(tmp_path / 'net')(x).shape == (2, 10)


def test_a_network_can_be_traced_and_exported(randomise):
    model = randomise(dag()).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    traced = torch.jit.trace(model, x)
    exported = torch.export.export(model, (x,)).module()
    for form in (traced, exported):
        assert torch.allclose(form(x), expected, atol=1e-5)


# -- weights --------------------------------------------------------------------------------------


def test_edges_start_at_a_half_and_a_sole_in_edge_carries_one():
    model = timm.create_model('dagnet60', device='cpu')
    weights = edge_weights(model)['dag']
    assert weights[0] == 1
    assert torch.allclose(weights[1:], torch.tensor(0.5))
    assert torch.allclose(model.dag.connectivity.alpha, torch.tensor(math.atanh(0.5)))


def test_the_penalty_is_the_sum_of_absolute_tanhs(randomise):
    model = randomise(dag())
    assert (model.sparsity, model.sparsity_weight) == ('uniform', 1e-3)
    alpha = model.dag.connectivity.alpha
    loss = sparsity_loss(model)
    assert loss.item() == pytest.approx(alpha.tanh().abs().sum().item() + 1, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, alpha)
    assert torch.allclose(gradient, alpha.sign() * (1 - alpha.tanh() ** 2), atol=1e-6)


def test_edge_weights_are_not_decayed():
    assert dag().no_weight_decay() == {'dag.connectivity.alpha'}


def test_adjacency_of_the_whole_network(randomise):
    model = randomise(dag())
    (matrix,) = adjacency(model, torch.randn(1, 3, 16, 16)).values()
    weights = edge_weights(model)['dag']
    for (source, target), weight in zip(model.dag.wiring.edges, weights):
        assert matrix[0, target, source] == weight
    assert matrix[0].triu().count_nonzero() == 0


# -- pruning --------------------------------------------------------------------------------------


def weaken(model: DagNet, keep: set, value: float = 0.001) -> DagNet:
    """Give the edges that are not in ``keep`` a weak weight."""
    rule = model.dag.connectivity
    edges = [edge for edge in model.dag.wiring.edges if edge[1] > 1]  # the first is not weighed
    with torch.no_grad():
        for place, edge in enumerate(edges):
            if edge not in keep:
                rule.alpha[place] = value
    return model


def test_pruning_drops_what_networkx_calls_dead_and_the_transitions_with_it(randomise):
    keep = {(0, 1), (1, 2), (2, 3), (0, 4), (3, 8), (4, 8), (3, 5), (6, 7)}  # 5, 6, 7 are dead
    model = weaken(randomise(dag()), keep, 0.0)
    smaller, report = prune(model, threshold=0.0)
    graph = nx.DiGraph(e for e in keep if e != (0, 1))
    graph.add_edge(0, 1)
    alive = nx.descendants(graph, 0) & nx.ancestors(graph, 8) | {0, 8}
    assert smaller.dag.node_ids == sorted(alive) == [0, 1, 2, 3, 4, 8]
    assert smaller.dag.levels == [0, 0, 0, 1, 1, 2]
    assert len(smaller.dag.transitions) == 4  # 2 -> 1, 0 -> 1, 3 -> 2, 4 -> 2
    assert report.stages[0].starved == ()  # 6 feeds 7, but nobody reads 7
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(smaller.eval()(x), model.eval()(x), atol=1e-5)
    assert report.exact
    assert report.difference < 1e-4


@given(p=st.floats(0, 0.9), seed=st.integers(0, 999))
def test_a_pruned_network_equals_the_masked_one(p, seed, randomise):
    torch.manual_seed(seed)
    model = randomise(dag()).double().eval()
    try:
        x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        smaller, report = prune(model, fraction=p, probe=x)
    except DisconnectedError:
        return
    masked = copy.deepcopy(model)
    weights = edge_weights(model)['dag']
    cutoff = -1 if report.cutoff is None else report.cutoff
    masked.dag.connectivity = build_connectivity(
        {'name': 'fixed', 'values': torch.where(weights.abs() > cutoff, weights, 0)},
        model.dag.wiring,
    )
    assert report.exact
    assert (smaller(x) - masked(x)).abs().max() < 1e-9


def test_a_starved_node_is_named_and_its_constant_is_in_the_report(randomise):
    """Node 4 hears nothing, but node 8 reads it: its norms make a constant of zeros."""
    keep = {(0, 2), (1, 2), (2, 8), (4, 8)}
    model = weaken(randomise(dag()), keep).double().eval()
    probe = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    smaller, report = prune(model, threshold=0.01, probe=probe, fold=False)
    assert report.stages[0].starved == (4,)
    assert not report.exact
    masked = weaken(copy.deepcopy(model), keep, 0.0)
    with torch.no_grad():
        difference = (smaller(probe) - masked(probe)).abs().max().item()
    assert difference == pytest.approx(report.difference)
    assert report.difference > 1e-6


def test_edges_that_stay_keep_their_weight_when_they_become_the_only_one(randomise):
    model = weaken(randomise(dag()), {(1, 2), (2, 8)}).eval()
    smaller, _ = prune(model, threshold=0.01)
    rule = smaller.dag.connectivity
    assert rule.alpha.numel() == 0
    assert not rule.alpha.requires_grad
    before = dict(zip(model.dag.wiring.edges, edge_weights(model)['dag']))
    expected = torch.stack([before[edge] for edge in [(0, 1), (1, 2), (2, 8)]])
    assert torch.equal(edge_weights(smaller)['dag'], expected)
    assert edge_weights(retrainable(smaller))['dag'].tolist() == [1, 1, 1]
    assert torch.equal(edge_weights(retrainable(smaller, 'keep'))['dag'], expected)


def test_a_threshold_that_cuts_input_from_output_is_an_error(randomise):
    model = weaken(randomise(dag()), set())
    with pytest.raises(DisconnectedError, match='no path from its input to its output'):
        prune(model, threshold=0.01)


def test_a_pruned_network_is_saved_and_loaded_trained_and_pruned_again(tmp_path, randomise):
    model = randomise(dag()).eval()
    smaller, _ = prune(model, fraction=0.6)
    timm_topo.save(smaller, tmp_path / 'pruned')
    loaded = timm_topo.load(tmp_path / 'pruned').eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), smaller.eval()(x))
    assert loaded.dag.node_ids == smaller.dag.node_ids
    assert loaded.dag.levels == smaller.dag.levels
    assert loaded.feature_info == smaller.feature_info
    loaded.train()(x).sum().backward()
    again, report = prune(loaded, fraction=0.1)
    assert report.edges[1] < smaller.dag.wiring.num_edges
    assert again.dag.node_ids[-1] == 8
    wide = timm_topo.load(tmp_path / 'pruned', pretrained=False, channels=5)
    assert wide.dag.wiring == smaller.dag.wiring
    assert wide.num_features == 5 * 4


# -- features -------------------------------------------------------------------------------------


def test_cutting_at_a_feature_keeps_it_and_drops_what_it_does_not_read(randomise):
    model = randomise(dag()).eval()
    x = torch.randn(2, 3, 16, 16)
    whole = model.forward_intermediates(x, intermediates_only=True)
    for last in (0, 1, 2):
        part = copy.deepcopy(model)
        assert part.prune_intermediate_layers(list(range(last + 1))) == list(range(last + 1))
        got = part.forward_intermediates(x, intermediates_only=True)
        assert len(got) == last + 1
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, whole))
        assert part.dag.wiring.num_nodes == 3 * (last + 1)
        assert part.num_features == 2 * 2**last
        assert part(x).shape == (2, part.num_features, *whole[last].shape[2:])


def test_a_feature_that_others_pass_by_is_not_cut_away(randomise):
    """Node 2 ends stage 0, but node 5, at the end of stage 1, does not read it."""
    wiring = Wiring(9, [(0, 1), (0, 2), (1, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (2, 8)])
    model = randomise(dag(wiring=wiring)).eval()
    x = torch.randn(2, 3, 16, 16)
    whole = model.forward_intermediates(x, [0, 1], intermediates_only=True)
    model.prune_intermediate_layers([0, 1])
    for got, expected in zip(model.forward_intermediates(x, [0, 1])[1], whole):
        assert torch.equal(got, expected)


def test_a_stage_that_pruning_emptied_has_no_feature(tmp_path, randomise):
    model = weaken(randomise(dag()), {(1, 2), (2, 6), (0, 8), (6, 8)}).eval()
    smaller, _ = prune(model, threshold=0.01)
    assert smaller.dag.levels == [0, 0, 0, 2, 2]
    assert [info['reduction'] for info in smaller.feature_info] == [1, 4]
    timm_topo.save(smaller, tmp_path / 'net')
    x = torch.randn(2, 3, 32, 32)
    features = timm_topo.load(tmp_path / 'net', features_only=True)
    assert features.feature_info.reduction() == [1, 4]
    assert [tuple(f.shape[1:]) for f in features(x)] == [(2, 32, 32), (8, 8, 8)]


def test_levels_of_different_sizes_keep_their_sizes():
    """What sparsity compares with, through pruning and cutting."""
    graph = cross(complete(6), [0, 0, 0, 0, 1, 1], [(n, 1) for n in range(4)])
    assert graph.level_sizes == [4, 2]
    row = stage_sizes(graph)
    assert (row['sparsity'], row['sparsity_0'], row['sparsity_1']) == (0, 0, 0)
    kept = [e for e, edge in enumerate(graph.wiring.edges) if 1 not in edge]
    smaller = select_edges(graph, kept)
    row = stage_sizes(smaller)
    assert smaller.level_sizes == [4, 2]
    assert row['sparsity_0'] == pytest.approx(1 - 3 / 6)
    assert row['sparsity'] == pytest.approx(1 - 10 / 15)
    assert until_node(smaller, 2).level_sizes == [4]
    assert until_node(smaller, 3).level_sizes == [4, 2]


def test_features_name_the_modules_that_return_them(randomise):
    model = randomise(dag()).eval()
    seen = {}
    names = [info['module'] for info in model.feature_info]
    for name in names:
        hook = lambda m, args, out, name=name: seen.update({name: out})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    features = model.forward_intermediates(torch.randn(2, 3, 16, 16), intermediates_only=True)
    assert all(torch.equal(seen[name], x) for name, x in zip(names, features))


def test_every_parameter_is_in_one_group_of_its_depth():
    model = dag()
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
        assert set(groups) == {name for name, _ in model.named_parameters()}
        at = [groups[f'dag.nodes.{i}.conv.weight'] for i in range(7)]
        at = [groups['dag.entry.conv.weight'], *at, groups['output.conv.weight']]
        if coarse:
            assert len({*at[1:3]}) == len({*at[3:6]}) == len({*at[6:]}) == 1
        else:
            assert at == sorted(at)
            assert 1 < len(set(at)) < len(at), 'two nodes are a block'
        for k, (source, _) in enumerate(model.dag.jumps):
            depth = groups[f'dag.transitions.{k}.conv.weight']
            assert source == 0 or depth == at[source]


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (dict(num_nodes=10), 'num_nodes=10 is not divisible by num_stages=3'),
        (dict(num_nodes=0), 'num_nodes must be an integer from 1 on, got 0'),
        (dict(num_nodes=9.0), 'num_nodes must be an integer from 1 on, got 9.0'),
        (dict(num_stages=0), 'num_stages must be an integer from 1 on, got 0'),
        (dict(channels=True), 'channels must be an integer from 1 on, got True'),
        (dict(channels=-2), 'channels must be an integer from 1 on, got -2'),
        (dict(input_stride=0), 'input_stride must be an integer from 1 on, got 0'),
        (dict(num_nodes=1, num_stages=1), 'a wiring needs at least 2 nodes'),
        (dict(wiring=complete(6)), 'num_nodes=9 contradicts the explicit'),
        (dict(wiring=complete(3), node_ids=[0, 8]), 'needs as many node_ids'),
        (dict(wiring=complete(3), node_ids=[0, 4, 7]), 'must lead from 0 to 8'),
        (dict(wiring=complete(4), node_ids=[0, 4, 4, 8]), 'ascending from 0'),
        (dict(wiring=[complete(9)] * 2), 'wiring has 2 entries for 1 stages'),
        (dict(wiring='lattice'), 'unknown wiring'),
        (dict(wiring=Wiring(9, ((0, 8),))), 'are dead; remove them with prune'),
        (dict(sparsity='l0'), 'unknown sparsity'),
        (dict(norm_layer='nonorm'), 'is no class and no name timm knows'),
        (dict(node='pool'), "unknown node 'pool'; known: conv, conv_residual, sepconv"),
        (dict(num_stages='3'), "num_stages must be an integer from 1 on, got '3'"),
    ],
)
def test_bad_options_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        dag(**options)


def test_rules_that_look_at_the_image_are_refused():
    with pytest.raises((TypeError, ValueError), match='RouterConnectivity'):
        dag(connectivity={'name': 'router', 'channels': 2})


def cross(wiring: Wiring, levels, pairs) -> CrossStageGraph:
    modules = {pair: ConvNorm(2, 2) for pair in pairs}
    nodes = [ConvNorm(2, 2) for _ in range(wiring.num_nodes - 2)]
    rule = build_connectivity('alpha', wiring)
    return CrossStageGraph(wiring, rule, nn.Identity(), nodes, levels, modules)


@pytest.mark.parametrize(
    ('levels', 'pairs', 'told'),
    [
        ([0, 1], [], 'needs a level per node'),
        ([0, 1, 0], [], 'ascending from 0'),
        ([1, 1, 1], [], 'ascending from 0'),
        ([0, 0, 1], [(0, 1)], r'transition \(1, 1\)'),
        ([0, 0, 1], [(0, 1), (1, 1), (0, 2)], r'transition \(0, 2\)'),
    ],
)
def test_a_graph_checks_its_levels_and_transitions(levels, pairs, told):
    with pytest.raises(ValueError, match=told):
        cross(complete(3), levels, pairs)


@pytest.mark.parametrize('sizes', [[2, 1], [4], [3, 0]])
def test_levels_had_at_least_the_nodes_they_have(sizes):
    graph = cross(complete(3), [0, 0, 1], [(0, 1), (1, 1)])
    with pytest.raises(ValueError, match=r'levels of \[2, 1\] nodes had'):
        CrossStageGraph(
            graph.wiring, graph.connectivity, graph.entry, list(graph.nodes), graph.levels,
            dict(zip([(0, 1), (1, 1)], graph.transitions)),
            level_sizes=sizes if sizes != [2, 1] else [1, 1],
        )  # fmt: skip


def test_explicit_wirings_tell_the_number_of_nodes():
    model = timm.create_model('dagnet', wiring=erdos_renyi(12, 0.4, 1), channels=2)
    assert model.dag.wiring.num_nodes == 12
    assert list(graph_stages(model)) == ['dag']
