"""Pruning against a dense evaluation with zeroed entries and against networkx's reachability."""

import copy

import networkx as nx
import pytest
import timm
import torch
import torch.nn.functional as F
from fvcore.nn.precise_bn import update_bn_stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.models import FeatureDictNet, FeatureListNet
from torch import Tensor, nn

import timm_topo  # noqa: F401  registers the models
from timm_topo.analysis.cost import count_flops
from timm_topo.analysis.prune import (
    edge_mask,
    edge_weights,
    freeze_edge_weights,
    graph_stages,
    mask_edges,
    prune,
    recalibrate,
    retrainable,
)
from timm_topo.connectivity import undecayed_parameters
from timm_topo.generators import complete, sequential
from timm_topo.sparsity import sparsity_loss
from timm_topo.stages import Offset, compact
from timm_topo.wiring import Wiring

SQUASH = {'alpha': lambda a: a, 'fixed': lambda a: a, 'tanh': torch.tanh, 'sigmoid': torch.sigmoid}
RULES = sorted(SQUASH)
FEW = settings(max_examples=30)


def network(wirings, rules='alpha', seed: int = 0, **options) -> nn.Module:
    """Two small stages whose norms and edge weights are far from their initial values."""
    sizes = dict(
        widths=(4, 6), strides=(1, 2), stem_width=4, stem_kernel=3, stem_stride=2, num_classes=3
    )
    model = timm.create_model(
        'test_toponet',
        num_nodes=None,
        wiring=list(wirings),
        connectivity=[rules] * len(wirings) if isinstance(rules, str) else list(rules),
        **{**sizes, **options},
    )
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.5, generator=noise)
                module.running_var.uniform_(0.5, 2, generator=noise)
                module.weight.uniform_(0.5, 1.5, generator=noise)
                module.bias.normal_(0, 0.5, generator=noise)
        model.head.fc.weight.normal_(0, 1, generator=noise)
        for stage in model.stages:
            alpha = stage.connectivity.alpha
            alpha.normal_(0, 1, generator=noise)
            alpha[torch.rand(alpha.shape, generator=noise) < 0.25] = 0.0
    return model.eval()


def images(batch: int = 2, seed: int = 5) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def keep_all_but(model: nn.Module, **gone) -> dict[str, Tensor]:
    """Masks that drop the edges named per stage: ``stage0=[(0, 1)]``."""
    return {
        f'stages.{i}': torch.tensor(
            [e not in gone.get(f'stage{i}', ()) for e in stage.wiring.edges]
        )
        for i, stage in enumerate(model.stages)
    }


