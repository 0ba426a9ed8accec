"""Re-wired timm networks against the untouched ones, which are the reference throughout."""

import copy
import dataclasses
import pickle
import re
import warnings

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import timm_topo
from timm_topo import rewire, unwire
from timm_topo.analysis.cost import count_parameters
from timm_topo.analysis.export import export_onnx
from timm_topo.analysis.prune import DisconnectedError, edge_mask, prune, retrainable
from timm_topo.generators import complete
from timm_topo.models import Rewired
from timm_topo.models.families import FAMILIES, rewired_class
from timm_topo.nodes import residual as blocks
from timm_topo.stages import graph_stages
from timm_topo.wiring import Wiring

#: One small network per family and kind of block whose residual sums are linear.
LINEAR = {
    'mobilenetv2_050': {},
    'mobilenetv3_small_050': {},
    'mobilenetv4_conv_small_050': {},
    'efficientnet_es': {},  # edge residual and inverted residual blocks
    'tf_efficientnetv2_b0': {},  # convolutions with a shortcut, padding by size
    'convnext_atto': {},
    'convnextv2_atto': {'conv_mlp': True},
    'resnetv2_18': {},
    'resnetv2_50d_gn': {'layers': [2, 1, 1, 3]},
    'resnetv2_cifar20': {},
    'regnetz_005': {},
    'mixnet_s': {},  # kernels of several sizes in one convolution
    'fbnetv3_b': {},  # several graphs in one of timm's stages
    'resnet_cifar20': {'block_kwargs': {'linear_out': True}},
}
#: And of those where an activation follows the sum.
ACTIVATED = {
    'resnet10t': {'layers': (2, 1, 2, 1)},
    'resnet26d': {},
    'seresnext26d_32x4d': {},
    'regnety_002': {},
    'resnet_cifar32': {},
    'resnext26ts': {},
}
SIZE = 64


@torch.no_grad()
def plain(name: str, seed: int = 0, **options) -> nn.Module:
    """A timm network in float64 with random normalisation, in eval."""
    torch.manual_seed(seed)
    options = {**(LINEAR.get(name) or ACTIVATED.get(name) or {}), 'num_classes': 5, **options}
    model = timm.create_model(name, **options).double().eval()
    for module in model.modules():
        for key, low, high in (('weight', 0.5, 1.5), ('bias', -0.5, 0.5), ('gamma', 0.2, 1),
                               ('running_mean', -0.5, 0.5), ('running_var', 0.5, 2)):  # fmt: skip
            value = getattr(module, key, None)
            if isinstance(value, Tensor) and value.ndim == 1:
                value.uniform_(low, high)
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (3, SIZE, SIZE)}
    return model


def quietly(model: nn.Module, **options) -> nn.Module:
    """``rewire(exact=False)`` without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return rewire(model, exact=False, **options)


def image(batch: int = 2, size: int = SIZE) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


@torch.no_grad()
def set_weights(model: nn.Module, low: float = -1, high: float = 1) -> nn.Module:
    for stage in graph_stages(model).values():
        stage.connectivity.alpha.uniform_(low, high)
    return model


# -- the same function ----------------------------------------------------------------------------


@pytest.mark.parametrize('projection', [False, True])
@pytest.mark.parametrize('name', LINEAR)
def test_with_all_weights_one_the_function_stays_the_same(name, projection):
    """In eval and in training: outputs, statistics, and gradients of what they share."""
    model = plain(name)
    network = rewire(model, projection=projection)
    x = image(4)
    torch.testing.assert_close(network(x), model(x))
    model.train(), network.train()
    outputs = model(x), network(x)
    torch.testing.assert_close(outputs[1], outputs[0])
    for output in outputs:
        output.square().sum().backward()
    names = network.plain_names()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    for own, parameter in network.named_parameters():
        if names[own] is not None:
            torch.testing.assert_close(parameter.grad, gradients.pop(names[own]), msg=own)
    assert not gradients, 'every parameter has its place'
    buffers = dict(model.named_buffers())
    for own, buffer in network.named_buffers():
        if names[own] is not None:
            torch.testing.assert_close(buffer, buffers.pop(names[own]), msg=own)
    assert not buffers
    alphas = [stage.connectivity.alpha.grad for stage in graph_stages(network).values()]
    assert all(grad.abs().sum() > 0 for grad in alphas)


@pytest.mark.parametrize('name', ['mobilenetv2_050', 'convnext_atto', 'resnetv2_18', 'regnetz_005'])
def test_stochastic_depth_drops_the_same_branches(name):
    model = plain(name, drop_path_rate=0.5).train()
    network = rewire(model)
    x = image(4)
    outputs = []
    for candidate in (model, network):
        torch.manual_seed(1)
        outputs.append(candidate(x))
    torch.testing.assert_close(*outputs)
    assert not torch.allclose(network(x), outputs[1]), 'and not always the same'


def reference_stage(modules: list[nn.Module], stage, x: Tensor) -> Tensor:
    """A graph stage with timm's whole blocks: a branch is block minus shortcut."""
    weights = stage.connectivity.edge_weights()
    parts = [blocks.take_apart(module) for module in modules]
    features = {}
    if parts[0].shortcut is None:
        features[0] = modules[0](x)
        modules, parts = modules[1:], parts[1:]
        raw = False
    elif parts[0].norm is not None:  # pre-activation: norm and shortcut share it
        features[0] = parts[0].shortcut(parts[0].norm(x))
        x, raw = parts[0].norm(x), True
    else:
        features[0] = parts[0].shortcut(x)
        raw = not isinstance(parts[0].shortcut, nn.Identity)
    for node in range(1, stage.wiring.num_nodes):
        total = sum(
            weight * (x if raw and node == 1 else features[source])
            for weight, (source, target) in zip(weights, stage.wiring.edges)
            if target == node
        )
        features[node] = total
        if node == stage.wiring.num_nodes - 1:
            continue
        if raw and node == 1 and parts[0].norm is not None:
            block = copy.deepcopy(modules[0])
            block.norm1 = nn.Identity()
            features[node] = block(total) - block.downsample(total)
        else:
            features[node] = modules[node - 1](total) - parts[node - 1].shortcut(total)
    return features[stage.wiring.num_nodes - 1]


