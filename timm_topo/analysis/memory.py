"""Memory of a training step, by what autograd keeps and by what the process takes."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

import timm
import torch
from torch import Tensor, nn

from ..executors import BASELINES

__all__ = ['keep_freed_memory', 'most_memory', 'peak_memory', 'saved_memory']

_STEPS = 5  # of training, until memory no longer grows


def keep_freed_memory() -> None:
    """Let the C library keep what this process frees, for its next allocations (glibc).

    By default it gives large pieces back to the system. To get them anew costs page faults, which
    on a virtual machine can take longer than the layers that wait for them.

    Raises:
        OSError: The C library has no ``mallopt`` or refuses.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        raise OSError('this C library has no mallopt: freed memory cannot be kept') from None
    if not (mallopt(mmap_max, 0) and mallopt(trim_threshold, -1)):
        raise OSError('mallopt refused: freed memory cannot be kept')


def most_memory(device: torch.device) -> float | None:
    """MiB that tensors on a GPU, or this process on a CPU, took at most so far; None: unknown."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == 'darwin' else 2**10)


def saved_memory(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward, parameters left out.

    A storage counts once, however many tensors are views of it.
    """
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept, alive = {}, []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)  # so that no later tensor takes its address
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images).sum()
    del loss
    return sum(kept.values())


def peak_memory(name: str, baseline: str, shape: Sequence[int], device: str = 'cpu') -> int:
    """Growth of the memory of a new process at its peak in training, in bytes.

    The most of several steps, gradients of parameters included. On CPU: of the resident memory, so
    that what an allocator does not give back between steps is part of it; Linux only. On a GPU: of
    what PyTorch has allocated there.

    Args:
        name: A registered model.
        baseline: One of :data:`timm_topo.executors.BASELINES`.
        shape: Of the images, ``(B, C, H, W)``.
        device: Where to train.
    """
    program = 'import sys, timm_topo.analysis.memory as m; print(m._peak(*sys.argv[1:]))'
    done = subprocess.run(
        [sys.executable, '-c', program, name, baseline, json.dumps(tuple(shape)), device],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


def _peak(name: str, baseline: str, shape: str, device: str) -> int:
    model = BASELINES[baseline](timm.create_model(name)).train().to(device)
    images = torch.randn(json.loads(shape)).to(device)
    model(images[:1]).sum().backward()  # libraries load kernels when they are first used
    model.zero_grad(set_to_none=True)
    before = _used(device)
    _forget_peak(device)
    for _ in range(_STEPS):
        model(images).sum().backward()
        model.zero_grad(set_to_none=True)
    return _used(device, peak=True) - before


def _forget_peak(device: str) -> None:
    if device == 'cpu':
        Path('/proc/self/clear_refs').write_text('5')  # Linux
    else:
        torch.cuda.reset_peak_memory_stats(device)


def _used(device: str, peak: bool = False) -> int:
    """Bytes in use now, or at the peak."""
    if device != 'cpu':
        used = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        return used(device)
    kind = 'VmHWM' if peak else 'VmRSS'
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))
