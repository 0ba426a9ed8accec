"""Training runs, small and whole: what they write, how they stop, resume, refuse and agree."""

import csv
import io
import math
import os
import pickle
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.data import resolve_data_config
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import init_distributed_device, random_seed
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

import timm_topo
from timm_topo import generators
from timm_topo.analysis.history import read_edge_weights
from timm_topo.analysis.prune import prune
from timm_topo.checkpoint import FORMAT
from timm_topo.connectivity import build_connectivity
from timm_topo.data import ArrayDataset, Portion, load_dataset
from timm_topo.models.toponet import TopoNet
from timm_topo.stages import GraphStage, graph_stages
from timm_topo.training import build as training_build
from timm_topo.training import loop
from timm_topo.training.build import build, default_name
from timm_topo.training.evaluate import accuracy, eval_loader, evaluate
from timm_topo.training.log import RunLog, adjacency_image
from timm_topo.training.loop import train
from timm_topo.training.options import TrainingOptions, parse_args
from timm_topo.wiring import Wiring

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / 'tools' / 'train.py')
CONFIGS = sorted((ROOT / 'configs' / 'classification').glob('*.yaml'))
MODEL = dict(num_nodes=(3, 4), widths=(4, 6), strides=(2, 2), stem_width=4, stem_kernel=3)
LAMBDA = 0.01
CPU = torch.device('cpu')


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
    """24 images for training and 11 for validation, of 8 px and 3 classes, in MNIST format."""
    folder = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for stem, count in (('train', 24), ('t10k', 11)):
        labels = (np.arange(count) % 3).astype(np.uint8)
        images = rng.integers(0, 200, (count, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels):
            image[:, 3 * label : 3 * label + 2] = 255
        for kind, array in (('images-idx3', images), ('labels-idx1', labels)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape)
            (folder / f'{stem}-{kind}-ubyte').write_bytes(head + array.tobytes())
    return folder


@pytest.fixture
def argv(data, tmp_path):
    """Function from extra arguments and model options to the arguments of a run in ``tmp_path``."""
    return lambda *extra, **model: arguments(data, tmp_path, *extra, **model)


def from_saved(folder: Path, how: str) -> list[str]:
    """Options for a saved network, whose sizes are its own."""
    weight = ['--model-kwargs', f'sparsity_weight={LAMBDA}']
    return ['--from-saved', str(folder), '--from-saved-weights', how, *weight]


def arguments(data: Path, output: Path, *extra, **model) -> list[str]:
    model = {**MODEL, 'sparsity_weight': LAMBDA, **model}
    common = dict(
        dataset='idx', data_dir=data, model='test_toponet', img_size=32, workers=0, batch_size=8,
        lr=0.05, epochs=1, output=output, experiment='run',
    )  # fmt: skip
    return [
        *(f'--{key.replace("_", "-")}={value}' for key, value in common.items()),
        *('--model-kwargs', *(f'{key}={value}' for key, value in model.items())),
        *map(str, extra),
    ]


def run(args: list[str]) -> dict:
    return train(parse_args(args))


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / 'summary.csv', newline='') as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def timeless(folder: Path) -> list[dict[str, float]]:
    measured = ('train_seconds', 'train_memory')
    return [{k: v for k, v in row.items() if k not in measured} for row in rows(folder)]


def checkpoint(folder: Path, name: str = 'last') -> dict:
    return torch.load(folder / f'{name}.pth.tar')


def assert_same_weights(one: dict, other: dict, tolerance: float = 0.0):
    torch.testing.assert_close(dict(one), dict(other), rtol=0, atol=tolerance)


# -- what a run writes ----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory) -> dict:
    """A run of three epochs."""
    output = tmp_path_factory.mktemp('finished')
    return run(arguments(data, output, '--epochs', 3, '--seed', 5))


def test_a_run_returns_its_folder_its_best_epoch_and_its_network(finished):
    assert finished['folder'].name == 'run'
    assert finished['model'] == finished['folder'] / 'model'
    accuracies = [row['eval_top1'] for row in rows(finished['folder'])]
    assert finished['best_top1'] == max(accuracies)
    assert finished['best_epoch'] == accuracies.index(max(accuracies))


def test_a_run_writes_its_options(finished):
    options = yaml.safe_load((finished['folder'] / 'args.yaml').read_text())
    assert (options['seed'], options['epochs'], options['dataset']) == (5, 3, 'idx')
    assert options['model_kwargs']['widths'] == [4, 6]
    assert options.pop('timm_topo_format') == FORMAT
    assert options.keys() == vars(parse_args([])).keys() - {'config'}


def test_the_options_that_a_run_writes_are_a_config(finished):
    again = vars(parse_args(['-c', str(finished['folder'] / 'args.yaml')]))
    options = yaml.safe_load((finished['folder'] / 'args.yaml').read_text())
    del options['timm_topo_format']
    assert {key: again[key] for key in options} == options


def test_options_of_a_newer_format_are_refused(tmp_path, capsys):
    (tmp_path / 'args.yaml').write_text(f'timm_topo_format: {FORMAT + 1}\n')
    with pytest.raises(SystemExit):
        parse_args(['-c', str(tmp_path / 'args.yaml')])
    error = f'args.yaml has format {FORMAT + 1}, this version reads up to {FORMAT}: upgrade'
    assert error in capsys.readouterr().err


def test_the_summary_has_one_header_and_a_row_per_epoch(finished):
    lines = (finished['folder'] / 'summary.csv').read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].split(',') == [
        'epoch', 'train_loss', 'train_task_loss', 'train_sparsity', 'train_seconds',
        'train_memory', 'eval_loss', 'eval_top1', 'eval_top5', 'lr',
    ]  # fmt: skip
    assert [row['epoch'] for row in rows(finished['folder'])] == [0, 1, 2]
    memory = [row['train_memory'] for row in rows(finished['folder'])]
    assert memory == sorted(memory)
    assert 100 < memory[0] < 1e5


def test_the_summary_tells_sparsity_apart_from_the_task_loss(finished):
    for row in rows(finished['folder']):
        assert row['train_sparsity'] > 1
        whole = row['train_task_loss'] + LAMBDA * row['train_sparsity']
        assert row['train_loss'] == pytest.approx(whole, rel=1e-6)
    first, *_, last = rows(finished['folder'])
    assert last['train_task_loss'] < first['train_task_loss'], 'it learns'


def test_the_summary_shows_the_rate_each_epoch_was_trained_with(finished):
    rates = [row['lr'] for row in rows(finished['folder'])]
    cosine = [0.05 * (1 + np.cos(np.pi * epoch / 3)) / 2 for epoch in range(3)]
    assert rates == pytest.approx(cosine)


def test_a_run_keeps_the_last_and_the_best_checkpoints(finished):
    folder = finished['folder']
    assert checkpoint(folder)['epoch'] == 2
    assert checkpoint(folder, 'model_best')['epoch'] == finished['best_epoch']
    assert len(list(folder.glob('checkpoint-*.pth.tar'))) == 2, '--checkpoint-hist'


def test_the_saved_network_has_the_best_accuracy(finished, data):
    model = timm_topo.load(finished['model'])
    assert accuracy(model, load_dataset('idx', data, 'validation')) == finished['best_top1']
    best = checkpoint(finished['folder'], 'model_best')['state_dict']
    assert_same_weights(model.state_dict(), best)
    assert model.pretrained_cfg['label_names'] == ['0', '1', '2']
    assert model.pretrained_cfg['input_size'] == (3, 32, 32)


@pytest.fixture(scope='module')
def events(finished) -> EventAccumulator:
    reader = EventAccumulator(str(finished['folder']), size_guidance=dict(images=0, histograms=0))
    return reader.Reload()


def test_tensorboard_has_the_numbers_of_the_summary(finished, events):
    for name in ('train/task_loss', 'train/sparsity', 'eval/top1', 'train/lr'):
        column = 'lr' if name == 'train/lr' else name.replace('/', '_')
        found = events.Scalars(name)
        assert [event.step for event in found] == [0, 1, 2]
        expected = [row[column] for row in rows(finished['folder'])]
        assert [event.value for event in found] == pytest.approx(expected)


