"""Inference on CPU, few enough images at a time that the maps of all nodes stay in cache."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..stages import Executor, GraphStage, Stage, best, register
from ..watched import watched_any
from . import workspace
from .kernels import kernels_apply
from .layout import in_best_layout

__all__ = ['Chunked']

# Bytes of maps per thread; of the sizes from 1 to 32 MiB the best (docs/performance.md).
_CACHE = 16 << 20


class Chunked(Executor):
    """Split the batch, and run each part by the best executor of a lower rank."""

    name = 'chunked'
    rank = 40

    def __init__(self):
        self.bytes: WeakKeyDictionary[Stage, dict] = WeakKeyDictionary()  # of x_0, by input

    def objection(self, stage: Stage, x: Tensor) -> str:
        if torch.is_grad_enabled():
            return 'a gradient is wanted'
        if x.device.type != 'cpu' or kernels_apply(x):
            return 'only CPUs have caches of this kind'
        if len(x) < 2:
            return 'fewer than two images'
        if type(stage) is not GraphStage:
            return f'a {type(stage).__name__} has maps of several shapes, or its own equation'
        inner = [module for module in stage.modules() if module is not stage]
        return next(filter(None, map(_mixes, inner)), '') or watched_any(inner)

    def run(self, stage: GraphStage, x: Tensor) -> Tensor:
        workspace.clear()
        return in_best_layout(x, lambda x: self._run(stage, x))

    def _run(self, stage: GraphStage, x: Tensor) -> Tensor:
        inner, images = best(stage, x, below=self.rank), self.images(stage, x)
        return torch.cat([inner.run(stage, part) for part in x.split(images)])

    def images(self, stage: GraphStage, x: Tensor) -> int:
        """Images per part, as many for every thread."""
        threads = torch.get_num_threads()
        fitting = _CACHE * threads // (stage.wiring.num_nodes * self._bytes(stage, x))
        return fitting - fitting % threads or max(fitting, 1)

    def _bytes(self, stage: GraphStage, x: Tensor) -> int:
        """Bytes of a map of one image."""
        known = self.bytes.setdefault(stage, {})
        key = (x.shape[1:], x.dtype, torch.is_autocast_enabled('cpu'))
        if key not in known:
            if len(known) > 64:  # many sizes, as in detection
                known.clear()
            known[key] = stage.entry(x[:1]).nbytes
        return known[key]

    def label(self, stage: GraphStage, x: Tensor) -> str:
        inner = best(stage, x, below=self.rank)
        return f'{self.name}: {self.images(stage, x)} images at a time by {inner.label(stage, x)}'


def _mixes(module: nn.Module) -> str:
    """Why images of a batch may depend on one another."""
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.training or (batch_norm and module.running_mean is None):
        return f'a {type(module).__name__} in training mode, or without statistics'
    return ''


register(Chunked())