@torch.no_grad()
def dense_evaluation(model: nn.Module, rules, keep: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network from adjacency matrices whose masked entries are zero."""
    x = model.stem(x)
    for i, stage in enumerate(model.stages):
        size = stage.wiring.num_nodes
        adjacency = torch.zeros(size, size, dtype=x.dtype)
        weights = SQUASH[rules[i]](stage.connectivity.alpha)
        for (source, target), weight, stays in zip(
            stage.wiring.edges, weights, keep[f'stages.{i}'], strict=True
        ):
            adjacency[source, target] = weight if stays else 0.0
        maps = [stage.entry(x)]
        for node in range(1, size):
            total = torch.einsum('i,ibchw->bchw', adjacency[:node, node], torch.stack(maps))
            maps.append(total if node == size - 1 else stage.nodes[node - 1](total))
        x = maps[-1]
    return F.linear(F.relu(x).mean((2, 3)), model.head.fc.weight, model.head.fc.bias)


def fates(wiring: Wiring, keep: Tensor) -> tuple[set[int], set[int]]:
    """Nodes on no path from input to output, and those of them that the output still reads."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(wiring.num_nodes))
    graph.add_edges_from(e for e, stays in zip(wiring.edges, keep, strict=True) if stays)
    output = wiring.num_nodes - 1
    fed = {0} | nx.descendants(graph, 0)
    read = {output} | nx.ancestors(graph, output)
    return set(graph) - (fed & read), read - fed


def without_dead(model: nn.Module, keep: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masks with every edge of a dead node masked too."""
    masks = {}
    for i, stage in enumerate(model.stages):
        dead, _ = fates(stage.wiring, keep[f'stages.{i}'])
        alive = torch.tensor([not dead & set(edge) for edge in stage.wiring.edges])
        masks[f'stages.{i}'] = keep[f'stages.{i}'] & alive
    return masks


def starves(model: nn.Module, keep: dict[str, Tensor]) -> bool:
    return any(fates(s.wiring, keep[f'stages.{i}'])[1] for i, s in enumerate(model.stages))


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@st.composite
def wirings(draw, max_nodes: int = 6):
    size = draw(st.integers(2, max_nodes))
    pairs = [(i, j) for j in range(size) for i in range(j)]
    chosen = draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    edges = {pair for pair, taken in zip(pairs, chosen, strict=True) if taken}
    if not nx.has_path(Wiring(size, tuple(edges)).to_networkx(), 0, size - 1):
        edges.add((0, size - 1))
    return Wiring(size, tuple(edges)).prune()[0]


@st.composite
def masks(draw, wiring: Wiring):
    """Random booleans per edge, with one random path kept."""
    size = wiring.num_edges
    keep = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    node = wiring.num_nodes - 1
    while node:
        source = draw(st.sampled_from(wiring.preds(node)))
        keep[wiring.edges.index((source, node))] = True
        node = source
    return keep


@st.composite
def masked_networks(draw):
    """A random network, its rules, and masks that leave a path in every stage."""
    graphs = [draw(wirings()), draw(wirings())]
    rules = [draw(st.sampled_from(RULES)) for _ in graphs]
    keep = {f'stages.{i}': draw(masks(wiring)) for i, wiring in enumerate(graphs)}
    return network(graphs, rules, seed=draw(st.integers(0, 999))), rules, keep


# -- the function stays ---------------------------------------------------------------------------


@FEW
@given(masked_networks())
def test_pruned_network_equals_the_masked_one(case):
    """Also where nodes starve, one behind the other: constants stand for what they emitted."""
    model, rules, keep = case
    pruned, report = prune(model, keep=keep, probe=images())
    expected = dense_evaluation(model, rules, keep, images())
    scale = expected.abs().max().item()
    torch.testing.assert_close(pruned(images()), expected, rtol=0, atol=1e-5 * scale)
    assert report.exact
    assert report.difference <= 1e-5 * report.scale
    assert report.scale == pytest.approx(scale, rel=1e-5)


@FEW
@given(masked_networks())
def test_pruned_network_equals_the_one_masked_without_its_dead_nodes(case):
    """Not folded, pruning takes away what starved nodes emitted, and nothing else."""
    model, rules, keep = case
    pruned, _ = prune(model, keep=keep, probe=images(), fold=False)
    expected = dense_evaluation(model, rules, without_dead(model, keep), images())
    atol = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(pruned(images()), expected, rtol=0, atol=atol)


@FEW
@given(masked_networks())
def test_reported_difference_is_that_of_two_dense_evaluations(case):
    model, rules, keep = case
    model, probe = model.double(), images().double()
    _, report = prune(model, keep=keep, probe=probe, fold=False)
    masked = dense_evaluation(model, rules, keep, probe)
    expected = (masked - dense_evaluation(model, rules, without_dead(model, keep), probe)).abs()
    assert report.difference == pytest.approx(expected.max().item(), abs=1e-6 * report.scale)


@settings(max_examples=100)
@given(masked_networks())
def test_removed_and_starved_nodes_are_those_networkx_finds(case):
    model, _, keep = case
    pruned, report = prune(model, keep=keep, probe=images(1))
    assert [cut.name for cut in report.stages] == ['stages.0', 'stages.1']
    for cut, before, after in zip(report.stages, model.stages, pruned.stages, strict=True):
        removed, starved = fates(before.wiring, keep[cut.name])
        assert set(cut.removed) == removed
        assert set(cut.starved) == starved
        assert cut.nodes == (before.wiring.num_nodes, after.wiring.num_nodes)
        assert cut.edges == (before.wiring.num_edges, after.wiring.num_edges)
        assert cut.nodes[0] - cut.nodes[1] == len(removed)
        assert cut.folded is bool(starved)
    assert report.exact
    _, report = prune(model, keep=keep, probe=images(1), fold=False)
    assert report.exact is not starves(model, keep)


@FEW
@given(masked_networks())
def test_masked_edges_count_as_zero_whatever_the_rule(case):
    model, rules, keep = case
    with mask_edges(model, keep), torch.no_grad():
        masked = model(images())
    expected = dense_evaluation(model, rules, keep, images())
    torch.testing.assert_close(masked, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@FEW
@given(wirings(), wirings(), st.integers(0, 99), st.floats(0, 0.99))
def test_relative_pruning_leaves_every_node_its_strongest_in_edge(first, second, seed, threshold):
    """So no stage is cut in two, and what goes is what the ratios within a node say."""
    model = network((first, second), ('alpha', 'tanh'), seed)
    keep = edge_mask(model, threshold=threshold, relative=True)
    for name, stage in graph_stages(model).items():
        weights = stage.connectivity.edge_weights().abs().tolist()
        for node in range(1, stage.wiring.num_nodes):
            inside = [e for e, (_, t) in enumerate(stage.wiring.edges) if t == node]
            strongest = max(weights[e] for e in inside)
            assume(strongest > 1e-6)  # exact zeros among them are the other tests' subject
            assert [bool(keep[name][e]) for e in inside] == [
                weights[e] / strongest > threshold for e in inside
            ]
            assert any(keep[name][e] for e in inside)
    pruned, report = prune(model, threshold=threshold, probe=images(1), relative=True)
    assert report.cutoff is None or report.cutoff <= threshold
    assert not any(stage.starved for stage in report.stages)
    by_mask, _ = prune(model, keep=keep, probe=images(1))
    torch.testing.assert_close(pruned(images()), by_mask(images()))


@FEW
@given(wirings(), wirings(), st.integers(0, 99), st.data())
def test_pruning_twice_is_pruning_once_with_both_masks(first, second, seed, data):
    model = network((first, second), ('alpha', 'tanh'), seed)
    end = {f'stages.{i}': data.draw(masks(s.wiring)) for i, s in enumerate(model.stages)}
    begin = {name: mask | data.draw(masks(graph_stages(model)[name].wiring))
             for name, mask in end.items()}  # fmt: skip
    half, _ = prune(model, keep=begin, probe=images())
    rest = {}
    for name, stage in graph_stages(model).items():  # what ``end`` says of the edges still there
        kept = [
            n for n in range(stage.wiring.num_nodes) if n not in fates(stage.wiring, begin[name])[0]
        ]
        index = {edge: e for e, edge in enumerate(stage.wiring.edges)}
        left = graph_stages(half)[name].wiring.edges
        rest[name] = torch.tensor([bool(end[name][index[kept[s], kept[t]]]) for s, t in left])
    twice, _ = prune(half, keep=rest, probe=images())
    once, report = prune(model, keep=end, probe=images())
    assert [s.wiring for s in twice.stages] == [s.wiring for s in once.stages]
    own = [name for name in once.state_dict() if 'offset' not in name]
    assert all(torch.equal(twice.state_dict()[name], once.state_dict()[name]) for name in own)
    atol = 1e-5 * report.scale
    torch.testing.assert_close(twice(images()), once(images()), rtol=0, atol=atol)


# -- nodes that starve ----------------------------------------------------------------------------


def starved_case() -> tuple[nn.Module, dict[str, Tensor]]:
    """Node 1 of the first stage loses its only source and is still read by 2 and 3."""
    model = network((complete(4), complete(3)))
    with torch.no_grad():
        for stage in model.stages:
            stage.connectivity.alpha.fill_(0.8)
    return model, keep_all_but(model, stage0=[(0, 1)])


def test_a_starved_node_makes_a_difference_that_is_reported():
    model, keep = starved_case()
    _, report = prune(model, keep=keep, probe=images(), fold=False)
    assert not report.exact
    assert report.stages[0].removed == report.stages[0].starved == (1,)
    assert report.stages[1].starved == ()
    assert report.difference > 0.01 * report.scale
    assert 'of which starved [1]' in str(report)
    assert 'not exact' in str(report)


def test_a_starved_node_that_emits_zero_makes_no_difference():
    model, keep = starved_case()
    norm = model.stages[0].nodes[0].bn
    nn.init.zeros_(norm.running_mean)
    nn.init.zeros_(norm.bias)
    _, report = prune(model, keep=keep, probe=images(), fold=False)
    assert report.difference <= 1e-5 * report.scale


def test_a_starved_node_is_folded_into_its_readers():
    """Of zeros, convolutions make zeros and the norm a constant; 2 and 3 read it times 0.8."""
    model, keep = starved_case()
    pruned, report = prune(model, keep=keep, probe=images())
    assert report.exact
    assert report.stages[0].starved == (1,)
    assert (report.stages[0].folded, report.stages[1].folded) == (True, False)
    assert 'of which starved [1], folded' in str(report)
    assert 'exact: constants stand for what starved nodes emitted' in str(report)
    norm = model.stages[0].nodes[0].bn
    shift = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    expected = 0.8 * shift.detach()[:, None, None]
    offsets = {n: v for n, v in pruned.state_dict().items() if 'offset' in n}
    assert offsets.keys() == {'stages.0.offsets.0.value', 'stages.0.output_offset.value'}
    for value in offsets.values():
        torch.testing.assert_close(value, expected)
    for size in (7, 8, 33):
        x = torch.randn(2, 3, size, size)
        with mask_edges(model, keep), torch.no_grad():
            masked = model(x)
        torch.testing.assert_close(pruned(x), masked, rtol=0, atol=1e-5 * report.scale)


@pytest.mark.parametrize('size', [(16, 16), (24, 40), (10, 12), (64, 11)])
def test_constants_with_borders_are_exact_at_other_sizes(size):
    """Node 2 reads the constant of node 1 alone: zero padding gives its map a border."""
    model = network((complete(5), complete(3)))
    with torch.no_grad():
        model.stages[0].connectivity.alpha.fill_(0.8)
        model.stages[0].nodes[0].bn.bias.fill_(3.0)
    keep = keep_all_but(model, stage0=[(0, 1), (0, 2)])
    pruned, report = prune(model, keep=keep, probe=torch.randn(2, 3, 32, 32))
    assert report.stages[0].starved == (1, 2)
    assert report.exact
    shapes = {v.shape for n, v in pruned.state_dict().items() if 'offset' in n}
    assert shapes == {(4, 3, 3)}
    x = torch.randn(2, 3, *size)
    with mask_edges(model, keep), torch.no_grad():
        masked = model(x)
    torch.testing.assert_close(pruned(x), masked, rtol=0, atol=1e-5 * report.scale)


@settings(max_examples=50)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_an_offset_stands_for_a_map_of_any_size_with_its_borders(border, inner, seed):
    """The reference: a map with ``border`` rows and columns of its own on each side, built anew."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 * border + 1, generator=draw)
    columns = torch.randn(2 * border + 1, generator=draw)

    def build(height: int, width: int) -> Tensor:
        def line(values: Tensor, size: int) -> Tensor:
            middle = [values[border]] * (size - 2 * border)
            return torch.stack([*values[:border], *middle, *values[border + 1 :]])

        return torch.outer(line(rows, height), line(columns, width))[None]

    value = compact(build(2 * border + inner, 2 * border + inner + 1))
    assert value.shape == (1, 2 * border + 1, 2 * border + 1)
    for height, width in ((2 * border + 1, 2 * border + 5), (3 * border + 2, 2 * border + 1)):
        x = torch.randn(2, 1, height, width)
        torch.testing.assert_close(Offset(value)(x), x + build(height, width))


def test_a_map_without_an_inside_is_kept_as_it_is():
    value = torch.arange(24.0).view(1, 4, 6)
    assert torch.equal(compact(value), value)
    x = torch.zeros(1, 1, 4, 6)
    assert torch.equal(Offset(value)(x)[0], value)


@pytest.mark.parametrize('kind', [FeatureListNet, FeatureDictNet])
def test_networks_that_return_maps_are_pruned(kind):
    """The difference is the largest of all maps, here of the second."""
    model, keep = starved_case()
    for module in model.stages[1].modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.01)
    maps = kind(model, out_indices=(0, 1, 2), flatten_sequential=True).eval()
    keep = {name.replace('.', '_'): mask for name, mask in keep.items()}
    pruned, report = prune(maps, keep=keep, probe=images())
    assert report.exact
    rough, told = prune(maps, keep=keep, probe=images(), fold=False)
    with mask_edges(maps, keep), torch.no_grad():
        expected = maps(images())
    got, far = pruned(images()), rough(images())
    places = expected if kind is FeatureDictNet else range(3)
    assert len(got) == len(expected) == 3
    for place in places:
        torch.testing.assert_close(got[place], expected[place])
    differences = [(far[place] - expected[place]).abs().max().item() for place in places]
    assert told.difference == pytest.approx(differences[1], rel=1e-4)
    assert told.difference > 10 * max(differences[0], differences[2])
    scale = max(expected[place].abs().max().item() for place in places)
    assert told.scale == pytest.approx(scale, rel=1e-4)


def test_a_network_that_does_not_tell_its_size_needs_a_probe():
    model, keep = starved_case()
    backbone = nn.Sequential(model)
    keep = {f'0.{name}': mask for name, mask in keep.items()}
    assert prune(backbone, keep=keep, probe=images())[1].exact
    with pytest.raises(ValueError, match='Sequential does not tell the size of its images'):
        prune(backbone, keep=keep)


def test_a_node_that_nobody_reads_goes_without_difference():
    model, _ = starved_case()
    keep = keep_all_but(model, stage0=[(1, 2), (1, 3)])
    _, report = prune(model, keep=keep, probe=images())
    assert report.exact
    assert report.stages[0].removed == (1,)
    assert report.difference <= 1e-5 * report.scale
    assert 'exact: only dead parts went' in str(report)


# -- what gets smaller ----------------------------------------------------------------------------


def test_parameters_and_multiplications_go_down():
    model, _ = starved_case()
    keep = keep_all_but(model, stage0=[(1, 2), (1, 3)])
    pruned, report = prune(model, keep=keep, probe=images())
    node = sum(p.numel() for p in model.stages[0].nodes[0].parameters())
    before, after = count_flops(model, (3, 8, 8)), count_flops(pruned, (3, 8, 8))
    assert report.parameters[0] - report.parameters[1] == node + 3  # edges 0-1, 1-2 and 1-3
    assert report.parameters[1] == sum(p.numel() for p in pruned.parameters())
    assert before.conv - after.conv == (9 * 4 + 4 * 4) * 4 * 4
    assert before.edges - after.edges == 3 * 4 * 4 * 4
    assert (report.edges, report.nodes) == ((9, 6), (7, 6))
    assert str(report).startswith('edges 9 -> 6, nodes 7 -> 6, parameters ')


def test_surviving_nodes_keep_their_own_weights():
    model = network((complete(5), complete(3)))
    gone = [(0, 1), (1, 2), (1, 3), (1, 4)]
    pruned, _ = prune(model, keep=keep_all_but(model, stage0=gone), probe=images())
    for old, new in ((2, 1), (3, 2)):
        assert same_state(model.stages[0].nodes[old - 1], pruned.stages[0].nodes[new - 1])


# -- which edges go -------------------------------------------------------------------------------


def with_weights(values: list[float], rule: str = 'alpha') -> nn.Module:
    """One stage, complete, whose stored edge values are ``values``."""
    size = {3: 3, 6: 4, 10: 5}[len(values)]
    model = network((complete(size), sequential(2)), (rule, 'fixed'))
    with torch.no_grad():
        model.stages[0].connectivity.alpha.copy_(torch.tensor(values))
        model.stages[1].connectivity.alpha.fill_(100.0)
    return model


def kept(model: nn.Module, **how) -> list[int]:
    return edge_mask(model, **how)['stages.0'].nonzero().flatten().tolist()


def test_edges_at_the_threshold_go_and_edges_above_stay():
    model = with_weights([0.25, -0.25, 0.5, -0.5, 0.75, 0.2500001])
    assert kept(model, threshold=0.25) == [2, 3, 4, 5]


def test_threshold_zero_removes_exact_zeros_only():
    model = with_weights([0.0, -0.0, 1e-38, -1e-38, 1.0, 0.5])
    assert kept(model, threshold=0) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ('rule', 'weakest'), [('alpha', 0), ('fixed', 0), ('tanh', 0), ('sigmoid', 1)]
)
def test_the_weight_counts_and_not_what_is_stored(rule, weakest):
    """sigmoid(-3) is smaller than sigmoid(0); the others are weakest at zero."""
    values = [0.0, -3.0, 3.0]
    model = with_weights(values, rule)
    weights = SQUASH[rule](torch.tensor(values))
    assert torch.equal(edge_weights(model)['stages.0'], weights)
    threshold = weights[weakest].abs().item()
    assert kept(model, threshold=threshold) == [e for e in range(3) if e != weakest]
    assert kept(model, fraction=0.25) == [e for e in range(3) if e != weakest]


