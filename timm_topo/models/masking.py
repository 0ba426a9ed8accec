"""Shared by the networks of MaskConnect: options of masks, given by name or as a rule."""

from collections.abc import Sequence

from ..checks import check_integer
from .base import imagenet_cfg, per_stage

__all__ = [
    'BY_RULE', 'CIFAR_CFG', 'Rule', 'check_sizes', 'fan_in_left', 'kept_ids',
    'masking_rule',
]  # fmt: skip

Rule = str | dict | type | Sequence | None
#: Options of masks beside a rule, which has its own: a saved network must not have others.
BY_RULE = {'fan_in': None, 'masks': 'learned', 'mask_seed': 0}
CIFAR_CFG = imagenet_cfg(
    input_size=(3, 32, 32), pool_size=(8, 8), num_classes=100, crop_pct=1.0,
    mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),  # CIFAR-100
    first_conv='dag.entry.0.conv', classifier='head.fc',
)  # fmt: skip


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Refuse sizes that are no integers, or, of depths and widths, no sequences of such."""
    for name, size in sizes.items():
        many = name in ('depths', 'widths')
        if many and (not isinstance(size, (list, tuple)) or not size):
            raise ValueError(f'{name} must be a sequence of integers, got {size!r}')
        for one in size if many else [size]:
            check_integer(name, one)


def kept_ids(node_ids: Sequence | None, num_nodes: int) -> list[int]:
    """Ids of the nodes there are; a saved network has those of its one graph in a list."""
    if node_ids is None:
        return list(range(num_nodes))
    nested = isinstance(node_ids[0], (list, tuple))
    ids = list(node_ids[0] if nested else node_ids)
    if ids[0] != 0 or ids[-1] != num_nodes - 1:
        raise ValueError(f'node_ids must lead from 0 to {num_nodes - 1}, got {ids}')
    return ids


def masking_rule(connectivity: Rule, masking: dict, own: str) -> str | dict | type:
    """The rule: masks with the options ``masking``, unless another is given.

    Where masks are given with options, the network's ``own`` one is among them by default.

    Raises:
        ValueError: Both are given.
    """
    if connectivity is None:
        return {'name': 'mask', **masking}
    usual = dict(
        fan_in=None,
        masks='learned',
        seed=0,
        average=True,
        full_output=True,
    )
    doubled = [f'{name}={value!r}' for name, value in masking.items() if value != usual[name]]
    if doubled:
        raise ValueError(
            f'{", ".join(doubled)}: the rule is given already, by connectivity or by the saved '
            'network, and brings its own options'
        )
    (spec,) = per_stage('connectivity', connectivity, 1)
    if spec == 'mask' or (isinstance(spec, dict) and spec.get('name') == 'mask'):
        return {own: masking[own], **({'name': spec} if spec == 'mask' else spec)}
    return spec


def fan_in_left(kwargs: dict) -> dict:
    """No K where masks do not choose or a rule is given: a network's own K is for masks that do."""
    chooses = kwargs.get('masks', 'learned') in ('learned', 'random')
    if kwargs.get('connectivity') is None and chooses:
        return {}
    return {'fan_in': kwargs.get('fan_in')}