def test_tensorboard_has_a_histogram_of_every_stages_edge_weights(finished, events):
    weights = checkpoint(finished['folder'])['state_dict']
    assert events.Tags()['histograms'] == ['edge_weights/stages.0', 'edge_weights/stages.1']
    for stage, edges in enumerate((3, 6)):
        alpha = weights[f'stages.{stage}.connectivity.alpha']
        histograms = events.Histograms(f'edge_weights/stages.{stage}')
        assert [event.step for event in histograms] == [0, 1, 2]
        last = histograms[-1].histogram_value
        assert last.num == edges
        assert (last.min, last.max) == pytest.approx((alpha.min().item(), alpha.max().item()))


def test_tensorboard_has_an_image_of_every_stages_adjacency(finished, events):
    weights = checkpoint(finished['folder'])['state_dict']
    assert events.Tags()['images'] == ['adjacency/stages.0', 'adjacency/stages.1']
    model = timm_topo.load(finished['model'])
    for number, stage in enumerate(model.stages):
        images = events.Images(f'adjacency/stages.{number}')
        assert [event.step for event in images] == [0, 1, 2]
        found = np.asarray(Image.open(io.BytesIO(images[-1].encoded_image_string)))
        expected = adjacency_image(stage, weights[f'stages.{number}.connectivity.alpha'])
        assert np.abs(found - 255 * expected.permute(1, 2, 0).numpy()).max() <= 1