def test_a_sigmoid_weight_can_be_exactly_zero():
    assert kept(with_weights([-200.0, 0.0, 200.0], 'sigmoid'), threshold=0) == [1, 2]


@given(
    st.lists(st.floats(-1, 1, width=16), min_size=10, max_size=10),
    st.floats(0, 1, exclude_max=True),
)
def test_fraction_removes_the_rounded_number_of_weakest_edges(values, fraction):
    model = with_weights(values)
    masks = edge_mask(model, fraction=fraction)
    keep = torch.cat([masks['stages.0'], masks['stages.1']])
    magnitudes = torch.cat([torch.tensor(values).abs(), torch.tensor([100.0])])
    assert (~keep).sum() == round(fraction * 11)
    if not keep.all() and keep.any():
        assert magnitudes[~keep].max() <= magnitudes[keep].min()


def test_fraction_counts_the_edges_of_all_stages_together():
    model = network((complete(4), complete(4)), 'fixed')
    with torch.no_grad():
        model.stages[0].connectivity.alpha.fill_(1.0)
        model.stages[1].connectivity.alpha.fill_(0.5)
    masks = edge_mask(model, fraction=0.25)
    assert masks['stages.0'].all()
    assert (~masks['stages.1']).sum() == 3


def test_of_equal_weights_the_earlier_goes_first():
    assert kept(with_weights([0.5, -0.5, 0.5, 0.25, 0.5, 0.5]), fraction=0.45) == [2, 4, 5]


