"""timm's checkpoints as weights of detectors: what is read, and what is refused."""

import argparse
import json
import logging
import pickle
import shutil
from fractions import Fraction

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver
from torch import nn

import timm_topo
from timm_topo.analysis.prune import prune
from timm_topo.checkpoint import Origin, checkpoint_origin

pytest.importorskip(
    'detectron2',
    reason='detectron2 is not installed: https://detectron2.readthedocs.io/tutorials/install.html',
)

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import FPN

import d2_topo.checkpoint
from d2_topo import TopoBackbone, load_timm_weights
from d2_topo.backbone import topo_backbone

TINY = 'test_toponet'
OTHER = dict(num_nodes=(4, 4, 4, 4))


class Detector(nn.Module):
    """As far as checkpoints go: a backbone in an FPN, and something behind it."""

    def __init__(self, name=TINY, **options):
        super().__init__()
        bottom_up = TopoBackbone(name, **{'norm': 'BN', **options})
        self.backbone = FPN(bottom_up, list(bottom_up.output_shape()), out_channels=4)
        self.head = nn.Linear(4, 2)

    @property
    def network(self) -> nn.Module:
        return self.backbone.bottom_up.model


@pytest.fixture
def model(randomise):
    return randomise(timm.create_model(TINY)).eval()


def wrong(model: nn.Module) -> dict:
    return {name: torch.zeros_like(value) for name, value in model.state_dict().items()}


def training_checkpoint(model: nn.Module, folder, name=TINY, **options):
    """As timm's trainer writes it: averaged weights are the right ones."""
    args = argparse.Namespace(model=name, **{'model_kwargs': {}, 'mean': None, **options})
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    saver = CheckpointSaver(model, optimizer, args, checkpoint_dir=folder, recovery_dir=folder)
    saver.save_checkpoint(3, metric=1.0)
    path = folder / 'last.pth.tar'
    content = torch.load(path, weights_only=False)
    content['state_dict_ema'], content['state_dict'] = content['state_dict'], wrong(model)
    torch.save(content, path)
    return path


FORMATS = {
    'bare': lambda model, path: torch.save(model.state_dict(), path / 'w.pth') or path / 'w.pth',
    'state_dict': lambda model, path: (
        torch.save({'epoch': 1, 'state_dict': model.state_dict()}, path / 'w.pt') or path / 'w.pt'
    ),
    'model': lambda model, path: (
        torch.save({'model': model.state_dict()}, path / 'w.pth') or path / 'w.pth'
    ),
    'compiled': lambda model, path: (
        torch.save({f'_orig_mod.{k}': v for k, v in model.state_dict().items()}, path / 'w.bin')
        or path / 'w.bin'
    ),
    'pth.tar with EMA': training_checkpoint,
    'safetensors': lambda model, path: (
        save_file(model.state_dict(), path / 'w.safetensors') or path / 'w.safetensors'
    ),
    'folder': lambda model, path: timm_topo.save(model, path / 'saved'),
    'file in folder': lambda model, path: timm_topo.save(model, path / 's') / 'model.safetensors',
}


@pytest.mark.parametrize('norm', ['BN', 'FrozenBN'])
@pytest.mark.parametrize('form', FORMATS)
def test_detectron2s_checkpointer_reads_it(form, norm, model, tmp_path, caplog):
    """All tensors of the backbone, none of the rest; and says so."""
    detector = Detector(norm=norm)
    before = {k: v.clone() for k, v in detector.state_dict().items() if 'bottom_up' not in k}
    path = FORMATS[form](model, tmp_path)
    with caplog.at_level(logging.INFO, logger='detectron2.d2_topo'):
        assert DetectionCheckpointer(detector, str(tmp_path)).load(str(path)) == {}
    weights = model.state_dict()
    for name, value in detector.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert all(torch.equal(v, detector.state_dict()[k]) for k, v in before.items())
    loaded = len(detector.network.state_dict())
    text = f'loaded {loaded} tensors, skipped 2 (head.fc.bias, head.fc.weight), missing 0'
    assert text in caplog.text
    assert str(path) in caplog.text


def test_resume_or_load_takes_it_too(model, tmp_path):
    path = training_checkpoint(model, tmp_path)
    detector = Detector()
    DetectionCheckpointer(detector, str(tmp_path / 'out')).resume_or_load(str(path), resume=True)
    weight = detector.network.stem.conv.weight
    assert torch.equal(weight, model.stem.conv.weight)