def test_an_adjacency_image_has_targets_in_rows_and_signs_in_colours():
    wiring = Wiring(4, ((0, 1), (0, 2), (1, 2), (2, 3)))
    rule = build_connectivity('alpha', wiring)
    stage = GraphStage(wiring, rule, nn.Identity(), [nn.Identity(), nn.Identity()])
    image = adjacency_image(stage, torch.tensor([2.0, -2.0, -0.5, 0.0]), pixels=3)
    cells = {(1, 0): (1, 0, 0), (2, 0): (0, 0, 1), (2, 1): (0.75, 0.75, 1), (3, 2): (1, 1, 1)}
    assert image.shape == (3, 12, 12)
    for row in range(12):
        for column in range(12):
            expected = cells.get((row // 3, column // 3), (0.85, 0.85, 0.85))
            assert image[:, row, column].tolist() == pytest.approx(expected)


def test_an_adjacency_image_of_nothing_but_zeros_is_white():
    wiring = Wiring(2, ((0, 1),))
    stage = GraphStage(wiring, build_connectivity('alpha', wiring), nn.Identity(), [])
    assert adjacency_image(stage, torch.zeros(1), pixels=1)[:, 1, 0].tolist() == [1, 1, 1]


def test_without_tensorboard_a_run_says_how_to_get_it_or_do_without(argv, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    message = r'pip install timm-topo\[train\], or --no-tensorboard'
    with pytest.raises(ImportError, match=message):
        run(argv())
    folder = run(argv('--no-tensorboard'))['folder']
    assert not list(folder.glob('events.*'))


def test_the_saved_network_is_evaluated_as_the_run_evaluated_it(argv, data):
    """Other images than by default: their size, normalisation, crop and interpolation are kept."""
    size = ('--img-size', 24, '--crop-pct', 0.75, '--interpolation', 'nearest')
    result = run(argv(*size, '--mean', 0.4, '--std', 0.3))
    model = timm_topo.load(result['model'])
    config = resolve_data_config({}, model=model)
    assert (config['input_size'], config['crop_pct']) == ((3, 24, 24), 0.75)
    assert (config['interpolation'], tuple(config['mean'])) == ('nearest', (0.4, 0.4, 0.4))
    loss = evaluate(model, eval_loader(model, load_dataset('idx', data, 'validation')), CPU)['loss']
    assert loss == pytest.approx(rows(result['folder'])[0]['eval_loss'], rel=1e-6)


def test_grey_images_are_trained_on_as_grey(argv):
    result = run(argv('--input-size', 1, 32, 32))
    model = timm_topo.load(result['model'])
    assert model.stem.conv.weight.shape[1] == 1
    assert model.pretrained_cfg['input_size'] == (1, 32, 32)
    assert len(model.pretrained_cfg['mean']) == 1


def test_a_model_of_timm_is_trained_and_saved_too(argv):
    args = [a for a in argv('--model', 'test_resnet', '--no-tensorboard') if '_kwargs' not in a]
    result = run([*args, '--model-kwargs', 'layers=(1,1,1,1)'])
    assert rows(result['folder'])[0]['train_sparsity'] == 0
    model = timm_topo.load(result['model'])
    best = checkpoint(result['folder'], 'model_best')['state_dict']
    assert_same_weights(model.state_dict(), best)


def test_a_constant_rate_needs_no_scheduler(argv):
    result = run(argv('--sched', 'none', '--epochs', 2))
    assert [row['lr'] for row in rows(result['folder'])] == [0.05, 0.05]


# -- resuming -------------------------------------------------------------------------------------


ALL_THAT_IS_RANDOM = (
    *('--aa', 'rand-m5-mstd0.5', '--color-jitter', 0.3, '--reprob', 0.5, '--drop', 0.3),
    *('--mixup', 0.4, '--cutmix', 0.4, '--model-ema', '--model-ema-decay', 0.6),
    *('--warmup-epochs', 1, '--grad-accum-steps', 2, '--epochs', 3),
)


def stop_at_batch(monkeypatch, number: int):
    """Ctrl-C at the batch of that number, counted from 1."""
    backward, calls = loop._backward, iter(range(1, 1000))

    def interrupted(*args):
        if next(calls) == number:
            raise KeyboardInterrupt
        return backward(*args)

    monkeypatch.setattr(loop, '_backward', interrupted)


@pytest.mark.parametrize(
    'options',
    [('--workers', 0), ('--workers', 2, '--sched-on-updates', '--opt', 'adamw')],
    ids=['sgd', 'workers'],
)
def test_a_resumed_run_continues_bit_for_bit(argv, monkeypatch, tmp_path, options):
    """Stopped within its third epoch of three batches: that epoch is trained anew."""
    options = (*ALL_THAT_IS_RANDOM, *options)
    straight = run(argv('--experiment', 'straight', *options))
    with monkeypatch.context() as patch:
        stop_at_batch(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            run(argv(*options))
    stopped = tmp_path / 'run'
    assert [row['epoch'] for row in rows(stopped)] == [0, 1]
    assert not (stopped / 'model').exists()
    resumed = run(argv('--resume', 'auto', *options))

    assert timeless(resumed['folder']) == timeless(straight['folder'])
    for name in ('last', 'model_best'):
        ours, theirs = (checkpoint(result['folder'], name) for result in (resumed, straight))
        assert ours.keys() == theirs.keys()
        assert_same_weights(ours['state_dict'], theirs['state_dict'])
        assert_same_weights(ours['state_dict_ema'], theirs['state_dict_ema'])
        assert_same_weights(ours['optimizer']['state'], theirs['optimizer']['state'])
        assert ours['optimizer']['param_groups'] == theirs['optimizer']['param_groups']
        assert ours['saver'] == theirs['saver']
    assert checkpoint(stopped)['optimizer']['state'], 'momentum was compared'
    for file in ('model.safetensors', 'config.json'):
        assert (resumed['model'] / file).read_bytes() == (straight['model'] / file).read_bytes()
    assert resumed['best_top1'] == straight['best_top1']
    # file by file: within one second their names do not sort by time
    logs = [EventAccumulator(str(path)).Reload() for path in stopped.glob('events.*')]
    steps = [event.step for log in logs for event in log.Scalars('train/loss')]
    assert sorted(steps) == [0, 1, 2]


def test_the_averaged_weights_are_saved_where_they_are_kept(argv, data):
    """One step: the average starts as the weights, so a second one is needed to differ."""
    result = run(argv('--model-ema', '--model-ema-decay', 0.6, '--epochs', 2))
    last, best = checkpoint(result['folder']), checkpoint(result['folder'], 'model_best')
    assert not torch.equal(
        *(last[key]['head.fc.weight'] for key in ('state_dict', 'state_dict_ema'))
    )
    model = timm_topo.load(result['model'])
    assert_same_weights(model.state_dict(), best['state_dict_ema'])
    row = rows(result['folder'])[result['best_epoch']]
    assert result['best_top1'] == row['eval_top1'], 'of the average, not eval_raw_top1'
    assert accuracy(model, load_dataset('idx', data, 'validation')) == result['best_top1']


def test_auto_without_a_checkpoint_starts_from_the_beginning(argv, tmp_path):
    run(argv('--resume', 'auto'))
    assert [row['epoch'] for row in rows(tmp_path / 'run')] == [0]


def test_a_finished_run_is_left_as_it_is_by_resume(argv):
    first = run(argv())
    written = checkpoint(first['folder'])
    again = run(argv('--resume', 'auto'))
    assert again == first
    assert len(rows(first['folder'])) == 1
    assert_same_weights(checkpoint(first['folder'])['state_dict'], written['state_dict'])


def test_a_run_goes_on_in_another_folder(argv, tmp_path):
    first = run(argv())
    second = run(
        argv('--experiment', 'more', '--resume', first['folder'] / 'last.pth.tar', '--epochs', 2)
    )
    assert [row['epoch'] for row in rows(second['folder'])] == [1]
    assert len(rows(first['folder'])) == 1


def test_an_existing_experiment_is_not_overwritten(argv):
    folder = run(argv())['folder']
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    message = r'run holds a run: go on with --resume auto, or choose another --experiment'
    with pytest.raises(FileExistsError, match=message):
        run(argv())
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_missing_checkpoint_to_resume_from_is_refused(argv, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no checkpoint .*nothing\.pth to resume from'):
        run(argv('--resume', tmp_path / 'nothing.pth'))


# -- checkpoints from elsewhere -------------------------------------------------------------------


def tiny(**options) -> nn.Module:
    return timm.create_model('test_toponet', **{**MODEL, 'num_classes': 3, **options})


@pytest.mark.parametrize('option', ['--resume', '--initial-checkpoint'])
@pytest.mark.parametrize('keep', [0.0, 0.1, 0.5, 0.999])
def test_truncated_checkpoints_are_refused(argv, tmp_path, option, keep):
    path = tmp_path / 'cut.pth.tar'
    torch.save({'state_dict': tiny().state_dict(), 'epoch': 0}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match=r'cut\.pth\.tar is truncated, damaged or not just'):
        run(argv(option, path))


@pytest.mark.parametrize('option', ['--resume', '--initial-checkpoint'])
def test_weights_of_another_model_are_refused(argv, tmp_path, option):
    path = tmp_path / 'other.pth.tar'
    torch.save({'state_dict': tiny(num_nodes=(4, 4)).state_dict(), 'epoch': 0}, path)
    with pytest.raises(ValueError, match=r'other\.pth\.tar is of another model: .*stages\.0'):
        run(argv(option, path))


class Hostile:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def write_checkpoint(path: Path, content: dict, how: str):
    if how == 'pickle':
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == 'zip')


@pytest.mark.parametrize('option', ['--resume', '--initial-checkpoint'])
@pytest.mark.parametrize('how', ['zip', 'legacy', 'pickle'])
def test_code_in_a_checkpoint_is_not_executed(argv, tmp_path, option, how):
    path, marker = tmp_path / 'hostile.pth.tar', tmp_path / 'executed'
    content = {'state_dict': tiny().state_dict(), 'epoch': 0, 'optimizer': Hostile(marker)}
    write_checkpoint(path, content, how)
    with pytest.raises(ValueError, match=r'hostile\.pth\.tar is truncated, damaged or not just'):
        run(argv(option, path))
    assert not marker.exists()


@pytest.mark.parametrize('how', ['zip', 'legacy', 'pickle'])
def test_the_hostile_checkpoint_of_these_tests_is_hostile(tmp_path, how):
    path, marker = tmp_path / 'hostile.pth.tar', tmp_path / 'executed'
    write_checkpoint(path, {'optimizer': Hostile(marker)}, how)
    if how == 'pickle':
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


def test_an_unknown_model_is_refused(argv):
    with pytest.raises(ValueError, match="unknown model 'toponett'"):
        run(argv('--model', 'toponett'))


def test_a_missing_initial_checkpoint_is_refused(argv, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'checkpoint .*nothing\.pth does not exist'):
        run(argv('--initial-checkpoint', tmp_path / 'nothing.pth'))


def test_training_starts_from_the_initial_checkpoint(argv, tmp_path, randomise):
    model = randomise(tiny())
    torch.save(model.state_dict(), tmp_path / 'initial.pth')
    folder = run(argv('--initial-checkpoint', tmp_path / 'initial.pth', '--lr', 0))['folder']
    weights = checkpoint(folder)['state_dict']
    for name, parameter in model.named_parameters():
        assert torch.equal(weights[name], parameter), name


@pytest.fixture
def saved(tmp_path, randomise) -> tuple[nn.Module, Path]:
    """A pruned network with weights of its own, and its folder."""
    model = randomise(tiny(sparsity='uniform', sparsity_weight=LAMBDA))
    model, report = prune(model, fraction=0.2)
    assert sum(before - after for before, after in (cut.edges for cut in report.stages)) > 0
    return model, timm_topo.save(model, tmp_path / 'saved')


def alphas(model: nn.Module) -> list[Tensor]:
    return [stage.connectivity.edge_weights().detach() for stage in model.stages]


def started(old: nn.Module, how: str) -> list[Tensor]:
    """Edge weights that training starts with."""
    return [torch.ones_like(a) for a in alphas(old)] if how == 'reset' else alphas(old)


@pytest.mark.parametrize('how', ['reset', 'keep', 'frozen', 'finetune', 'finetune-frozen'])
def test_from_saved_starts_with_the_wiring_and_the_weights_asked_for(argv, saved, how):
    """At learning rate 0, so that the result is the start."""
    old, folder = saved
    result = run(argv(*from_saved(folder, how), '--lr', 0))
    new = timm_topo.load(result['model'])
    assert [stage.wiring for stage in new.stages] == [stage.wiring for stage in old.stages]
    torch.testing.assert_close(alphas(new), started(old, how), rtol=0, atol=0)
    kernels = [n for n, _ in old.named_parameters() if n.endswith(('conv_pw.weight', 'fc.weight'))]
    same = {torch.equal(new.get_parameter(name), old.get_parameter(name)) for name in kernels}
    assert same == {how.startswith('finetune')}


@pytest.mark.parametrize('how', ['reset', 'keep', 'frozen', 'finetune', 'finetune-frozen'])
def test_from_saved_learns_edge_weights_unless_they_are_frozen(argv, saved, how):
    old, folder = saved
    new = timm_topo.load(run(argv(*from_saved(folder, how)))['model'])
    learned = [name for name, _ in new.named_parameters() if name.endswith('alpha')]
    same = [torch.equal(ours, theirs) for ours, theirs in zip(alphas(new), started(old, how))]
    frozen = how.endswith('frozen')
    assert (same, len(learned)) == (([True, True], 0) if frozen else ([False, False], 2))
    assert not torch.equal(new.head.fc.weight, old.head.fc.weight)


def test_from_saved_keeps_its_sizes_and_its_own_weights(argv, saved):
    with pytest.raises(ValueError, match=r'has num_nodes=\[3, 3\], --model-kwargs or the config'):
        run(argv('--from-saved', saved[1]))  # with the node counts of another network
    with pytest.raises(ValueError, match='--from-saved or --initial-checkpoint, not both'):
        run(argv(*from_saved(saved[1], 'reset'), '--initial-checkpoint', 'x.pth'))


def test_from_saved_without_a_saved_network_is_refused(argv, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'is no saved network: config\.json is missing'):
        run(argv(*from_saved(tmp_path, 'reset')))


# -- re-wired networks ----------------------------------------------------------------------------


def plain_arguments(argv, *extra, model: str = 'resnetv2_cifar20') -> list[str]:
    """A run of a model with its own sizes."""
    args = argv()
    at = args.index('--model-kwargs')
    return [*args[:at], f'--model={model}', '--no-tensorboard', *map(str, extra)]


REWIRE = ('--rewire', '--rewire-kwargs', 'sparsity=adaptive', f'sparsity_weight={LAMBDA}')


def test_a_trained_network_is_rewired_trained_on_and_saved(argv, tmp_path):
    plain = run(plain_arguments(argv, '--experiment', 'plain'))
    start = ('--from-saved', plain['model'], *REWIRE)
    result = run(plain_arguments(argv, *start, '--lr', 0))
    assert rows(result['folder'])[0]['train_sparsity'] == pytest.approx(
        3 * sum(n * np.log(n) for n in range(1, 5))
    )
    network = timm_topo.load(result['model'])
    assert isinstance(network, timm_topo.models.Rewired)
    assert (network.base, network.sparsity) == ('resnetv2_cifar20', 'adaptive')
    back = timm_topo.unwire(network).state_dict()
    for name, value in timm_topo.load(plain['model']).state_dict().items():
        if 'running' not in name and 'num_batches' not in name:  # those move at rate 0 too
            assert torch.equal(back[name], value), name
    learned = run(plain_arguments(argv, *start, '--experiment', 'learned'))
    for stage in graph_stages(timm_topo.load(learned['model'])).values():
        assert (stage.connectivity.alpha != 1).any()


@pytest.mark.parametrize('share', [0.3, 1], ids=['fixed edge weights', 'learning'])
def test_a_rewired_run_resumes_bit_for_bit(share, argv, monkeypatch):
    options = ('--epochs', 3, '--model-ema', '--hflip', 0.5, '--learn-edges', share)
    options = plain_arguments(argv, *REWIRE, *options)
    straight = run([*options, '--experiment=straight'])
    with monkeypatch.context() as patch:
        stop_at_batch(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            run(options)
    resumed = run([*options, '--resume=auto'])
    assert timeless(resumed['folder']) == timeless(straight['folder'])
    assert_same_weights(
        timm_topo.load(resumed['model']).state_dict(),
        timm_topo.load(straight['model']).state_dict(),
    )


def test_the_checkpoint_of_the_plain_network_starts_a_rewired_one(argv, tmp_path, recwarn):
    torch.manual_seed(1)
    plain = timm.create_model('resnetv2_cifar20', num_classes=3)
    torch.save({'state_dict': plain.state_dict()}, tmp_path / 'plain.pth.tar')
    start = ('--initial-checkpoint', tmp_path / 'plain.pth.tar', *REWIRE)
    run_ = built(plain_arguments(argv, *start))
    names = run_.model.plain_names()
    state = plain.state_dict()
    assert all(
        torch.equal(value, state[names[own]])
        for own, value in run_.model.state_dict().items()
        if names[own]
    )


def test_what_cannot_be_rewired_exactly_needs_consent_in_training_too(argv):
    with pytest.raises(ValueError, match=r'resnet_cifar20 cannot be re-wired exactly.*exact=False'):
        built(plain_arguments(argv, *REWIRE, model='resnet_cifar20'))
    options = ('--rewire', 'tanh', '--rewire-kwargs', 'exact=False')
    with pytest.warns(UserWarning, match='resnet_cifar20 re-wired is another function'):
        run_ = built(plain_arguments(argv, *options, model='resnet_cifar20'))
    rules = {type(stage.connectivity).__name__ for stage in graph_stages(run_.model).values()}
    assert rules == {'TanhConnectivity'}


def test_a_rewired_saved_network_can_be_trained_from_scratch_too(argv):
    plain = run(plain_arguments(argv, '--experiment', 'plain'))
    start = ('--from-saved', plain['model'], '--from-saved-weights', 'reset', *REWIRE, '--lr', 0)
    network = timm_topo.load(run(plain_arguments(argv, *start))['model'])
    assert isinstance(network, timm_topo.models.Rewired)
    kernel = timm_topo.load(plain['model']).stem.conv.weight
    assert not torch.equal(network.stem.conv.weight, kernel)


def test_options_of_rewire_need_rewire_and_exist(argv):
    with pytest.raises(ValueError, match=r'--rewire-kwargs .*sparsity.* need --rewire'):
        built(plain_arguments(argv, '--rewire-kwargs', 'sparsity=adaptive'))
    told = r"\['sparse'\] are no options of rewire \(wiring, .* rule 'alpha': .*Alpha.* 'sparse'"
    with pytest.raises(TypeError, match=told):
        built(plain_arguments(argv, '--rewire', '--rewire-kwargs', 'sparse=True'))
    with pytest.raises(ValueError, match='test_toponet is a TopoNet, which cannot be re-wired'):
        built(argv('--rewire'))


# -- the same step in different ways --------------------------------------------------------------


#: Whole-set updates of independent images: neither the order nor the batches matter.
WHOLE_SET = ('--no-aug', '--epochs', 3, '--lr', 0.5)
INDEPENDENT = dict(norm_layer='layernorm2d', sparsity='uniform', widths=(8, 12), stem_width=8)


def assert_same_run(one: Path, other: Path):
    first, second = timeless(one), timeless(other)
    assert len(first) == len(second) > 0
    for row, expected in zip(first, second):
        assert row == pytest.approx(expected, rel=1e-5)
    weights, expected = (checkpoint(folder)['state_dict'] for folder in (one, other))
    assert_same_weights(weights, expected, tolerance=1e-5)
    fresh = tiny(**INDEPENDENT).state_dict()
    assert all((expected[n] - fresh[n]).abs().max() > 1e-3 for n in fresh if 'alpha' in n), 'moved'


@pytest.mark.parametrize('steps', [3, 5], ids=['all_full', 'incomplete'])
@pytest.mark.parametrize('extra', [(), ('--clip-grad', 0.1)], ids=['', 'clipped'])
def test_accumulated_batches_train_as_one_big_batch(argv, steps, extra):
    """Five steps of accumulation over three batches: an update divides by what it really has."""
    big = run(argv('--experiment', 'big', '-b', 24, *WHOLE_SET, *extra, **INDEPENDENT))
    small = run(argv('-b', 8, '--grad-accum-steps', steps, *WHOLE_SET, *extra, **INDEPENDENT))
    assert_same_run(small['folder'], big['folder'])


def command(*args, module: str | None = None, **kwargs) -> subprocess.Popen:
    """``tools/train.py`` on its own, its output in pipes."""
    launcher = [] if module is None else ['-m', *module.split()]
    return subprocess.Popen(
        [sys.executable, *launcher, TRAIN, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        **kwargs,
    )


def test_two_processes_train_as_one_with_the_same_global_batch(argv, tmp_path):
    """2 processes x 3 accumulated batches x 4 images against 24 images; 11 to validate on. Edge
    weights are fixed in the last epoch.
    """
    extra = (*WHOLE_SET, '--model-ema', '--model-ema-decay', 0.5, '--learn-edges', 0.6)
    one = run(argv('--experiment', 'one', '-b', 24, *extra, **INDEPENDENT))
    launcher = 'torch.distributed.run --standalone --nproc-per-node=2'
    args = argv('--experiment', 'two', '-b', 4, '--grad-accum-steps', 3, *extra, **INDEPENDENT)
    process = command(*args, module=launcher)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    assert stdout.count('epoch 3/3') == 1, 'one process speaks'
    assert_same_run(tmp_path / 'two', one['folder'])
    (epochs, ours), (_, theirs) = map(read_edge_weights, (tmp_path / 'two', one['folder']))
    assert epochs == [0, 1, 2, 3]
    for name, weights in ours.items():
        assert np.allclose(weights, theirs[name], rtol=0, atol=1e-5)
    averaged = (checkpoint(f)['state_dict_ema'] for f in (tmp_path / 'two', one['folder']))
    assert_same_weights(*averaged, tolerance=1e-5)
    assert_same_weights(
        timm_topo.load(tmp_path / 'two' / 'model').state_dict(),
        timm_topo.load(one['model']).state_dict(),
        tolerance=1e-5,
    )


def test_every_accelerated_option_together_trains_as_none_does(argv):
    """Within the precision of bfloat16."""
    extra = ('--no-aug', '-b', 12, '-vb', 12, '--clip-grad', 5, '--model-ema')
    model = dict(num_nodes=(3,), widths=(6,), strides=(2,))
    plain = run(argv('--experiment', 'plain', *extra, **model))
    fast = run(
        argv(
            *('--amp', '--amp-dtype', 'bfloat16', '--channels-last', '--grad-checkpointing'),
            *('--torchcompile', 'aot_eager', *extra),
            **model,
        )
    )
    for row, expected in zip(rows(fast['folder']), rows(plain['folder'])):
        for key in ('train_loss', 'train_task_loss', 'train_sparsity', 'eval_loss'):
            assert row[key] == pytest.approx(expected[key], rel=0.02), key
    weights = checkpoint(fast['folder'])['state_dict']
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    random_seed(42)
    start = built(argv(**model)).model.state_dict()
    end = checkpoint(plain['folder'])['state_dict']
    kernels = [name for name, value in start.items() if value.ndim > 1 or name.endswith('alpha')]
    moved, apart = (
        torch.cat([(one[name] - other[name]).flatten() for name in kernels]).norm()
        for one, other in ((start, end), (weights, end))
    )
    print('RATIO', apart, moved)
    assert apart < 0.1 * moved
    timm_topo.load(fast['model'])


def test_edge_weights_are_fixed_after_their_share_of_the_epochs(argv, monkeypatch):
    """Masks are drawn in two of four epochs; then all passes read what evaluation reads."""
    passes, train_epoch = {}, loop._train_epoch

    def recorded(run, epoch, epochs):
        def record(rule, args, weights):
            start, stop = rule.spans[args[0]]
            passes.setdefault(epoch, []).append(
                torch.equal(weights, rule.edge_weights()[start:stop])
            )

        with run.model.stages[1].connectivity.register_forward_hook(record):
            return train_epoch(run, epoch, epochs)

    monkeypatch.setattr(loop, '_train_epoch', recorded)
    masks = dict(connectivity="{'name':'mask','fan_in':1}", num_nodes=(4, 6))
    options = ('--epochs', 4, '--learn-edges', 0.5, '--lr', 0.5, '--model-ema')
    folder = run(argv(*options, '--checkpoint-hist', 4, **masks))['folder']
    assert [all(passes[epoch]) for epoch in range(4)] == [False, False, True, True]
    states = [checkpoint(folder, f'checkpoint-{epoch}') for epoch in range(4)]
    for name, fixed in states[3]['state_dict'].items():
        changes = [not torch.equal(state['state_dict'][name], fixed) for state in states[:3]]
        if name.endswith('.mask'):
            assert changes == [True, False, False], name
            averaged = [torch.equal(state['state_dict_ema'][name], fixed) for state in states]
            assert averaged == [False, False, True, True]
        elif fixed.ndim == 4:
            assert all(changes), name


def test_a_loss_that_is_not_finite_stops_the_run(argv, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r'the loss is (nan|inf) in epoch 1: try a smaller'
    ):
        run(argv('--lr', 1e30))
    assert not (tmp_path / 'run' / 'last.pth.tar').exists()


# -- options --------------------------------------------------------------------------------------


def config(folder: Path, text: str) -> str:
    path = folder / 'config.yaml'
    path.write_text(text)
    return str(path)


def test_the_command_line_overrides_the_file_which_overrides_the_defaults(tmp_path):
    file = config(tmp_path, 'epochs: 7\nlr: 0.3\namp: true\nmodel_kwargs: {sparsity: none}\n')
    args = parse_args(['-c', file, '--epochs', '9'])
    assert (args.epochs, args.lr, args.amp, args.batch_size) == (9, 0.3, True, 128)
    assert args.model_kwargs == {'sparsity': 'none'}
    args = parse_args(['--model-kwargs', 'sparsity=uniform', '-c', file])
    assert args.model_kwargs == {'sparsity': 'uniform'}


def test_values_of_a_file_become_what_the_command_line_makes_of_them(tmp_path):
    """YAML 1.1 reads 1e-4 as text."""
    file = config(tmp_path, 'weight_decay: 1e-4\nepochs: "3"\nscale: [5e-1, 1]\nimg_size: 32\n')
    args = parse_args(['-c', file])
    assert (args.weight_decay, args.epochs, args.img_size) == (1e-4, 3, 32)
    assert args.scale == [0.5, 1.0]
    assert all(type(value) is float for value in args.scale)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('epochs: 3\nepoch: 4\nlrr: 1\n', 'config.yaml: unknown option epoch, lrr'),
        ('config: other.yaml\n', 'config.yaml: unknown option config'),
        ('lr: fast\n', "config.yaml: bad value for lr: 'fast'"),
        ('epochs: [3]\n', 'config.yaml: bad value for epochs: [3]'),
        ('amp: 1\n', 'config.yaml: bad value for amp: 1'),
        ('epochs: 1.5\n', 'config.yaml: bad value for epochs: 1.5'),
        ('epochs: true\n', 'config.yaml: bad value for epochs: True'),
        ('epochs:\n', 'config.yaml: bad value for epochs: None'),
        ('dataset: 5\n', 'config.yaml: bad value for dataset: 5'),
        ('scale: 0.5\n', 'config.yaml: bad value for scale: 0.5'),
        ('scale: [0.5]\n', 'config.yaml: bad value for scale: [0.5]'),
        ('scale: [a, b]\n', "config.yaml: bad value for scale: ['a', 'b']"),
        ('input_size: [3, 32]\n', 'config.yaml: bad value for input_size: [3, 32]'),
        ('1: 2\n', 'config.yaml: unknown option 1'),
        ('model_kwargs: [1]\n', 'config.yaml: bad value for model_kwargs: [1]'),
        ('clip_mode: soft\n', "config.yaml: bad value for clip_mode: 'soft'"),
        ('- epochs\n', 'config.yaml holds no options'),
        ('', 'config.yaml holds no options'),
        ('epochs: [3\n', 'config.yaml is not YAML'),
        ('epochs: 0\n', 'config.yaml: bad value for epochs: 0'),
        ('train_images: 0\n', 'config.yaml: bad value for train_images: 0'),
        ('train_images: "few"\n', "config.yaml: bad value for train_images: 'few'"),
        ('epochs: .nan\n', 'config.yaml: bad value for epochs: nan'),
        ('snapshot_interval: 0\n', 'config.yaml: bad value for snapshot_interval: 0'),
        ('snapshot_interval: .nan\n', 'config.yaml: bad value for snapshot_interval: nan'),
        ('snapshot_interval: often\n', "config.yaml: bad value for snapshot_interval: 'often'"),
        ('snapshot_interval: true\n', 'config.yaml: bad value for snapshot_interval: True'),
        ('snapshot: -1\n', 'config.yaml: bad value for snapshot: -1'),
    ],
)
def test_a_bad_configuration_file_exits_with_a_message(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit, match='2'):
        parse_args(['-c', config(tmp_path, text)])
    assert f'error: {message}' in capsys.readouterr().err.replace(f'{tmp_path}/', '')


def test_a_missing_configuration_file_exits_with_a_message(tmp_path, capsys):
    with pytest.raises(SystemExit, match='2'):
        parse_args(['-c', str(tmp_path / 'nothing.yaml')])
    assert 'nothing.yaml' in capsys.readouterr().err


@pytest.mark.parametrize('option', ['batch-size', 'grad-accum-steps', 'epochs', 'log-interval'])
def test_counts_below_one_exit_with_a_message(option, capsys):
    with pytest.raises(SystemExit, match='2'):
        parse_args([f'--{option}', '0'])
    name = option.replace('-', '_')
    assert f'error: {name}: ' in capsys.readouterr().err


def test_yaml_command_line_and_python_make_the_same_object(tmp_path):
    path = config(tmp_path, 'lr: 1e-3\namp: true\nno_aug: true\nscale: [0.5, 1]\n')
    argv = ['--lr', '1e-3', '--amp', '--no-aug', '--scale', '0.5', '1']
    ours = TrainingOptions(lr=1e-3, amp=True, aug=False, scale=[0.5, 1.0])
    assert parse_args(['-c', path]) == parse_args(argv) == ours
    assert parse_args([]) == TrainingOptions()


def test_switches_of_a_file_can_be_unset(tmp_path):
    path = config(tmp_path, 'amp: true\nno_aug: true\nmodel_ema: true\n')
    for argv in (['--no-amp', '--aug', '-c', path], ['-c', path, '--no-amp', '--aug']):
        options = parse_args(argv)
        assert (options.amp, options.aug, options.model_ema) == (False, True, True)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(epochs=0), ValueError, 'bad value for epochs: 0'),
        (dict(epoch=3), TypeError, "unexpected keyword argument 'epoch'"),
        (dict(amp=1), ValueError, 'bad value for amp: 1: it is true or false'),
        (dict(lr=math.nan), ValueError, 'bad value for lr: nan: it is a finite number'),
    ],
)
def test_python_is_checked_as_a_file_is(options, error, message):
    with pytest.raises(error, match=message):
        TrainingOptions(**options)


def test_there_are_configurations():
    assert len(CONFIGS) >= 3


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_parses_and_its_model_builds(path):
    args = parse_args(['-c', str(path)])
    model = timm.create_model(args.model, device='meta', **args.model_kwargs)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    kwargs = scheduler_kwargs(args, decreasing_metric=False)
    create_scheduler_v2(optimizer, **kwargs, updates_per_epoch=1)
    assert path.stem.startswith(args.model.removesuffix('_adaptive'))


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        (
            'toponet_tiny_adaptive_cifar100_200ep',
            [0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40,
        ),
        (
            'maskconnect_resnext29_8x8d_cifar100_300ep',
            [0.1] * 150 + [0.01] * 75 + [0.001] * 75,
        ),
    ],
)
def test_the_cifar_configurations_lower_the_rate_after_the_epochs_they_name(name, expected):
    path = ROOT / 'configs' / 'classification' / f'{name}.yaml'
    args = parse_args(['-c', str(path)])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.lr)
    scheduler, epochs = create_scheduler_v2(
        optimizer, **scheduler_kwargs(args, decreasing_metric=False)
    )
    rates = []
    for epoch in range(epochs):
        scheduler.step(epoch)
        rates.append(optimizer.param_groups[0]['lr'])
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ('argv', 'name'),
    [
        ([], 'toponet_tiny_adaptive-digits'),
        (['--model', 'resnet18', '--dataset', 'torch/cifar10'], 'resnet18-torch_cifar10'),
        (['--dataset', '', '--data-dir', '/data/birds'], 'toponet_tiny_adaptive-birds'),
        (['--from-saved', 'output/small'], 'small-digits'),
        (['--from-saved', 'r/model', '--snapshot', '7'], 'model-epoch_0007-digits'),
        (['--from-saved', 'r/model', '--snapshot', '0.25'], 'model-epoch_0000.250-digits'),
        (['--model', 'resnetv2_18', '--rewire'], 'resnetv2_18-rewired-digits'),
    ],
)
def test_an_experiment_without_a_name_is_called_after_model_and_data(argv, name):
    assert default_name(parse_args(argv)) == name


