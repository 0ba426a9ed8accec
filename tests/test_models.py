"""The registered models: size, function, options, export, and what timm expects of them.

``timm_topo/models/counts.json`` holds, per model: the default input, parameters, convolution
MFLOPs (1 FLOP = 1 multiply-add, as the papers count) and edges per stage, beside the paper's
figures; and for some the GFLOPs of the backbone in DG-Net's COCO table, 2 per multiply-add at
800x1333. A change of a model on purpose changes it too; print its new entry with

    python -c "import sys; sys.path.insert(0, 'tests'); import test_models as t; \
        print(t.json.dumps(t.complexity('toponet_adaptive')))"
"""

import json
import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from timm.layers import LayerNorm2d
from timm.models.resnet import BasicBlock, downsample_conv
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import timm_topo
from timm_topo.analysis.prune import prune
from timm_topo.connectivity import exempt_from_weight_decay
from timm_topo.generators import complete, random, residual
from timm_topo.models.toponet import checkpoint_filter_fn
from timm_topo.stages import Stage, graph_stages
from timm_topo.wiring import Wiring

GOLDEN = json.loads((Path(timm_topo.models.__path__[0]) / 'counts.json').read_text())
MODELS = timm.list_models(
    module=[
        'toponet',
        'toporesnet',
        'topomobilenet',
        'dgnet',
        'dagnet',
        'maskconnect',
        'maskconnect_resnext',
        'randwire',
    ]
)
TINY = dict(num_nodes=(3, 4), widths=(8, 12), strides=(2, 2), stem_width=8, num_classes=5)


@pytest.fixture(autouse=True, scope='module')
def _fvcore_is_silent():
    logger = logging.getLogger('fvcore.nn.jit_analysis')
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def tiny(**options) -> nn.Module:
    return timm.create_model('test_toponet', **{**TINY, **options})


def image(model: nn.Module, batch: int = 2) -> Tensor:
    return torch.randn(batch, *model.default_cfg['input_size'])


# -- size -----------------------------------------------------------------------------------------


def conv_flops(model: nn.Module, size: Sequence[int]) -> int:
    """Multiply-adds of the convolutions, by their shapes; ``model`` is on the meta device."""
    flops = 0

    def count(conv, args, output):
        nonlocal flops
        flops += output.numel() * conv.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    model.eval()(torch.empty(1, *size, device='meta'))
    return flops


def complexity(name: str) -> dict:
    """What the golden file holds of a model, counted without computing."""
    model = timm.create_model(name, device='meta')
    size = model.default_cfg['input_size']
    return {
        'input_size': list(size),
        'params': sum(parameter.numel() for parameter in model.parameters()),
        'conv_mflops': conv_flops(model, size) / 1e6,
        'edges': [m.wiring.num_edges for m in model.modules() if isinstance(m, Stage)],
    }


@pytest.mark.parametrize('name', MODELS)
def test_every_model_has_the_size_in_the_golden_file(name):
    golden = {key: GOLDEN[name][key] for key in ('input_size', 'params', 'conv_mflops', 'edges')}
    assert complexity(name) == golden


def test_the_golden_file_is_about_the_registered_models():
    assert set(GOLDEN) == set(MODELS)


@pytest.mark.parametrize('name', [name for name, golden in GOLDEN.items() if 'paper' in golden])
def test_size_is_within_a_percent_of_the_paper(name):
    golden = GOLDEN[name]
    assert golden['params'] / 1e6 == pytest.approx(golden['paper']['params_m'], rel=0.01)
    assert golden['conv_mflops'] / 1e3 == pytest.approx(golden['paper']['gflops'], rel=0.04)


@pytest.mark.parametrize('name', [n for n, g in GOLDEN.items() if 'coco_backbone_gflops' in g])
def test_backbones_have_the_flops_of_dgnets_table_2(name):
    """At 800x1333; the paper counts 2 per multiply-add there."""
    counted = {}
    for kind, network in (('plain', name.removeprefix('dgnet_')), ('dgnet', name)):
        model = timm.create_model(network, device='meta')
        counted[kind] = round(2 * conv_flops(model, (3, 800, 1333)) / 1e9, 2)
    assert counted == GOLDEN[name]['coco_backbone_gflops']
    assert list(counted.values()) == pytest.approx(GOLDEN[name]['paper']['coco_gflops'], abs=1)


