"""The detectron2 backbone: features, norms, freezing, preprocessing, the topology term."""

import copy
import math
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

import timm_topo
from timm_topo.analysis.prune import mask_edges, prune
from timm_topo.executors import adjacency
from timm_topo.stages import graph_stages

pytest.importorskip(
    'detectron2',
    reason='detectron2 is not installed: https://detectron2.readthedocs.io/tutorials/install.html',
)

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone

from d2_topo import TopoBackbone, load_timm_weights
from d2_topo.norm import convert_norm
from timm_topo.nodes import BranchBlock

#: A network of every kind: ours, routed, re-wired from each family, plain, one graph over all.
NETWORKS = {
    'toponet': ('test_toponet', {}),
    'topomobilenet': ('topomobilenetv2_100', {}),
    'dgnet': ('dgnet_resnet18', {}),
    'convnext': ('rewired', dict(base='convnext_atto')),
    'mobilenetv3': ('rewired', dict(base='mobilenetv3_small_050')),
    'resnetv2': ('rewired', dict(base='resnetv2_18')),
    'regnet': ('rewired', dict(base='regnety_002', exact=False)),
    'byobnet': ('rewired', dict(base='test_byobnet')),
    'plain': ('resnet18', {}),
    'dagnet': ('dagnet', dict(num_nodes=8, num_stages=4, channels=4, input_stride=4)),
    'maskconnect': (
        'maskconnect_resnext50_32x4d',
        dict(
            depths=(1, 2, 1, 1), cardinality=3, base_width=2, widths=(4, 6, 8, 10), stem_width=4,
            fan_in=2, masks='random',
        ),
    ),
}  # fmt: skip
ONE_GRAPH = ['dagnet', 'maskconnect']
TINY = 'test_toponet'
pytestmark = pytest.mark.filterwarnings('ignore:.*the function changes.*', 'ignore:.*differ.*')


def network(kind: str) -> nn.Module:
    name, options = NETWORKS[kind]
    return timm.create_model(name, **options)


@pytest.fixture(scope='module')
def saved(tmp_path_factory, randomise):
    """Function: weights of a whole classifier away from their initial values, and their file."""
    folder, made = tmp_path_factory.mktemp('weights'), {}

    def saved(kind: str):
        if kind not in made:
            torch.manual_seed(1)
            model = randomise(network(kind)).eval()
            path = folder / f'{kind}.pth'
            torch.save(model.state_dict(), path)
            made[kind] = model, path
        return made[kind]

    return saved


def backbone(kind: str, path=None, **options) -> TopoBackbone:
    name, kwargs = NETWORKS[kind]
    made = TopoBackbone(name, **options, **kwargs)
    if path:
        load_timm_weights(made, path)
    return made