def built(args: list[str]):
    args = parse_args([*args, '--device', 'cpu'])
    return build(args, init_distributed_device(args))[0]


def transforms(args: list[str]) -> dict[str, object]:
    """The transforms of the training images by the name of their class."""
    return {type(t).__name__: t for t in built(args).loader_train.dataset.transform.transforms}


def test_crop_padding_is_the_cifar_recipe(argv):
    steps = transforms(argv('--crop-padding', 4, '--hflip', 0.25))
    assert (steps['RandomCrop'].padding, steps['RandomCrop'].size) == (4, (32, 32))
    assert steps['RandomHorizontalFlip'].p == 0.25
    assert list(steps)[-3:-1] == ['RandomCrop', 'RandomHorizontalFlip'], 'before the tensor is made'
    assert not any('ResizedCrop' in name for name in steps)


@pytest.mark.parametrize('extra', [(), ('--crop-padding', 4)], ids=['', 'crop_padding'])
def test_no_aug_is_none_at_all(argv, extra):
    loader = built(argv('--no-aug', *extra)).loader_train
    images = [np.asarray(loader.dataset[0][0]) for _ in range(8)]
    assert all(np.array_equal(image, images[0]) for image in images)
    plain = built(argv(*extra)).loader_train
    images = [np.asarray(plain.dataset[0][0]) for _ in range(8)]
    assert not all(np.array_equal(image, images[0]) for image in images)