@pytest.mark.parametrize('name', timm.list_models('toporesnet*'))
def test_resnets_have_the_digits_of_table_1(name):
    golden = GOLDEN[name]
    counted = round(golden['params'] / 1e6, 2), round(golden['conv_mflops'] / 1e3, 2)
    assert counted == (golden['paper']['params_m'], golden['paper']['gflops'])
    plain = GOLDEN[name.replace('toporesnet', 'resnet_cifar')]
    assert golden['conv_mflops'] == plain['conv_mflops']
    assert golden['params'] == plain['params'] + sum(golden['edges'])


@pytest.mark.parametrize('name', ['topomobilenetv2_2n', 'topomobilenetv2_4n'])
def test_mobilenets_have_the_parameters_of_table_2(name):
    assert round(GOLDEN[name]['params'] / 1e6, 2) == GOLDEN[name]['paper']['params_m']


@pytest.mark.parametrize('name', timm.list_models('dgnet_*', exclude_filters='*randwire*'))
def test_dgnets_have_the_counts_of_table_1(name):
    """Convolutions to the printed digits; parameters as the formula of the routers has them."""
    golden, model = GOLDEN[name], timm.create_model(name, device='meta')
    base = name.removeprefix('dgnet_')
    plain = timm.create_model(base, device='meta')
    stages = list(graph_stages(model).values())
    routers = taus = 0
    for stage in stages:
        n, rule = stage.wiring.num_nodes, stage.connectivity
        routers += (rule.channels + 1) * n * (n - 1) // 2
        taus += n - 1
        assert stage.wiring == complete(n)
    assert routers == ROUTERS[base]
    extra = sum(p.numel() for p in plain.parameters()) + routers + taus
    if base.startswith('resnet') or base.startswith('resnext'):  # the first stage's projections
        extra += {'resnet18': 64 * 64 + 2 * 64, 'resnext50_32x4d': 192 * 128}.get(base, 192 * 64)
    if base.startswith('mobilenet'):  # projections with norms in all seven stages
        widths = (32, 16, 24, 32, 64, 96, 160, 320)
        extra += sum(i * o + 2 * o for i, o in pairwise(widths))
    assert golden['params'] == extra
    assert int(golden['conv_mflops']) == PRINTED[base]


#: Parameters of all routers, and MFLOPs as printed in Table 1 (regnety_006: Table 5) but for the
#: two that our convolutions miss by 1 and 3.
ROUTERS = {
    'mobilenetv2_100': 5049, 'resnet18': 5784, 'resnet50': 59455, 'resnet101': 338255,
    'resnext50_32x4d': 59455, 'regnetx_006': 25222, 'regnetx_016': 35445, 'regnety_006': 19664,
}  # fmt: skip
PRINTED = {
    'mobilenetv2_100': 312, 'resnet18': 1826, 'resnet50': 4125, 'resnet101': 7837,
    'resnext50_32x4d': 4305, 'regnetx_006': 600, 'regnetx_016': 1601, 'regnety_006': 600,
}  # fmt: skip


@pytest.mark.parametrize(
    'name',
    [
        'toponet_adaptive',
        'toporesnet20',
        'topomobilenetv2_100',
        'dgnet_resnet18',
        'maskconnect_resnext29_8x8d',
        'randwire_ws_small',
    ],
)
def test_fvcore_counts_the_same_convolutions(name):
    """One model of each size; the wiring has no part in it."""
    model = timm.create_model(name).eval()
    counted = FlopCountAnalysis(model, image(model, 1)).by_operator()
    assert counted['conv'] == GOLDEN[name]['conv_mflops'] * 1e6


def test_with_linear_and_edges_toponet_multiplies_3_934_g_times():
    """The paper's 3.95 G, less 0.4%."""
    model = timm.create_model('toponet_adaptive').eval()
    counted = FlopCountAnalysis(model, image(model, 1)).by_operator()
    sides = (56, 28, 14, 7)
    edges = sum(
        stage.wiring.num_edges * info['num_chs'] * side * side
        for stage, info, side in zip(model.stages, model.feature_info[1:], sides)
    )
    assert [info['reduction'] * side for info, side in zip(model.feature_info[1:], sides)] == (
        [224] * 4
    )
    assert round((counted['conv'] + counted['linear'] + edges) / 1e9, 3) == 3.934


