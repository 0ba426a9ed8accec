"""Several trainings at once, each a process of its own: the first that fails stops no other."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..checks import one_line

__all__ = ['cores', 'run_all']


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def run_all(
    commands: Mapping[Path, Sequence[str]],
    jobs: int,
    done: Callable[[Path], None] = lambda path: None,
    devices: Sequence[str] = (),
) -> dict[Path, str]:
    """Run commands, ``jobs`` of them at once. When this process ends, they do.

    Args:
        commands: By the folder that each fills; what it prints goes to ``FOLDER.log``.
        jobs: How many run at once; they share the cores.
        done: Called with the folder of each that succeeded.
        devices: What ``CUDA_VISIBLE_DEVICES`` is in turn; none: left as it is.

    Returns:
        What went wrong, by folder, in one line.
    """
    waiting, running, failed = list(commands.items()), {}, {}
    threads = str(max(1, cores() // jobs))
    with _interrupted_by_sigterm():
        try:
            while waiting or running:
                for slot in [i for i in range(jobs) if i not in running][: len(waiting)]:
                    folder, command = waiting.pop(0)
                    env = {'OMP_NUM_THREADS': threads, **os.environ}
                    if devices:
                        env['CUDA_VISIBLE_DEVICES'] = devices[slot % len(devices)]
                    print(f'{folder}: started', flush=True)
                    running[slot] = folder, _start(command, _log(folder), env)
                time.sleep(0.1)
                for slot, (folder, child) in list(running.items()):
                    if child.poll() is None:
                        continue
                    del running[slot]
                    if child.returncode:
                        failed[folder] = _reason(folder, child.returncode)
                        print(f'{folder}: failed: {failed[folder]}', flush=True)
                    else:
                        done(folder)
        finally:
            for _, child in running.values():
                child.terminate()
            for _, child in running.values():
                child.wait()
    return failed


def _log(folder: Path) -> Path:
    return folder.with_name(f'{folder.name}.log')


def _start(command: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'a', encoding='utf-8') as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env
        )


def _reason(folder: Path, status: int) -> str:
    """The last line that a command printed."""
    if status < 0:
        return f'ended by signal {-status}'
    lines = _log(folder).read_text(encoding='utf-8', errors='replace').split('\n')
    last = next((line for line in reversed(lines) if line.strip()), '')
    return one_line(last.removeprefix('error: ') or f'exit status {status}')


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """A process that is told to end ends as by Ctrl-C, and stops what it has started."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