def test_edge_weights_are_not_decayed_whatever_the_optimizer_decays(argv, monkeypatch):
    """timm's factory asks the model; a grouping that does not ask must not decay them either."""
    monkeypatch.setattr(TopoNet, 'no_weight_decay', lambda self: set())
    run = built(argv('--weight-decay', 0.5, '--opt-kwargs', 'filter_bias_and_bn=False'))
    decay = {id(p): g['weight_decay'] for g in run.optimizer.param_groups for p in g['params']}
    found = {name: decay[id(p)] for name, p in run.model.named_parameters()}
    assert found == {name: 0.0 if name.endswith('alpha') else 0.5 for name in found}


@pytest.mark.parametrize('everything', [False, True])
@pytest.mark.parametrize('extra', [(), ('--layer-decay', 0.9)], ids=['', 'layer_decay'])
@pytest.mark.parametrize('rule', ['alpha', 'tanh', 'router', 'mask'])
def test_edge_weights_are_decayed_where_that_is_asked_for(argv, rule, extra, everything):
    """Biases, norms and thresholds are not, unless everything is: by what a step does."""
    extra += ('--opt-kwargs', 'filter_bias_and_bn=False') if everything else ()
    run = built(argv('--decay-edges', '--weight-decay', 0.5, *extra, connectivity=rule))
    with torch.no_grad():
        before = {name: p.fill_(0.5).clone() for name, p in run.model.named_parameters()}
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    still = {name for name, p in run.model.named_parameters() if torch.equal(p, before[name])}
    edges = {name for name in before if name.endswith(('.alpha', '.mask', 'connectivity.weight'))}
    exempt = {name for name, p in before.items() if p.ndim == 1} - edges
    assert edges
    assert still == (set() if everything else exempt)


