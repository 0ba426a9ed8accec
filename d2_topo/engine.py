"""Settings that detectron2's trainers lack, out of its own and timm's parts.

A batch in parts (gradient accumulation), bfloat16, and averaged weights (EMA), for both config
systems; ``d2_topo.train_net`` puts them into detectron2's scripts. The loop, the hooks and all else
stay detectron2's.
"""

import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, HookBase, TrainerBase, hooks
from detectron2.utils import comm
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .backbone import TopoBackbone

__all__ = ['AveragedWeights', 'Settings', 'Step', 'extend']

PRECISIONS = {'float16': torch.float16, 'bfloat16': torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """What a config asks for beyond detectron2.

    Attributes:
        accumulate: In how many parts a process takes its batch: ``SOLVER.ACCUMULATE``,
            ``train.accumulate``.
        precision: Of mixed precision: ``SOLVER.AMP.PRECISION``, ``train.amp.precision``; None
            without ``AMP.ENABLED``.
        ema_decay: Of averaged weights; 0 is without: ``SOLVER.EMA_DECAY``, ``train.ema_decay``.
        folder: Where the averaged weights go.

    Raises:
        ValueError: A value out of range.
    """

    accumulate: int = 1
    precision: str | None = None
    ema_decay: float = 0.0
    folder: str = '.'

    def __post_init__(self):
        if self.accumulate < 1:
            raise ValueError(f'a batch in {self.accumulate} parts (ACCUMULATE): at least 1 needed')
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(
                f'unknown precision {self.precision!r}; known: {", ".join(PRECISIONS)}'
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f'the decay of averaged weights must be in [0, 1): {self.ema_decay}')

    @property
    def extra(self) -> bool:
        """Whether detectron2's own trainers could not do it."""
        return self.accumulate > 1 or self.ema_decay > 0 or self.precision == 'bfloat16'

    @classmethod
    def of(cls, cfg) -> 'Settings':
        """Those of a yaml config or a LazyConfig."""
        if isinstance(cfg, CfgNode):
            keys, amp, folder = cfg.SOLVER, cfg.SOLVER.AMP, cfg.OUTPUT_DIR
            given = keys.ACCUMULATE, amp.PRECISION if amp.ENABLED else None, keys.EMA_DECAY
        else:
            keys, amp, folder = cfg.train, cfg.train.amp, cfg.train.output_dir
            precision = amp.get('precision', 'float16') if amp.enabled else None
            given = keys.get('accumulate', 1), precision, keys.get('ema_decay', 0.0)
        return cls(*given, folder)


class Step(AMPTrainer):
    """A step of detectron2, its batch in parts, in the precision that is asked for.

    Args:
        model: A detector, or DistributedDataParallel with one.
        data_loader: As for detectron2's trainers.
        optimizer: As there.
        settings: What to do.
    """

    def __init__(self, model: nn.Module, data_loader, optimizer, settings: Settings):
        self._device = next(model.parameters()).device.type
        scaler = torch.amp.GradScaler(self._device, enabled=settings.precision == 'float16')
        precision = PRECISIONS.get(settings.precision)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=precision)
        self.settings = settings
        for module in model.modules():
            if isinstance(module, TopoBackbone):
                module.settings = settings

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        parts = self.settings.accumulate
        if len(batch) < parts:
            raise ValueError(f'a batch of {len(batch)} images in a process has no {parts} parts')
        self.optimizer.zero_grad()
        total = Counter()
        for k in range(parts):
            part = batch[k::parts]
            share = len(part) / len(batch)
            distributed = isinstance(self.model, DistributedDataParallel)
            waits = distributed and k < parts - 1  # gradients are exchanged once
            with self.model.no_sync() if waits else nullcontext():
                with torch.autocast(
                    self._device, self.precision, enabled=self.precision is not None
                ):
                    losses = {name: share * loss for name, loss in self.model(part).items()}
                self.grad_scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                total[name] += loss.detach()
        self.after_backward()
        self._write_metrics(dict(total), data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def register_hooks(self, given: list[HookBase | None]) -> None:
        super().register_hooks(with_average(self, given, self.model, self.settings))


class AveragedWeights(HookBase):
    """timm's average of all weights over the steps: what is evaluated.

    It is saved with every checkpoint, and in the end as ``model_ema.pth``, a detector's weights.

    Args:
        model: A detector, or DistributedDataParallel with one.
        decay: Of the average.
        folder: Where to.
    """

    def __init__(self, model: nn.Module, decay: float, folder: str | Path):
        self.model = getattr(model, 'module', model)
        self.average, self.path = ModelEmaV3(self.model, decay), Path(folder) / 'model_ema.pth'
        self._resumed = False

    def before_train(self) -> None:
        if not self._resumed:
            self.average.set(self.model)

    def after_step(self) -> None:
        self.average.update(self.model)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter and comm.is_main_process():
            torch.save({'model': self.average.module.state_dict()}, self.path)

    @contextmanager
    def in_place(self):
        """The detector has the averaged weights for as long as this lasts."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def state_dict(self) -> dict:
        return self.average.module.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self.average.module.load_state_dict(state_dict)
        self._resumed = True


def with_average(
    trainer: TrainerBase, given: list[HookBase | None], model: nn.Module, settings: Settings
) -> list[HookBase | None]:
    """detectron2's hooks, with :class:`AveragedWeights` and evaluations of them."""
    if not settings.ema_decay:
        return given
    there = [hook for hook in trainer._hooks if isinstance(hook, AveragedWeights)]
    new = [] if there else [AveragedWeights(model, settings.ema_decay, settings.folder)]
    [average] = there or new

    def evaluate(function):
        with average.in_place():
            return function()

    for hook in given:
        if isinstance(hook, hooks.EvalHook):
            hook._func = partial(evaluate, hook._func)
    return [*new, *given]


def extend(script, settings: Settings) -> None:
    """Put the settings into one of detectron2's scripts, a module of ours alone, in place."""
    if not settings.extra:
        return
    if not hasattr(script, 'Trainer'):  # lazyconfig_train_net
        script.SimpleTrainer = script.AMPTrainer = partial(Step, settings=settings)
        return

    class Trainer(script.Trainer):
        """The script's, with another step."""

        def __init__(self, cfg: CfgNode):
            super().__init__(cfg)
            old = self._trainer
            self._trainer = Step(old.model, old.data_loader, old.optimizer, settings)

        def register_hooks(self, given: list[HookBase | None]) -> None:
            model = self._trainer.model
            super().register_hooks(with_average(self, given, model, settings))

    script.Trainer = Trainer
