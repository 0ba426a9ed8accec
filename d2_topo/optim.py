"""Which parameters detectron2's optimizers decay."""

from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from torch import nn

from timm_topo.connectivity import undecayed_parameters

__all__ = ['topo_optimizer_params']


def topo_optimizer_params(model: nn.Module, decay_edges: bool = False, **kwargs) -> list[dict]:
    """detectron2's ``get_default_optimizer_params``, without weight decay on edge weights.

    The target of ``optimizer.params`` in LazyConfigs. With ``decay_edges`` as detectron2 has it:
    all but norms are decayed.
    """
    names = set() if decay_edges else undecayed_parameters(model)
    spared = {id(parameter) for name, parameter in model.named_parameters() if name in names}
    groups = []
    for group in get_default_optimizer_params(model, **kwargs):
        options = {key: value for key, value in group.items() if key != 'params'}
        for parameter in group['params']:
            decay = {'weight_decay': 0.0} if id(parameter) in spared else {}
            groups.append({'params': [parameter], **options, **decay})
    return reduce_param_groups(groups)
