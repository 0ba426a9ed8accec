"""Weights to start from: other classes, other image channels, other networks, re-wired networks."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.utils import init_distributed_device
from torch import nn

import timm_topo
from timm_topo.data import ArrayDataset
from timm_topo.training import build as training_build
from timm_topo.training.build import Run, build
from timm_topo.training.loop import train
from timm_topo.training.options import parse_args
from timm_topo.training.restore import restore
from timm_topo.training.weights import load_weights

PLAIN = 'resnetv2_cifar20'
#: First convolution, classifier.
PARTS = {
    'resnetv2_cifar20': ('stem.conv', 'head.fc'),
    'test_toponet': ('stem.conv', 'head.fc'),
    'mobilenetv2_035': ('conv_stem', 'classifier'),
    'test_convnext': ('stem.0', 'head.fc'),
}


@pytest.fixture(autouse=True)
def three_classes(monkeypatch):
    """A data set of three classes in place of any other."""

    def load(name, root, split, mode, **options):
        images = np.zeros((6, 8, 8), np.uint8)
        return ArrayDataset(images, np.arange(6) % 3, ['ant', 'bee', 'cow'], mode)

    monkeypatch.setattr(training_build, 'load_dataset', load)


@pytest.fixture
def file(tmp_path, randomise):
    """Function that writes the weights of a model to a file: both."""

    def file(name: str, suffix: str = '.pth', **options) -> tuple[nn.Module, Path]:
        torch.manual_seed(1)
        model = randomise(timm.create_model(name, **options))
        torch.save({'state_dict': model.state_dict()}, tmp_path / f'source{suffix}')
        return model, tmp_path / f'source{suffix}'

    return file


def built(model: str, *options) -> Run:
    common = ['--model', model, '--device', 'cpu', '--workers', '0', '--batch-size', '3']
    args = parse_args([*common, '--dataset', 'digits', *map(str, options)])
    return build(args, init_distributed_device(args))[0]


def same(run: Run, source: nn.Module) -> dict[str, bool]:
    """By name in the plain network, whether a tensor is the source's."""
    model, state = run.model, source.state_dict()
    names = model.plain_names() if hasattr(model, 'plain_names') else {}
    own = {names.get(name, name): value for name, value in model.state_dict().items()}
    return {
        name: own[name].shape == value.shape and torch.equal(own[name], value)
        for name, value in state.items()
    }


REWIRE = ('--rewire', '--rewire-kwargs', 'sparsity=adaptive')


@pytest.mark.parametrize('option', ['--initial-checkpoint', '--pretrained-path'])
@pytest.mark.parametrize('name', PARTS)
def test_a_classifier_of_other_classes_starts_anew(file, name, option):
    source, path = file(name, num_classes=7)
    run = built(name, option, path)
    _, classifier = PARTS[name]
    assert {n for n, equal in same(run, source).items() if not equal} == {
        f'{classifier}.weight', f'{classifier}.bias'
    }  # fmt: skip
    assert run.told[-1] == f'{classifier} starts anew: 7 classes in {path}, 3 here'


@pytest.mark.parametrize('option', ['--initial-checkpoint', '--pretrained-path'])
@pytest.mark.parametrize('name', [PLAIN, 'mobilenetv2_035', 'test_convnext'])
def test_so_it_does_where_the_network_is_rewired(file, name, option):
    source, path = file(name, num_classes=7)
    run = built(name, option, path, *REWIRE)
    assert isinstance(run.model, timm_topo.models.Rewired)
    assert {n.rpartition('.')[0] for n, equal in same(run, source).items() if not equal} == {
        PARTS[name][1]
    }


def test_a_run_says_so_in_one_line_and_trains_on(file, tmp_path, capsys):
    _, path = file(PLAIN, num_classes=7)
    common = ['--model', PLAIN, '--device', 'cpu', '--workers', '0', '--batch-size', '3']
    options = ['--initial-checkpoint', path, '--epochs', 1, '--lr', 0, '--no-tensorboard']
    args = [*common, '--output', tmp_path, '--experiment', 'run', *options, *REWIRE]
    result = train(parse_args(list(map(str, args))))
    assert capsys.readouterr().out.count('starts anew') == 1
    path.unlink()  # the checkpoint of the run needs nothing of what it started from
    restored = restore(result['folder'] / 'last.pth.tar')
    saved = timm_topo.load(result['model']).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in restored.state_dict().items())