def test_fraction_zero_changes_nothing():
    model = network((complete(4), complete(3)))
    pruned, report = prune(model, fraction=0, probe=images())
    assert report.cutoff is None
    assert report.edges == (9, 9)
    assert same_state(pruned, model)
    assert torch.equal(pruned(images()), model(images()))


def test_cutoff_is_the_strongest_weight_that_went_in_any_stage():
    model = network((complete(4), complete(3)))
    with torch.no_grad():
        model.stages[0].connectivity.alpha.copy_(torch.tensor([0.1, 0.5, -0.3, 0.9, 0.8, 0.7]))
        model.stages[1].connectivity.alpha.copy_(torch.tensor([0.6, 0.2, 1.0]))
    assert prune(model, threshold=0.4, probe=images())[1].cutoff == pytest.approx(0.3)
    keep = keep_all_but(model, stage0=[(0, 1), (0, 3)], stage1=[(0, 2)])
    assert prune(model, keep=keep, probe=images())[1].cutoff == pytest.approx(0.9)


@pytest.mark.parametrize('rule', RULES)
def test_threshold_prunes_every_rule(rule):
    model = network((complete(5), complete(4)), rule, seed=3)
    threshold = edge_weights(model)['stages.0'].abs().quantile(0.3).item()
    keep = {name: w.abs() > threshold for name, w in edge_weights(model).items()}
    pruned, report = prune(model, threshold=threshold, probe=images())
    assert 0 < report.edges[1] < report.edges[0]
    expected = dense_evaluation(model, [rule] * 2, keep, images())
    torch.testing.assert_close(pruned(images()), expected, rtol=0, atol=1e-5 * report.scale)
    assert [type(s.connectivity) for s in pruned.stages] == (
        [type(s.connectivity) for s in model.stages]
    )


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize('threshold', [-0.1, float('nan'), float('inf')])
def test_threshold_that_is_no_magnitude_is_refused(threshold):
    with pytest.raises(ValueError, match=rf'threshold must be finite and >= 0, got {threshold}'):
        prune(network((complete(3),) * 2), threshold=threshold)