def test_the_paper_learns_697_alphas_that_start_at_one():
    model = timm.create_model('toponet_adaptive')
    alphas = torch.cat([stage.connectivity.alpha for stage in model.stages])
    assert alphas.shape == (697,)
    assert (alphas == 1).all()


# -- function -------------------------------------------------------------------------------------


def conv_bn(x: Tensor, conv: nn.Conv2d, bn: nn.Module | None, stride: int = 1) -> Tensor:
    padding, groups = conv.kernel_size[0] // 2, conv.in_channels // conv.weight.shape[1]
    x = F.conv2d(x, conv.weight, stride=stride, padding=padding, groups=groups)
    if bn is None:
        return x
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


def separable(x: Tensor, node: nn.Module, stride: int = 1) -> Tensor:
    return conv_bn(conv_bn(F.relu(x), node.conv_dw, None, stride), node.conv_pw, node.bn)


def residual_network(model: nn.Module, x: Tensor, interval: int, strides: tuple) -> Tensor:
    """A plain residual network, ``x += chain(x)``, with the weights of ``model``."""
    x = conv_bn(x, model.stem.conv, model.stem.bn, strides[0])
    for stage, stride in zip(model.stages, strides[1:]):
        entry = stage.entry
        x = separable(x, entry.node, stride) + conv_bn(
            x, entry.shortcut.conv, entry.shortcut.bn, stride
        )
        for first in range(0, len(stage.nodes), interval):
            branch = x
            for node in stage.nodes[first : first + interval]:
                branch = separable(branch, node)
            x = x + branch
    return F.linear(F.relu(x).mean((2, 3)), model.head.fc.weight, model.head.fc.bias)


@pytest.mark.parametrize('name', ['test_toponet', 'toponet_tiny_adaptive'])
@pytest.mark.parametrize(
    ('options', 'interval'),
    [
        (dict(), 1),
        (dict(connectivity='fixed'), 1),
        (dict(connectivity='fixed', wiring=dict(name='residual', interval=2)), 2),
        (dict(connectivity='fixed', wiring=dict(name='residual', interval=3)), 3),
    ],
    ids=['alpha 1', 'complete', 'residual2', 'residual3'],
)
def test_with_all_weights_one_a_stage_is_an_unrolled_residual_network(
    randomise, name, options, interval
):
    """The two perspectives are completely equivalent (TopoNet, section 3.2)."""
    model = randomise(timm.create_model(name, **options)).double().eval()
    for stage in model.stages:
        stage.connectivity.reset_parameters()
    strides = (1, 1, 2, 2) if 'tiny' in name else (2, 2, 2, 2, 2)
    x = image(model).double()
    torch.testing.assert_close(model(x), residual_network(model, x, interval, strides))


def residual_resnet(model: nn.Module, x: Tensor, interval: int) -> Tensor:
    """A plain ResNet for CIFAR with the weights of ``model``; no activation behind the sums."""

    def node(module: nn.Module, x: Tensor, stride: int = 1) -> Tensor:
        return conv_bn(F.relu(x), module.conv, module.bn, stride)

    x = conv_bn(x, model.stem.conv, model.stem.bn)
    for index, stage in enumerate(model.stages):
        stride = 2 if index else 1
        for first in range(0, len(stage.nodes), interval):
            branch = x
            for i, module in enumerate(stage.nodes[first : first + interval]):
                branch = node(module, branch, stride if first + i == 0 else 1)
            if index and first == 0:
                x = conv_bn(x, stage.entry.conv, stage.entry.bn, stride)
            x = x + branch
    return F.linear(F.relu(x).mean((2, 3)), model.head.fc.weight, model.head.fc.bias)