def test_a_classifier_of_as_many_classes_is_kept_unless_weights_are_pretrained(file):
    source, path = file(PLAIN, num_classes=3)
    run = built(PLAIN, '--initial-checkpoint', path)
    assert all(same(run, source).values())
    assert len(run.told) == 2  # about the data
    run = built(PLAIN, '--pretrained', '--pretrained-path', path)
    assert not same(run, source)['head.fc.weight']


def test_weights_without_a_classifier_fit_too(file):
    source, path = file(PLAIN, num_classes=0)
    run = built(PLAIN, '--initial-checkpoint', path)
    assert all(same(run, source).values())
    assert run.told[-1] == f'head.fc starts anew: no classes in {path}, 3 here'


@pytest.mark.parametrize('option', ['--initial-checkpoint', '--pretrained-path'])
@pytest.mark.parametrize('rewired', [False, True], ids=['plain', 'rewired'])
@pytest.mark.parametrize(('there', 'here'), [(3, 1), (3, 4), (1, 3), (4, 2)])
def test_first_convolutions_are_adapted_to_the_image_channels(file, rewired, option, there, here):
    """As timm does it: one channel reads the sum of all, several repeat and keep the scale."""
    source, path = file(PLAIN, num_classes=3, in_chans=there)
    run = built(PLAIN, option, path, '--in-chans', here, *(REWIRE if rewired else ()))
    weight = source.stem.conv.weight
    if here == 1:
        expected = weight.sum(1, keepdim=True)
    else:
        expected = torch.cat([weight] * 4, 1)[:, :here] * there / here
    torch.testing.assert_close(run.model.stem.conv.weight, expected)
    line = f'stem.conv is adapted: {there} image channels in {path}, {here} here'
    assert line in run.told


def test_first_convolutions_of_which_there_are_two_are_both_adapted(file):
    sizes = dict(num_nodes=6, num_stages=2, channels=8)
    source, path = file('dagnet', num_classes=3, **sizes)
    kwargs = [f'{key}={value}' for key, value in sizes.items()]
    run = built('dagnet', '--initial-checkpoint', path, '--in-chans', 1, '--model-kwargs', *kwargs)
    for name in source.pretrained_cfg['first_conv']:
        summed = source.get_submodule(name).weight.sum(1, keepdim=True)
        torch.testing.assert_close(run.model.get_submodule(name).weight, summed)


def test_a_first_convolution_that_timm_cannot_adapt_starts_anew():
    """Space to depth: 16 inputs for each image channel."""
    source, model = (timm.create_model('tresnet_m', in_chans=n, num_classes=3) for n in (3, 4))
    fresh = model.body.conv1.conv.weight.clone()
    (told,) = load_weights(model, source.state_dict(), 'FILE')
    assert told == 'body.conv1.conv starts anew: 3 image channels in FILE, 4 here'
    assert torch.equal(model.body.conv1.conv.weight, fresh)
    assert torch.equal(model.head.fc.weight, source.head.fc.weight)


@pytest.mark.parametrize('option', ['--initial-checkpoint', '--pretrained-path'])
@pytest.mark.parametrize('classes', [3, 7])
def test_weights_of_another_network_are_refused_whatever_their_classes(file, option, classes):
    """timm alone loads what fits, where the classes differ."""
    _, path = file('mobilenetv2_035', num_classes=classes)
    with pytest.raises(ValueError, match=r'source\.pth is of another model: '):
        built(PLAIN, option, path)
    _, path = file('resnetv2_cifar32', num_classes=classes)
    with pytest.raises(ValueError, match=r'source\.pth is of another model: '):
        built(PLAIN, option, path)


