"""Memory of a training step, by what autograd keeps and by what the process takes."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from .executors import EXECUTORS

__all__ = ['peak_memory', 'saved_memory']

_STEPS = 4  # of training, until memory no longer grows


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


def peak_memory(name: str, executor: str, shape: Sequence[int]) -> int:
    """Growth of the resident memory of a new process at its peak in training, in bytes.

    The most of several steps: what an allocator does not give back between them is part of it, and
    so are gradients of parameters. Linux only.

    Args:
        name: A registered model.
        executor: One of :data:`timm_topo.analysis.executors.EXECUTORS`.
        shape: Of the images, ``(B, C, H, W)``.
    """
    program = (
        'import sys, timm_topo.analysis.memory as m; '
        'print(m._peak(sys.argv[1], sys.argv[2], eval(sys.argv[3])))'
    )
    done = subprocess.run(
        [sys.executable, '-c', program, name, executor, repr(tuple(shape))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


def _peak(name: str, executor: str, shape: Sequence[int]) -> int:
    model = EXECUTORS[executor](timm.create_model(name)).train()
    images = torch.randn(shape)
    model(images[:1]).sum().backward()  # libraries load kernels when they are first used
    model.zero_grad(set_to_none=True)
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far (Linux)
    before = _resident('VmRSS')
    for _ in range(_STEPS):
        model(images).sum().backward()
        model.zero_grad(set_to_none=True)
    return _resident('VmHWM') - before


def _resident(kind: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))