@pytest.mark.parametrize('norm', ['BN', 'FrozenBN', 'SyncBN', 'GN'])
@pytest.mark.parametrize('base', ['resnet18', 'mobilenetv2_050', 'resnetv2_18'])
def test_the_plain_network_fits_its_rewired_form(base, norm, tmp_path, randomise):
    plain = randomise(timm.create_model(base)).eval()
    torch.save({'state_dict': plain.state_dict()}, tmp_path / 'w.pth')
    made = TopoBackbone('rewired', base=base, exact=False, norm=norm).eval()
    report = load_timm_weights(made, tmp_path / 'w.pth')
    assert all('connectivity.alpha' in name for name in report.missing)
    assert len(report.missing) == len(made.graphs)
    names = made.model.plain_names()
    for name in report.loaded:
        assert torch.equal(made.model.state_dict()[name], plain.state_dict()[names[name] or name])
    if base != 'resnet18' and norm != 'GN':  # there a ReLU follows the sum
        x = torch.randn(1, 3, 64, 64)
        for found, level in zip(made(x).values(), plain.forward_intermediates(x)[1][-4:]):
            torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('stored', 'mean', 'std'),
    [
        (dict(mean=[0.3, 0.2, 0.1], std=[0.6, 0.5, 0.4]), (0.3, 0.2, 0.1), (0.6, 0.5, 0.4)),
        (dict(mean=[0.5]), (0.5, 0.5, 0.5), (0.229, 0.224, 0.225)),  # timm broadcasts
        (dict(std=[0.1, 0.2, 0.3]), (0.485, 0.456, 0.406), (0.1, 0.2, 0.3)),
        ({}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_preprocessing_comes_with_the_weights(stored, mean, std, model, tmp_path):
    """From the options of a training run; and on with the detector."""
    path = training_checkpoint(model, tmp_path, **stored)
    detector = Detector()
    DetectionCheckpointer(detector).load(str(path))
    pixels = detector.backbone.bottom_up.pixels
    assert (*pixels.mean.tolist(), *pixels.std.tolist()) == pytest.approx((*mean, *std))
    torch.save({'model': detector.state_dict()}, tmp_path / 'detector.pth')
    again = Detector()
    DetectionCheckpointer(again).load(str(tmp_path / 'detector.pth'))
    assert torch.equal(again.backbone.bottom_up.pixels.mean, pixels.mean)
    x = torch.rand(1, 3, 64, 64)
    expected = detector.eval().backbone(x)['p5']
    torch.testing.assert_close(again.eval().backbone(x)['p5'], expected)


def test_preprocessing_comes_with_a_saved_network(model, tmp_path):
    config = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), input_size=(3, 64, 64),
                  interpolation='bilinear', crop_pct=1.0, crop_mode='center')  # fmt: skip
    detector = Detector()
    folder = timm_topo.save(model, tmp_path / 'saved', data_config=config)
    DetectionCheckpointer(detector).load(str(folder))
    pixels = detector.backbone.bottom_up.pixels
    assert pixels.mean.tolist() == pytest.approx(config['mean'])
    assert pixels.std.tolist() == pytest.approx(config['std'])


# -- what detectron2 wrote ------------------------------------------------------------------------


def test_detectors_are_saved_and_loaded_as_ever(tmp_path):
    detector, again = Detector(), Detector()
    DetectionCheckpointer(detector, str(tmp_path)).save('model_final', iteration=7)
    rest = DetectionCheckpointer(again, str(tmp_path)).load(str(tmp_path / 'model_final.pth'))
    assert rest['iteration'] == 7
    for name, value in detector.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_the_model_zoos_format_is_left_to_detectron2(model, tmp_path):
    """A .pkl with full names, as converters write."""
    weights = {f'backbone.bottom_up.model.{k}': v.numpy() for k, v in model.state_dict().items()}
    with open(tmp_path / 'w.pkl', 'wb') as file:
        pickle.dump({'model': weights, '__author__': 'somebody'}, file)
    detector = Detector()
    DetectionCheckpointer(detector).load(str(tmp_path / 'w.pkl'))
    assert torch.equal(detector.network.stem.conv.weight, model.stem.conv.weight)


