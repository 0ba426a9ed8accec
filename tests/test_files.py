"""Files that are there as a whole or not at all, and folders with one writer."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import timm_topo
from timm_topo.files import locked, replacing, replacing_folder, scratch_folder, writing

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small_disk():
    """Function after which no file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def small_disk(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield small_disk
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def another_process(code: str, *args) -> subprocess.Popen:
    """Python that prints ``ready`` and then waits, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, '-c', f'import sys, time\n{code}', *map(str, args)],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == 'ready\n'
    return process


HOLD = """
from pathlib import Path
from timm_topo.files import locked
with locked(Path(sys.argv[1])):
    print('ready', flush=True)
    time.sleep(600)
"""
FORK = """
import os
from pathlib import Path
from timm_topo.files import locked
with locked(Path(sys.argv[1])):
    print('ready', flush=True)
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(600)
"""
SCRATCH = """
from pathlib import Path
from timm_topo.files import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / 'half').write_text('half of it')
    print('ready', flush=True)
    time.sleep(600)
"""


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / 'some' / 'a.txt'
    with replacing(path) as part:
        part.write_text('whole')
        assert not path.exists()
        assert part.suffix == '.txt'
    assert path.read_text() == 'whole'
    assert os.listdir(path.parent) == ['a.txt']


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(FileNotFoundError), replacing(path) as part:
        part.with_name('gone').rename(part)
    with pytest.raises(TypeError), replacing(path) as part:
        part.write_text(b'half')
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['a.txt']


def test_a_full_disk_is_one_line_with_the_file(tmp_path, small_disk):
    path = tmp_path / 'a.txt'
    small_disk(1000)
    message = r"^\[Errno 27\] File too large: '.*/a\.txt'"
    with pytest.raises(OSError, match=message) as caught, replacing(path) as part:
        part.write_bytes(bytes(2000))
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == []


def test_pytorch_and_safetensors_on_a_full_disk_too(tmp_path, small_disk):
    model = timm.create_model('test_toponet', num_nodes=(3,), widths=(8,), strides=(2,))
    small_disk(4096)
    message = r'could not be written \(.* bytes are free\): '
    with pytest.raises(OSError, match=rf'/net {message}') as caught:
        timm_topo.save(model, tmp_path / 'net')
    assert len(str(caught.value).splitlines()) == 1
    last = tmp_path / 'last.pth'
    with pytest.raises(OSError, match=rf'/last\.pth {message}'), replacing(last) as part:
        torch.save(model.state_dict(), part)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_behind_standard_output_is_one_line_too(tmp_path):
    net = timm.create_model('test_toponet', num_nodes=(3,), widths=(4,), strides=(2,))
    with open('/dev/full', 'w') as full:
        done = subprocess.run(
            [sys.executable, '-m', 'timm_topo', 'inspect', timm_topo.save(net, tmp_path / 'net')],
            env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: [Errno 28] No space left on device: 'standard output'"
    )


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match='another'), writing(tmp_path / 'a'):
        (tmp_path / 'another').read_text()
    with pytest.raises(RuntimeError, match=r'^shapes$'), writing(tmp_path / 'a'):
        raise RuntimeError('shapes')


@pytest.mark.parametrize('mask', [0o022, 0o077, 0o002])
def test_saved_networks_and_reports_have_the_permissions_that_files_have(tmp_path, mask):
    from timm_topo.report.html import Report

    before = os.umask(mask)
    try:
        model = timm.create_model('test_toponet', num_nodes=(3,), widths=(4,), strides=(2,))
        folder = timm_topo.save(model, tmp_path / 'net')
        Report('title').write(folder / 'report.html')
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == dict.fromkeys(
        ('config.json', 'model.safetensors', 'report.html'), 0o666 & ~mask
    )


def test_two_processes_are_never_in_one_folder(tmp_path):
    folder = tmp_path / 'run'
    process = another_process(HOLD, folder)
    try:
        message = r'run is in use by another process: wait for its end, or choose another folder'
        with pytest.raises(BlockingIOError, match=message), locked(folder):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locked(folder):
        assert os.listdir(folder) == ['.lock']
        with pytest.raises(BlockingIOError), locked(folder):
            pass
    with locked(tmp_path / 'other' / 'run'):
        pass
    assert os.listdir(tmp_path) == ['run'], 'what stays empty goes'


def test_a_worker_that_outlives_its_parent_does_not_hold_its_lock(tmp_path):
    process = another_process(FORK, tmp_path / 'run')
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        with locked(tmp_path / 'run'):
            os.kill(worker, 0)  # it is there
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize('enter', [scratch_folder, lambda path: locked(path.parent)])
def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path, enter):
    target = tmp_path / 'model'
    process = another_process(SCRATCH, target)
    (left,) = tmp_path.iterdir()
    with enter(target):
        assert (left / 'half').exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with enter(target):
        assert not left.exists()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_was_half_replaced_is_replaced_by_the_next(tmp_path):
    """Killed when the old one was away and the new one not yet there."""
    for name in ('old', 'new'):
        (tmp_path / '.net.scratch-abc' / name).mkdir(parents=True)
        (tmp_path / '.net.scratch-abc' / name / name).touch()
    with replacing_folder(tmp_path / 'net') as folder:
        assert os.listdir(tmp_path / 'net') == ['new']
        (folder / 'newer').touch()
    assert os.listdir(tmp_path) == ['net']
    assert os.listdir(tmp_path / 'net') == ['newer']
