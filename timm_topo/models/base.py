"""What every network with graph stages can do, whoever wrote the rest of it."""

import inspect
from collections.abc import Callable

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, get_norm_layer
from timm.models import build_model_with_cfg, named_apply
from torch import Tensor, nn

from ..connectivity import connectivity_spec, undecayed_parameters
from ..sparsity import sparsity_loss
from ..stages import graph_stages

__all__ = [
    'ClassifierNet', 'GraphNet', 'build_network', 'imagenet_cfg', 'norm_class', 'note_options',
    'per_stage',
]  # fmt: skip


class GraphNet:
    """Mixin for networks whose stages are :class:`timm_topo.stages.GraphStage`.

    Attributes:
        sparsity: ``'none'``, ``'uniform'`` or ``'adaptive'``: the L1 that training adds.
        sparsity_weight: lambda of TopoNet, Eq. 6.
    """

    sparsity: str = 'none'
    sparsity_weight: float = 0.0

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

    def sparsity_loss(self) -> Tensor:
        """sum_e w_e |a_e| for the model's ``sparsity``, a scalar; not yet times lambda (Eq. 6)."""
        return sparsity_loss(self)

    def no_weight_decay(self) -> set:
        """Names of the parameters that no optimizer may decay, the edge weights among them."""
        inherited = getattr(super(), 'no_weight_decay', set)
        return set(inherited()) | undecayed_parameters(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute graph stages in the backward pass instead of storing what is inside."""
        for stage in graph_stages(self).values():
            stage.grad_checkpointing = enable


class ClassifierNet(GraphNet, nn.Module):
    """A network of ours: a subclass gives ``forward_features``, this what is behind them.

    The constructor of the subclass calls :meth:`set_head` and :meth:`init_weights` last.
    """

    num_features: int

    def set_head(self, num_classes: int, pool_type: str, drop_rate: float, **dd) -> None:
        """Pooling and linear classifier over ``num_features`` channels."""
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=pool_type, drop_rate=drop_rate, **dd
        )
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    def init_weights(self) -> None:
        """He for convolutions, N(0, 0.01) for the classifier, rules by themselves."""
        named_apply(_init_weights, self)

    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifier (none for 0 classes); ``global_pool`` None keeps the pooling."""
        parameter = next(self.parameters())
        pool = self.head.global_pool.pool_type if global_pool is None else global_pool
        dd = {'device': parameter.device, 'dtype': parameter.dtype}
        self.set_head(num_classes, pool, self.drop_rate, **dd)
        self.head.train(self.training)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits ``(B, num_classes)``, or pooled features."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def build_network(
    cls: type[ClassifierNet], variant: str, pretrained: bool, options: dict, **machinery
) -> nn.Module:
    """timm's ``build_model_with_cfg`` of a network of ours, with all its options noted.

    Args:
        cls: The class.
        variant: Registered name.
        pretrained: Whether to load weights.
        options: For the class, and for timm.
        **machinery: For timm.
    """
    model = build_model_with_cfg(cls, variant, pretrained, **machinery, **options)
    default = {name: option.default for name, option in inspect.signature(cls).parameters.items()}
    return note_options(model, {name: options.get(name, default[name]) for name in default})


def note_options(model: nn.Module, options: dict) -> nn.Module:
    """Have all ``options`` saved with ``model``, those by default too: defaults may change."""
    placement = ('device', 'dtype')
    model._model_args = {name: v for name, v in options.items() if name not in placement}
    return model


def per_stage(name: str, value, depth: int) -> list:
    """One value per stage, from one for all or a sequence of them.

    Raises:
        ValueError: A sequence of another length.
    """
    if not isinstance(value, (list, tuple)):
        return [value] * depth
    if len(value) != depth:
        raise ValueError(f'{name} has {len(value)} entries for {depth} stages: {value}')
    return list(value)


def norm_class(norm_layer: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A normalisation, given as a class or by the name that timm knows.

    Raises:
        ValueError: timm does not know it.
    """
    try:
        return get_norm_layer(norm_layer)
    except (AssertionError, KeyError):
        raise ValueError(f'norm_layer {norm_layer!r} is no class and no name timm knows') from None


def _init_weights(module: nn.Module, name: str = '') -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
    elif hasattr(module, 'reset_parameters'):  # normalisation and connectivity rules
        module.reset_parameters()


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