def maps_of_the_classifier(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The last map of each stride, caught while the classifier classifies."""
    caught, handles = {}, []
    for level in model.feature_info:
        if level['reduction'] >= 4:
            key = f'res{int(math.log2(level["reduction"]))}'
            module = model.get_submodule(level['module'])
            if isinstance(module, BranchBlock):  # the mean of what the next block reads
                parent, _, index = level['module'].rpartition('.')
                after = model.get_submodule(f'{parent}.{int(index) + 1}')
                handles.append(
                    after.register_forward_pre_hook(
                        lambda _, x, key=key: caught.update({key: x[0].mean(1)})
                    )
                )
                continue
            handles.append(
                module.register_forward_hook(lambda _, __, y, key=key: caught.update({key: y}))
            )
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return caught


# -- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'norm'),
    [(kind, 'FrozenBN') for kind in NETWORKS]
    + [(kind, norm) for kind in ('toponet', 'regnet', 'resnetv2') for norm in ('BN', 'SyncBN')],
)
def test_features_are_those_of_the_classifier(kind, norm, saved):
    """With the classifier's weights, of which nothing is left over but the classifier."""
    model, path = saved(kind)
    made = backbone(kind, norm=norm).eval()
    report = load_timm_weights(made, path)
    x = torch.randn(2, 3, 64, 96)
    expected, found = maps_of_the_classifier(model, x), made(x)
    assert list(found) == list(expected) == ['res2', 'res3', 'res4', 'res5']
    for name, shape in made.output_shape().items():
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
        size = 64 // shape.stride, 96 // shape.stride
        assert found[name].shape == (2, shape.channels, *size)
    own = {f'model.{name}' for name in model.state_dict()} - set(made.state_dict())
    assert {n.removeprefix('model.') for n in own if not n.endswith('batches_tracked')} == {
        n for n in report.skipped if not n.endswith('batches_tracked')
    }
    assert report.missing == ()
    classifier = model.pretrained_cfg['classifier']
    assert {f'{classifier}.weight', f'{classifier}.bias'} <= set(report.skipped)


@pytest.mark.parametrize('kind', ['toponet', 'dgnet', 'plain'])
def test_only_the_classifier_is_skipped(kind, saved):
    model, path = saved(kind)
    skipped = load_timm_weights(backbone(kind), path).skipped
    classifier = model.pretrained_cfg['classifier']
    assert set(skipped) == {f'{classifier}.weight', f'{classifier}.bias'}


@pytest.mark.parametrize('kind', NETWORKS)
def test_every_parameter_takes_part_in_training(kind):
    """DistributedDataParallel needs it: nothing of the classifier may be left."""
    made = backbone(kind, norm='BN').train()
    sum(x.square().mean() for x in made(torch.randn(2, 3, 64, 64)).values()).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('out', [['res5'], ['res3', 'res4'], ['res4', 'res2']])
@pytest.mark.parametrize('kind', ['toponet', 'convnext', 'plain'])
def test_what_no_feature_needs_is_cut_off(kind, out, saved):
    _, path = saved(kind)
    whole, part = backbone(kind, path).eval(), backbone(kind, path, out_features=out).eval()
    x = torch.randn(1, 3, 64, 64)
    found, expected = part(x), whole(x)
    assert list(found) == list(part.output_shape()) == sorted(out)
    assert all(torch.equal(found[name], expected[name]) for name in out)
    assert part.size_divisibility == 2 ** int(max(out)[-1])
    assert ('res5' in out) == (set(part.state_dict()) == set(whole.state_dict()))
    part = backbone(kind, out_features=out, norm='BN').train()
    sum(x.square().mean() for x in part(torch.randn(2, 3, 64, 64)).values()).backward()
    assert [name for name, p in part.named_parameters() if p.grad is None] == []


def test_it_is_what_fpn_asks_for():
    made = backbone('toponet').eval()
    assert isinstance(made, Backbone)
    assert made.output_shape()['res4'] == ShapeSpec(channels=32, stride=16)
    fpn = FPN(made, ['res2', 'res3', 'res4', 'res5'], out_channels=8)
    assert fpn.size_divisibility == made.size_divisibility == 32
    shapes = {name: tuple(x.shape[1:]) for name, x in fpn(torch.randn(1, 3, 64, 96)).items()}
    assert shapes == {f'p{k}': (8, 64 // 2**k, 96 // 2**k) for k in range(2, 6)}


def test_a_model_of_ones_own():
    model = timm_topo.rewire(timm.create_model('mobilenetv2_050', num_classes=7))
    expected = maps_of_the_classifier(model.eval(), x := torch.randn(1, 3, 64, 64))
    found = TopoBackbone(model).eval()(x)
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in found)


def test_a_pruned_network_by_its_folder(tmp_path, randomise):
    model = randomise(timm.create_model(TINY, num_nodes=(6, 6, 6, 6)))
    smaller, _ = prune(model, fraction=0.5)
    timm_topo.save(smaller, tmp_path / 'pruned')
    made = TopoBackbone(str(tmp_path / 'pruned')).eval()
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in model.parameters())
    x = torch.randn(1, 3, 64, 64)
    expected = maps_of_the_classifier(smaller.eval(), x)
    for name, found in made(x).items():
        torch.testing.assert_close(found, expected[name])
    made.train()(x)  # its weights are no random ones


def test_constants_of_a_pruned_network_reach_a_detector(tmp_path, randomise):
    """Node 2 of every stage, which nobody feeds any more, was read; at the size of a detector."""
    model = randomise(timm.create_model(TINY, num_nodes=(6, 6, 6, 6))).eval()
    keep = {
        name: torch.tensor([target != 2 for _, target in stage.wiring.edges])
        for name, stage in graph_stages(model).items()
    }
    smaller, report = prune(model, keep=keep)
    assert all(stage.folded for stage in report.stages)
    timm_topo.save(smaller, tmp_path / 'pruned')
    made = TopoBackbone(str(tmp_path / 'pruned')).eval()
    x = torch.randn(1, 3, 96, 160)
    with mask_edges(model, keep):
        expected = maps_of_the_classifier(model, x)
    for name, found in made(x).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4)
    torch.save({'model': made.state_dict()}, tmp_path / 'detector.pth')
    again = TopoBackbone(str(tmp_path / 'pruned'))
    for name, buffer in again.named_buffers():
        if 'offset' in name:
            buffer.zero_()
    DetectionCheckpointer(again).load(str(tmp_path / 'detector.pth'))
    for name, found in again.eval()(x).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4)


