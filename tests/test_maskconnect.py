"""MaskConnect networks: counts, both equations, ResNet and ResNeXt as special cases, removal."""

import copy
import itertools
import math

import networkx as nx
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models import group_parameters
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

import timm_topo
from timm_topo.analysis.cost import count_flops, count_parameters
from timm_topo.analysis.export import export_onnx
from timm_topo.analysis.prune import edge_weights, mask_edges, prune
from timm_topo.executors import adjacency
from timm_topo.generators import complete, sequential
from timm_topo.models import MaskConnectResNet, MaskConnectResNeXt
from timm_topo.models.maskconnect_resnext import checkpoint_filter_fn
from timm_topo.nodes import BranchBlock, ConvNorm, Subsample
from timm_topo.nodes.branches import BranchConv1x1
from timm_topo.stages import BranchGraph, graph_stages, layered
from timm_topo.wiring import Wiring

RESNETS = ['maskconnect_resnet38', 'maskconnect_resnet74', 'maskconnect_resnet110']
NETWORKS = ['test_maskconnect_resnet', 'test_maskconnect_resnext']


def resnet(**options) -> MaskConnectResNet:
    sizes = dict(num_blocks=2, widths=(4, 6, 8), fan_in=2, num_classes=5)
    return timm.create_model('test_maskconnect_resnet', **{**sizes, **options})


def resnext(**options) -> MaskConnectResNeXt:
    sizes = dict(
        depths=(1, 2), widths=(6, 8), cardinality=3, base_width=2, stem_width=4, num_classes=5
    )
    fan_in = {} if {'connectivity', 'masks'} & set(options) else {'fan_in': 2}
    return timm.create_model('test_maskconnect_resnext', **{**sizes, **fan_in, **options})


def draw_masks(model: nn.Module) -> nn.Module:
    """Real-valued masks at random, so that evaluation chooses something."""
    for stage in graph_stages(model).values():
        if isinstance(getattr(stage.connectivity, 'mask', None), nn.Parameter):
            nn.init.uniform_(stage.connectivity.mask)
    return model


# -- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'parameters', 'edges'),
    [
        ('maskconnect_resnet38', 567_220, 1 + math.comb(18, 2)),
        ('maskconnect_resnet74', 1_150_516, 1 + math.comb(36, 2)),
        ('maskconnect_resnet110', 1_733_812, 1 + math.comb(54, 2)),
        ('maskconnect_resnext29_8x8d', 861_604, 8 + 8 * 64 + 8),
        ('maskconnect_resnext29_8x64d', 34_594_212, 8 + 8 * 64 + 8),
        ('maskconnect_resnext50_32x4d', 25_028_904, 32 + 15 * 32**2 + 32),
        ('maskconnect_resnext101_32x4d', 44_177_704, 32 + 32 * 32**2 + 32),
        ('maskconnect_resnext101_64x4d', 83_455_272, 64 + 32 * 64**2 + 64),
    ],
)
def test_parameters_are_those_of_the_plain_network_and_a_mask_per_edge(name, parameters, edges):
    full = timm.create_model(name, masks='full', device='meta')
    assert count_parameters(full) == parameters
    learned = timm.create_model(name, device='meta')
    assert count_parameters(learned) == parameters + edges
    (stage,) = graph_stages(learned).values()
    assert stage.wiring.num_edges == edges


@pytest.mark.parametrize('depth', [38, 74, 110])
def test_resnets_have_as_many_parameters_as_those_without_projections(depth):
    """The plain networks here have projections: two 1x1 convolutions with norms more."""
    n = (depth - 2) // 6
    model = timm.create_model(f'maskconnect_resnet{depth}', masks='prev', device='meta')
    conv = 3 * 16 * 9 + sum(2 * c * c * 9 * n for c in (16, 32, 64)) - 9 * (16 * 32 + 32 * 64)
    norms = 2 * (16 + sum(2 * n * c for c in (16, 32, 64)))
    assert count_parameters(model) == conv + norms + 6500


@pytest.mark.parametrize('name', ['resnext50_32x4d', 'resnext101_32x4d', 'resnext101_64x4d'])
def test_resnexts_have_the_parameters_of_timms(name):
    plain = timm.create_model(name, device='meta')
    masked = timm.create_model(f'maskconnect_{name}', masks='full', device='meta')
    assert count_parameters(masked) == count_parameters(plain)