@pytest.mark.parametrize(
    ('name', 'stage_name', 'own_name'),
    [
        ('mobilenetv2_050', 'blocks.3', 'blocks.3'),
        ('mobilenetv3_small_050', 'blocks.3', 'blocks.3'),
        ('convnext_atto', 'stages.2.blocks', 'stages.2.blocks'),
        ('resnetv2_18', 'stages.0.blocks', 'stages.0.blocks'),
        ('resnetv2_18', 'stages.1.blocks', 'stages.1.blocks.1'),
        ('regnetz_005', 's2', 's2'),
    ],
)
@pytest.mark.parametrize('wiring', ['complete', {'name': 'random', 'p': 0.7}])
def test_any_edge_weights_act_as_written_with_whole_blocks(name, stage_name, own_name, wiring):
    model = plain(name)
    network = set_weights(quietly(model, wiring=wiring))
    modules = list(model.get_submodule(stage_name).children())
    whole, stage = network.get_submodule(stage_name), network.get_submodule(own_name)
    first = next(m for m in modules[0].modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, first.in_channels, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(whole(x), reference_stage(modules, stage, x))


def test_the_original_is_left_as_it_is():
    model = plain('mobilenetv2_050')
    state = copy.deepcopy(model.state_dict())
    network = rewire(model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert type(model) is timm.models.EfficientNet
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def test_a_rewired_network_is_still_what_it_was():
    model = plain('convnext_atto')
    network = rewire(model)
    assert isinstance(network, Rewired)
    assert isinstance(network, timm.models.ConvNeXt)
    assert not network.training
    assert rewire(model.train()).training
    assert next(network.stages[0].blocks.connectivity.parameters()).dtype == torch.float64
    assert network.feature_info == model.feature_info


# -- where the function cannot stay the same ------------------------------------------------------


@pytest.mark.parametrize('name', ACTIVATED)
def test_an_activation_behind_the_sum_needs_consent_and_is_measured(name):
    model = plain(name)
    with pytest.raises(ValueError, match=f'{name} cannot be re-wired exactly.*exact=False'):
        rewire(model)
    with pytest.warns(UserWarning, match='is another function: outputs differ by') as caught:
        network = rewire(model, exact=False)
    assert caught[0].filename == __file__, 'the line of the caller'
    told = float(str(caught[0].message).split('differ by up to ')[1].split()[0])
    noise = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).double()
    measured = (model(noise) - network(noise)).abs().max().item()
    assert told == pytest.approx(measured, rel=0.01)
    assert measured > 1e-3
    names = network.plain_names()
    state = model.state_dict()
    assert {names[own] for own in names if names[own]} == state.keys()
    for own, value in network.state_dict().items():
        assert names[own] is None or torch.equal(value, state[names[own]])


@pytest.mark.parametrize('name', ['resnet10t', 'resnet26d', 'regnety_002', 'resnet_cifar32'])
def test_the_activation_stands_before_every_later_block_and_behind_the_stage(name):
    """What identity shortcuts carry is not activated; all else is as in the original."""
    model = plain(name)
    network = set_weights(quietly(model))
    stage_name = {'resnet_cifar32': 'stages.1', 'regnety_002': 's3'}.get(name, 'layer3')
    modules = copy.deepcopy(list(model.get_submodule(stage_name).children()))
    act = 'act' if 'cifar' in name else 'act2' if name == 'resnet10t' else 'act3'
    for module in modules:
        setattr(module, act, nn.Identity())
    shortcut = modules[0].shortcut if 'cifar' in name else modules[0].downsample
    stage = network.get_submodule(stage_name)[0]
    alpha = dict(zip(stage.wiring.edges, stage.connectivity.alpha))
    in_chs = next(m for m in modules[0].modules() if isinstance(m, nn.Conv2d)).in_channels
    x = torch.randn(2, in_chs, 16, 16, dtype=torch.float64).relu()
    features = [shortcut(x)]
    features.append(modules[0](alpha[0, 1] * x) - shortcut(alpha[0, 1] * x))
    for node, module in enumerate(modules[1:], start=2):
        total = sum(alpha[i, node] * feature for i, feature in enumerate(features)).relu()
        features.append(module(total) - total)
    last = len(modules) + 1
    expected = sum(alpha[i, last] * feature for i, feature in enumerate(features)).relu()
    torch.testing.assert_close(network.get_submodule(stage_name)(x), expected)


def test_stages_of_one_block_have_no_activation_between():
    model = plain('test_resnet')
    network = rewire(model)
    assert network.linear
    x = image()
    torch.testing.assert_close(network(x), model(x))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(connectivity='tanh'),
            r'blocks\.1 has edge weights other than those of shortcuts, such as 0\.5',
        ),
        (
            dict(wiring='sequential'),
            r'blocks\.1 has a wiring other than the complete one',
        ),
    ],
)
def test_rules_and_wirings_that_change_the_function_need_consent(options, message):
    model = plain('mobilenetv2_050')
    with pytest.raises(ValueError, match=f'{message}; exact=False allows it'):
        rewire(model, **options)
    with pytest.warns(UserWarning, match='mobilenetv2_050 re-wired is another function'):
        rewire(model, exact=False, **options)