# -- norms ----------------------------------------------------------------------------------------


def test_group_norm_keeps_the_activation():
    """Of timm's BatchNormAct2d; as many groups of the 32 as divide the channels."""
    for channels, groups in ((64, 32), (24, 8), (7, 1)):
        norm = BatchNormAct2d(channels, act_layer=nn.SiLU)
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
        found = convert_norm(nn.Sequential(norm), 'GN')
        x = torch.randn(2, channels, 5, 5)
        expected = F.silu(F.group_norm(x, groups, norm.weight, norm.bias, norm.eps))
        torch.testing.assert_close(found(x.clone()), expected)


@pytest.mark.parametrize('kind', [k for k in NETWORKS if k != 'convnext'])
def test_group_norm_replaces_every_batch_norm(kind):
    batch, group = backbone(kind, norm='BN'), backbone(kind, norm='GN')
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    before, after = (
        {name for name, m in made.named_modules() if isinstance(m, norm)}
        for made, norm in zip((batch, group), norms)
    )
    assert before == after
    assert before
    assert not any(isinstance(m, norms[0]) for m in group.modules())
    x = torch.randn(2, 3, 64, 64)
    group.eval()
    together, alone = group(x)['res5'], group(x[:1])['res5']
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


def test_frozen_norms_stay_frozen_in_training(saved):
    made = backbone('toponet', saved('toponet')[1], norm='FrozenBN').train()
    before = {name: buffer.clone() for name, buffer in made.named_buffers()}
    x = torch.randn(4, 3, 64, 64)
    trained = made(x)['res5']
    assert all(torch.equal(before[name], buffer) for name, buffer in made.named_buffers())
    torch.testing.assert_close(trained, made.eval()(x)['res5'])


# -- freezing -------------------------------------------------------------------------------------


