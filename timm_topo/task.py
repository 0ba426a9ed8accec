"""timm's classification task plus the sparsity term (TopoNet, Eq. 6)."""

import logging
from contextlib import nullcontext
from typing import Any

from timm.task import ClassificationTask, LogitDistillationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from .checkpoint import describe
from .executors import record_adjacency
from .sparsity import check_sparsity, sparsity_loss
from .stages import is_routed

__all__ = ['TopoDistillationTask', 'TopoTask']

_logger = logging.getLogger(__name__)


class _SparsityTerm:
    """Mixin of a task of timm: loss = its loss + lambda * sum_e w_e |a_e|.

    The term is part of the loss, so AMP scales it, accumulation divides it and DDP averages it
    like the rest. Kind and lambda are the model's ``sparsity`` and ``sparsity_weight``; a model
    without them trains as in timm. Where a_e depends on the image, its mean over the batch counts.
    """

    def __init__(self, model: nn.Module, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.sparsity = check_sparsity(getattr(model, 'sparsity', 'none'))
        self.sparsity_weight = float(getattr(model, 'sparsity_weight', 0.0))
        self.routed = self.sparsity != 'none' and is_routed(model)
        if self.verbose:
            _logger.info(
                f'{type(self).__name__}: sparsity={self.sparsity}, weight={self.sparsity_weight:g}'
            )

    def prepare_distributed(self, device_ids=None, **ddp_kwargs) -> 'TopoTask':
        """As in timm, and on CPU too, where DDP takes no device ids."""
        if self.device.type == 'cpu':
            device_ids = None
        return super().prepare_distributed(device_ids, **ddp_kwargs)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """What checkpoints hold beside weights: a description of the network, ``network``."""
        if ema:
            return {}
        try:
            return {'network': describe(unwrap_model(self.get_trainable_module()))}
        except (TypeError, ValueError) as error:
            _logger.warning(f'the checkpoint does not tell of which network it is: {error}')
            return {}

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One batch.

        Args:
            input: Images ``(B, C, H, W)``.
            target: Labels ``(B,)``, or soft labels ``(B, num_classes)``.

        Returns:
            ``loss`` with the term; ``output``, the logits ``(B, num_classes)``; and, detached,
            ``task_loss``, the loss without it, and ``sparsity``, the sum before lambda.
        """
        with record_adjacency(self.trainable_module) if self.routed else nullcontext() as adjacency:
            result = super().forward(input, target)
        result['task_loss'] = result['loss'].detach()
        if self.sparsity == 'none':
            result['sparsity'] = result['task_loss'].new_zeros(())
            return result
        penalty = sparsity_loss(self.trainable_module, self.sparsity, adjacency)
        result['sparsity'] = penalty.detach()
        result['loss'] = result['loss'] + self.sparsity_weight * penalty
        return result


class TopoTask(_SparsityTerm, ClassificationTask):
    """``timm.task.ClassificationTask`` with the sparsity term.

    Args:
        model: The model to train.
        *args: For ``timm.task.ClassificationTask``.
        **kwargs: For ``timm.task.ClassificationTask``.

    Raises:
        ValueError: The model's sparsity is unknown.
    """


class TopoDistillationTask(_SparsityTerm, LogitDistillationTask):
    """``timm.task.LogitDistillationTask`` with the sparsity term.

    Args:
        model: The model to train.
        *args: For ``timm.task.LogitDistillationTask``, the teacher first.
        **kwargs: For ``timm.task.LogitDistillationTask``.

    Raises:
        ValueError: The model's sparsity is unknown.
    """