def test_nothing_is_told_where_nothing_changes():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rewire(plain('resnetv2_18'), exact=False)


def test_a_fresh_network_whose_branches_are_zero_hides_no_difference(monkeypatch):
    """Zero scales at the end of every branch: any wiring computes the same, but not for long."""
    fresh = timm.create_model('resnet_cifar20')
    with pytest.warns(UserWarning, match=r'by up to 0 .*, as long as its branches are zero'):
        rewire(fresh, exact=False)
    wrong = timm.create_model('resnetv2_cifar20')
    assert not wrong.stages[0].blocks[0].norm2.bias.any()
    name = 'resnetv2.PreActBasic'
    row = blocks.BLOCKS[name]
    monkeypatch.setattr(blocks, '_check_children', lambda *args: None)
    monkeypatch.setitem(
        blocks.BLOCKS, name, dataclasses.replace(row, branch=('norm1', 'conv1', 'conv2'))
    )
    with pytest.raises(RuntimeError, match='should be the same function, but outputs differ'):
        rewire(wrong)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_as_strictly(monkeypatch, dtype):
    assert rewire(plain('mobilenetv2_050').to(dtype)).conv_stem.weight.dtype == dtype
    name = '_efficientnet_blocks.InvertedResidual'
    row = blocks.BLOCKS[name]
    monkeypatch.setattr(blocks, '_check_children', lambda *args: None)
    branch = tuple(part for part in row.branch if part != 'bn3')
    monkeypatch.setitem(blocks.BLOCKS, name, dataclasses.replace(row, branch=branch))
    with pytest.raises(RuntimeError, match='should be the same function, but outputs differ'):
        rewire(plain('mobilenetv2_050').to(dtype))


def test_outputs_that_are_not_finite_are_told_apart():
    model = plain('mobilenetv2_050')
    nn.init.constant_(model.conv_stem.weight, torch.inf)
    with pytest.raises(RuntimeError, match='mobilenetv2_050 gives outputs that are not finite'):
        rewire(model)


# -- what was set before --------------------------------------------------------------------------


def test_modules_stay_in_the_mode_they_were_in():
    network = rewire(plain('mobilenetv2_050'), projection=True)
    assert not any(module.training for module in network.modules())
    model = plain('resnetv2_18').train()
    model.stages[0].blocks[0].norm1.eval()
    network = rewire(model)
    assert not model.stages[0].blocks[0].norm1.training
    assert model.stages[0].blocks[0].norm2.training
    evaluated = [name for name, module in network.named_modules() if not module.training]
    assert evaluated == ['stages.0.blocks.nodes.0.norm1', 'stages.0.blocks.nodes.0.norm1.drop',
                         'stages.0.blocks.nodes.0.norm1.act']  # fmt: skip


@pytest.mark.parametrize('name', ['mobilenetv2_050', 'convnext_atto'])
def test_checkpointing_moves_to_the_graph_stages(name):
    model = plain(name)
    model.set_grad_checkpointing()
    network = rewire(model.train())
    assert all(stage.grad_checkpointing for stage in graph_stages(network).values())
    network(image()).sum().backward()
    assert model.set_grad_checkpointing() is None


@pytest.mark.parametrize('convert', [convert_sync_batchnorm, freeze_batch_norm_2d])
def test_converted_norms_keep_their_names(convert):
    model = plain('resnetv2_18')
    network = convert(copy.deepcopy(rewire(model)))
    names = rewire(model).plain_names()
    assert {own: network.plain_names()[own] for own in network.state_dict()} == {
        own: names[own] for own in network.state_dict()
    }
    network.load_state_dict(plain('resnetv2_18', seed=1).state_dict(), strict=False)
    back = plain('resnetv2_18', seed=1).state_dict()
    for own, plain_name in network.plain_names().items():
        if plain_name:
            assert torch.equal(network.state_dict()[own], back[plain_name])
    layers = network.group_matcher()
    assert layers('stages.1.blocks.0.norm1.weight') == layers(
        'stages.1.blocks.1.connectivity.alpha'
    )


@pytest.mark.parametrize('pool', ['avgmax', 'max', 'catavgmax', ''])
def test_unwiring_keeps_the_head_that_was_set_later(pool):
    network = rewire(plain('mobilenetv2_050'))
    network.reset_classifier(0 if pool == '' else 7, pool)
    x = image()
    torch.testing.assert_close(unwire(network)(x), network(x))
    assert retrainable(network)(x).shape == network(x).shape


def test_unwiring_keeps_preprocessing_and_what_is_frozen():
    model = plain('mobilenetv2_050')
    model.pretrained_cfg['mean'] = (0.1, 0.2, 0.3)
    model.conv_stem.weight.requires_grad_(False)
    back = unwire(rewire(model))
    assert back.pretrained_cfg == model.pretrained_cfg
    frozen = [name for name, parameter in back.named_parameters() if not parameter.requires_grad]
    assert frozen == ['conv_stem.weight']


def test_unwiring_a_network_that_was_changed_by_hand_is_refused():
    model = plain('mobilenetv2_050')
    model.conv_stem.stride = (1, 1)
    with pytest.raises(RuntimeError, match='the model was changed after timm'):
        unwire(rewire(model))