@pytest.mark.parametrize('fraction', [1.0, -0.1, float('nan')])
def test_fraction_outside_the_half_open_interval_is_refused(fraction):
    with pytest.raises(ValueError, match=rf'fraction must be in \[0, 1\), got {fraction}'):
        prune(network((complete(3),) * 2), fraction=fraction)


def test_threshold_or_fraction_but_not_both_and_not_none():
    model = network((complete(3),) * 2)
    with pytest.raises(ValueError, match='give threshold or fraction, got threshold=None'):
        prune(model)
    with pytest.raises(ValueError, match=r'give threshold or fraction, got threshold=0\.1'):
        prune(model, threshold=0.1, fraction=0.1)


@pytest.mark.parametrize('other', [{'threshold': 0.1}, {'fraction': 0.1}, {'relative': True}])
def test_masks_exclude_threshold_and_fraction(other):
    model = network((complete(3),) * 2)
    with pytest.raises(ValueError, match='give keep, or threshold, or fraction'):
        prune(model, keep=keep_all_but(model), **other)


def test_error_names_the_stage_that_would_be_cut_in_two():
    model = network((complete(3), sequential(3)))
    with torch.no_grad():
        model.stages[0].connectivity.alpha.fill_(2.0)
        model.stages[1].connectivity.alpha.copy_(torch.tensor([0.5, 2.0]))
    before = copy.deepcopy(model)
    with pytest.raises(
        ValueError,
        match=r'removing 1 of 2 edges of stages\.1 \(\|weight\| <= 0\.5\) leaves no path',
    ):
        prune(model, threshold=1.0)
    assert same_state(model, before)