def leads_to(made: TopoBackbone, kind: str, level: int) -> set[str]:
    """Names of the parameters that influence ``res{level}``, or the stem's output for level 1."""
    caught = []
    if level == 1:
        first = {'dgnet': 'layer1', 'plain': 'layer1', 'topomobilenet': 'blocks.0',
                 'mobilenetv3': 'blocks.0', 'regnet': 's1'}.get(kind, 'stages.0')  # fmt: skip
        made.model.get_submodule(first).register_forward_pre_hook(lambda _, x: caught.append(x[0]))
    maps = made(torch.randn(2, 3, 64, 64))
    (caught[0] if level == 1 else maps[f'res{level}']).sum().backward()
    return {name for name, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('level', [0, 1, 2, 4])
@pytest.mark.parametrize('kind', [kind for kind in NETWORKS if kind not in ONE_GRAPH])
def test_freeze_at_freezes_what_leads_to_that_feature(kind, level, saved):
    """Counted as in detectron2: 0 nothing, 1 the stem, 2 the stem and res2..."""
    made = backbone(kind, saved(kind)[1], norm='BN', freeze_at=level).train()
    frozen = {name for name, p in made.named_parameters() if not p.requires_grad}
    free = backbone(kind, saved(kind)[1], norm='BN').train()
    parts = leads_to(free, kind, level) if level else set()
    norms = {name for name, _ in free.named_parameters()} - {n for n, _ in made.named_parameters()}
    assert frozen | norms == parts  # scale and shift of frozen norms are no parameters any more
    if level > 1:
        x = torch.randn(2, 3, 64, 64)
        before = made.eval()(x)[f'res{level}']
        optimizer = (
            torch.optim.SGD((p for p in made.parameters() if p.requires_grad), 0.1)
            if level < 5
            else None
        )
        maps = made.train()(x)
        torch.testing.assert_close(maps[f'res{level}'], before)  # routers evaluate too
        if optimizer:
            sum(y.square().mean() for y in maps.values()).backward()
            optimizer.step()
        torch.testing.assert_close(made.eval()(x)[f'res{level}'], before)


#: Networks of timm whose stem is not what comes before the first level, and the stem.
STEMS = {
    'vit_tiny_patch16_224': ('res4', {'cls_token', 'pos_embed', 'patch_embed'}),
    'hrnet_w18_small': ('res2', {'conv1', 'bn1', 'conv2', 'bn2'}),
    'xception41': ('res2', {'stem'}),
    'efficientnet_b0': ('res2', {'conv_stem', 'bn1'}),
    'cait_xxs24_224': ('res4', {'pos_embed', 'patch_embed'}),
}


@pytest.mark.parametrize('name', STEMS)
def test_stems_and_levels_of_timms_networks(name):
    first, stem = STEMS[name]
    size = timm.get_pretrained_cfg(name).input_size
    made = TopoBackbone(name, [first], norm='GN', freeze_at=1)
    frozen = {n for n, p in made.model.named_parameters() if not p.requires_grad}
    assert {n if n in stem else n.split('.')[0] for n in frozen} == stem
    made = TopoBackbone(name, [first], norm='GN', freeze_at=int(first[-1]))
    made.mark_trained()
    assert not made.train()(torch.randn(1, *size))[first].requires_grad
    free = TopoBackbone(name, [first], norm='GN')
    free(torch.randn(1, *size))[first].sum().backward()
    needed = {n for n, p in free.named_parameters() if p.grad is not None}
    assert {n for n, p in made.named_parameters() if not p.requires_grad} == needed


@pytest.mark.parametrize('name', ['coat_tiny', 'pit_ti_224'])
def test_a_stem_that_cannot_be_told(name):
    with pytest.raises(ValueError, match=rf'freeze_at=1: timm does not tell the stem of {name}'):
        TopoBackbone(name, ['res3'], freeze_at=1)


def test_what_is_frozen_drops_no_path(randomise):
    options = dict(base='resnet18', exact=False, drop_path_rate=0.9)
    made = randomise(TopoBackbone('rewired', norm='BN', freeze_at=4, **options))
    made.mark_trained()
    x = torch.randn(4, 3, 64, 64)
    expected = made.eval()(x)
    found = made.train()(x)
    torch.testing.assert_close(found['res4'], expected['res4'])
    assert not torch.allclose(found['res5'], expected['res5'])


# -- preprocessing --------------------------------------------------------------------------------


DETECTORS = {
    'as timm': ('RGB', [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    'as detectron2': ('BGR', [103.53, 116.28, 123.675], [1.0, 1.0, 1.0]),
    'other': ('RGB', [127.5, 127.5, 127.5], [127.5, 127.5, 127.5]),
}


@pytest.mark.parametrize('own', [None, ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))])
@pytest.mark.parametrize('detector', DETECTORS)
def test_images_arrive_as_the_classifier_wants_them(detector, own, saved, tmp_path):
    """Whatever the detector subtracts, divides by and however it orders channels."""
    order, mean, std = DETECTORS[detector]
    model, _ = saved('toponet')
    model = timm.create_model(TINY).eval()
    if own:
        model.pretrained_cfg.update(mean=own[0], std=own[1])
    timm_topo.save(model, tmp_path / 'saved')
    made = TopoBackbone(TINY, pixel_mean=mean, pixel_std=std, input_format=order).eval()
    load_timm_weights(made, tmp_path / 'saved')
    image = torch.randint(0, 256, (1, 3, 64, 64)).float()  # RGB
    cfg = model.pretrained_cfg
    as_trained = (image / 255 - torch.tensor(cfg['mean'])[:, None, None]) / torch.tensor(
        cfg['std']
    )[:, None, None]
    channels = image.flip(1) if order == 'BGR' else image
    arriving = (channels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected, found = maps_of_the_classifier(model, as_trained), made(arriving)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    again = TopoBackbone(TINY, pixel_mean=mean, pixel_std=std, input_format=order).eval()
    again.load_state_dict(made.state_dict())  # kept in the detector's own checkpoints
    assert all(torch.equal(again(arriving)[name], found[name]) for name in found)


def test_grey_images():
    options = dict(pretrained_cfg_overlay=dict(mean=(0.5,), std=(0.25,)))
    made = TopoBackbone(
        TINY, norm='BN', pixel_mean=[0.0], pixel_std=[255.0], input_format='L', **options
    ).eval()
    image = torch.rand(1, 1, 64, 64)
    expected = maps_of_the_classifier_of(made, (image - 0.5) / 0.25)
    torch.testing.assert_close(made(image)['res5'], expected)


@pytest.mark.parametrize(('channels', 'order'), [(1, 'L'), (5, 'multispectral')])
@pytest.mark.parametrize('kind', ['toponet', 'dgnet'])
def test_weights_for_colour_images_see_others(kind, channels, order, saved, tmp_path):
    """As timm adapts them, on images as the detector normalises them; from a saved network too."""
    model, path = saved(kind)
    stats = dict(pixel_mean=[500.0] * channels, pixel_std=[300.0] * channels, input_format=order)
    made = backbone(kind, path, freeze_at=2, **stats).eval()
    name, options = NETWORKS[kind]
    overlay = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    adapted = timm.create_model(name, in_chans=channels, **overlay, **options).eval()
    timm_topo.save(model, tmp_path / 'saved')
    folder = TopoBackbone(tmp_path / 'saved', **stats).eval()
    x = torch.randn(2, channels, 64, 64)
    expected = maps_of_the_classifier(adapted, x)
    for name, value in made(x).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(folder(x)[name], expected[name], rtol=1e-4, atol=1e-4)
    again = backbone(kind, freeze_at=2, **stats).eval()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x)['res5'], made(x)['res5'])