def test_matching_heuristics_are_left_to_detectron2(model, tmp_path):
    weights = {f'model.{k}': v for k, v in model.state_dict().items()}
    torch.save(weights, tmp_path / 'w.pth')
    detector = Detector()
    path = f'{tmp_path / "w.pth"}?matching_heuristics=True'
    DetectionCheckpointer(detector).load(path)
    assert torch.equal(detector.network.stem.conv.weight, model.stem.conv.weight)


def test_other_detectors_are_left_alone(tmp_path):
    layer = nn.Linear(2, 3)
    torch.save({'model': layer.state_dict()}, tmp_path / 'w.pth')
    again = nn.Linear(2, 3)
    DetectionCheckpointer(again).load(str(tmp_path / 'w.pth'))
    assert torch.equal(again.weight, layer.weight)


# -- what is refused ------------------------------------------------------------------------------


def refused(path, name=TINY, **options) -> str:
    """What the checkpointer says, having changed nothing."""
    detector = Detector(name, **options)
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        DetectionCheckpointer(detector).load(str(path))
    for key, value in detector.state_dict().items():
        assert torch.equal(value, before[key])
    return str(caught.value)


def test_weights_of_another_model(tmp_path):
    """detectron2 would warn, and train from random weights."""
    for name in ('resnet18', 'toponet_tiny_adaptive'):
        torch.save(timm.create_model(name).state_dict(), tmp_path / f'{name}.pth')
        message = refused(tmp_path / f'{name}.pth')
        assert f'{name}.pth is of another network than the backbone {TINY}' in message
        assert 'are missing' in message
        assert 'are unknown' in message
    message = refused(tmp_path / 'resnet18.pth', 'rewired', base='resnet34', exact=False)
    assert 'unknown' not in message  # all of resnet18 is in resnet34, by the plain names
    deeper = timm.create_model('resnet34')
    torch.save(deeper.state_dict(), tmp_path / 'w.pth')
    assert 'are unknown' in refused(tmp_path / 'w.pth', 'resnet18')  # all of resnet18 is in it


def test_weights_of_another_architecture_of_the_same_shapes(tmp_path):
    """Only the stored options tell."""
    name = 'test_efficientnet'
    path = training_checkpoint(timm.create_model(name), tmp_path, name)
    assert f'holds a {name}, but the backbone is {TINY}' in refused(path)
    name, other = 'tf_efficientnet_b0', 'efficientnet_b0'
    path = training_checkpoint(timm.create_model(name), tmp_path, name)
    message = refused(path, 'rewired', base=other)
    assert f'holds a {name}, but the backbone is a re-wired {other}' in message
    DetectionCheckpointer(Detector('rewired', base=name)).load(str(path))


def test_a_detector_with_another_wiring_of_the_same_shapes(tmp_path):
    one, two = (
        dict(num_nodes=[5, 5, 5, 5], wiring=[{'num_nodes': 5, 'edges': edges}] * 4)
        for edges in (
            [[0, 1], [1, 2], [2, 3], [3, 4], [0, 2]],
            [[0, 1], [1, 2], [2, 3], [3, 4], [1, 3]],
        )
    )
    torch.save({'model': Detector(**one).state_dict()}, tmp_path / 'w.pth')
    assert 'other wirings or rules' in refused(tmp_path / 'w.pth', **two)
    DetectionCheckpointer(Detector(**one)).load(str(tmp_path / 'w.pth'))


def test_weights_with_preprocessing_that_does_not_fit(model, tmp_path):
    path = training_checkpoint(model, tmp_path, mean=[0.1, 0.2])
    assert "the classifier's mean [0.1, 0.2] does not fit images of 3 channels" in refused(path)


def test_weights_of_other_widths(tmp_path):
    torch.save(timm.create_model(TINY, widths=(8, 24, 32, 48)).state_dict(), tmp_path / 'w.pth')
    assert 'of another shape' in refused(tmp_path / 'w.pth')


def test_weights_of_another_wiring_of_the_same_shapes(tmp_path):
    """Nodes are the same, edges have no weights: only the stored options tell."""
    residual = 'toponet_tiny_residual2'
    kwargs = dict(strides=[4, 2, 2], widths=[8, 8, 8], num_nodes=[5, 5, 5])
    model = timm.create_model(residual, **kwargs)
    path = training_checkpoint(model, tmp_path, residual, model_kwargs=kwargs)
    same, other = (
        dict(out_features=['res2', 'res3', 'res4'], **kwargs, wiring=wiring)
        for wiring in ({'name': 'residual', 'interval': 2}, 'complete')
    )
    DetectionCheckpointer(Detector('toponet_tiny_residual2', **same)).load(str(path))
    assert 'with another wiring or rule than the backbone' in refused(path, residual, **other)