def test_a_model_without_graph_stages_is_refused():
    with pytest.raises(ValueError, match='Linear has no graph stage'):
        prune(nn.Linear(2, 2), threshold=0.1)


def test_the_default_probe_has_the_channels_of_the_model():
    model = network((complete(4), complete(3)), in_chans=1)
    _, report = prune(model, keep=keep_all_but(model, stage0=[(1, 2)]))
    assert report.scale > 0


# -- what is left untouched -----------------------------------------------------------------------


@pytest.mark.parametrize('training', [True, False])
def test_the_original_is_left_as_it_is_and_still_trains(training):
    model = network((complete(5), complete(4)), seed=1).train(training)
    before = copy.deepcopy(model)
    pruned, _ = prune(model, fraction=0.3, probe=images())
    assert same_state(model, before)
    assert all(m.training is training for m in model.modules())
    assert all(m.training is training for m in pruned.modules())
    assert not any(m._forward_hooks for m in model.modules())
    train_step(pruned.train())
    assert same_state(model, before)
    train_step(model.train())
    assert not same_state(model, before)


def test_masked_edges_are_back_after_an_exception():
    model, keep = starved_case()
    rules = [stage.connectivity for stage in graph_stages(model).values()]
    expected = model(images())

    def fail_inside():
        with mask_edges(model, keep):
            assert not torch.equal(model(images()), expected)
            raise RuntimeError('in the middle')

    with pytest.raises(RuntimeError, match='in the middle'):
        fail_inside()
    assert [stage.connectivity for stage in graph_stages(model).values()] == rules
    assert torch.equal(model(images()), expected)


def test_rules_stay_where_a_stage_has_no_mask():
    model = network((complete(4), complete(3)))
    rules = [stage.connectivity for stage in graph_stages(model).values()]
    with (
        pytest.raises(KeyError, match=r'stages\.1'),
        mask_edges(model, {'stages.0': torch.ones(6, dtype=torch.bool)}),
    ):
        pass
    assert [stage.connectivity for stage in graph_stages(model).values()] == rules


# -- life after pruning ---------------------------------------------------------------------------


def test_modules_with_a_mode_of_their_own_keep_it():
    model = network((complete(5), complete(4)), seed=1).train()
    model.stages[0].nodes[0].bn.eval()
    model.stages[1].connectivity.eval()
    for changed in (model, prune(model, fraction=0)[0]):
        in_evaluation = [name for name, module in changed.named_modules() if not module.training]
        assert in_evaluation == ['stages.0.nodes.0.bn', 'stages.1.connectivity']