def maps_of_the_classifier_of(made: TopoBackbone, x: torch.Tensor) -> torch.Tensor:
    return made.model.forward_intermediates(x, intermediates_only=True)[-1]


# -- memory and losses ----------------------------------------------------------------------------


def test_one_graph_is_not_cut_in_two():
    with pytest.raises(ValueError, match=r'must have the last one of a graph .* with stride 32'):
        backbone('dagnet', out_features=['res2', 'res4'])
    made = backbone('dagnet', out_features=['res3', 'res5'])
    assert list(made.output_shape()) == ['res3', 'res5']


def test_blocks_of_branches_behind_the_last_feature_go(saved):
    model, path = saved('maskconnect')
    made = backbone('maskconnect', path, out_features=['res2', 'res4']).eval()
    assert len(made.model.dag.nodes) == 4
    x = torch.randn(2, 3, 64, 96)
    expected = maps_of_the_classifier(model, x)
    for name, found in made(x).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4)
    sum(y.sum() for y in made.train()(x).values()).backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize('kind', ONE_GRAPH)
@pytest.mark.parametrize('level', [1, 2, 4])
def test_half_a_graph_is_not_frozen(kind, level):
    with pytest.raises(ValueError, match=f'freeze_at must be 0 for a graph over .*got {level}'):
        backbone(kind, freeze_at=level)