def test_a_class_of_ones_own_keeps_its_methods():
    class Doubled(timm.models.ResNetV2):
        def forward_head(self, x, pre_logits=False):
            return 2 * super().forward_head(x, pre_logits)

    model = plain('resnetv2_18')
    model.__class__ = Doubled
    network = rewire(model)
    assert isinstance(network, Doubled)
    assert type(network) is type(rewire(model))
    x = image()
    torch.testing.assert_close(network(x), model(x))
    cifar = rewire(plain('resnetv2_cifar20'))
    assert isinstance(cifar, timm_topo.models.ResNetV2Cifar)
    assert type(pickle.loads(pickle.dumps(cifar))) is type(cifar)


def test_networks_without_values_are_rewired_too():
    with torch.device('meta'):
        network = rewire(timm.create_model('resnetv2_cifar20'))
        assert {p.device.type for p in unwire(network).parameters()} == {'meta'}
    assert {p.device.type for p in network.parameters()} == {'meta'}


def test_weights_may_be_drawn_as_the_plain_network_draws_them():
    network = rewire(timm.create_model('resnetv2_18'))
    network.init_weights(zero_init_last=True)
    plain_ = timm.create_model('resnetv2_18')
    plain_.init_weights(zero_init_last=True)
    zero = {name for name, value in plain_.state_dict().items() if not value.any()}
    names = network.plain_names()
    ours = {names[own] for own, value in network.state_dict().items() if not value.any()}
    assert ours == zero


# -- projections ----------------------------------------------------------------------------------


def test_without_a_shortcut_the_first_block_is_the_entry_or_gets_a_projection():
    model = plain('mobilenetv2_050')
    without, with_ = rewire(model), rewire(model, projection=True)
    sizes = [stage.wiring.num_nodes for stage in graph_stages(without).values()]
    assert sizes == [3, 4, 5, 4, 4]  # the two stages of one block stay as they are
    sizes = [stage.wiring.num_nodes for stage in graph_stages(with_).values()]
    assert sizes == [3, 4, 5, 6, 5, 5, 3]
    for name, stage in graph_stages(with_).items():
        assert stage.first_reads_input
        assert stage.entry.conv.kernel_size == (1, 1)
        assert not stage.entry.bn.weight.any(), name
    added = sum(count_parameters(stage.entry) for stage in graph_stages(with_).values())
    alphas = sum(stage.wiring.num_edges for stage in graph_stages(with_).values())
    assert count_parameters(with_) == count_parameters(model) + added + alphas


def test_a_projection_that_starts_at_zero_learns():
    network = rewire(plain('mobilenetv2_050').train(), projection=True)
    network(image()).square().sum().backward()
    for stage in graph_stages(network).values():
        assert stage.entry.bn.weight.grad.abs().max() > 0


def test_a_mere_convolution_gets_no_projection():
    network = rewire(plain('mobilenetv4_conv_small_050'), projection=True)
    assert sorted(graph_stages(network)) == ['blocks.2', 'blocks.3']


def test_a_projection_has_the_stride_and_channels_of_its_block():
    network = rewire(plain('tf_efficientnetv2_b0'), projection=True)
    for size in (64, 72, 50):  # even and odd maps
        assert network(image(1, size)).shape == (1, 5)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('vgg11', 'vgg11 is a VGG, which cannot be re-wired; supported: ByobNet, ConvNeXt, Eff'),
        ('test_vit', 'test_vit is a VisionTransformer, which cannot be re-wired; supported: '),
        ('test_toponet', 'test_toponet is a TopoNet, which cannot be re-wired; supported: '),
        ('lcnet_050', 'lcnet_050 has no residual stage of known blocks; known: byobnet.BasicBlo'),
        ('repvgg_a0', 'repvgg_a0 has no residual stage of known blocks; known: byobnet.BasicBlo'),
    ],
)
def test_networks_without_known_residual_stages_are_refused(name, message):
    with torch.device('meta'):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=message):
        rewire(model)


def test_a_network_is_not_rewired_twice():
    with pytest.raises(
        ValueError,
        match='mobilenetv2_050 is re-wired already: unwire it first',
    ):
        rewire(rewire(plain('mobilenetv2_050')))


@pytest.mark.parametrize('model', [nn.Linear(2, 2), timm.models.ResNetV2([1], (128,))])
def test_only_models_of_create_model_are_rewired(model):
    with pytest.raises(TypeError, match=r'rewire needs a model of timm\.create_model, got'):
        rewire(model)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(wiring=complete(9)), ValueError,
         r'the stage that starts with stages.0.blocks.0 has 3 nodes between input and output: '
         r'num_nodes=5 contradicts the explicit Wiring\(num_nodes=9'),
        (dict(wiring=['complete'] * 2), ValueError, 'wiring has 2 entries for 3 stages'),
        (dict(connectivity=['alpha']), ValueError, 'connectivity has 1 entries for 3 stages'),
        (dict(wiring='star'), ValueError, "unknown wiring 'star'"),
        (dict(connectivity='beta'), ValueError, "unknown connectivity 'beta'"),
        (dict(sparsity='some'), ValueError, "unknown sparsity 'some'"),
        (dict(sparsity_weight=-1), ValueError, 'sparsity_weight must be finite and >= 0, got -1'),
        (dict(sparsity_weight='a'), TypeError, "sparsity_weight must be a number, got 'a'"),
        (dict(projection='false'), TypeError, "projection must be True or False, got 'false'"),
        (dict(wiring='residual'), TypeError,
         'the stage that starts with stages.0.blocks.0 has 3 nodes.*interval'),
        (dict(wiring=7), TypeError, 'a wiring is a name, a dict or a Wiring, got int: 7'),
        (dict(wiring=Wiring(5, ((0, 1), (1, 4)))), ValueError, r'nodes \[2, 3\] of .* are dead'),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        rewire(plain('resnetv2_cifar20'), exact=False, **options)