def train_step(model: nn.Module) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = F.cross_entropy(model(images(4)), torch.tensor([0, 1, 2, 0]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def pruned_network(rules='alpha') -> nn.Module:
    """Without node 2 of the first stage, which nobody reads any more, node 1 of the second, which
    nobody feeds, and a few edges more.
    """
    model = network((complete(6), complete(5)), rules, seed=2)
    gone = {'stage0': [(0, 4), (2, 3), (2, 4), (2, 5)], 'stage1': [(0, 4), (0, 1)]}
    return prune(model, keep=keep_all_but(model, **gone), probe=images())[0]


@pytest.mark.parametrize('rule', RULES)
def test_every_parameter_of_a_pruned_network_gets_a_gradient_and_training_helps(rule):
    model = pruned_network(rule).train()
    first = train_step(model)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for _ in range(5):
        last = train_step(model)
    assert last < first


@pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning')
def test_a_pruned_network_can_be_traced():
    model = pruned_network()
    traced = torch.jit.trace(model, images())
    torch.testing.assert_close(traced(images(3)), model(images(3)))


def test_a_pruned_network_can_be_exported():
    model = pruned_network()
    exported = torch.export.export(model, (images(),)).module()
    torch.testing.assert_close(exported(images()), model(images()))


def test_a_pruned_network_can_be_compiled():
    model = pruned_network()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), model(images()))


# -- frozen edge weights --------------------------------------------------------------------------


@pytest.mark.parametrize('rule', RULES)
def test_freezing_keeps_the_function_and_leaves_no_learned_edge_weight(rule):
    model = network((complete(5), complete(4)), rule)
    expected, weights = model(images()), edge_weights(model)
    assert freeze_edge_weights(model) is model
    torch.testing.assert_close(model(images()), expected)
    assert undecayed_parameters(model) == set()
    assert not any('alpha' in name for name, _ in model.named_parameters())
    assert all(torch.equal(edge_weights(model)[name], weights[name]) for name in weights)


def test_sparsity_gives_frozen_edge_weights_no_gradient():
    model = freeze_edge_weights(network((complete(5), complete(4)), sparsity='adaptive')).train()
    penalty = sparsity_loss(model)
    assert penalty > 0
    assert not penalty.requires_grad
    weights = edge_weights(model)
    F.cross_entropy(model(images()), torch.tensor([0, 1])).add(penalty).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(torch.equal(edge_weights(model)[name], weights[name]) for name in weights)


# -- retraining from scratch ----------------------------------------------------------------------


def marked() -> nn.Module:
    """A pruned network, every weight of which but the edges' is 7."""
    model = pruned_network(('alpha', 'tanh'))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not name.endswith('alpha'):
                value.fill_(7)
    return model


@pytest.mark.parametrize('alpha', ['reset', 'keep', 'frozen'])
def test_retrainable_has_fresh_weights_in_the_same_wiring(alpha):
    model = marked()
    before = copy.deepcopy(model)
    fresh = retrainable(model, alpha)
    assert same_state(model, before)
    assert [s.wiring for s in fresh.stages] == [s.wiring for s in model.stages]
    for name, value in fresh.state_dict().items():
        if not name.endswith('alpha'):
            assert not (value == 7).any(), name
    norm = fresh.stages[0].entry.node.bn
    assert (norm.running_mean == 0).all()
    assert (norm.running_var == 1).all()
    train_step(fresh.train())


def test_reset_learns_the_edge_weights_again_from_their_initial_value():
    fresh = retrainable(marked(), 'reset')
    assert (edge_weights(fresh)['stages.0'] == 1).all()
    torch.testing.assert_close(
        edge_weights(fresh)['stages.1'], torch.full_like(edge_weights(fresh)['stages.1'], 0.5)
    )
    assert all(s.connectivity.alpha.requires_grad for s in fresh.stages)


def test_keep_learns_on_from_the_present_edge_weights():
    model = marked()
    fresh = retrainable(model, 'keep')
    for old, new in zip(model.stages, fresh.stages, strict=True):
        assert type(new.connectivity) is type(old.connectivity)
        assert torch.equal(new.connectivity.alpha, old.connectivity.alpha)
        assert isinstance(new.connectivity.alpha, nn.Parameter)
    train_step(fresh.train())
    assert not torch.equal(fresh.stages[0].connectivity.alpha, model.stages[0].connectivity.alpha)


def test_frozen_never_learns_the_edge_weights():
    model = marked()
    fresh = retrainable(model, 'frozen')
    assert undecayed_parameters(fresh) == set()
    train_step(fresh.train())
    for name, weights in edge_weights(model).items():
        assert torch.equal(edge_weights(fresh)[name], weights)


def test_retrainable_draws_other_weights_each_time():
    model = marked()
    assert not same_state(retrainable(model), retrainable(model))