@pytest.mark.parametrize('kind', ['toponet', 'dgnet', 'dagnet', 'maskconnect'])
def test_activation_checkpointing_stores_less_and_computes_the_same(kind, saved):
    stored, gradients = [], []
    x = torch.randn(2, 3, 64, 64)
    for activation_checkpoint in (False, True):
        made = backbone(kind, saved(kind)[1], activation_checkpoint=activation_checkpoint).train()
        stored.append(0)

        def keep(tensor):
            stored[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(y.square().mean() for y in made(x).values())
        loss.backward()
        gradients.append([p.grad for p in made.parameters()])
    assert stored[1] < stored[0] / (1.8 if kind in ONE_GRAPH else 2)  # by node, not by stage
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('sparsity', ['uniform', 'adaptive'])
@pytest.mark.parametrize('kind', ['toponet', 'dgnet', 'convnext'])
def test_the_topology_loss_is_the_weighted_l1(kind, sparsity, saved):
    made = backbone(
        kind, saved(kind)[1], freeze_at=2, sparsity=sparsity, sparsity_weight=0.25
    ).train()
    x = torch.randn(3, 3, 64, 64)
    total, stages = 0.0, graph_stages(made)
    if kind == 'dgnet':
        for stage in stages.values():
            nn.init.constant_(stage.connectivity.tau, -10.0)  # all open, in training too
    made(x)
    losses, read = made.take_losses(), adjacency(made, x)
    for name, stage in stages.items():
        degrees = [0] * stage.wiring.num_nodes
        for _, target in stage.wiring.edges:
            degrees[target] += 1
        for source, target in stage.wiring.edges:
            weight = 1.0 if sparsity == 'uniform' else math.log(degrees[target])
            total += weight * sum(abs(matrix[target, source].item()) for matrix in read[name]) / 3
    assert losses.keys() == {'loss_topology'}
    assert losses['loss_topology'].item() == pytest.approx(0.25 * total, rel=1e-4)
    losses['loss_topology'].backward()
    last = list(stages.values())[-1].connectivity  # not frozen
    assert all(p.grad is not None and p.grad.any() for n, p in last.named_parameters()
               if n != 'tau')  # fmt: skip
    assert made.take_losses() == {}


def test_no_losses_unless_asked_for(saved):
    made = backbone('toponet', saved('toponet')[1]).train()
    made(torch.randn(2, 3, 64, 64))
    assert made.take_losses() == {}
    made = backbone('toponet', saved('toponet')[1], sparsity_weight=1.0).eval()
    made(torch.randn(2, 3, 64, 64))
    assert made.take_losses() == {}


def test_a_loss_that_nobody_takes_is_an_error(saved):
    made = backbone('toponet', saved('toponet')[1], sparsity_weight=1.0).train()
    x = torch.randn(2, 3, 64, 64)
    made(x)
    with pytest.raises(RuntimeError, match=r'did not take its losses after .*: use TopoRCNN'):
        made(x)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(name='toponet_adaptiv'), r"unknown backbone 'toponet_adaptiv'.*known: .*toponet_ad"),
        (dict(out_features=['res2', 'res6']), r"\['res2', 'res6'\] .* it has res2 \(stride 4\), "),
        (dict(out_features=[]), r'out_features \[\]'),
        (dict(out_features=['res2', 'res2']), r"out_features \['res2', 'res2'\]"),
        (dict(name='toponet_tiny_adaptive'), r'out_features .* it has res2 \(stride 4\)$'),
        (dict(freeze_at=6), r'freeze_at must be one of 0 \(nothing\), 1 .* 5 \(res5\); got 6'),
        (dict(freeze_at=-1), r'freeze_at must be one of 0 .* got -1'),
        (dict(freeze_at=True), r'freeze_at must be one of 0 .* got True'),
        (dict(freeze_at=5, out_features=['res4']), r'4 \(res4\); got 5'),
        (dict(norm='IN'), r"unknown norm 'IN'; known: BN, FrozenBN, SyncBN, GN"),
        (dict(input_format='YUV'), r"unknown input_format 'YUV'; known: RGB, BGR, L, and any"),
        (dict(input_format='RBG', pixel_mean=[0.0] * 3), r"unknown input_format 'RBG'; known: RGB"),
        (dict(input_format='L', pixel_mean=[0.0] * 3), r'does not fit images of 1 channels'),
        (dict(input_format='RGB', pixel_mean=[0.0] * 5), r'does not fit images of 3 channels'),
        (dict(pixel_std=[1.0] * 4), r'pixel_std .* does not fit images of 3 channels'),
        (dict(pixel_mean=[1.0, 2.0]), r'pixel_mean \[1.0, 2.0\] does not fit images of 3 channels'),
        (dict(sparsity_weight=-1.0), r'sparsity_weight must be finite and >= 0, got -1.0'),
        (dict(sparsity='l2', sparsity_weight=1.0), r"unknown sparsity 'l2'"),
        (dict(name='toponet_alpha', sparsity_weight=1.0), r'toponet_alpha has no sparsity'),
        (dict(name='resnet18', sparsity='uniform', sparsity_weight=1.0), r'has no graph stage'),
        (dict(name='resnet18', activation_checkpoint=True), r'has no graph stage'),
        (dict(name=nn.Conv2d(3, 3, 3)), r'Conv2d is no whole model of timm.create_model'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        TopoBackbone(**{'name': TINY, **options})


@pytest.mark.parametrize('size', [(31, 64), (64, 16)])
def test_images_smaller_than_the_stride(size):
    message = rf'images of {size[0]}x{size[1]} pixels are smaller than the stride 32 of res5'
    with pytest.raises(ValueError, match=message):
        TopoBackbone(TINY).eval()(torch.randn(1, 3, *size))


@pytest.mark.parametrize(
    ('options', 'first'),
    [(dict(norm='BN', freeze_at=1), 'stem.bn.bias'), ({}, 'stages.0.entry.node.bn.bias')],
)
def test_initial_weights_are_not_frozen_in_training(options, first):
    made, x = TopoBackbone(TINY, **options), torch.randn(2, 3, 64, 64)
    made.eval()(x)
    message = rf'tensors of the backbone {TINY}, such as {first}, would stay at their initial'
    with pytest.raises(ValueError, match=message):
        made.train()(x)
    TopoBackbone(TINY, norm='BN').train()(x)
    TopoBackbone(TINY, norm='GN').train()(x)
    TopoBackbone('convnext_atto').train()(x)  # without any batch norm


def test_what_rewiring_adds_is_not_frozen_either(saved, tmp_path):
    """Weights of the plain network lack it; edge weights start at 1 on purpose."""
    _, path = saved('plain')
    x = torch.randn(2, 3, 64, 64)
    made = TopoBackbone('dgnet_resnet18', freeze_at=2)
    load_timm_weights(made, path)
    with pytest.raises(ValueError, match=r'such as layer1.0.entry.bn.bias, would stay'):
        made.train()(x)
    made = TopoBackbone('dgnet_resnet18', norm='BN')
    load_timm_weights(made, path)
    made.train()(x)
    made = TopoBackbone('rewired', base='resnet18', exact=False, freeze_at=2)
    load_timm_weights(made, path)
    made.train()(x)


def test_weights_that_timm_loads(saved):
    """By its own options, before the backbone is made."""
    model, path = saved('toponet')
    for options in (
        dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(path))),
        dict(checkpoint_path=str(path)),
    ):
        made = TopoBackbone(TINY, freeze_at=2, **options).train()
        made(torch.randn(2, 3, 64, 64))
        assert torch.equal(made.model.stem.conv.weight, model.stem.conv.weight)