def test_a_wiring_per_stage_fits_each():
    wirings = [complete(5), Wiring(5, ((0, 1), (1, 2), (2, 3), (3, 4))), 'complete']
    network = quietly(plain('resnetv2_cifar20'), wiring=wirings)
    assert [stage.wiring.num_edges for stage in graph_stages(network).values()] == [10, 4, 10]


def test_a_seeded_wiring_differs_from_stage_to_stage():
    network = quietly(plain('regnetz_005'), wiring=dict(name='random', p=0.5))
    same = quietly(plain('regnetz_005'), wiring=dict(name='random', p=0.5))
    wirings = [stage.wiring for stage in graph_stages(network).values()]
    assert wirings == [stage.wiring for stage in graph_stages(same).values()]
    deep = quietly(plain('resnetv2_cifar56'), wiring=dict(name='random', p=0.5))
    assert len({stage.wiring for stage in graph_stages(deep).values()}) == 3


def test_a_part_of_a_block_that_is_not_known_is_refused():
    model = plain('mobilenetv2_050')
    model.blocks[1][1].extra = nn.Conv2d(4, 4, 1)
    with pytest.raises(
        NotImplementedError, match=r'InvertedResidual of the installed timm .*extra'
    ):
        rewire(model)


def test_a_block_that_works_otherwise_than_known_is_noticed(monkeypatch):
    name = '_efficientnet_blocks.InvertedResidual'
    row = blocks.BLOCKS[name]
    reversed_ = tuple(part for part in row.branch if part != 'bn3')
    monkeypatch.setattr(blocks, '_check_children', lambda *args: None)
    monkeypatch.setitem(blocks.BLOCKS, name, type(row)(reversed_, row.shortcut))
    with pytest.raises(RuntimeError, match='should be the same function, but outputs differ'):
        rewire(plain('mobilenetv2_050'))


# -- weights in and out ---------------------------------------------------------------------------


@pytest.mark.parametrize('projection', [False, True])
@pytest.mark.parametrize('name', ['mobilenetv2_050', 'resnetv2_18', 'convnext_atto', 'regnetz_005'])
def test_a_plain_state_dict_loads_and_unwire_gives_it_back(name, projection):
    model = plain(name)
    network = rewire(plain(name, seed=1), projection=projection)
    x = image()
    assert not torch.allclose(network(x), model(x))
    network.load_state_dict(model.state_dict())
    torch.testing.assert_close(network(x), model(x))
    back = unwire(network)
    assert type(back) is type(model)
    assert not back.training
    assert back.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)


def test_a_networks_own_state_dict_loads_too():
    network = set_weights(rewire(plain('resnetv2_18')))
    other = rewire(plain('resnetv2_18', seed=1))
    other.load_state_dict(network.state_dict())
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in network.state_dict().items())


def test_edge_weights_stay_as_they_are_when_plain_weights_load():
    network = set_weights(rewire(plain('resnetv2_18')))
    before = [stage.connectivity.alpha.clone() for stage in graph_stages(network).values()]
    network.load_state_dict(plain('resnetv2_18', seed=1).state_dict())
    after = [stage.connectivity.alpha for stage in graph_stages(network).values()]
    assert all(map(torch.equal, before, after))


def test_a_state_dict_of_another_architecture_is_refused():
    network = rewire(plain('resnetv2_18'))
    with pytest.raises(RuntimeError, match=r'is not of the re-wired resnetv2_18, nor of the plain.*'
                       r'missing \(such as head.* unexpected \(such as blocks'):  # fmt: skip
        network.load_state_dict(plain('mobilenetv2_050').state_dict())
    incomplete = plain('resnetv2_18').state_dict()
    del incomplete['stages.1.blocks.1.conv1.weight']
    missing = r'1 tensors missing \(such as stages\.1\.blocks\.1\.nodes\.1\.conv1\.weight\)$'
    with pytest.raises(RuntimeError, match=missing):
        network.load_state_dict(incomplete)
    wider = plain('resnetv2_18', num_classes=6).state_dict()
    with pytest.raises(RuntimeError, match=r'2 tensors of another shape \(such as head\.fc\.bias'):
        network.load_state_dict(wider)


@pytest.mark.parametrize('kind', ['pth.tar', 'safetensors', 'checkpoint_path'])
def test_timm_loads_plain_checkpoints_into_the_rewired_network(tmp_path, kind):
    model = plain('mobilenetv2_050').float()
    file = tmp_path / ('model.safetensors' if kind == 'safetensors' else 'model.pth.tar')
    if kind == 'safetensors':
        save_file(model.state_dict(), file)
    else:
        torch.save({'epoch': 3, 'arch': 'mobilenetv2_050', 'state_dict': model.state_dict()}, file)
    if kind == 'checkpoint_path':
        options = dict(checkpoint_path=str(file))
    else:
        overlay = dict(file=str(file), num_classes=5)
        options = dict(pretrained=True, pretrained_cfg_overlay=overlay)
    network = timm.create_model('rewired', base='mobilenetv2_050', num_classes=5, **options).eval()
    x = image().float()
    torch.testing.assert_close(network(x), model(x))


def test_pretrained_asks_timm_for_the_plain_networks_weights(monkeypatch):
    """There is no network here, so timm's loader is replaced: it must be asked for the base."""
    asked = []

    def load_pretrained(model, pretrained_cfg, **kwargs):
        asked.append((type(model).__name__, pretrained_cfg['architecture']))
        nn.init.constant_(model.classifier.bias, 7)

    monkeypatch.setattr(timm.models._builder, 'load_pretrained', load_pretrained)
    network = timm.create_model('rewired', base='mobilenetv2_100', pretrained=True)
    assert asked == [('EfficientNet', 'mobilenetv2_100')]
    assert (network.classifier.bias == 7).all()
    assert network.pretrained_cfg['architecture'] == 'rewired'


