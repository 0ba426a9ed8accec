"""What every network with graph stages can do, whoever wrote the rest of it."""

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ..connectivity import connectivity_spec, undecayed_parameters
from ..sparsity import sparsity_loss
from ..stages import graph_stages

__all__ = ['GraphNet', 'imagenet_cfg']


class GraphNet:
    """Mixin for networks whose stages are :class:`timm_topo.stages.GraphStage`.

    Attributes:
        sparsity: ``'none'``, ``'uniform'`` or ``'adaptive'``: the L1 that training adds.
        sparsity_weight: lambda of TopoNet, Eq. 6.
    """

    sparsity: str = 'none'
    sparsity_weight: float = 0.0

    @torch.jit.ignore
    def topology(self) -> dict:
        """Constructor options that rebuild wiring and rules as they are, explicit, JSON-ready."""
        stages = list(graph_stages(self).values())
        topology = {
            'wiring': [stage.wiring.to_dict() for stage in stages],
            'connectivity': [connectivity_spec(stage.connectivity) for stage in stages],
        }
        node_ids = [stage.node_ids for stage in stages]
        if any(ids != list(range(len(ids))) for ids in node_ids):  # pruned
            topology['node_ids'] = node_ids
        return topology

    @torch.jit.ignore
    def sparsity_loss(self) -> Tensor:
        """sum_e w_e |a_e| for the model's ``sparsity``, a scalar; not yet times lambda (Eq. 6)."""
        return sparsity_loss(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set:
        """Names of the parameters that no optimizer may decay, the edge weights among them."""
        inherited = getattr(super(), 'no_weight_decay', set)
        return set(inherited()) | undecayed_parameters(self)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute graph stages in the backward pass instead of storing what is inside."""
        for stage in graph_stages(self).values():
            stage.grad_checkpointing = enable


def imagenet_cfg(**kwargs) -> dict:
    """timm's default configuration of an untrained ImageNet network, with changes."""
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        **kwargs,
    }