@pytest.mark.parametrize('interval', [1, 2])
def test_a_toporesnet_with_all_weights_one_is_a_resnet(randomise, interval):
    """Interval 1: a shortcut over every convolution; 2: over two, as in the ResNet."""
    options = {} if interval == 1 else dict(wiring=dict(name='residual', interval=2))
    model = randomise(timm.create_model('toporesnet20', **options)).double().eval()
    for stage in model.stages:
        stage.connectivity.reset_parameters()
    x = image(model).double()
    torch.testing.assert_close(model(x), residual_resnet(model, x, interval))


def test_a_resnet_for_cifar_is_timms_resnet_without_the_first_reductions():
    """The same blocks as ``timm.models.ResNet`` has them, with a 3x3 stem and no pooling."""
    torch.manual_seed(0)
    ours = timm.create_model('resnet_cifar20').double().eval()
    theirs, in_chs = [], 16
    for out_chs in (16, 32, 64):
        for _ in range(3):
            stride, down = (1, None) if in_chs == out_chs else (2, (in_chs, out_chs, 1, 2))
            down = down and downsample_conv(*down)
            theirs.append(BasicBlock(in_chs, out_chs, stride=stride, downsample=down))
            in_chs = out_chs
    stages = nn.Sequential(*theirs).double().eval()
    names = {
        'conv1_kxk.conv': 'conv1', 'conv1_kxk.bn': 'bn1', 'conv2_kxk.conv': 'conv2',
        'conv2_kxk.bn': 'bn2', 'shortcut.conv': 'downsample.0', 'shortcut.bn': 'downsample.1',
    }  # fmt: skip
    state = {}
    for name, value in ours.stages.state_dict().items():
        stage, block, rest = name.split('.', 2)
        for old, new in names.items():
            rest = rest.replace(old, new)
        state[f'{3 * int(stage) + int(block)}.{rest}'] = value
    stages.load_state_dict(state, assign=True)
    x = image(ours).double()
    stem = F.relu(conv_bn(x, ours.stem.conv, ours.stem.bn))
    torch.testing.assert_close(ours.stages(ours.stem(x)), stages(stem))


def test_a_pruned_toporesnet_is_saved_with_or_without_its_first_node(randomise, tmp_path):
    model = randomise(timm.create_model('toporesnet20')).eval()
    x = image(model)
    for gone in (1, 3):
        keep = {
            name: torch.tensor([gone not in edge for edge in stage.wiring.edges])
            for name, stage in graph_stages(model).items()
        }
        smaller, _ = prune(model, keep=keep)
        timm_topo.save(smaller, tmp_path / 'net')
        loaded = timm_topo.load(tmp_path / 'net').eval()
        assert [stage.first_reads_input for stage in loaded.stages] == [False, gone != 1, gone != 1]
        torch.testing.assert_close(loaded(x), smaller(x))


@pytest.mark.parametrize('training', [True, False])
def test_the_model_runs_its_stages_edge_by_edge(randomise, naive_stage, training):
    model = randomise(timm.create_model('test_toponet')).double().train(training)
    x = image(model).double()
    features = model.stem(x)
    for stage in model.stages:
        features = naive_stage(stage, features)
    torch.testing.assert_close(model(x), model.head(features.relu()))


def test_checkpointing_changes_no_gradient(randomise):
    model = randomise(timm.create_model('test_toponet')).double()
    x = image(model).double()
    stored = torch.autograd.grad(model(x).square().sum(), [*model.parameters()])
    model.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in model.stages)
    recomputed = torch.autograd.grad(model(x).square().sum(), [*model.parameters()])
    torch.testing.assert_close(recomputed, stored)
    model.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in model.stages)