def test_other_peoples_names_are_translated_for_pretrained_paths(tmp_path, randomise):
    """Those of the authors of ConvNeXt."""
    source = randomise(timm.create_model('test_convnext', num_classes=1000))
    names = {
        'stem.0.': 'downsample_layers.0.0.', 'stem.1.': 'downsample_layers.0.1.',
        'head.norm.': 'norm.', 'head.fc.': 'head.', 'conv_dw': 'dwconv',
    }  # fmt: skip
    foreign = {}
    for name, value in source.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        parts = name.split('.')
        if parts[0] == 'stages':
            if parts[2] == 'blocks':
                del parts[2]
                name = '.'.join(parts)
            else:
                name = '.'.join(['downsample_layers', parts[1], *parts[3:]])
            name = name.replace('mlp.fc1', 'pwconv1').replace('mlp.fc2', 'pwconv2')
        foreign[name] = value
    torch.save({'model': foreign}, tmp_path / 'theirs.pth')
    run = built('test_convnext', '--pretrained-path', tmp_path / 'theirs.pth', *REWIRE)
    assert {n for n, equal in same(run, source).items() if not equal} == {
        'head.fc.weight', 'head.fc.bias'
    }  # fmt: skip


@pytest.mark.parametrize('rewired', [False, True], ids=['plain', 'rewired'])
def test_pretrained_loads_what_timm_has(file, rewired):
    """From a file, where a machine would download it."""
    source, path = file(PLAIN, num_classes=7)
    kwargs = f'pretrained_cfg_overlay={dict(file=str(path), num_classes=7)}'
    run = built(PLAIN, '--pretrained', '--model-kwargs', kwargs, *(REWIRE if rewired else ()))
    assert {n for n, equal in same(run, source).items() if not equal} == {
        'head.fc.weight', 'head.fc.bias'
    }  # fmt: skip
    assert run.told[-1] == 'the classifier starts anew: 3 classes'


def test_a_rewired_model_by_name_is_pretrained_too(file):
    source, path = file(PLAIN, num_classes=7)
    run = built('rewired', '--pretrained-path', path, '--model-kwargs', f'base={PLAIN}')
    assert {n.rpartition('.')[0] for n, equal in same(run, source).items() if not equal} == {
        'head.fc'
    }


def test_finetuning_a_saved_network_on_other_classes_says_so(tmp_path, randomise):
    source = randomise(timm.create_model('test_toponet', num_classes=7))
    folder = timm_topo.save(source, tmp_path / 'saved')
    start = ('--from-saved', folder, '--from-saved-weights')
    run = built('test_toponet', *start, 'finetune', '--in-chans', 1)
    assert {n.rpartition('.')[0] for n, equal in same(run, source).items() if not equal} == {
        'stem.conv', 'head.fc'
    }  # fmt: skip
    assert run.told[-1] == f'the classifier starts anew: 7 classes in {folder}, 3 here'


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (('--pretrained',), f'timm has no weights of {PLAIN}: --pretrained-path FILE'),
        (('--pretrained-path', 'nothing.pth'), r'checkpoint nothing\.pth does not exist'),
        (
            ('--pretrained-path', 'x.pth', '--initial-checkpoint', 'y.pth'),
            'give --initial-checkpoint or --pretrained-path, not both',
        ),
        (
            ('--pretrained', '--from-saved', 'folder'),
            'give --from-saved or --pretrained, not both',
        ),
    ],
)
def test_weights_that_cannot_be_are_refused(options, told, monkeypatch):
    monkeypatch.setattr(training_build, 'saved_config', lambda folder: {})
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        built(PLAIN, *options)


def test_restoring_a_checkpoint_needs_nothing_of_what_training_started_from(tmp_path, randomise):
    """As timm's ``train.py`` writes it."""
    model = randomise(timm.create_model(PLAIN, num_classes=3, in_chans=1))
    told = dict(model=PLAIN, pretrained=True, pretrained_path='gone.pth', in_chans=1)
    stored = {'state_dict': model.state_dict(), 'args': argparse.Namespace(**told)}
    torch.save(stored, tmp_path / 'last.pth.tar')
    restored = restore(tmp_path / 'last.pth.tar').state_dict()
    assert all(torch.equal(restored[name], value) for name, value in model.state_dict().items())