@pytest.mark.parametrize(('name', 'k'), [('38', 10), ('74', 15), ('110', 20)])
def test_resnets_have_the_fan_in_of_table_1(name, k):
    model = timm.create_model(f'maskconnect_resnet{name}', device='meta')
    assert set(model.dag.connectivity.fan_ins[1:]) == set(range(1, k + 1))


@pytest.mark.parametrize(
    ('name', 'k'),
    [('29_8x8d', 4), ('29_8x64d', 4), ('50_32x4d', 16), ('101_32x4d', 16), ('101_64x4d', 32)],
)
def test_resnexts_have_the_fan_in_of_tables_2_and_3(name, k):
    model = timm.create_model(f'maskconnect_resnext{name}', device='meta')
    c, fan_ins = model.sizes['cardinality'], model.dag.connectivity.fan_ins
    assert fan_ins[1 : c + 1] == [1] * c  # the stem
    assert set(fan_ins[c + 1 : -1]) == {k}
    assert fan_ins[-1] == c


# -- ResNet: the equation -------------------------------------------------------------------------


def subsample(x: Tensor, channels: int, factor: int) -> Tensor:
    """Option A, pixel by pixel and channel by channel."""
    out = torch.zeros(len(x), channels, -(-x.shape[2] // factor), -(-x.shape[3] // factor))
    out = out.to(x)
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            out[:, : x.shape[1], i, j] = x[:, :, factor * i, factor * j]
    return out


def naive_resnet(model: MaskConnectResNet, x: Tensor) -> list[Tensor]:
    """Maps of all blocks, from the spec: x_j = sum_k w_k T(ReLU(F(x_k) + x_k))."""
    graph, widths, n = model.dag, model.widths, model.sizes['num_blocks']
    weights = dict(zip(graph.wiring.edges, graph.connectivity.edge_weights()))
    maps = [F.relu(graph.entry[0](x))]
    for j, block in enumerate([*graph.nodes, model.output], start=1):
        stage = (j - 1) // n
        begins = stage > 0 and (j - 1) % n == 0
        read = stage - begins
        total = 0
        for source in graph.wiring.preds(j):
            factor = x.shape[2] / maps[source].shape[2]
            at = {1: 0, 2: 1, 4: 2}[round(factor)]
            y = maps[source]
            if read > at:
                y = subsample(y, widths[read], 2 ** (read - at))
            total = total + weights[source, j] * y
        f = F.conv2d(total, block.conv1.weight, stride=2 if begins else 1, padding=1)
        f = block.bn2(F.conv2d(F.relu(block.bn1(f)), block.conv2.weight, padding=1))
        maps.append(F.relu(f + (subsample(total, widths[stage], 2) if begins else total)))
    return maps


@given(
    blocks=st.integers(1, 3), k=st.integers(1, 6), seed=st.integers(0, 999), average=st.booleans(),
    rule=st.sampled_from(['mask', 'alpha', 'all']),
)  # fmt: skip
def test_a_resnet_computes_the_equation(blocks, k, seed, average, rule, randomise):
    torch.manual_seed(seed)
    options = dict(fan_in=k, average=average)
    if rule == 'alpha':
        options = dict(fan_in=None, connectivity='alpha')
    if rule == 'all':  # blocks may read the stem as well
        options['wiring'] = complete(3 * blocks + 1)
    model = draw_masks(randomise(resnet(num_blocks=blocks, **options))).double().eval()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = naive_resnet(model, x)
        assert torch.allclose(model.forward_features(x), expected[-1], rtol=1e-9, atol=1e-9)
        features = model.forward_intermediates(x, intermediates_only=True)
    for stage, feature in enumerate(features):
        assert torch.allclose(feature, expected[(stage + 1) * blocks], rtol=1e-9, atol=1e-9)


def plain_resnet(model: MaskConnectResNet) -> nn.Sequential:
    """The ResNet with option A in a row, of the same blocks."""
    row = [ConvNorm(3, model.widths[0], 3), nn.ReLU()]
    chs = model.widths[0]
    for stage, width in enumerate(model.widths):
        for block in range(model.sizes['num_blocks']):
            begins = stage > 0 and block == 0
            shortcut = Subsample(chs, width, 2) if begins else None
            row.append(BasicBlock(chs, width, 1 + begins, downsample=shortcut))
            chs = width
    row = nn.Sequential(*row)
    row[0].load_state_dict(model.dag.entry[0].state_dict())
    for block, own in zip(row[2:], [*model.dag.nodes, model.output]):
        block.load_state_dict(own.state_dict())
    return row


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('average', [False, True])
def test_with_the_block_before_alone_it_is_the_resnet(training, average, randomise):
    model = randomise(resnet(fan_in=1, masks='prev', average=average)).train(training)
    plain = plain_resnet(model).train(training)
    x = torch.randn(2, 3, 20, 20)
    assert torch.allclose(model.forward_features(x), plain(x), atol=1e-5)


def test_maps_keep_their_size_in_the_mean_and_explode_in_the_sum():
    """What the departure from the printed sum is for: ResNet-38 with K = 10."""
    torch.manual_seed(0)
    sizes = {}
    for average in (True, False):
        model = timm.create_model('maskconnect_resnet38', average=average)
        with torch.no_grad():
            sizes[average] = model.forward_features(torch.randn(4, 3, 32, 32)).abs().mean()
    assert 0.1 < sizes[True] < 10
    assert sizes[False] > 100 * sizes[True]


@pytest.mark.parametrize('size', [(32, 32), (33, 31), (5, 7)])
def test_a_resnet_takes_any_size(size):
    model = resnet().eval()
    x = torch.randn(1, 3, *size)
    shapes = [f.shape[2:] for f in model.forward_intermediates(x, intermediates_only=True)]
    assert shapes == [tuple(-(-side // 2**k) for side in size) for k in range(3)]


def test_subsampling_twice_is_subsampling_once():
    x = torch.randn(2, 3, 9, 11)
    twice = Subsample(5, 8, 2)(Subsample(3, 5, 2)(x))
    assert torch.equal(twice, Subsample(3, 8, 4)(x))
    assert torch.equal(Subsample(3, 8, 4)(x), subsample(x, 8, 4))
    with pytest.raises(ValueError, match='8 channels cannot be padded to 3'):
        Subsample(8, 3)


# -- ResNeXt: the equation ------------------------------------------------------------------------


def branch(block: BranchBlock, k: int, x: Tensor) -> Tensor:
    """F_k(x_k) of one branch, by its own slices of the parameters."""

    def part(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (block.branches, -1))[k]

    def norm(bn: nn.Module, x: Tensor) -> Tensor:
        tensors = bn.running_mean, bn.running_var, bn.weight, bn.bias
        return F.batch_norm(x, *map(part, tensors), eps=bn.eps)

    x = F.relu(norm(block.bn1, F.conv2d(x, part(block.conv1.weight))))
    x = F.conv2d(x, part(block.conv2.weight), stride=block.conv2.stride, padding=1)
    x = F.conv2d(F.relu(norm(block.bn2, x)), part(block.conv3.weight))
    return norm(block.bn3, x) if block.branch_norm else x


def naive_resnext(model: MaskConnectResNeXt, x: Tensor) -> list[Tensor]:
    """Features, branch by branch: x'_i = ReLU(sum_k w_ik F(x_k) + s_i sum_k w_ik shortcut(x_k))."""
    graph = model.dag
    weight = dict(zip(graph.wiring.edges, graph.connectivity.edge_weights().tolist()))
    sizes = [1, *(block.branches for block in graph.nodes), 1]
    stem = graph.entry(x)
    first, inputs = 1, [weight.get((0, 1 + i), 0) * stem for i in range(sizes[1])]
    features = []
    for _level, (block, count, following) in enumerate(zip(graph.nodes, sizes[1:], sizes[2:])):
        inner = [branch(block, k, own) for k, own in enumerate(inputs)]
        beside = [block.downsample(own) for own in inputs]
        outputs = []
        for i in range(following):
            w = [weight.get((first + k, first + count + i), 0) for k in range(count)]
            f = sum(w_k * f_k for w_k, f_k in zip(w, inner))
            s = sum(w_k * s_k for w_k, s_k in zip(w, beside))
            scale = 1 / max(1, sum(w_k != 0 for w_k in w)) if block.average else 1
            outputs.append(F.relu((f if block.branch_norm else block.bn3(f)) + scale * s))
        first, inputs = first + count, outputs
        features.append(sum(outputs) / len(outputs))
    last = {level: k for k, level in enumerate(graph.block_levels)}
    return [features[k] for k in last.values()]


@given(
    depths=st.lists(st.integers(1, 3), min_size=1, max_size=3), cardinality=st.integers(1, 5),
    k=st.integers(1, 5), seed=st.integers(0, 999), average=st.booleans(),
    branch_norm=st.booleans(), rule=st.sampled_from(['learned', 'random', 'alpha', 'pruned']),
)  # fmt: skip
def test_a_resnext_computes_the_equation(
    depths, cardinality, k, seed, average, branch_norm, rule, randomise
):
    torch.manual_seed(seed)
    options = dict(fan_in=k, masks='random' if rule == 'random' else 'learned', mask_seed=seed)
    if rule == 'alpha':
        options = dict(connectivity='alpha')
    model = resnext(
        depths=depths, widths=(4, 6, 8)[: len(depths)], cardinality=cardinality,
        average=average, branch_norm=branch_norm, **options,
    )  # fmt: skip
    model = draw_masks(randomise(model)).double().eval()
    if rule == 'pruned':
        model, _ = prune(model, threshold=0)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        expected = naive_resnext(model, x)
        got = model.forward_intermediates(x, intermediates_only=True)
        for one, other in zip(got, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)
        assert torch.equal(model.forward_features(x), got[-1])


@pytest.mark.parametrize('training', [False, True])
def test_with_all_masks_open_it_is_timms_resnext(training, randomise):
    plain = randomise(timm.create_model('resnext50_32x4d', num_classes=5)).train(training)
    model = timm.create_model('maskconnect_resnext50_32x4d', masks='full', num_classes=5)
    model.load_state_dict(checkpoint_filter_fn(plain.state_dict(), model))
    model.train(training)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain.forward_intermediates(x, indices=[1, 2, 3, 4])
        last, features = model.forward_intermediates(x)
        for one, other in zip([*features, last], [*expected[1], expected[0]], strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def test_weights_of_resnext_load_by_create_model(tmp_path):
    """As the README has it."""
    plain = timm.create_model('resnext50_32x4d').eval()
    save_file(plain.state_dict(), tmp_path / 'resnext50.safetensors')
    model = timm.create_model(
        'maskconnect_resnext50_32x4d',
        masks='full',
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'resnext50.safetensors')),
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(x), plain(x), atol=1e-4)


def test_weights_of_resnext_have_the_shapes_of_learned_masks_too():
    plain = timm.create_model('resnext50_32x4d', device='meta')
    model = timm.create_model('maskconnect_resnext50_32x4d', device='meta')
    state = checkpoint_filter_fn(plain.state_dict(), model)
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    own = model.state_dict()
    assert checkpoint_filter_fn(own, model) is own
    small = timm.create_model('maskconnect_resnext29_8x8d', device='meta')
    with pytest.raises(ValueError, match='a ResNeXt of 4 stages, the network has 3'):
        checkpoint_filter_fn(plain.state_dict(), small)


def test_one_selected_branch_passes_its_shortcut_on_whole():
    """K = 1: mean and sum of shortcuts are the same."""
    torch.manual_seed(0)
    model = draw_masks(resnext(fan_in=1)).eval()
    model.dag.connectivity.fan_ins[-1] = 1  # the output too, which sums all by default
    other = copy.deepcopy(model)
    for block in other.dag.nodes[:-1]:
        block.average = False
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(model(x), other(x), atol=1e-6)


@given(branches=st.integers(1, 6), ins=st.integers(1, 5), outs=st.integers(1, 5))
def test_the_batched_product_is_the_grouped_convolution(branches, ins, outs):
    conv = BranchConv1x1(branches, ins, outs).double()
    x = torch.randn(2, branches * ins, 3, 5, dtype=torch.float64, requires_grad=True)
    got, expected = conv(x), F.conv2d(x, conv.weight, groups=branches)
    assert torch.allclose(got, expected)
    grad = torch.randn_like(got)
    inputs = (x, conv.weight)
    for a, b in zip(
        torch.autograd.grad(got, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    ):
        assert torch.allclose(a, b)
    wide = x.detach().contiguous(memory_format=torch.channels_last)
    assert torch.allclose(conv(wide), expected)


# -- the graph of branches ------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_layers_are_complete_to_the_next(sizes):
    wiring = layered(sizes)
    layers = [[0]]
    for size in [*sizes, 1]:
        layers.append([layers[-1][-1] + 1 + i for i in range(size)])
    graph = nx.DiGraph(wiring.edges)
    for before, after in itertools.pairwise(layers):
        assert all(set(graph.successors(node)) == set(after) for node in before)
    assert not wiring.dead_nodes()


def test_an_edge_must_not_skip_a_block():
    block = BranchBlock(2, 4, 4, 2)
    wiring = Wiring(4, ((0, 1), (0, 2), (1, 3), (2, 3), (0, 3)))
    rule = timm_topo.connectivity.build_connectivity('mask', wiring)
    with pytest.raises(ValueError, match=r'from a block to the next, not \(0, 3\)'):
        BranchGraph(wiring, rule, nn.Identity(), [block])
    with pytest.raises(ValueError, match='has 2 computing nodes, got 4'):
        BranchGraph(wiring, rule, nn.Identity(), [block, block])


def test_routers_are_refused():
    with pytest.raises(ValueError, match='RouterConnectivity reads the features of the image'):
        resnext(connectivity={'name': 'router', 'channels': 4})
    with pytest.raises(ValueError, match='RouterConnectivity reads the features of the image'):
        resnet(fan_in=None, connectivity={'name': 'router', 'channels': 4})


def test_blocks_need_levels_in_order():
    wiring = layered([2, 2])
    rule = timm_topo.connectivity.build_connectivity('mask', wiring)
    blocks = [BranchBlock(2, 4, 4, 2), BranchBlock(2, 4, 4, 2)]
    for levels in ([0], [1, 0], [1, 1]):
        with pytest.raises(ValueError, match='2 blocks need a level each, ascending from 0'):
            BranchGraph(wiring, rule, nn.Identity(), blocks, levels)


def test_adjacency_is_what_branches_read():
    model = draw_masks(resnext())
    matrices = adjacency(model, torch.randn(2, 3, 8, 8))['dag']
    sources, targets = zip(*model.dag.wiring.edges)
    assert matrices.shape == (2, 11, 11)
    expected = model.dag.connectivity.edge_weights()
    assert torch.equal(matrices[:, targets, sources], expected.expand(2, -1))
    assert matrices.sum() == 2 * expected.sum()


def test_edge_multiply_adds_are_two_products_per_block():
    """One map from the stem per branch; then two per edge: branches and shortcuts."""
    model = resnext(masks='full')
    maps = [4 * 32 * 32, 6 * 32 * 32, 8 * 16 * 16, 8 * 16 * 16]
    edges = [3, 2 * 9, 2 * 9, 2 * 3]
    assert count_flops(model).edges == sum(m * e for m, e in zip(maps, edges))


# -- removal --------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['maskconnect_resnext29_8x8d', 'maskconnect_resnet38'])
@pytest.mark.parametrize('k', [1, 4])
def test_what_nobody_reads_goes_and_outputs_stay(name, k, randomise):
    """Which parts: those that networkx cannot reach backwards from the output."""
    torch.manual_seed(k)
    model = draw_masks(randomise(timm.create_model(name, fan_in=k))).eval()
    smaller, report = prune(model, threshold=0)
    assert report.exact
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before, after = model(x), smaller.eval()(x)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    graph, weights = model.dag, model.dag.connectivity.edge_weights()
    read = nx.DiGraph(e for e, w in zip(graph.wiring.edges, weights) if w)
    last = graph.wiring.num_nodes - 1
    alive = sorted({last, *nx.ancestors(read, last)})
    assert smaller.dag.node_ids == alive
    assert count_parameters(smaller) == report.parameters[1] < report.parameters[0]


def test_parameters_left_follow_from_the_branches_left():
    torch.manual_seed(1)
    model = draw_masks(timm.create_model('maskconnect_resnext29_8x8d', fan_in=1))
    smaller, _ = prune(model, threshold=0)
    ids = smaller.dag.node_ids
    expected = 1856 + 25_700  # masks are fixed: nothing is left to choose
    in_chs = 64
    for k in range(9):
        left = sum((i - 1) // 8 == k for i in ids[1:-1])
        w, out = 8 * 2 ** (k // 3), 64 * 2 ** (k // 3)
        expected += left * (in_chs * w + 9 * w * w + w * out + 4 * w + 2 * out)
        if in_chs != out:
            expected += in_chs * out + 2 * out
        in_chs = out
    assert count_parameters(smaller) == expected


@pytest.mark.parametrize(('k', 'printed'), [(1, 0.66), (4, 0.86)])
def test_random_masks_leave_about_the_parameters_of_table_2(k, printed):
    """Not recursively, as the authors' numbers need: only branches that no branch reads go."""
    counts = []
    for seed in range(20):
        model = timm.create_model(
            'maskconnect_resnext29_8x8d', fan_in=k, masks='random', mask_seed=seed, device='meta'
        )
        wiring = model.dag.wiring
        chosen = [e for e, m in zip(wiring.edges, model.dag.connectivity.given) if m]
        unread = set(range(1, wiring.num_nodes - 1)) - {source for source, _ in chosen}
        gone = 0
        for node in unread:
            stage, in_chs = (node - 1) // 24, 64 * 2 ** max(0, ((node - 1) // 8 - 1) // 3)
            w, out = 8 * 2**stage, 64 * 2**stage
            gone += in_chs * w + 9 * w * w + w * out + 4 * w + 2 * out
        counts.append(861_604 - gone)
    assert sum(counts) / len(counts) / 1e6 == pytest.approx(printed, abs=0.02)


def test_masked_edges_weigh_nothing_where_branches_run_at_once():
    torch.manual_seed(0)
    model = resnext(connectivity='alpha').eval()
    x = torch.randn(2, 3, 8, 8)
    keep = {'dag': torch.rand(model.dag.wiring.num_edges) > 0.4}
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.dag.connectivity.alpha.mul_(keep['dag'])
        with mask_edges(model, keep):
            assert torch.allclose(model(x), other(x), atol=1e-6)
        assert not torch.allclose(model(x), other(x), atol=1e-6)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_pruned_network_trains_exports_and_comes_back(name, tmp_path, randomise):
    model = draw_masks(randomise(timm.create_model(name)))
    smaller, _ = prune(model, threshold=0)
    x = torch.randn(2, 3, 32, 32)
    smaller.train()(x).sum().backward()
    assert all(p.grad is not None for p in smaller.parameters())
    smaller.eval()
    again = timm_topo.load(timm_topo.save(smaller, tmp_path / 'saved')).eval()
    assert torch.equal(again(x), smaller(x))
    assert again.topology() == smaller.topology()
    twice, report = prune(again, threshold=0)
    assert report.edges[0] == report.edges[1]
    assert all((w != 0).all() for w in edge_weights(twice).values())


# -- as timm models -------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_can_be_traced_and_exported(name, randomise):
    model = draw_masks(randomise(timm.create_model(name))).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(torch.jit.trace(model, x)(x), expected, atol=1e-5)
        exported = torch.export.export(model, (x,)).module()
        assert torch.allclose(exported(x), expected, atol=1e-5)


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('pruned', [False, True])
def test_onnx_runs_the_same_mask(name, pruned, randomise, tmp_path):
    model = draw_masks(randomise(timm.create_model(name))).eval()
    if pruned:
        model, _ = prune(model, threshold=0)
    path = tmp_path / 'model.onnx'
    assert export_onnx(model, path, (3, 32, 32)) < 1e-4
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    x = torch.randn(3, 3, 32, 32)
    (logits,) = session.run(['logits'], {'image': x.numpy()})
    assert torch.allclose(torch.from_numpy(logits), model.eval()(x), atol=1e-4)


@pytest.mark.filterwarnings('ignore')  # of the exporter that knows opset 11
@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_is_exported_in_opset_11(name, tmp_path):
    model, x = draw_masks(timm.create_model(name)).eval(), torch.randn(2, 3, 32, 32)
    path = tmp_path / 'net.onnx'
    with torch.no_grad():
        torch.onnx.export(model, (x,), path, opset_version=11, dynamo=False, input_names=['image'])
        (got,) = onnxruntime.InferenceSession(path).run(None, {'image': x.numpy()})
        assert torch.allclose(torch.from_numpy(got), model(x), atol=1e-4)


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('training', [False, True])
def test_checkpointing_changes_no_gradient(name, training):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name).train(training)
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(1)
        model(torch.randn(2, 3, 16, 16)).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for parameter, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][parameter], atol=1e-4), parameter


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('coarse', [False, True])
def test_every_parameter_is_in_a_layer_group(name, coarse):
    model = timm.create_model(name)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    grouped = sorted(parameter for group in groups.values() for parameter in group)
    assert grouped == sorted(n for n, _ in model.named_parameters())


@pytest.mark.parametrize('name', NETWORKS)
def test_bfloat16_autocast_is_near(name, randomise):
    model = draw_masks(randomise(timm.create_model(name))).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            got = model(x)
        wide = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        assert torch.allclose(wide(x), expected, atol=1e-4 * expected.abs().max().item())
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_early_features_stop_early():
    model = resnext().eval()
    x = torch.randn(2, 3, 16, 16)
    everything = model.forward_intermediates(x, intermediates_only=True)
    ran = []
    for block in model.dag.nodes:
        block.register_forward_hook(lambda *_: ran.append(1))
    (first,) = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    assert torch.equal(first, everything[0])
    assert len(ran) == 1
    last, taken = model.forward_intermediates(x, indices=[0])
    assert torch.equal(last, everything[1])
    assert len(taken) == 1
    assert len(ran) == 1 + 3
    assert torch.equal(model.forward_intermediates(x, [0], stop_early=True)[0], first)
    assert len(ran) == 1 + 3 + 1
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt='NLC')


def test_what_is_behind_the_last_feature_goes():
    model = draw_masks(resnext()).eval()
    x = torch.randn(2, 3, 16, 16)
    first, _ = model.forward_intermediates(x, intermediates_only=True)
    edges = model.dag.wiring.edges
    assert model.prune_intermediate_layers([0]) == [0]
    assert (model.num_classes, model.num_features, len(model.dag.nodes)) == (0, 6, 1)
    assert torch.equal(model(x), first)
    assert torch.equal(model.forward_intermediates(x, [0], intermediates_only=True)[0], first)
    assert model.dag.wiring.edges == edges
    with pytest.raises(RuntimeError, match='cut off keeps its edges: prune it before'):
        prune(model, threshold=0)
    whole = resnext()
    whole.prune_intermediate_layers(1, prune_head=False)
    assert (whole.num_classes, len(whole.dag.nodes)) == (5, 3)


# -- options --------------------------------------------------------------------------------------


def test_fixed_masks_need_no_fan_in():
    """As the README has them: by registered names, which have a K for masks that choose."""
    model = timm.create_model('maskconnect_resnet38', masks='prev')
    active = [e for e, w in zip(model.dag.wiring.edges, edge_weights(model)['dag']) if w]
    assert active == list(sequential(19).edges)
    full = timm.create_model('test_maskconnect_resnext', masks='full')
    assert (edge_weights(full)['dag'] == 1).all()
    given = timm.create_model('test_maskconnect_resnet', masks=[1] * 16, average=False)
    assert edge_weights(given)['dag'].tolist() == [1] * 16
    chosen = timm.create_model('test_maskconnect_resnet', masks='random')
    assert chosen.dag.connectivity.fan_ins == [0, 1, 1, 2, 2, 2, 2]


def test_options_of_masks_may_be_given_as_a_rule():
    """What is not said is as usual: means of blocks, outputs that read everything."""
    rule = {'name': 'mask', 'fan_in': 2, 'init': 0.25}
    one = resnet(fan_in=None, connectivity=rule).dag.connectivity
    assert (one.mask == 0.25).all()
    assert one.edge_weights().max() == 1
    assert one.edge_weights()[-5:].sum().item() == pytest.approx(1)
    assert resnext(connectivity=rule).dag.connectivity.fan_ins[-1] == 3
    assert resnext(connectivity='mask').dag.connectivity.fan_ins[-1] == 3
    plain = resnext(connectivity={**rule, 'full_output': False})
    assert plain.dag.connectivity.fan_ins[-1] == 2


@pytest.mark.parametrize('options', [dict(fan_in=1), dict(mask_seed=3)])
@pytest.mark.parametrize('name', NETWORKS)
def test_a_saved_network_keeps_its_masks(name, options, tmp_path):
    folder = timm_topo.save(timm.create_model(name), tmp_path / 'saved')
    with pytest.raises(
        ValueError, match='the rule is given already, by connectivity or by the sav'
    ):
        timm_topo.load(folder, **options)


@pytest.mark.parametrize('seed', range(4))
def test_features_of_a_network_that_lost_a_stage(seed, tmp_path):
    torch.manual_seed(seed)
    model = draw_masks(timm.create_model('maskconnect_resnet38', fan_in=1))
    smaller, _ = prune(model, threshold=0)
    folder = timm_topo.save(smaller, tmp_path / 'saved')
    features = timm_topo.load(folder, features_only=True).eval()(torch.randn(1, 3, 32, 32))
    assert len(features) == len(set(smaller.dag.levels))
    assert features[-1].shape == (1, 64, 8, 8)


def test_features_by_hooks_are_refused():
    with pytest.raises(ValueError, match="come from feature_cls='getter', not 'hook'"):
        timm.create_model('test_maskconnect_resnext', features_only=True, feature_cls='hook')


@pytest.mark.parametrize('name', NETWORKS)
def test_adjacency_is_seen_through_features(name):
    x = torch.randn(2, 3, 32, 32)
    matrices = adjacency(timm.create_model(name, features_only=True), x)
    assert list(matrices) == ['model.dag']
    assert torch.equal(matrices['model.dag'], adjacency(timm.create_model(name), x)['dag'])


@pytest.mark.parametrize('name', NETWORKS)
def test_empty_batches_and_no_features(name):
    model = timm.create_model(name).eval()
    assert model(torch.empty(0, 3, 32, 32)).shape == (0, 100)
    x = torch.randn(1, 3, 32, 32)
    assert model.forward_intermediates(x, [], intermediates_only=True) == []
    assert torch.equal(model.forward_intermediates(x, [])[0], model.forward_features(x))


def test_after_removal_nothing_is_drawn():
    torch.manual_seed(0)
    smaller, _ = prune(draw_masks(timm.create_model('test_maskconnect_resnext')), threshold=0)
    assert not list(smaller.dag.connectivity.parameters())
    x, state = torch.randn(2, 3, 32, 32), torch.get_rng_state()
    smaller.train()(x)
    assert torch.equal(torch.get_rng_state(), state)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('make', 'options', 'error', 'told'),
    [
        (resnet, dict(fan_in=0), ValueError, 'fan_in must be at least 1, got 0'),
        (resnext, dict(fan_in=0), ValueError, 'fan_in must be at least 1, got 0'),
        (resnet, dict(num_blocks=0), ValueError, 'num_blocks must be an integer from 1 on, got 0'),
        (
            resnet,
            dict(widths=(8, 0)),
            ValueError,
            r'widths must be an integer from 1 on, got 0',
        ),
        (resnext, dict(cardinality=2.5), ValueError, 'cardinality must be .* got 2.5'),
        (resnext, dict(depths=(1, 1, 1)), ValueError, '3 stages of blocks but 2 widths'),
        (resnext, dict(masks='prev'), ValueError, "masks='prev' is for blocks in a row"),
        (resnet, dict(masks='none'), ValueError, "unknown masks 'none'"),
        (resnet, dict(fan_in=2, connectivity='alpha'), ValueError, 'fan_in=2: the rule is given'),
        (resnet, dict(connectivity='mask', fan_in=None, mask_seed=3), ValueError, 'seed=3: the'),
        (resnet, dict(widths=16), ValueError, 'widths must be a sequence of integers, got 16'),
        (resnet, dict(average='no'), TypeError, "average must be True or False, got 'no'"),
        (resnext, dict(average='no'), TypeError, "average must be True or False, got 'no'"),
        (resnext, dict(branch_norm=1), TypeError, 'branch_norm must be True or False, got 1'),
        (
            resnext,
            dict(norm_layer='groupnorm1'),
            ValueError,
            'norm_layer GroupNorm1 takes channels',
        ),
        (
            resnext,
            dict(norm_layer='layernorm2d'),
            ValueError,
            'of several branches together: it must',
        ),
        (resnet, dict(sparsity='l2'), ValueError, "unknown sparsity 'l2'"),
        (resnet, dict(norm_layer='no'), ValueError, "norm_layer 'no' is no class"),
        (resnext, dict(wiring=sequential(11)), ValueError, 'from a block to the next'),
        (resnext, dict(node_ids=[[0, 1, 2]]), ValueError, 'must lead from 0 to 10'),
        (resnext, dict(wiring=complete(5)), ValueError, 'num_nodes=11 contradicts the explicit'),
    ],
)
def test_bad_options(make, options, error, told):
    with pytest.raises(error, match=told):
        make(**options)