def test_named_variants_are_the_rows_of_table_4():
    def rule(name):
        model = timm.create_model(name, device='meta')
        kinds = {type(stage.connectivity).__name__ for stage in model.stages}
        assert len(kinds) == 1
        return kinds.pop(), model.sparsity, [stage.wiring for stage in model.stages]

    sizes = (14, 20, 26, 14)
    all_edges = [complete(n) for n in sizes]
    assert rule('toponet_adaptive') == ('AlphaConnectivity', 'adaptive', all_edges)
    assert rule('toponet_uniform') == ('AlphaConnectivity', 'uniform', all_edges)
    assert rule('toponet_alpha') == ('AlphaConnectivity', 'none', all_edges)
    assert rule('toponet_complete') == ('FixedConnectivity', 'none', all_edges)
    for interval in (2, 3, 4):
        expected = [residual(n, interval) for n in sizes]
        name = f'toponet_residual{interval}'
        assert rule(name) == ('FixedConnectivity', 'none', expected)
    for p in (8, 6, 4):
        expected = [random(n, p / 10, seed=stage) for stage, n in enumerate(sizes)]
        assert rule(f'toponet_random{p}') == ('FixedConnectivity', 'none', expected)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'wirings'),
    [
        (dict(wiring='sequential'), [((0, 1), (1, 2)), ((0, 1), (1, 2), (2, 3))]),
        (dict(wiring=dict(name='residual', interval=1)), [complete(3).edges, complete(4).edges]),
        (dict(wiring=['complete', 'sequential']), [complete(3).edges, ((0, 1), (1, 2), (2, 3))]),
        (dict(wiring=[complete(3), 'complete']), [complete(3).edges, complete(4).edges]),
        (dict(num_nodes=5), [complete(5).edges] * 2),
        (dict(num_nodes=[2, 3]), [((0, 1),), complete(3).edges]),
    ],
)
def test_wiring_and_node_counts_are_options(options, wirings):
    model = tiny(**options)
    assert [stage.wiring.edges for stage in model.stages] == wirings
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ('wiring', 'sizes'),
    [
        (complete(5), [5, 5]),
        (complete(5).to_dict(), [5, 5]),
        ([complete(2), complete(6).to_dict()], [2, 6]),
    ],
)
def test_an_explicit_wiring_sets_the_number_of_nodes(wiring, sizes):
    options = {key: value for key, value in TINY.items() if key != 'num_nodes'}
    model = timm.create_model('test_toponet', wiring=wiring, **options)
    assert [stage.wiring for stage in model.stages] == [complete(n) for n in sizes]
    assert [len(stage.nodes) for stage in model.stages] == [n - 2 for n in sizes]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_connectivity_is_an_option_for_all_stages_or_one_each():
    model = tiny(connectivity=dict(name='tanh', init=0.25))
    assert {stage.connectivity.edge_weights()[0].item() for stage in model.stages} == {0.25}
    model = tiny(connectivity=['sigmoid', 'fixed'])
    kinds = [type(stage.connectivity).__name__ for stage in model.stages]
    assert kinds == ['SigmoidConnectivity', 'FixedConnectivity']
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_widths_strides_and_stem_are_options():
    model = tiny(
        widths=(4, 6, 10), num_nodes=3, strides=(1, 2, 1), stem_width=2, stem_kernel=3, in_chans=1
    )
    shapes = [tuple(f.shape) for f in model.forward_intermediates(torch.randn(1, 1, 32, 32))[1]]
    assert shapes == [(1, 2, 16, 16), (1, 4, 16, 16), (1, 6, 8, 8), (1, 10, 8, 8)]
    assert [(i['num_chs'], i['reduction']) for i in model.feature_info] == [
        (2, 2), (4, 2), (6, 4), (10, 4)
    ]  # fmt: skip
    assert model.stem.conv.kernel_size == (3, 3)


