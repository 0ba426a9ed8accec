"""Common abilities of re-wired networks of timm."""

import math
from collections.abc import Iterator
from itertools import takewhile

import timm
import torch
from timm.models import get_model_args, group_parameters
from torch import nn

from ...nodes import ConvNorm
from ...registry import Registry
from ...stages import GraphStage, graph_stages
from ..base import GraphNet

__all__ = [
    'FAMILIES',
    'Rewired',
    'is_new',
    'register_family',
    'replaced',
    'reset_input_conv',
    'reset_projection',
    'rewired_class',
]


#: Re-wired classes by the name of timm's class.
FAMILIES = Registry('family')


class Rewired(GraphNet):
    """Mixin for a network of timm with graph stages; made by :func:`rewire`.

    Everything of the timm class stays: ``forward_features``, ``forward_intermediates``,
    ``reset_classifier`` and so on. ``load_state_dict`` takes state dicts of the plain network too.

    Attributes:
        base: timm name of the plain network.
        base_args: Options it was created with.
        linear: Whether nothing but sums stands between the nodes of a stage, as it does not in
            families with an activation behind the residual sum.
    """

    base = ''
    base_args = None
    linear = True

    def plain(self) -> nn.Module:
        """The plain network of timm, freshly initialised, with this network's head."""
        now = get_model_args(self)
        head = {key: now[key] for key in ('in_chans', 'num_classes', 'global_pool') if key in now}
        return timm.create_model(self.base, **{**self.base_args, **head})

    def plain_names(self) -> dict[str, str | None]:
        """Name in the plain network's state dict for every name here; None for what is new."""
        return dict(_plain_names(self, '', ''))

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Load weights of this network, or of the plain one.

        From the plain network's weights come all but edge weights, added projections and input
        convolutions made anew, which stay as they are.

        Raises:
            RuntimeError: The weights are of another network; says how many do not fit.
        """
        names = self.plain_names()
        own_name = {plain: own for own, plain in names.items() if plain}
        only_plain = own_name.keys() - names.keys()
        if only_plain & state_dict.keys():
            new = {name: value for name, value in self.state_dict().items() if not names[name]}
            gone = tuple(f'{module.instead_of}.' for module in replaced(self))
            kept = {n: v for n, v in state_dict.items() if not n.startswith(gone)}
            state_dict = {**new, **{own_name.get(n, n): v for n, v in kept.items()}}
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            raise RuntimeError(self._misfit(state_dict)) from error

    def _misfit(self, state_dict) -> str:
        own = self.state_dict()
        kinds = {
            'missing': own.keys() - state_dict.keys(),
            'unexpected': state_dict.keys() - own.keys(),
            'of another shape': {
                n for n in own.keys() & state_dict.keys() if own[n].shape != state_dict[n].shape
            },
        }
        told = [f'{len(n)} tensors {kind} (such as {min(n)})' for kind, n in kinds.items() if n]
        stages = graph_stages(self).values()
        pruned = any(stage.node_ids[-1] != stage.wiring.num_nodes - 1 for stage in stages)
        return (
            f'this state_dict is not of the re-wired {self.base}, nor of the plain one'
            f'{" (some of whose blocks were pruned here)" if pruned else ""}: of {len(own)} '
            f'tensors {", ".join(told)}'
        )

    def init_weights(self, *args, **kwargs) -> None:
        """Fresh weights: timm's own for what is timm's, initial edge weights and projections.

        Arguments are those of the plain network's ``init_weights``, where it has one.
        """
        plain = self.plain()
        if args or kwargs:
            plain.init_weights(*args, **kwargs)
        plain = plain.state_dict()
        names = self.plain_names()
        self.load_state_dict({own: plain[name] for own, name in names.items() if name}, False)
        for stage in graph_stages(self).values():
            stage.connectivity.reset_parameters()
            if is_new(stage.entry):
                reset_projection(stage.entry, beside=stage.first_reads_input)
        for conv in replaced(self):
            reset_input_conv(conv)

    def group_matcher(self, coarse: bool = False):
        """Parameter groups as in the plain network; edge weights go with the stage's first, or,
        where no block is left, with what comes before the stage.
        """
        names = self.plain_names()
        with torch.device('meta'):
            plain = self.plain()
        layers = group_parameters(plain, plain.group_matcher(coarse), reverse=True)
        order = {own: layers[plain] for own, plain in names.items() if plain in layers}
        for prefix in graph_stages(self):
            own = f'{prefix}.'
            inside = [name for name in names if name.startswith(own)]
            before = takewhile(lambda name, own=own: not name.startswith(own), names)
            first = min(
                (order[name] for name in inside if name in order),
                default=max((order.get(name, 0) for name in before), default=0),
            )
            order |= {name: first for name in inside if name not in order}
        return lambda name: order.get(name, math.inf)


def register_family(cls: type[Rewired]) -> type[Rewired]:
    """Class decorator: networks of timm's class, the second base, can be re-wired.

    Raises:
        ValueError: The class does not name :class:`Rewired` and one class of timm, in this order.
    """
    if len(cls.__bases__) != 2 or cls.__bases__[0] is not Rewired:
        raise ValueError(f'{cls.__name__} must have the bases Rewired and one class of timm')
    return FAMILIES.register(cls.__bases__[1].__name__, cls)


def rewired_class(cls: type[nn.Module]) -> type[Rewired] | None:
    """The class of a re-wired ``cls``, made where ``cls`` extends a family; None for others."""
    for family in FAMILIES.values():
        if family.__bases__[1] is cls:
            return family
    if not issubclass(cls, tuple(family.__bases__[1] for family in FAMILIES.values())):
        return None
    made = type(f'Rewired{cls.__name__}', (Rewired, cls), {'__module__': __name__})
    kept = globals().setdefault(made.__name__, made)  # where pickle looks for it
    return kept if kept.__bases__[1] is cls else made


def is_new(entry: nn.Module) -> bool:
    """Whether an entry is a projection that the plain network does not have."""
    return isinstance(entry, ConvNorm) and not hasattr(entry, 'origin')


def replaced(model: nn.Module) -> list[nn.Conv2d]:
    """Input convolutions that stand instead of those of the plain network."""
    return [module for module in model.modules() if hasattr(module, 'instead_of')]


@torch.no_grad()
def reset_projection(projection: ConvNorm, beside: bool) -> None:
    """Fresh weights: beside a node adding nothing at first, else handing on what comes in."""
    conv = projection.conv
    projection.bn.reset_parameters()
    if not beside and conv.in_channels == conv.out_channels:
        nn.init.dirac_(conv.weight)
    else:
        reset_input_conv(conv)
    if beside:
        nn.init.zeros_(projection.bn.weight)


@torch.no_grad()
def reset_input_conv(conv: nn.Conv2d) -> None:
    """Fresh weights, as timm's ResNets have."""
    nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _plain_names(
    module: nn.Module, own: str, plain: str | None
) -> Iterator[tuple[str, str | None]]:
    if isinstance(module, GraphStage):
        plain = None  # what is not marked inside is new
    if hasattr(module, 'origin'):
        plain = module.origin and f'{module.origin}.'
    buffers = [key for key in module._buffers if key not in module._non_persistent_buffers_set]
    for key in [*module._parameters, *buffers]:
        if getattr(module, key) is not None:
            yield own + key, None if plain is None else plain + key
    for key, child in module.named_children():
        yield from _plain_names(child, f'{own}{key}.', None if plain is None else f'{plain}{key}.')
