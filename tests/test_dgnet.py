"""DG-Nets as networks: their first stages, their blocks, and all that a timm model can do."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import timm_topo
from timm_topo.analysis.export import export_onnx
from timm_topo.analysis.prune import edge_weights, freeze_edge_weights, prune, retrainable
from timm_topo.connectivity.fixed import FixedConnectivity
from timm_topo.connectivity.router import RouterConnectivity, set_tau
from timm_topo.executors import adjacency
from timm_topo.nodes import ConvNorm
from timm_topo.stages import graph_stages

pytestmark = pytest.mark.filterwarnings('ignore:.*re-wired is another function')
DGNETS = timm.list_models('dgnet_*')
ROUTED = dict(connectivity='router', exact=False, num_classes=5)


def tiny(**options) -> nn.Module:
    """A small re-wired network with routers: three stages of five nodes, for 32 px."""
    return timm.create_model('rewired', base='resnetv2_cifar20', **{**ROUTED, **options})


@torch.no_grad()
def varied(model: nn.Module) -> nn.Module:
    """Routers that tell images apart, and norms that are not the identity."""
    for module in model.modules():
        if isinstance(module, RouterConnectivity):
            module.weight.normal_(0, 0.5)
            module.bias.normal_()
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
        if isinstance(module, nn.Conv2d) and not module.weight.any():  # where branches end
            nn.init.kaiming_normal_(module.weight, mode='fan_out')
    return model.eval()


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# -- the networks of the paper --------------------------------------------------------------------


@pytest.mark.parametrize('name', DGNETS)
def test_every_stage_is_routed_and_the_ablation_is_an_option(name):
    stages = graph_stages(timm.create_model(name, device='meta')).values()
    assert {type(stage.connectivity) for stage in stages} == {RouterConnectivity}
    assert all(stage.connectivity.channels == stage_width(stage) for stage in stages)
    routed, static = (
        sum(p.numel() for p in timm.create_model(name, device='meta', **options).parameters())
        for options in ({}, {'connectivity': 'alpha'})
    )
    extra = sum(
        s.wiring.num_edges * s.connectivity.channels + s.wiring.num_nodes - 1 for s in stages
    )
    assert routed - static == extra


def stage_width(stage: nn.Module) -> int:
    convolutions = [m for m in stage.nodes[-1].modules() if isinstance(m, nn.Conv2d)]
    return convolutions[-1].out_channels


def plain_conv(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    x = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


def branch(x: Tensor, block: nn.Module) -> Tensor:
    """A residual branch of ResNet by its parameters."""
    x = plain_conv(x, block.conv1, block.bn1).relu()
    x = plain_conv(x, block.conv2, block.bn2)
    if hasattr(block, 'conv3'):
        x = plain_conv(x.relu(), block.conv3, block.bn3)
    return x


@pytest.mark.parametrize('base', ['resnet18', 'resnet50', 'resnext50_32x4d'])
def test_resnets_compute_what_the_paper_draws(base):
    """ReLU in front of every node; the first stage projected, the others fed by their input."""
    model = varied(timm.create_model(f'dgnet_{base}', connectivity='alpha', num_classes=7)).double()
    for stage in graph_stages(model).values():
        stage.connectivity.alpha.data.uniform_(-1, 1)
    images = IMAGES[:2].double()
    x = F.max_pool2d(plain_conv(images, model.conv1, model.bn1).relu(), 3, 2, 1)
    for index, stage in enumerate(graph_stages(model).values()):
        alpha = dict(zip(stage.wiring.edges, stage.connectivity.alpha))
        last = stage.wiring.num_nodes - 1
        convs = [m for m in stage.entry.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in stage.entry.modules() if isinstance(m, nn.BatchNorm2d)]
        features = [plain_conv(x, convs[0], norms[0])]
        for node in range(1, last):
            block = next(m for m in stage.nodes[node - 1].modules() if hasattr(m, 'conv2'))
            if node == 1 and index > 0:
                features.append(branch(alpha[0, 1] * x, block))
            else:
                total = sum(alpha[i, node] * features[i] for i in range(node))
                features.append(branch(total.relu(), block))
        x = sum(alpha[i, last] * features[i] for i in range(last)).relu()
    expected = F.linear(x.mean((2, 3)), model.fc.weight, model.fc.bias)
    torch.testing.assert_close(model(images), expected)


def test_the_first_stage_of_a_resnet_is_projected():
    shapes = {}
    for name in ('dgnet_resnet18', 'dgnet_resnet50', 'dgnet_resnext50_32x4d'):
        stages = list(graph_stages(timm.create_model(name, device='meta')).values())
        assert [stage.first_reads_input for stage in stages] == [False, True, True, True]
        first = next(m for m in stages[0].nodes[0].modules() if isinstance(m, nn.Conv2d))
        shapes[name] = first.in_channels, first.out_channels
    assert shapes == {
        'dgnet_resnet18': (64, 64),
        'dgnet_resnet50': (256, 64),
        'dgnet_resnext50_32x4d': (256, 128),
    }


def test_an_identity_shortcut_becomes_a_projection_that_hands_on_its_input():
    """Fresh, so that a pretrained network is not fed noise."""
    model = timm.create_model('dgnet_resnet18')
    entry = graph_stages(model)['layer1.0'].entry
    assert isinstance(entry, ConvNorm)
    x = torch.randn(2, 64, 5, 5)
    torch.testing.assert_close(entry.eval()(x), x, rtol=1e-4, atol=1e-4)


def test_plain_weights_load_but_for_the_convolution_that_reads_more():
    torch.manual_seed(1)
    plain = varied(timm.create_model('resnet26', num_classes=5))
    model = timm.create_model('rewired', base='resnet26', projected_entry=True, **ROUTED).eval()
    conv = next(m for m in model.layer1[0].nodes[0].modules() if isinstance(m, nn.Conv2d))
    before = conv.weight.detach().clone()
    assert model.load_state_dict(plain.state_dict()).missing_keys == []
    assert torch.equal(conv.weight, before)
    names = model.plain_names()
    own = model.state_dict()
    copied = [name for name, origin in names.items() if origin]
    assert all(torch.equal(own[name], plain.state_dict()[names[name]]) for name in copied)
    left = set(plain.state_dict()) - {names[name] for name in copied}
    assert left == {'layer1.0.conv1.weight'}


@pytest.mark.parametrize('base', ['resnet18', 'resnet26'])
def test_fresh_weights_reach_projections_and_wider_convolutions(base):
    model = timm.create_model('rewired', base=base, projected_entry=True, **ROUTED)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.3)
    again = retrainable(model, 'reset').state_dict()
    for name, value in fresh.items():
        if value.is_floating_point() and value.numel() > 4096 and value.std() > 0:
            assert again[name].std() / value.std() == pytest.approx(1, abs=0.2), name
        elif 'connectivity' in name or name.startswith('layer1.0.entry'):
            torch.testing.assert_close(again[name], value)


def test_unwiring_a_projected_entry_is_refused():
    model = timm.create_model(
        'rewired', base='resnet26', projected_entry=True, connectivity='fixed', exact=False
    )
    with pytest.raises(ValueError, match=r'layer1\.0 has an input convolution of its own'):
        timm_topo.unwire(model)
    with pytest.raises(ValueError, match='edge weights that depend on the image'):
        timm_topo.unwire(timm.create_model('dgnet_resnet18'))


@pytest.mark.parametrize(
    ('base', 'options', 'error', 'message'),
    [
        ('resnet18', dict(projected_entry=True), ValueError, 'cannot be re-wired exactly with pro'),
        ('resnetv2_cifar20', dict(connectivity={'name': 'router', 'channels': 3}, exact=False),
         ValueError, 'channels=3 for maps of 16 channels'),
        ('regnetx_002', dict(projected_entry=True, exact=False), ValueError,
         'projected_entry changes nothing in regnetx_002: no stage starts with'),
        ('resnet18', dict(projected_entry=1), TypeError, 'projected_entry must be True or False'),
        (
            'resnetv2_50', dict(projected_entry=True, exact=False), ValueError,
            'projected_entry does not fit the pre-activation block stages.0.blocks.0',
        ),
        (
            'resnetv2_cifar20', dict(connectivity='router'), ValueError,
            'edge weights that depend on the image; exact=False allows it',
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(base, options, error, message):
    with pytest.raises(error, match=message):
        timm_topo.rewire(timm.create_model(base), **options)


@pytest.mark.parametrize('pretrained', [True, False])
def test_a_dgnet_starts_from_a_plain_checkpoint(tmp_path, pretrained):
    torch.manual_seed(1)
    plain = varied(timm.create_model('resnet18'))
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    options = dict(pretrained=True, pretrained_cfg_overlay={'file': str(tmp_path / 'plain.pth')})
    if not pretrained:
        options = dict(checkpoint_path=str(tmp_path / 'plain.pth'))
    model = timm.create_model('dgnet_resnet18', **options)
    own, names = model.state_dict(), model.plain_names()
    for name, origin in names.items():
        if origin:
            assert torch.equal(own[name], plain.state_dict()[origin]), name
    assert sum(origin is None for origin in names.values()) == 4 * 3 + 6  # routers, projection


# -- what every model does ------------------------------------------------------------------------


@pytest.mark.parametrize('tau', [0.0, 0.5])
def test_saved_networks_route_alike(tmp_path, tau):
    model = varied(tiny())
    set_tau(model, tau)
    timm_topo.save(model, tmp_path / 'net')
    loaded = timm_topo.load(tmp_path / 'net').eval()
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    again = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))


@pytest.mark.parametrize('tau', [0.0, 0.5])
def test_onnx_gives_what_the_network_gives_at_any_threshold(tmp_path, tau):
    model = varied(tiny())
    set_tau(model, tau)
    if tau:
        assert any(
            (matrix[:, 1:].sum(2) == 0).any() for matrix in adjacency(model, IMAGES).values()
        )
    assert export_onnx(model, tmp_path / 'net.onnx', (3, 32, 32)) < 1e-4
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
    (got,) = session.run(None, {'image': IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('training', [True, False])
def test_compiling_meets_no_graph_break(training):
    model = varied(tiny()).train(training)
    set_tau(model, 0.4)
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    expected = model(IMAGES)
    output = compiled(IMAGES)
    torch.testing.assert_close(output, expected)
    if training:
        output.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_half_precision_networks_run():
    model = varied(tiny()).bfloat16()
    set_tau(model, 0.4)
    assert model(IMAGES.bfloat16()).isfinite().all()
    assert adjacency(model, IMAGES.bfloat16())['stages.1.blocks.1'].dtype == torch.bfloat16


def test_routers_decay_their_matrix_and_nothing_else():
    model = tiny()
    spared = {name for name in model.no_weight_decay() if 'connectivity' in name}
    edges = {name for name, _ in model.named_parameters() if 'connectivity' in name}
    assert {name.rpartition('.')[2] for name in edges} == {'weight', 'bias', 'tau'}
    assert {name.rpartition('.')[2] for name in spared} == {'bias', 'tau'}


# -- surgery on routed graphs ---------------------------------------------------------------------


def test_mean_weights_are_those_of_the_images():
    model = varied(tiny())
    matrices = adjacency(model, IMAGES)
    for name, weights in edge_weights(model, IMAGES).items():
        wiring = model.get_submodule(name).wiring
        expected = [matrices[name][:, j, i].mean() for i, j in wiring.edges]
        torch.testing.assert_close(weights, torch.stack(expected))


@pytest.mark.parametrize('by', ['fraction', 'keep'])
def test_pruning_a_routed_network_equals_masking_it(tmp_path, by):
    torch.manual_seed(2)
    model = varied(tiny())
    if by == 'fraction':
        smaller, report = prune(model, fraction=0.1, images=IMAGES, probe=IMAGES)
        every = torch.cat(list(edge_weights(model, IMAGES).values())).sort().values
        assert report.cutoff == every[round(0.1 * len(every)) - 1]
    else:
        keep = {n: torch.ones(s.wiring.num_edges).bool() for n, s in graph_stages(model).items()}
        keep['stages.0.blocks'][2] = False
        smaller, report = prune(model, keep=keep, probe=IMAGES)
        assert report.cutoff is None
        assert report.edges == (30, 29)
    assert report.exact
    assert report.difference < 1e-5 * report.scale
    assert (smaller(IMAGES) - model(IMAGES)).abs().max() > 1e-3 * report.scale
    timm_topo.save(smaller, tmp_path / 'smaller')
    torch.testing.assert_close(timm_topo.load(tmp_path / 'smaller').eval()(IMAGES), smaller(IMAGES))


@pytest.mark.parametrize('tau', [0.0, 0.05])
def test_a_node_without_in_edges_is_folded_where_no_threshold_skips_it(tau):
    torch.manual_seed(2)
    model = varied(tiny())
    set_tau(model, tau)
    keep = {n: torch.ones(s.wiring.num_edges).bool() for n, s in graph_stages(model).items()}
    for stage, edges in keep.items():
        wiring = model.get_submodule(stage).wiring
        edges[[e for e, (_, target) in enumerate(wiring.edges) if target == 2]] = False
    _, report = prune(model, keep=keep, probe=IMAGES)
    assert report.exact
    assert report.difference < 1e-5 * report.scale
    assert any(stage.folded for stage in report.stages) == (tau == 0)
    _, report = prune(model, keep=keep, probe=IMAGES, fold=False)
    assert report.exact == (tau > 0)
    assert (report.difference < 1e-5 * report.scale) == (tau > 0)


def test_frozen_routers_are_their_mean():
    model = varied(tiny())
    weights = edge_weights(model, IMAGES)
    frozen = freeze_edge_weights(model, IMAGES)
    for name, stage in graph_stages(frozen).items():
        assert isinstance(stage.connectivity, FixedConnectivity)
        assert torch.equal(stage.connectivity.alpha, weights[name])
    frozen(IMAGES)


@pytest.mark.parametrize(
    'ask',
    [
        lambda model: prune(model, fraction=0.3),
        lambda model: prune(model, threshold=0.1, relative=True),
        freeze_edge_weights,
        lambda model: retrainable(model, 'frozen'),
    ],
)
def test_routed_weights_without_images_are_refused(ask):
    with pytest.raises(ValueError, match='edge weights depend on the image: give images'):
        ask(tiny())


def test_routers_can_be_kept_or_reset_for_retraining():
    model = varied(tiny())
    kept, fresh = retrainable(model, 'keep'), retrainable(model, 'reset')
    for name, stage in graph_stages(model).items():
        rule = stage.connectivity
        assert torch.equal(kept.get_submodule(name).connectivity.weight, rule.weight)
        assert fresh.get_submodule(name).connectivity.weight.count_nonzero() == 0