@pytest.mark.parametrize(
    ('norm_layer', 'kind'),
    [('batchnorm2d', nn.BatchNorm2d), ('layernorm2d', LayerNorm2d), (LayerNorm2d, LayerNorm2d)],
)
def test_the_normalisation_of_nodes_is_an_option_by_name_or_class(norm_layer, kind):
    model = tiny(norm_layer=norm_layer)
    for stage in model.stages:
        norms = [stage.entry.node.bn, stage.entry.shortcut.bn, *(n.bn for n in stage.nodes)]
        assert {type(norm) for norm in norms} == {kind}
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize('output_stride', [8, 16, 32])
def test_output_stride_dilates_instead_of_striding(output_stride):
    model = timm.create_model('test_toponet', output_stride=output_stride)
    features = model.forward_features(torch.randn(1, 3, 64, 64))
    assert features.shape[-1] == 64 // output_stride
    assert model.feature_info[-1]['reduction'] == output_stride
    last = model.stages[-1]
    dilations = {module.conv_dw.dilation[0] for module in (last.entry.node, *last.nodes)}
    assert dilations == {32 // output_stride}
    assert features.shape[-1] == model.forward_intermediates(torch.randn(1, 3, 64, 64))[0].shape[-1]


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_models_are_built_in_the_dtype_asked_for(dtype):
    model = tiny(dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(torch.randn(1, 3, 32, 32, dtype=dtype)).dtype == dtype


def test_topology_rebuilds_the_model():
    model = tiny(
        wiring=dict(name='random', p=0.5, seed=4), num_nodes=7, connectivity=['tanh', 'fixed']
    )
    options = json.loads(json.dumps(model.topology()))
    again = tiny(**options)
    assert [s.wiring for s in again.stages] == [s.wiring for s in model.stages]
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(conectivity='alpha'), TypeError, "unexpected keyword argument 'conectivity'"),
        (dict(num_clases=7), TypeError, "unexpected keyword argument 'num_clases'"),
        (dict(num_nodes=(3, 4, 5)), ValueError, 'num_nodes has 3 entries for 2 stages'),
        (dict(strides=(2,)), ValueError, 'strides has 1 entries for 2 stages'),
        (dict(wiring=['complete'] * 3), ValueError, 'wiring has 3 entries for 2 stages'),
        (dict(connectivity=['alpha']), ValueError, 'connectivity has 1 entries for 2 stages'),
        (dict(widths=(8, 8, 8)), ValueError, 'strides has 2 entries for 3 stages'),
        (dict(output_stride=4), ValueError, 'output_stride must be 8, 16 or 32, got 4'),
        (dict(output_stride=64), ValueError, 'output_stride must be 8, 16 or 32, got 64'),
        (dict(sparsity='l2'), ValueError, "unknown sparsity 'l2'; known: none, uniform, adaptive"),
        (
            dict(sparsity_weight=-1e-4),
            ValueError,
            r'must be finite and >= 0, got -0\.0001',
        ),
        (
            dict(sparsity_weight=float('nan')),
            ValueError,
            'sparsity_weight must be finite and >= 0',
        ),
        (
            dict(wiring='compleet'),
            ValueError,
            "unknown wiring 'compleet'; known: barabasi_albert, complete",
        ),
        (
            dict(wiring=dict(name='random', p=0.5, q=1)),
            TypeError,
            "unexpected keyword argument 'q'",
        ),
        (dict(wiring=dict(name='random', p=1.1)), ValueError, r'in \[0, 1\], got 1\.1'),
        (dict(wiring=complete(9)), ValueError, 'num_nodes=3 contradicts the explicit Wiring'),
        (dict(wiring=Wiring(4, [(0, 2), (2, 3), (1, 3)]), num_nodes=4), ValueError, 'are dead'),
        (dict(num_nodes=1), ValueError, 'at least 2 nodes .* got num_nodes=1'),
        (dict(num_nodes=(3, None)), ValueError, "wiring 'complete' needs num_nodes"),
        (dict(connectivity='beta'), ValueError, "unknown connectivity 'beta'; known: alpha"),
        (dict(connectivity=dict(name='tanh', init=2)), ValueError, r'\(-1, 1\) for tanh, got 2'),
    ],
)
def test_options_that_mean_nothing_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        tiny(**options)


@pytest.mark.parametrize('fmt', ['NHWC', 'NLC'])
def test_intermediates_come_in_one_format(fmt):
    with pytest.raises(ValueError, match=f"output_fmt must be 'NCHW', got '{fmt}'"):
        tiny().forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt=fmt)


@pytest.mark.parametrize(
    ('indices', 'message'),
    [
        (4, 'the last n=4 levels of 3 do not exist'),
        (0, 'the last n=0 levels of 3 do not exist'),
        ([0, 3], 'level 3 is out of range for 3 levels'),
        ([-4], 'level -4 is out of range for 3 levels'),
    ],
)
def test_levels_that_do_not_exist_are_refused(indices, message):
    model = tiny()
    with pytest.raises(ValueError, match=message):
        model.forward_intermediates(torch.randn(1, 3, 32, 32), indices=indices)
    with pytest.raises(ValueError, match=message):
        model.prune_intermediate_layers(indices)