def test_pretrained_weights_go_where_timm_would_put_them(monkeypatch, tmp_path):
    """A file in the layout of the authors, which timm renames; and the folder for downloads."""
    model = timm.create_model('convnext_atto', num_classes=5).eval()
    theirs = {}
    for name, value in model.state_dict().items():
        name = re.sub(r'^stem\.', 'downsample_layers.0.', name)
        name = re.sub(r'stages\.(\d)\.downsample', r'downsample_layers.\1', name)
        name = re.sub(r'stages\.(\d)\.blocks\.', r'stages.\1.', name)
        for new, old in (('conv_dw', 'dwconv'), ('mlp.fc1', 'pwconv1'), ('mlp.fc2', 'pwconv2'),
                         ('head.fc', 'head'), ('head.norm', 'norm')):  # fmt: skip
            name = name.replace(new, old)
        theirs[name] = value
    torch.save({'model': theirs}, tmp_path / 'theirs.pth')
    overlay = dict(file=str(tmp_path / 'theirs.pth'), num_classes=5)
    options = dict(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)
    network = timm.create_model('rewired', base='convnext_atto', **options).eval()
    x = image().float()
    torch.testing.assert_close(network(x), model(x))
    torch.save(set_weights(network).state_dict(), tmp_path / 'theirs.pth')
    again = timm.create_model('rewired', base='convnext_atto', **options).eval()
    torch.testing.assert_close(again(x), network(x))

    asked = []
    monkeypatch.setattr(
        timm.models._builder,
        'load_pretrained',
        lambda model, cache_dir, **_: asked.append(cache_dir),
    )
    timm.create_model('rewired', base='convnext_atto', pretrained=True, cache_dir='/somewhere')
    assert asked == ['/somewhere']


def test_pretrained_networks_stay_the_same_or_need_consent(monkeypatch):
    monkeypatch.setattr(timm.models._builder, 'load_pretrained', lambda *args, **kwargs: None)
    options = dict(base='mobilenetv2_100', pretrained=True, wiring='sequential')
    with pytest.raises(ValueError, match=r'would not stay the same.*exact=False allows it'):
        timm.create_model('rewired', **options)
    with pytest.warns(UserWarning, match='is another function'):
        timm.create_model('rewired', exact=False, **options)


def test_a_base_without_a_registered_configuration_is_rewired_by_name():
    def my_resnetv2(pretrained=False, **kwargs):
        return timm.create_model('resnetv2_cifar20', **{
            k: v for k, v in kwargs.items() if v is not None})  # fmt: skip

    timm.models.register_model(my_resnetv2)
    network = timm.create_model('rewired', base='my_resnetv2', num_classes=7)
    assert network.base == 'my_resnetv2'
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda stage: nn.init.constant_(stage.connectivity.alpha, 0.5),
         r'blocks\.0 has edge weights other than those of shortcuts, such as 0\.5'),
        (lambda stage: nn.init.constant_(stage.entry.bn.bias, 0.1),
         r'blocks\.0 has a projection of its own'),
    ],
)  # fmt: skip
def test_what_a_plain_network_cannot_compute_is_not_unwired(change, message):
    network = rewire(plain('mobilenetv2_050'), projection=True)
    change(next(iter(graph_stages(network).values())))
    with pytest.raises(ValueError, match=message):
        unwire(network)


def test_other_wirings_and_plain_networks_are_not_unwired():
    network = quietly(plain('resnetv2_18'), wiring='sequential')
    with pytest.raises(ValueError, match=r'stages\.0\.blocks has a wiring other than the complete'):
        unwire(network)
    keep = {name: torch.ones(6, dtype=torch.bool) for name in graph_stages(network)}
    network = rewire(plain('resnetv2_18'))
    edges = network.stages[0].blocks.wiring.edges
    keep['stages.0.blocks'] = torch.tensor([2 not in edge for edge in edges])
    keep = {name: keep.get(name, keep['stages.0.blocks'] | True) for name in graph_stages(network)}
    smaller, _ = prune(network, keep=keep)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert torch.allclose(unwire(smaller.eval())(x), smaller(x), atol=1e-5)  # without the block
    with pytest.raises(TypeError, match='unwire needs a re-wired network, got EfficientNet'):
        unwire(plain('mobilenetv2_050'))


def test_unwiring_where_an_activation_was_between_tells_the_difference():
    model = plain('resnet10t')
    with pytest.warns(UserWarning, match='is another function: outputs differ by'):
        back = unwire(quietly(model))
    x = image()
    torch.testing.assert_close(back(x), model(x))


# -- saved, pruned, trained on --------------------------------------------------------------------


@pytest.mark.parametrize(
    'name', ['mobilenetv2_050', 'resnetv2_cifar20', 'resnet26d', 'regnety_002']
)
def test_pruned_networks_are_saved_and_rebuilt(tmp_path, name):
    network = set_weights(quietly(plain(name)).float(), 0.1, 1)
    x = image().float()
    for seed in range(20):  # a random half of the edges that leaves every stage connected
        torch.manual_seed(seed)
        keep = {n: torch.rand(s.wiring.num_edges) < 0.6 for n, s in graph_stages(network).items()}
        try:
            smaller, report = prune(network, keep=keep, probe=x)
        except DisconnectedError:
            continue
        if any(stage.removed for stage in report.stages):
            break
    assert any(stage.removed for stage in report.stages)
    assert count_parameters(smaller) < count_parameters(network)
    timm_topo.save(smaller, tmp_path / 'net')
    loaded = timm_topo.load(tmp_path / 'net').eval()
    assert type(loaded) is type(smaller)
    assert [*loaded.state_dict()] == [*smaller.state_dict()]
    torch.testing.assert_close(loaded(x), smaller(x))
    again, _ = prune(loaded, fraction=0.0, probe=x)
    timm_topo.save(again, tmp_path / 'net')
    torch.testing.assert_close(timm_topo.load(tmp_path / 'net').eval()(x), smaller(x))