# -- options do what they do in timm's script -----------------------------------------------------


@pytest.mark.parametrize('mode', ['agc', 'value'])
def test_adaptive_clipping_leaves_the_classifier_alone(argv, mode):
    gradients = []
    for clip in ((), ('--clip-grad', 1e-4, '--clip-mode', mode)):
        torch.manual_seed(0)
        run = built(argv('--no-aug', *clip))
        images, target = next(iter(run.loader_train))
        loop._backward(run, images, target, 1, True)
        gradients.append({name: p.grad for name, p in run.model.named_parameters()})
    free, clipped = gradients
    same = {name for name, grad in free.items() if torch.equal(clipped[name], grad)}
    assert same == ({'head.fc.weight', 'head.fc.bias'} if mode == 'agc' else set())


@pytest.mark.filterwarnings(r'ignore:Using backward\(\) with create_graph=True:UserWarning')
def test_an_optimizer_of_second_order_trains(argv):
    result = run(argv('--opt', 'adahessian', '--epochs', 2))
    first, last = (row['train_task_loss'] for row in rows(result['folder']))
    assert last < first


def test_layer_decay_has_a_smallest_scale(argv):
    decayed = ('--layer-decay', 0.5, '--layer-decay-min-scale', 0.2)
    groups = built(argv(*decayed)).optimizer.param_groups
    assert sorted({group['lr_scale'] for group in groups}) == [0.2, 0.25, 0.5, 1]
    result = run(argv('--sched', 'constant', *decayed))
    mean = 0.05 * sum(group['lr_scale'] for group in groups) / len(groups)
    assert rows(result['folder'])[0]['lr'] == pytest.approx(mean)