# -- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize('norm', [False, True])
def test_norm_applies_the_final_relu_to_the_last_intermediate_only(randomise, norm):
    model = randomise(timm.create_model('test_toponet')).eval()
    final, levels = model.forward_intermediates(image(model), norm=norm)
    assert len(levels) == 5
    assert all((level < 0).any() for level in levels[:-1]), 'a case where ReLU matters'
    assert (levels[-1] < 0).any() != norm
    assert torch.equal(levels[-1].relu(), final)


@pytest.mark.parametrize('indices', [None, 2, [0, 2], [-1, 1], [-5]])
@pytest.mark.parametrize('stop_early', [False, True])
def test_intermediates_are_the_outputs_of_stem_and_stages(randomise, indices, stop_early):
    model = randomise(timm.create_model('test_toponet')).eval()
    x = image(model)
    outputs = [model.stem(x)]
    for stage in model.stages:
        outputs.append(stage(outputs[-1]))
    taken = {None: range(5), 2: [3, 4]}.get(indices) if not isinstance(indices, list) else indices
    expected = [outputs[level] for level in sorted(level % 5 for level in taken)]
    result = model.forward_intermediates(
        x, indices=indices, stop_early=stop_early, intermediates_only=True
    )
    assert len(result) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(result, expected))


def test_stop_early_runs_no_later_stage():
    model = timm.create_model('test_toponet').eval()
    ran = []
    for i, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda *args, i=i: ran.append(i))
    model.forward_intermediates(image(model), indices=[0, 2], stop_early=True)
    assert ran == [0, 1]


def test_features_only_gives_the_raw_levels(randomise):
    model = randomise(timm.create_model('test_toponet')).eval()
    backbone = timm.create_model('test_toponet', features_only=True, out_indices=(1, 3, 4)).eval()
    missing, unexpected = backbone.load_state_dict(
        {key.replace('stages.', 'stages_', 1): v for key, v in model.state_dict().items()},
        strict=False,
    )
    assert not missing
    assert all(key.startswith('head.') for key in unexpected)
    x = image(model)
    expected = model.forward_intermediates(x, indices=[1, 3, 4], intermediates_only=True)
    for feature, level, reduction in zip(backbone(x), expected, backbone.feature_info.reduction()):
        assert torch.equal(feature, level)
        assert x.shape[-1] // feature.shape[-1] == reduction
    assert backbone.feature_info.channels() == [16, 32, 48]


def test_weights_of_a_features_only_network_load_into_the_model(randomise):
    backbone = randomise(timm.create_model('test_toponet', features_only=True)).eval()
    model = timm.create_model('test_toponet').eval()
    filtered = checkpoint_filter_fn(backbone.state_dict(), model)
    missing, unexpected = model.load_state_dict(filtered, strict=False)
    assert set(missing) == {'head.fc.weight', 'head.fc.bias'}
    assert not unexpected
    x = image(model)
    levels = model.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(backbone(x), levels))


def test_the_checkpoint_filter_leaves_the_models_own_weights_as_they_are():
    state = timm.create_model('test_toponet').state_dict()
    assert checkpoint_filter_fn(state, None).keys() == state.keys()