def test_options_of_rewire_are_saved_too(tmp_path):
    options = dict(projection=True, sparsity='uniform', sparsity_weight=0.5)
    network = set_weights(rewire(plain('mobilenetv2_050'), **options).float())
    timm_topo.save(network, tmp_path / 'net')
    loaded = timm_topo.load(tmp_path / 'net').eval()
    assert (loaded.sparsity, loaded.sparsity_weight) == ('uniform', 0.5)
    x = image().float()
    torch.testing.assert_close(loaded(x), network(x))
    fewer = timm_topo.load(tmp_path / 'net', num_classes=3, in_chans=1)
    assert fewer(x[:, :1]).shape == (2, 3)


def test_a_removed_node_takes_its_parameters_with_it():
    network = rewire(plain('resnetv2_cifar20'))
    stage = network.stages[0].blocks
    keep = {n: torch.ones(s.wiring.num_edges, dtype=torch.bool) for n, s in
            graph_stages(network).items()}  # fmt: skip
    keep['stages.0.blocks'] = torch.tensor([2 not in edge for edge in stage.wiring.edges])
    smaller, report = prune(network, keep=keep)
    gone = count_parameters(stage.nodes[1]) + 4  # and the edges of node 2
    assert count_parameters(smaller) == count_parameters(network) - gone
    assert report.stages[0].removed == (2,)
    assert smaller.stages[0].blocks.node_ids == [0, 1, 3, 4]
    left = smaller.stages[0].blocks.nodes
    assert [node.origin for node in left] == ['stages.0.blocks.0', 'stages.0.blocks.2']


def test_a_projection_that_nobody_reads_goes_exactly():
    network = rewire(plain('resnetv2_18'))
    name = 'stages.1.blocks.1'
    edges = network.get_submodule(name).wiring.edges
    keep = {n: torch.ones(s.wiring.num_edges, dtype=torch.bool) for n, s in
            graph_stages(network).items()}  # fmt: skip
    keep[name] = torch.tensor([edge[0] != 0 or edge == (0, 1) for edge in edges])
    smaller, report = prune(network, keep=keep)
    assert isinstance(smaller.get_submodule(name).entry, nn.Identity)
    assert report.exact
    assert report.difference < 1e-9
    gone = count_parameters(network.get_submodule(name).entry) + int((~keep[name]).sum())
    assert count_parameters(smaller) == count_parameters(network) - gone


def test_without_its_first_block_a_stage_reads_the_projection_alone():
    network = set_weights(rewire(plain('resnetv2_18')))
    name = 'stages.2.blocks.1'
    edges = network.get_submodule(name).wiring.edges
    keep = {n: torch.ones(s.wiring.num_edges, dtype=torch.bool) for n, s in
            graph_stages(network).items()}  # fmt: skip
    keep[name] = torch.tensor([1 not in edge for edge in edges])
    smaller, report = prune(network, keep=keep)
    stage = smaller.get_submodule(name)
    assert (stage.first_reads_input, stage.node_ids) == (False, [0, 2, 3])
    assert report.difference < 1e-9


def test_sparsity_is_the_models_own():
    network = rewire(plain('resnetv2_cifar20'), sparsity='uniform', sparsity_weight=0.25)
    assert network.sparsity_weight == 0.25
    assert network.sparsity_loss().item() == 30
    alphas = {f'{name}.connectivity.alpha' for name in graph_stages(network)}
    assert network.no_weight_decay() == alphas


def test_layer_decay_is_that_of_the_plain_network():
    model = plain('convnext_atto')
    network = rewire(model)
    scales = []
    for candidate in (model, network):
        optimizer = create_optimizer_v2(candidate, opt='sgd', lr=0.1, layer_decay=0.7)
        scale = {id(p): g['lr_scale'] for g in optimizer.param_groups for p in g['params']}
        scales.append({n: scale[id(p)] for n, p in candidate.named_parameters()})
    names = network.plain_names()
    shared = {names[own]: scale for own, scale in scales[1].items() if names[own]}
    assert shared == scales[0]
    for name in graph_stages(network):
        inside = [scale for own, scale in scales[1].items() if own.startswith(f'{name}.nodes')]
        assert scales[1][f'{name}.connectivity.alpha'] == min(inside)


@pytest.mark.parametrize('name', ['stages.0.blocks', 'stages.1.blocks.1', 'stages.2.blocks.1'])
def test_a_stage_without_blocks_learns_with_what_comes_before_it(name):
    network = rewire(plain('resnetv2_cifar20'))
    wiring, keep = network.get_submodule(name).wiring, edge_mask(network, fraction=0)
    direct = (0, wiring.num_nodes - 1)
    keep[name] = torch.tensor([edge == direct for edge in wiring.edges])
    smaller, _ = prune(network, keep=keep)
    assert not smaller.get_submodule(name).nodes
    layers = group_parameters(smaller, smaller.group_matcher(), reverse=True)
    names = [n for n, _ in smaller.named_parameters()]
    assert set(layers) == set(names)
    own = [n for n in names if n.startswith(f'{name}.')]
    before = names[: names.index(own[0])]
    at = layers[f'{name}.connectivity.alpha']
    assert at == min(layers[n] for n in own)
    assert max(layers[n] for n in before) <= at <= layers['head.fc.weight']