@pytest.mark.parametrize('option', ['--layer-decay', '--edge-lr-scale'])
def test_scaled_rates_without_a_schedule_are_refused(argv, option):
    with pytest.raises(ValueError, match=f'{option} scales what a scheduler sets'):
        run(argv('--sched', 'none', option, 0.5))


@pytest.mark.parametrize('decay', [(), ('--layer-decay', 0.5), ('--decay-edges',)])
@pytest.mark.parametrize('rule', ['alpha', 'router', 'mask'])
def test_edge_weights_have_a_rate_of_their_own(argv, rule, decay):
    """By what a first step does to all parameters at a gradient of 1."""
    steps = {}
    for scale in (1, 4):
        options = ('--weight-decay', 0, '--edge-lr-scale', scale, *decay)
        run = built(argv(*options, connectivity=rule))
        loop._schedule(run, 0)
        before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        for parameter in run.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        run.optimizer.step()
        steps[scale] = {n: (before[n] - p).mean().item() for n, p in run.model.named_parameters()}
    assert any('connectivity' in name for name in steps[1])
    for name, step in steps[1].items():
        factor = 4 if 'connectivity' in name else 1
        assert steps[4][name] == pytest.approx(factor * step, rel=1e-3), name


def test_data_that_are_read_in_order_are_told_the_epoch(argv, monkeypatch):
    told = []
    monkeypatch.setattr(ArrayDataset, 'set_epoch', lambda _, at: told.append(at), raising=False)
    run(argv('--epochs', 2))
    assert told == [0, 1]


def test_training_interpolates_as_the_model_where_nothing_else_is_said(argv):
    (crop,) = (
        transform
        for name, transform in transforms(argv('--train-interpolation', '')).items()
        if 'ResizedCrop' in name
    )
    assert crop.interpolation == InterpolationMode.BICUBIC


def test_averaged_weights_stay_in_evaluation(argv, monkeypatch):
    seen, backward = set(), loop._backward

    def watched(run, *args):
        modules = run.task.get_trainable_module(ema=True).module.modules()
        seen.update(module.training for module in modules)
        return backward(run, *args)

    monkeypatch.setattr(loop, '_backward', watched)
    run(argv('--model-ema'))
    assert seen == {False}


# -- the console ----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize('stream', [Terminal, io.StringIO])
def test_a_terminal_gets_a_bar_and_a_log_plain_lines(tmp_path, monkeypatch, capsys, stream):
    monkeypatch.setattr(sys, 'stderr', stream())
    log = RunLog(tmp_path, tensorboard=False)
    log.start_epoch(0, 2, batches=3)
    for number in range(3):
        log.batch(f'batch {number}', line=number == 2)
    log.end_epoch()
    log.say('epoch done')
    err, out = sys.stderr.getvalue(), capsys.readouterr().out
    if stream is Terminal:
        assert 'epoch 1/2' in err
        assert '\r' in err
        assert out == 'epoch done\n'
    else:
        assert err == ''
        assert out == '  batch 2\nepoch done\n'


def test_processes_that_do_not_speak_write_nothing(capsys):
    log = RunLog(None)
    log.start_epoch(0, 1, 1)
    log.batch('batch', line=True)
    log.epoch(0, {}, {}, 0.1, tiny())
    log.say('done')
    log.close()
    assert capsys.readouterr() == ('', '')


def test_the_command_fails_with_one_line_and_status_1(argv, tmp_path):
    process = command(*argv('--data-dir', tmp_path / 'nowhere'))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stdout == ''
    assert stderr == f'error: data folder {tmp_path / "nowhere"} does not exist\n'


@pytest.mark.skipif(os.name == 'nt', reason='Windows sends no SIGINT')
def test_ctrl_c_exits_with_130_and_resume_finishes_the_run(argv, tmp_path):
    """SIGINT is ignored in background jobs, so the child must be told to take it."""
    args = argv('--epochs', 25, '--no-tensorboard')
    process = command(
        *args, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith('epoch 2/25'):
            process.send_signal(signal.SIGINT)
            break
    stdout, stderr = process.communicate(timeout=60)
    lines += stdout.splitlines(keepends=True)
    assert process.returncode == 130, stderr
    assert stderr == '\ninterrupted; go on from the last whole epoch with --resume auto\n'
    known = ('train: ', 'validation: ', 'test_toponet: ', '  batch ', 'epoch ')
    assert all(line.startswith(known) for line in lines), lines
    assert '\r' not in ''.join(lines)
    done = rows(tmp_path / 'run')
    assert 2 <= len(done) < 25
    result = run([*args, '--resume', 'auto'])
    finished = rows(result['folder'])
    assert finished[: len(done) - 1] == done[:-1]
    assert [row['epoch'] for row in finished] == list(range(25))
    timm_topo.load(result['model'])


def test_numbers_in_exponent_form_stay_numbers_inside_model_kwargs(tmp_path):
    config = tmp_path / 'c.yaml'
    config.write_text('model_kwargs: {sparsity_weight: 1e-4, wiring: complete}')
    kwargs = parse_args(['-c', str(config)]).model_kwargs
    assert kwargs == {'sparsity_weight': 1e-4, 'wiring': 'complete'}


@pytest.mark.parametrize(
    ('argv', 'dataset'), [([], 'digits'), (['--data-dir', 'x'], ''), (['--dataset', 'idx'], 'idx')]
)
def test_a_data_folder_without_a_data_set_is_a_folder_of_images(argv, dataset):
    assert parse_args(argv).dataset == dataset


def test_a_device_that_is_not_there_is_refused(argv):
    with pytest.raises(ValueError, match="--device 'banana'"):
        run(argv('--device', 'banana'))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match='--device cuda: this machine has no CUDA device'):
            run(argv('--device', 'cuda'))


def test_half_precision_without_a_scaler_is_refused(argv):
    with pytest.raises(ValueError, match='on CPU use --amp-dtype bfloat16'):
        run(argv('--device', 'cpu', '--amp'))


def test_mixup_of_an_odd_batch_is_refused(argv):
    with pytest.raises(ValueError, match='need an even --batch-size, got 7'):
        run(argv('--mixup', 0.2, '--batch-size', 7))


def wirings(*args) -> list[Wiring]:
    options = parse_args(['--model', 'toponet_random6', *map(str, args)])
    with torch.device('meta'):
        model = training_build.build_model(options, ['a', 'b'])
    return [stage.wiring for stage in graph_stages(model).values()]


def test_random_wirings_are_drawn_by_the_seed_where_that_is_asked_for():
    def expected(seed, p=0.6):
        sizes = enumerate((14, 20, 26, 14))
        return [generators.random(n, p, seed + stage) for stage, n in sizes]

    assert wirings('--seed', 7) == wirings('--seed', 8) == expected(0)
    assert wirings('--seed', 7, '--seed-wiring') == expected(7)
    given = ('--model-kwargs', "wiring={'name': 'random', 'p': 0.3, 'seed': 7}")
    assert wirings('--seed', 8, *given) == expected(7, 0.3)
    for seed in (7, 8):
        assert wirings('--seed', seed, '--seed-wiring', *given) == expected(seed, 0.3)