def test_pruned_levels_leave_a_smaller_model_with_the_same_features(randomise):
    model = randomise(timm.create_model('test_toponet')).eval()
    x = image(model)
    level = model.forward_intermediates(x, indices=[2], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([0, 2]) == [0, 2]
    assert len(model.stages) == 2
    assert model.num_features == 24
    assert torch.equal(model(x), level)


# -- tracing, exporting, compiling ----------------------------------------------------------------


@pytest.fixture(params=['alpha', 'fixed'])
def model(request, randomise):
    """A small model with in-degrees from 1 to 4, in eval, with state unlike the initial."""
    wiring = dict(name='random', p=0.6)
    options = dict(wiring=wiring, connectivity=request.param)
    return randomise(timm.create_model('test_toponet', **options)).eval()


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_a_trace_runs_other_batches_and_sizes(model):
    traced = torch.jit.trace(model, torch.randn(2, 3, 64, 64))
    x = torch.randn(3, 3, 96, 64)
    torch.testing.assert_close(traced(x), model(x))


def test_fx_traces_the_model(model):
    x = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


def test_an_export_runs_any_batch_size(model):
    batch = torch.export.Dim('batch')
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    for size in (1, 5):
        x = torch.randn(size, 3, 64, 64)
        torch.testing.assert_close(program.module()(x), model(x))


def test_compiling_meets_no_graph_break(model):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


# -- optimizers -----------------------------------------------------------------------------------


def option_of(optimizer: torch.optim.Optimizer, name: str) -> dict[int, float]:
    """An option of the parameter groups, by the id of the parameter."""
    groups = optimizer.param_groups
    return {id(p): group[name] for group in groups for p in group['params']}


def test_no_weight_decay_names_exactly_the_edge_weights():
    model = timm.create_model('test_toponet')
    alphas = {f'stages.{stage}.connectivity.alpha' for stage in range(4)}
    assert model.no_weight_decay() == alphas
    assert alphas < dict(model.named_parameters()).keys()
    assert timm.create_model('test_toponet', connectivity='fixed').no_weight_decay() == set()


@pytest.mark.parametrize(
    'options',
    [dict(), dict(filter_bias_and_bn=False), dict(layer_decay=0.75)],
    ids=['default', 'decay_bias_and_bn', 'layer_decay'],
)
@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'lamb', 'muon'])
def test_no_optimizer_decays_edge_weights(opt, options):
    """By group, and by what a step with zero gradients does."""
    model = timm.create_model('test_toponet')
    optimizer = create_optimizer_v2(model, opt=opt, lr=0.1, weight_decay=0.05, **options)
    decay = option_of(optimizer, 'weight_decay')
    alphas = [stage.connectivity.alpha for stage in model.stages]
    assert {decay[id(alpha)] for alpha in alphas} == {0.0}
    kernel = model.stages[0].nodes[0].conv_pw.weight
    assert decay[id(kernel)] == 0.05
    before = kernel.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all((alpha == 1).all() for alpha in alphas)
    assert not torch.equal(kernel, before), 'a step that decays'


@pytest.mark.parametrize(
    'name', [*(name for name in MODELS if name.startswith('test_')), 'rewired', 'dgnet_resnet18']
)
def test_the_classifier_is_last_where_timm_looks_for_it(name):
    """``--clip-mode agc`` leaves out the last two parameters."""
    model = timm.create_model(name)
    last = [*model.parameters()][-2:]
    assert [*map(id, last)] == [*map(id, model.get_classifier().parameters())]


def test_layer_decay_lowers_the_rate_towards_the_stem():
    model = timm.create_model('test_toponet')
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1, layer_decay=0.75)
    scale = option_of(optimizer, 'lr_scale')
    rates = [scale[id(model.stem.conv.weight)]]
    rates += [scale[id(stage.connectivity.alpha)] for stage in model.stages]
    rates += [scale[id(model.head.fc.weight)]]
    assert rates == sorted(set(rates))
    assert rates[-1] == 1


@pytest.mark.parametrize('features_only', [False, True])
def test_edge_weights_leave_the_decayed_groups_of_any_optimizer(features_only):
    """``timm`` finds no ``no_weight_decay`` on a features_only network; torch never asks."""
    model = timm.create_model('test_toponet', features_only=features_only)
    alphas = {id(p) for name, p in model.named_parameters() if name.endswith('alpha')}
    edges = [p for p in model.parameters() if id(p) in alphas]
    others = [p for p in model.parameters() if id(p) not in alphas]
    groups = [
        dict(params=[*others[:9], *edges[:2]], lr=0.3, weight_decay=0.1),
        dict(params=edges[2:], lr=0.2, weight_decay=0.1),
        dict(params=others[9:], weight_decay=0.0),
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    rates = option_of(optimizer, 'lr')
    exempt_from_weight_decay(optimizer, model)
    decay = option_of(optimizer, 'weight_decay')
    assert {p for p, value in decay.items() if value == 0} == alphas | set(map(id, others[9:]))
    assert option_of(optimizer, 'lr') == rates
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(rates)
    assert all(group['params'] and group['momentum'] == 0.9 for group in optimizer.param_groups)