@pytest.mark.parametrize('save', [timm_topo.save, training_checkpoint])
def test_weights_of_another_rule_of_the_same_shapes(save, tmp_path):
    model = timm.create_model(TINY, connectivity='tanh')
    options = {'model_kwargs': {'connectivity': 'tanh'}} if save is training_checkpoint else {}
    path = tmp_path / 'run'
    path.mkdir()
    path = save(model, path, **options)
    assert 'with another wiring or rule than the backbone' in refused(path)
    DetectionCheckpointer(Detector(connectivity='tanh')).load(str(path))


def test_a_pruned_network_needs_its_own_structure(tmp_path, randomise):
    model = randomise(timm.create_model(TINY, **OTHER))
    smaller, _ = prune(model, fraction=0.4)
    folder = timm_topo.save(smaller, tmp_path / 'pruned')
    message = refused(folder, **OTHER)
    assert 'its folder must be the backbone: MODEL.TOPO.NAME' in message
    assert 'its folder must be' in refused(folder / 'model.safetensors', **OTHER)
    detector = Detector(str(folder))
    nn.init.zeros_(detector.network.stem.conv.weight)
    DetectionCheckpointer(detector).load(str(folder))
    assert torch.equal(detector.network.stem.conv.weight, smaller.stem.conv.weight)
    detector = Detector(str(folder))
    DetectionCheckpointer(detector).load(str(folder / 'model.safetensors'))


def test_group_norms_take_scale_and_shift_of_batch_norms(model, tmp_path):
    """What is not taken is told: the statistics, of every norm, and the classifier."""
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    made = TopoBackbone(TINY, norm='GN')
    report = load_timm_weights(made, tmp_path / 'w.pth')
    own = made.model.state_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in own.items())
    left = model.state_dict().keys() - own.keys()
    assert set(report.skipped) == {n for n in left if not n.endswith('num_batches_tracked')}
    assert report.missing == ()


@pytest.mark.parametrize('suffix', ['pth', 'pth.tar', 'safetensors', 'pt'])
def test_a_truncated_file(suffix, model, tmp_path):
    path = tmp_path / f'w.{suffix}'
    if suffix == 'safetensors':
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    assert f'{path} is truncated, damaged' in refused(path)


@pytest.mark.parametrize('suffix', ['pth', 'pth.tar', 'pt'])
def test_a_file_with_python_objects_is_not_handed_on(suffix, model, tmp_path, monkeypatch):
    """Whatever detectron2 would do with it."""
    handed = []
    monkeypatch.setattr(d2_topo.checkpoint, '_detectron2_load', lambda *args: handed.append(args))
    path = tmp_path / f'w.{suffix}'
    torch.save({'model': model.state_dict(), 'author': Fraction(1, 3)}, path)
    assert f'{path} is truncated, damaged or not just weights: it holds Python obj' in refused(path)
    assert handed == []


@pytest.mark.parametrize('name', ['none.pth', 'none.pth.tar', 'none.safetensors', 'none'])
def test_a_missing_file(name, tmp_path):
    assert f'{tmp_path / name} does not exist' in refused(tmp_path / name)


def test_a_folder_that_is_no_saved_network(model, tmp_path):
    assert f'{tmp_path} is no saved network: config.json is missing' in refused(tmp_path)
    folder = timm_topo.save(model, tmp_path / 'saved')
    (folder / 'config.json').write_text('{')
    assert 'is not JSON' in refused(folder)


def test_a_detector_with_another_backbone(tmp_path):
    """Written by detectron2 itself; what does not fit is more than a warning."""
    other = Detector(**OTHER)
    torch.save({'model': other.state_dict()}, tmp_path / 'w.pth')
    message = refused(tmp_path / 'w.pth')
    assert str(tmp_path / 'w.pth') in message
    assert f'is of another detector: its backbone is not this {TINY}' in message
    heads = {k: v for k, v in Detector().state_dict().items() if 'bottom_up' not in k}
    torch.save({'model': heads}, tmp_path / 'heads.pth')
    assert 'are missing' in refused(tmp_path / 'heads.pth')