def test_retrainable_refuses_another_word():
    with pytest.raises(ValueError, match="alpha must be 'reset', 'keep' or 'frozen', got 'thaw'"):
        retrainable(marked(), 'thaw')


# -- batch-norm statistics ------------------------------------------------------------------------


def uneven_batches() -> list[Tensor]:
    return [1 + images(batch, seed=batch) for batch in (5, 2, 7)]


def test_recalibrated_statistics_are_those_of_all_images_together():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model[1].running_mean.fill_(50.0)  # of no influence
    assert recalibrate(model, uneven_batches()) is model
    with torch.no_grad():
        seen = model[0](torch.cat(uneven_batches())).transpose(0, 1).flatten(1).double()
    mean = seen.sum(1) / seen.shape[1]
    variance = ((seen - mean[:, None]) ** 2).sum(1) / seen.shape[1]
    torch.testing.assert_close(model[1].running_mean, mean.float())
    torch.testing.assert_close(model[1].running_var, variance.float())


@pytest.mark.parametrize('training', [True, False])
def test_recalibration_changes_nothing_but_buffers_of_batch_norm(training):
    model = pruned_network().train(training)
    before = copy.deepcopy(model.state_dict())
    recalibrate(model, uneven_batches())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    statistics = {'running_mean', 'running_var', 'num_batches_tracked'}
    assert {name.rpartition('.')[2] for name in changed} == statistics
    assert changed == {name for name in before if name.rpartition('.')[2] in statistics}
    assert all(m.training is training for m in model.modules())
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    'build',
    [
        lambda: timm.create_model('test_toponet', connectivity={'name': 'router', 'tau': 0.45}),
        lambda: timm.create_model('test_toponet', connectivity={'name': 'mask', 'fan_in': 1}),
        lambda: timm.create_model('rewired', base='resnetv2_cifar20', drop_path_rate=0.9),
    ],
    ids=['router', 'mask', 'drop_path'],
)  # fmt: skip
def test_recalibrated_statistics_are_those_of_the_network_that_evaluation_runs(build):
    """Against fvcore, on a network whose batch norms alone are in training mode."""
    model, batches = build(), uneven_batches()
    expected = copy.deepcopy(model).eval()
    for module in expected.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    update_bn_stats(expected, batches, len(batches))
    recalibrate(model.train(), batches)
    for (name, value), (_, other) in zip(model.named_buffers(), expected.named_buffers()):
        torch.testing.assert_close(value, other, msg=name)


def test_norms_that_no_image_reaches_keep_their_statistics():
    model = timm.create_model('test_toponet', connectivity={'name': 'router', 'tau': 0.2})
    with torch.no_grad():
        model.stages[0].connectivity.bias[0] = -20  # of the edge (0, 1), node 1's only one
    before = copy.deepcopy(model)
    recalibrate(model, uneven_batches())
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [n for n in norms if same_state(before.get_submodule(n), model.get_submodule(n))]
    assert kept == ['stages.0.nodes.0.bn']


def test_recalibration_on_one_image_whose_map_is_one_value():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).eval()
    batches = [image[None] for image in images()]
    recalibrate(model, batches)
    pooled = torch.cat(batches).mean((2, 3))
    torch.testing.assert_close(model[1].running_mean, pooled.mean(0))
    torch.testing.assert_close(model[1].running_var, pooled.var(0, correction=0))


def test_recalibration_needs_images():
    with pytest.raises(ValueError, match='recalibrate needs at least one batch'):
        recalibrate(pruned_network(), [])


def test_recalibration_that_fails_leaves_the_model_as_it_was():
    model = pruned_network()
    before = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match='channels'):
        recalibrate(model, [images(), torch.randn(2, 4, 8, 8)])
    assert not model.training
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert same_state(model, before)


def test_recalibrated_variance_of_an_almost_constant_channel_is_not_negative():
    """E[x^2] - E[x]^2 in float32 loses a small variance under a large mean."""
    model = nn.Sequential(nn.BatchNorm2d(8)).eval()
    batches = [100 + 0.001 * torch.randn(4, 8, 8, 8) for _ in range(3)]
    recalibrate(model, batches)
    assert (model[0].running_var >= 0).all()
    assert model(batches[0]).isfinite().all()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda keep: keep.clear(), r"keep has masks for \[\], the model has \['stages.0'"),
        (lambda keep: keep.update({'stages.0': torch.ones(2, dtype=torch.bool)}), r'got \(2,\)'),
        (lambda keep: keep.update({'stages.0': keep['stages.0'].long()}), 'got .* of torch.int64'),
    ],
)
def test_masks_that_do_not_fit_are_refused(change, message):
    model = network((complete(4), complete(3)))
    keep = edge_mask(model, threshold=0)
    change(keep)
    with pytest.raises(ValueError, match=message):
        prune(model, keep=keep)
