"""Runs that were killed: whatever the moment, they go on as if they had not been."""

import ast
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import timm_topo
from timm_topo.analysis.tables import read_csv
from timm_topo.cli import main
from timm_topo.training import loop
from timm_topo.training.loop import train
from timm_topo.training.options import parse_args

ROOT = Path(__file__).parents[1]
TOP1 = (20.0, 40.0, 30.0, 50.0)  # of four epochs: the second and the fourth are the best so far
MODEL = ('num_nodes=(3,4)', 'widths=(4,6)', 'strides=(2,2)', 'stem_width=4', 'stem_kernel=3')


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """12 images for training and 6 for validation, in MNIST format."""
    folder = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for stem, count in (('train', 12), ('t10k', 6)):
        labels = (np.arange(count) % 3).astype(np.uint8)
        images = rng.integers(0, 255, (count, 8, 8), dtype=np.uint8)
        for kind, array in (('images-idx3', images), ('labels-idx1', labels)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape)
            (folder / f'{stem}-{kind}-ubyte').write_bytes(head + array.tobytes())
    return folder


def plan(patch: pytest.MonkeyPatch, top1: tuple[float, ...] = TOP1) -> list[int]:
    """Every epoch has the accuracy that is planned for it; the epochs that are trained."""
    epoch, trained = loop._epoch, []

    def remembered(run, number, epochs):
        trained.append(number)
        return epoch(run, number, epochs)

    patch.setattr(loop, '_epoch', remembered)
    patch.setattr(loop, '_evaluate', lambda run, model: {'top1': top1[trained[-1]]})
    return trained


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """Numbers of the epochs that are trained."""
    return plan(monkeypatch)


def arguments(data: Path, output: Path, *extra) -> list[str]:
    return [
        *('--dataset', 'idx', '--data-dir', str(data), '--model', 'test_toponet'),
        *('--img-size', '16', '--workers', '0', '--batch-size', '6', '--epochs', '4'),
        *('--no-tensorboard', '--output', str(output), '--experiment', 'run'),
        *('--model-kwargs', *MODEL), *map(str, extra),
    ]  # fmt: skip


def run(data: Path, output: Path, *extra) -> Path:
    return train(parse_args(arguments(data, output, *extra)))['folder']


def result(folder: Path) -> dict:
    """Everything that a run gives, but for times and memory."""
    found = {'names': sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))}
    found['model'] = (folder / 'model' / 'model.safetensors').read_bytes()
    rows = read_csv(folder / 'summary.csv')
    measured = ('train_seconds', 'train_memory')
    found['rows'] = [{k: v for k, v in row.items() if k not in measured} for row in rows]
    for path in folder.glob('*.pth.tar'):
        stored = torch.load(path)
        weights = {name: value.tolist() for name, value in stored['state_dict'].items()}
        found[path.name] = stored['epoch'], stored['saver'], weights
    return found


@pytest.fixture(scope='module')
def straight(data, tmp_path_factory) -> tuple[dict, list[Path]]:
    """What a run gives; and copies of it, as it was before every step of timm's saving."""
    output, copies = tmp_path_factory.mktemp('straight'), []

    def watched(operation):
        def wrapper(*args, **kwargs):
            if str(args[0]).endswith('.pth.tar'):
                copies.append(output / f'killed-{len(copies)}')
                shutil.copytree(output / 'run', copies[-1] / 'run')
            return operation(*args, **kwargs)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        plan(patch)
        for name in ('unlink', 'remove', 'link', 'replace'):
            patch.setattr(os, name, watched(getattr(os, name)))
        folder = run(data, output)
    return result(folder), copies


#: Of the 18 steps of four epochs: those behind which a run forgot its best epoch, lost a
#: checkpoint, or began anew.
STEPS = {
    'link checkpoint-0': 1, 'link model_best': 2, 'replace last': 4, 'link checkpoint-1': 5,
    'remove checkpoint-2': 14, 'link checkpoint-3': 15, 'unlink model_best': 16,
    'link model_best again': 17,
}  # fmt: skip


@pytest.mark.parametrize('step', STEPS)
def test_a_run_killed_while_it_saved_goes_on_as_if_it_had_not_been(
    data, straight, trained, tmp_path, step
):
    expected, copies = straight
    assert len(copies) == 18
    shutil.copytree(copies[STEPS[step]] / 'run', tmp_path / 'run')
    whole = [torch.load(path)['epoch'] for path in (tmp_path / 'run').glob('*.pth.tar')]
    assert result(run(data, tmp_path, '--resume', 'auto')) == expected
    assert trained == [*range(max(whole) + 1, 4)], 'nothing that was saved is trained again'


def test_the_newest_checkpoint_is_taken_where_the_last_is_gone(data, straight, trained, tmp_path):
    expected, copies = straight
    shutil.copytree(copies[0].parent / 'run', tmp_path / 'run')
    (tmp_path / 'run' / 'last.pth.tar').unlink()
    (tmp_path / 'run' / 'checkpoint-3.pth.tar').write_bytes(b'half of it')
    (tmp_path / 'run' / 'tmp.pth.tar').write_bytes(b'half of it')
    assert result(run(data, tmp_path, '--resume', 'auto')) == expected
    assert trained == [2, 3]