# -- where weights come from ----------------------------------------------------------------------


def test_origin_of_a_folder_and_of_a_training_checkpoint(model, tmp_path):
    folder = timm_topo.save(model, tmp_path / 'saved')
    wirings = json.loads((folder / 'config.json').read_text())['model_args']['wiring']
    for path in (folder, folder / 'model.safetensors', training_checkpoint(model, tmp_path)):
        origin = checkpoint_origin(path)
        assert origin.architecture == TINY
        assert [graph['wiring'] for graph in origin.graphs] == wirings
        assert {graph['rule'] for graph in origin.graphs} == {'alpha'}
    assert origin.weights == path
    assert checkpoint_origin(folder).weights == folder / 'model.safetensors'
    assert checkpoint_origin(folder).mean == list(model.pretrained_cfg['mean'])
    shutil.copy(folder / 'model.safetensors', tmp_path / 'model.safetensors')
    alone = checkpoint_origin(tmp_path / 'model.safetensors')
    assert alone == type(alone)(tmp_path / 'model.safetensors')


def test_origin_of_a_rewired_run_is_not_guessed(tmp_path):
    """The options name the network before it was re-wired."""
    model = timm_topo.rewire(timm.create_model('resnetv2_18'))
    path = training_checkpoint(model, tmp_path, 'resnetv2_18', rewire='alpha')
    assert checkpoint_origin(path).graphs is None
    report = load_timm_weights(TopoBackbone('rewired', base='resnetv2_18'), path)
    assert report.missing == ()


def test_origin_of_a_run_from_a_saved_network_is_not_guessed(model, tmp_path):
    """The options name a model that the run did not use."""
    path = training_checkpoint(model, tmp_path, 'resnet50', from_saved='pruned', mean=[0.5])
    assert checkpoint_origin(path) == Origin(path, mean=[0.5])
    load_timm_weights(Detector(), path)


def test_a_pruned_backbone_under_the_heads_of_a_detector(model, randomise, tmp_path):
    """The network of a detector, saved and pruned, takes its place; heads stay."""
    options = dict(freeze_at=2, norm='FrozenBN', num_nodes=(6, 6, 6, 6))
    detector = randomise(Detector(**options)).eval()
    torch.save({'model': detector.state_dict()}, tmp_path / 'detector.pth')
    whole = topo_backbone(detector).whole()
    timm_topo.save(whole, tmp_path / 'model')
    smaller, _ = prune(timm_topo.load(tmp_path / 'model'), fraction=0.2)
    x = torch.randn(1, 3, 64, 64)
    for folder, network in (('same', whole), ('pruned', smaller)):
        timm_topo.save(network, tmp_path / folder)
        other = Detector(str(tmp_path / folder)).eval()
        DetectionCheckpointer(other).load(f'{tmp_path}/detector.pth?heads')
        assert torch.equal(other.head.weight, detector.head.weight)
        lateral = 'fpn_lateral3'
        assert torch.equal(*(getattr(m.backbone, lateral).weight for m in (other, detector)))
        expected = network.eval().forward_intermediates(x, intermediates_only=True)[-1]
        torch.testing.assert_close(other.backbone.bottom_up(x)['res5'], expected)
    found = TopoBackbone(tmp_path / 'same').eval()(x)
    for name, value in detector.backbone.bottom_up(x).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (TINY, r'\?heads leaves the backbone test_toponet at its initial weights'),
        ('saved', r'is of another detector: its heads are not these: .*head\.bias'),
    ],
)
def test_heads_alone_are_of_this_detector(name, message, model, tmp_path):
    timm_topo.save(model, tmp_path / 'saved')
    weights = Detector().state_dict()
    weights['head.bias'] = torch.zeros(3)
    torch.save({'model': weights}, tmp_path / 'detector.pth')
    detector = Detector(name if name == TINY else str(tmp_path / name))
    with pytest.raises(ValueError, match=message):
        DetectionCheckpointer(detector).load(f'{tmp_path}/detector.pth?heads')


def test_what_is_no_whole_network():
    for made in (TopoBackbone(TINY, norm='GN'), TopoBackbone(TINY, ['res4']),
                 TopoBackbone(timm.create_model(TINY))):  # fmt: skip
        with pytest.raises(ValueError, match=r'the backbone test_toponet is no whole network'):
            made.whole()