def test_rewiring_draws_by_the_seed_too():
    rewiring = ['--rewire', '--rewire-kwargs', "wiring={'name': 'random', 'p': 0.5}", 'exact=False']
    args = parse_args(['--model', 'resnetv2_18', '--seed', '5', '--seed-wiring', *rewiring])
    blocks = timm.create_model('resnetv2_18').stages
    with pytest.warns(UserWarning, match='is another function'):
        model = training_build.build_model(args, ['a', 'b'])
    found = [stage.wiring for stage in graph_stages(model).values()]
    assert found == [
        generators.random(len(stage.blocks) + 2, 0.5, 5 + i) for i, stage in enumerate(blocks)
    ]


@pytest.mark.parametrize('model', ['toponet_residual2', 'resnet18'])
def test_without_a_random_wiring_there_is_none_to_be_drawn(model):
    with pytest.raises(ValueError, match=f'--seed-wiring needs a random wiring, {model} has'):
        wirings('--model', model, '--seed-wiring')


@pytest.mark.parametrize('rank', [0, 1, 3])
def test_every_process_builds_the_same_weights(argv, rank, monkeypatch):
    """EMA copies them before DDP would make them equal: they must be equal from the start."""
    built_by_rank = []

    def stop_before_training(run, checkpoint):
        built_by_rank.append({k: v.clone() for k, v in run.model.state_dict().items()})
        raise KeyboardInterrupt

    def init(args, as_rank):
        args.distributed, args.world_size, args.rank, args.local_rank = False, 4, as_rank, as_rank
        return torch.device('cpu')

    monkeypatch.setattr(loop, '_resume', stop_before_training)
    for as_rank in (0, rank):
        monkeypatch.setattr(loop, 'init_distributed_device', lambda a, r=as_rank: init(a, r))
        with pytest.raises(KeyboardInterrupt):
            run(argv('--model-ema'))
    first, other = built_by_rank
    assert all(torch.equal(value, other[name]) for name, value in first.items())


# -- whole-network graphs -------------------------------------------------------------------------

DAG = ['--model', 'dagnet', '--model-kwargs', 'num_nodes=6', 'channels=2']


@pytest.fixture(scope='module')
def thin(tmp_path_factory) -> Path:
    """A saved dagnet with half of its edges."""
    torch.manual_seed(0)
    model = timm.create_model('dagnet', num_nodes=6, channels=2, num_classes=3)
    with torch.no_grad():
        model.dag.connectivity.alpha.uniform_(-1, 1)
    return timm_topo.save(prune(model, fraction=0.5)[0], tmp_path_factory.mktemp('thin') / 'net')


def test_edge_weights_are_written_before_and_after_every_epoch(argv):
    options = [*argv(), *DAG, '--img-size', '8', '--epochs']
    folder = run([*options, '2'])['folder']
    epochs, weights = read_edge_weights(folder)
    assert epochs == [0, 1, 2]
    assert np.allclose(weights['dag'][0], [1] + [0.5] * 14)
    alpha = checkpoint(folder)['state_dict']['dag.connectivity.alpha']
    assert np.allclose(weights['dag'][2][1:], alpha.tanh())
    before = checkpoint(folder, 'checkpoint-0')['state_dict']['dag.connectivity.alpha']
    assert np.allclose(weights['dag'][1][1:], before.tanh())
    run([*options, '3', '--resume', 'auto'])
    again, longer = read_edge_weights(folder)
    assert again == [0, 1, 2, 3]
    assert np.array_equal(longer['dag'][:3], weights['dag'])


def test_plain_networks_leave_no_edge_weights(argv):
    args = [*argv(), '--model', 'test_resnet', '--model-kwargs', 'layers=(1,1,1,1)']
    assert not (run(args)['folder'] / 'edge_weights').exists()


def test_the_last_weights_are_saved_where_they_are_wanted(argv, monkeypatch):
    """Evaluation is worst in the last epoch, so that best and last differ."""
    scores = iter([50.0, 40.0] * 2)
    monkeypatch.setattr(loop, 'evaluate', lambda *_: dict(loss=1.0, top1=next(scores), top5=1.0))
    saved = {}
    for which in ('best', 'last'):
        result = run(argv('--epochs', 2, '--save', which, '--experiment', which))
        saved[which] = load_file(result['model'] / 'model.safetensors')
        assert result['best_epoch'] == 0
        first, last = (
            checkpoint(result['folder'], f'checkpoint-{n}')['state_dict'] for n in (0, 1)
        )
        assert_same_weights(saved[which], first if which == 'best' else last)
    assert not torch.equal(saved['best']['stem.conv.weight'], saved['last']['stem.conv.weight'])


def test_training_on_some_of_the_images(argv, data, monkeypatch):
    seen = []

    class Counting(Portion):
        def __getitem__(self, index):
            seen.append(self.chosen[index])
            return super().__getitem__(index)

    monkeypatch.setattr(training_build, 'Portion', Counting)
    run(argv('--train-images', 16, '--epochs', 2))
    expected = Portion(load_dataset('idx', data), 16).chosen
    assert sorted(seen) == sorted(2 * expected)
    seen.clear()
    result = run(argv('--train-images', 8, '--train-split', 'validation', '--experiment', 'x'))
    assert len(seen) == 8
    model = timm_topo.load(result['model'])  # evaluated on all 11 images
    assert result['best_top1'] == accuracy(model, load_dataset('idx', data, 'validation'))


def test_a_pruned_dag_trains_from_scratch_as_it_is(argv, thin):
    options = [*argv(), '--img-size', 8, '--from-saved', thin, '--model-kwargs', '--lr', 0]
    model = timm_topo.load(run(list(map(str, options)))['model'])
    before = timm_topo.load(thin)
    assert model.dag.wiring == before.dag.wiring
    assert model.dag.node_ids == before.dag.node_ids
    assert not torch.equal(model.output.conv.weight, before.output.conv.weight)
    weights = model.dag.connectivity.edge_weights()
    degrees = model.dag.wiring.in_degrees
    expected = [1.0 if degrees[target] == 1 else 0.5 for _, target in model.dag.wiring.edges]
    assert torch.allclose(weights, torch.tensor(expected))


def test_a_pruned_dag_trains_with_the_channels_that_fit(argv, thin):
    own = ['channels=2', 'num_nodes=6']  # as the config of the whole network says
    wide = ['--img-size', 8, '--from-saved', thin, '--model-kwargs', *own, '--fit-parameters', 9000]
    model = timm_topo.load(run(list(map(str, [*argv(), *wide])))['model'])
    before = timm_topo.load(thin)
    assert model.dag.wiring == before.dag.wiring
    assert model.sizes['channels'] > before.sizes['channels']

    def off(channels: int) -> int:
        other = timm_topo.load(thin, pretrained=False, channels=channels, num_classes=3)
        return abs(sum(p.numel() for p in other.parameters()) - 9000)

    best = model.sizes['channels']
    assert off(best) < min(off(best - 1), off(best + 1))


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (['--fit-parameters', 9], '--fit-parameters needs --from-saved'),
        (['--from-saved', 'THIN', '--fit-parameters', 9], '9 parameters: with one channel'),
        (
            ['--from-saved', 'THIN', '--fit-parameters', 999, '--from-saved-weights', 'keep'],
            '--fit-parameters trains from scratch',
        ),
        (
            ['--from-saved', 'THIN', '--fit-parameters', 999, '--model-kwargs', 'channels=3'],
            'has channels=2, --model-kwargs or the config say 3',
        ),
        (
            ['--from-saved', 'THIN', '--model-kwargs', 'wiring=complete'],
            'has its own wiring, --model-kwargs or the config give another',
        ),
        (
            ['--from-saved', 'TOPO', '--fit-parameters', 999, '--model-kwargs'],
            'chooses the option channels, which .* does not have',
        ),
        (['--train-images', 25], '25 images asked for, the data set has 24'),
    ],
)
def test_what_cannot_be_fitted_is_named(options, told, argv, thin, finished):
    places = {'THIN': thin, 'TOPO': finished['model']}
    options = [str(places.get(option, option)) for option in options]
    if '--model-kwargs' not in options and '--from-saved' in options:
        options.append('--model-kwargs')
    with pytest.raises(ValueError, match=told):
        run([*argv(), *options])