def test_a_registered_name_wins_over_a_folder(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    timm_topo.save(timm.create_model(TINY, widths=(8, 8, 8, 8)), tmp_path / TINY)
    assert TopoBackbone(TINY).output_shape()['res2'].channels == 16
    for folder in (f'./{TINY}', tmp_path / TINY):
        assert TopoBackbone(folder).output_shape()['res2'].channels == 8
    with pytest.raises(ValueError, match=r"unknown backbone ''"):
        TopoBackbone('')


def test_on_the_meta_device(saved):
    """And its values afterwards."""
    with torch.device('meta'):
        made = TopoBackbone(TINY, norm='BN')
    other = backbone('toponet', saved('toponet')[1], norm='BN')
    made.to_empty(device='cpu').load_state_dict(other.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(made.eval()(x)['res5'], other.eval()(x)['res5'])


# -- what detectron2 and PyTorch do with it -------------------------------------------------------


@pytest.mark.parametrize('kind', ['toponet', 'dgnet', 'topomobilenet', 'regnet'])
def test_mixed_precision(kind, saved):
    """Maps in half precision behind frozen norms, the term in full; close to full precision."""
    options = dict(sparsity='uniform', sparsity_weight=1.0)
    made = backbone(kind, saved(kind)[1], **options).train()
    x = torch.randn(2, 3, 64, 64)
    exact = made(x)
    made.take_losses()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        maps = made(x)
    assert maps['res5'].dtype == torch.bfloat16
    for name, found in maps.items():
        scale = exact[name].abs().mean()
        assert (found.float() - exact[name]).abs().mean() < 0.1 * scale
    [loss] = made.take_losses().values()
    assert loss.dtype == torch.float32
    (loss + maps['res5'].float().square().mean()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::FutureWarning')
@pytest.mark.parametrize('kind', ['toponet', 'dgnet', 'convnext'])
def test_copies_and_traces_give_the_same(kind, saved):
    made = backbone(kind, saved(kind)[1], freeze_at=2).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = made(x)
    traced = torch.jit.trace(made, x, strict=False)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), traced):
        found = other(x)
        assert list(found) == list(expected)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