def test_fresh_weights_are_timms_own():
    network = set_weights(rewire(plain('mobilenetv2_050'), projection=True).float())
    for stage in graph_stages(network).values():
        nn.init.ones_(stage.entry.bn.weight)
    fresh = retrainable(network)
    for stage in graph_stages(fresh).values():
        assert (stage.connectivity.alpha == 1).all()
        assert not stage.entry.bn.weight.any()
    assert (fresh.bn1.weight == 1).all()
    assert not fresh.bn1.running_mean.any()
    assert not torch.equal(fresh.conv_stem.weight, network.conv_stem.weight)
    std = fresh.blocks[3].nodes[1].conv_pwl.weight.std().item()
    assert std == pytest.approx((2 / fresh.blocks[3].nodes[1].conv_pwl.out_channels) ** 0.5, 0.1)


@pytest.mark.parametrize('name', ['mobilenetv2_050', 'convnext_atto', 'regnetz_005'])
def test_checkpointing_changes_no_gradient(name):
    network = set_weights(rewire(plain(name)))
    x = image()
    stored = torch.autograd.grad(network(x).square().sum(), [*network.parameters()])
    network.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in graph_stages(network).values())
    again = torch.autograd.grad(network(x).square().sum(), [*network.parameters()])
    torch.testing.assert_close(again, stored)


# -- as a timm model ------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['mobilenetv2_050', 'convnext_atto', 'resnet26d', 'regnetz_005'])
def test_features_are_those_of_the_plain_network(name):
    exact = name != 'resnet26d'
    options = dict(num_classes=5, features_only=True)
    features = timm.create_model('rewired', base=name, exact=exact, **options)
    reference = timm.create_model(name, **options)
    assert features.feature_info.channels() == reference.feature_info.channels()
    assert features.feature_info.reduction() == reference.feature_info.reduction()
    x = image().float()
    shapes = [tuple(level.shape) for level in reference(x)]
    assert [tuple(level.shape) for level in features(x)] == shapes
    last = timm.create_model('rewired', base=name, exact=exact, out_indices=(1, 3), **options)
    assert [tuple(level.shape) for level in last(x)] == [shapes[1], shapes[3]]


def test_intermediates_equal_those_of_the_plain_network():
    model = plain('mobilenetv3_small_050')
    network = rewire(model)
    x = image()
    for ours, theirs in zip(
        network.forward_intermediates(x, intermediates_only=True),
        model.forward_intermediates(x, intermediates_only=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('name', ['mobilenetv2_050', 'resnet26d', 'convnext_atto'])
def test_a_new_classifier_is_timms(name):
    network = quietly(plain(name))
    network.reset_classifier(11)
    assert network(image()).shape == (2, 11)
    network.reset_classifier(0)
    assert network(image()).shape == (2, network.num_features)


@pytest.mark.parametrize('name', ['mobilenetv2_050', 'resnetv2_18', 'resnet26d', 'convnext_atto'])
def test_exports_equal_the_network(name):
    network = set_weights(quietly(plain(name)))
    x = image()
    program = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(program(x), network(x))


def test_compiling_meets_no_graph_break():
    torch.compiler.reset()
    network = set_weights(rewire(plain('mobilenetv2_050')))
    compiled = torch.compile(network, fullgraph=True, backend='aot_eager')
    x = image()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))


def test_onnx_runs_the_pruned_network(tmp_path):
    network = set_weights(rewire(plain('resnetv2_cifar20')).float(), 0.2, 1)
    smaller, _ = prune(network, threshold=0.35)
    export_onnx(smaller, tmp_path / 'net.onnx')  # compares the outputs itself
    assert (tmp_path / 'net.onnx').stat().st_size > 4 * count_parameters(smaller)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(base='resnet1'), ValueError, "unknown base 'resnet1'"),
        (dict(base='resnet18'), ValueError, 'resnet18 cannot be re-wired exactly: ReLU follows'),
        (dict(base='test_vit'), ValueError, 'is a VisionTransformer, which cannot be re-wired'),
        (dict(node_ids=[[0, 1, 2]]), ValueError, 'node_ids has 1 entries for 5 stages'),
        (
            dict(node_ids=[[0, 9]] * 5),
            ValueError,
            r'nodes \[0, 9\] are not 0, 2 and',
        ),
        (dict(base='mobilenetv2_100', depth=3), TypeError, "unexpected keyword argument 'depth'"),
    ],
)
def test_options_of_the_timm_model_that_mean_nothing_are_refused(options, error, message):
    with torch.device('meta'), pytest.raises(error, match=message):
        timm.create_model('rewired', **options)


def test_the_timm_model_and_the_function_build_the_same():
    torch.manual_seed(0)
    model = timm.create_model('resnetv2_cifar20', num_classes=7, in_chans=1)
    network = rewire(model, sparsity='adaptive', sparsity_weight=0.01)
    options = dict(base='resnetv2_cifar20', sparsity='adaptive', sparsity_weight=0.01)
    made = timm.create_model('rewired', num_classes=7, in_chans=1, **options)
    made.load_state_dict(network.state_dict())
    assert type(made) is type(network)
    assert (made.sparsity, made.sparsity_weight) == (network.sparsity, network.sparsity_weight)
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(made.eval()(x), model.eval()(x))


def test_every_known_family_has_a_class_of_its_own():
    assert len(FAMILIES) == 7
    for name, cls in FAMILIES.items():
        family = getattr(timm.models, name)
        assert rewired_class(family) is cls
        assert issubclass(cls, family)