def test_a_run_that_lost_its_checkpoints_is_no_new_run(data, straight, trained, tmp_path):
    shutil.copytree(straight[1][0].parent / 'run', tmp_path / 'run')
    for path in (tmp_path / 'run').glob('*.pth.tar'):
        path.unlink()
    message = r'run has done 4 epochs, but last\.pth\.tar and all other checkpoints are gone'
    with pytest.raises(FileNotFoundError, match=message):
        run(data, tmp_path, '--resume', 'auto')
    assert len(read_csv(tmp_path / 'run' / 'summary.csv')) == 4


def test_a_run_killed_in_its_first_save_begins_anew(data, straight, trained, tmp_path):
    expected, copies = straight
    shutil.copytree(copies[0] / 'run', tmp_path / 'run')
    half = tmp_path / 'run' / 'tmp.pth.tar'
    half.write_bytes(half.read_bytes()[:-100])
    assert result(run(data, tmp_path, '--resume', 'auto')) == expected
    assert trained == [0, 1, 2, 3]


def test_a_best_epoch_that_is_given_up_is_not_the_best_any_more(
    data, straight, monkeypatch, tmp_path
):
    shutil.copytree(straight[1][0].parent / 'run', tmp_path / 'run')
    plan(monkeypatch, (*TOP1[:2], 10.0, 10.0))
    folder = tmp_path / 'run'
    best = torch.load(folder / 'checkpoint-1.pth.tar')['state_dict']
    run(data, tmp_path, '--resume', folder / 'checkpoint-1.pth.tar')
    stored = torch.load(folder / 'model_best.pth.tar')
    assert stored['epoch'] == 1
    assert all(torch.equal(stored['state_dict'][name], value) for name, value in best.items())


def test_a_best_checkpoint_that_is_gone_is_missed_at_the_start(data, straight, trained, tmp_path):
    shutil.copytree(straight[1][13] / 'run', tmp_path / 'run')  # three epochs, the second best
    for name in ('model_best', 'checkpoint-1'):
        (tmp_path / 'run' / f'{name}.pth.tar').unlink()
    last = tmp_path / 'run' / 'checkpoint-2.pth.tar'
    shutil.copy(last, tmp_path / 'run' / 'last.pth.tar')
    message = r'run has lost model_best\.pth\.tar, of its best epoch 2, and checkpoint-1\.pth\.tar'
    with pytest.raises(FileNotFoundError, match=message):
        run(data, tmp_path, '--resume', 'auto')
    assert trained == []
    run(data, tmp_path, '--resume', 'auto', '--save', 'last')
    assert trained == [3]


def test_a_summary_that_was_cut_short_goes_on(data, straight, trained, tmp_path):
    expected, copies = straight
    shutil.copytree(copies[9] / 'run', tmp_path / 'run')
    with open(tmp_path / 'run' / 'summary.csv', 'a', encoding='utf-8') as file:
        file.write('3,0.')
    assert result(run(data, tmp_path, '--resume', 'auto')) == expected


@pytest.mark.parametrize('how', ['train', 'table', 'damage', 'process'])
def test_a_folder_that_another_process_is_in_is_refused(data, tool, capsys, tmp_path, how):
    code = (
        'import sys, time\nfrom pathlib import Path\nfrom timm_topo.files import locked\n'
        'with locked(Path(sys.argv[1])): print(flush=True), time.sleep(600)'
    )
    other = subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path / 'run')], stdout=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    other.stdout.readline()
    try:
        if how == 'train':
            status, _, err = tool('train', *arguments(data, tmp_path))
        elif how == 'table':
            table = ROOT / 'configs/tables/janik_nowak_digits.yaml'
            status, _, err = tool('table', table, '-o', tmp_path / 'run', '--epochs', 1)
        else:
            status = main(line_of(how, data, tmp_path))
            err = capsys.readouterr().err
        assert status
        assert f'error: {tmp_path / "run"} is in use by another process' in err
        assert os.listdir(tmp_path / 'run') == ['.lock']
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()


def line_of(how: str, data: Path, folder: Path) -> list[str]:
    """A command of ``topo`` that writes to ``folder / 'run'``."""
    if how == 'process':
        source = train(parse_args([*arguments(data, folder), '--experiment', 'source']))['folder']
        return ['retrain', str(source), '-o', str(folder / 'run'), '--snapshots', '0']
    options = dict(arg.split('=') for arg in MODEL)
    model = timm.create_model(
        'test_toponet', num_classes=3, **{k: ast.literal_eval(v) for k, v in options.items()}
    )
    net = timm_topo.save(model, folder / 'net')
    named = ['--dataset', 'idx', '--data-dir', str(data)]
    return ['damage', str(net), '-o', str(folder / 'run'), *named]


@pytest.mark.parametrize(
    ('size', 'name'), [(500, r"File too large: '.*/args\.yaml'"), (8000, r'/tmp\.pth\.tar could')]
)
def test_a_full_disk_is_one_line_and_nothing_half_written(
    data, tool, trained, tmp_path, size, name
):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        status, _, err = tool('train', *arguments(data, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1
    (line,) = [line for line in err.splitlines() if line.startswith('error: ')]
    assert re.search(name, line), line
    assert 'Traceback' not in err
    left = {path.name for path in tmp_path.rglob('*') if path.is_file()}
    assert left <= {'args.yaml', 'summary.csv', '0000.npz', '0001.npz'}
