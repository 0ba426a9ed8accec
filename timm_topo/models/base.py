"""Common abilities of all networks with graph stages."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, get_norm_layer
from timm.models import build_model_with_cfg, named_apply
from torch import Tensor, nn

from ..connectivity import connectivity_spec, undecayed_parameters
from ..generators import is_explicit
from ..sparsity import check_sparsity, check_sparsity_weight, sparsity_loss
from ..stages import graph_stages

__all__ = [
    'ClassifierNet', 'GraphNet', 'NetworkOptions', 'create_network', 'imagenet_cfg', 'note_options',
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
        """Names of the parameters that timm is not to decay, the edge weights among them."""
        inherited = getattr(super(), 'no_weight_decay', set)
        return set(inherited()) | undecayed_parameters(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute graph stages in the backward pass instead of storing what is inside."""
        for stage in graph_stages(self).values():
            stage.grad_checkpointing = enable


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of every network of ours, beside its own.

    Attributes:
        sparsity: ``'none'``, ``'uniform'`` or ``'adaptive'``: the L1 that training adds.
        sparsity_weight: lambda of TopoNet, Eq. 6. The paper: 1e-4, robust from 1e-5 to 1e-4.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for pooled features.
        global_pool: Pooling, as in ``timm.layers.ClassifierHead``.
        drop_rate: Dropout before the classifier.
        norm_layer: Normalisation, a class or a name that timm knows (``'layernorm2d'``...).
        device: Where parameters live.
        dtype: Their type.

    Raises:
        TypeError: An option of the wrong type.
        ValueError: An unknown sparsity or normalisation.
    """

    sparsity: str = 'none'
    sparsity_weight: float = 1e-4
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = 'avg'
    drop_rate: float = 0.0
    norm_layer: str | Callable[..., nn.Module] = 'batchnorm2d'
    device: Any = None
    dtype: Any = None

    def __post_init__(self):
        check_sparsity(self.sparsity)
        check_sparsity_weight(self.sparsity_weight)

    @property
    def placement(self) -> dict:
        """``device`` and ``dtype``, for constructors of layers."""
        return {'device': self.device, 'dtype': self.dtype}

    @property
    def layer(self) -> dict:
        """``norm_layer``, ``device`` and ``dtype``, for constructors of what has a norm."""
        return {'norm_layer': norm_class(self.norm_layer), **self.placement}


class ClassifierNet(GraphNet, nn.Module):
    """A network of ours: a subclass gives ``forward_features``, this what is behind them.

    The constructor of a subclass takes its own options and ``**common``, which are those of
    :class:`NetworkOptions`; it calls :meth:`finish` last.

    Attributes:
        defaults: Common options whose default is another for this class.
    """

    defaults: ClassVar[dict] = {}
    num_features: int

    def __init__(self, common: NetworkOptions):
        super().__init__()
        self.in_chans = common.in_chans
        self.sparsity, self.sparsity_weight = common.sparsity, float(common.sparsity_weight)

    @classmethod
    def common_options(cls, common: dict) -> NetworkOptions:
        """The options that all networks have, with the defaults of this class.

        Raises:
            TypeError: An option that the class does not have.
        """
        unknown = common.keys() - {field.name for field in fields(NetworkOptions)}
        if unknown:
            raise TypeError(
                f'{cls.__name__} got an unexpected keyword argument {min(unknown)!r}; it takes '
                f'{", ".join(cls.all_options())}'
            )
        return NetworkOptions(**{**cls.defaults, **common})

    @classmethod
    def all_options(cls) -> dict:
        """Defaults of all options by name, the common ones last."""
        own = inspect.signature(cls).parameters.values()
        common = {field.name: field.default for field in fields(NetworkOptions)}
        given = {option.name: option.default for option in own if option.kind != option.VAR_KEYWORD}
        return {**given, **common, **cls.defaults}

    def finish(self, common: NetworkOptions, num_features: int) -> None:
        """Pooling and classifier over ``num_features`` channels; then all initial weights."""
        self.num_features = num_features
        self.set_head(common.num_classes, common.global_pool, common.drop_rate, **common.placement)
        self.init_weights()

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


def create_network(
    cls: type[ClassifierNet],
    variant: str,
    pretrained: bool,
    defaults: dict,
    overrides: dict,
    *,
    levels: Callable[[dict], int],
    pretrained_filter_fn: Callable | None = None,
    **feature_cfg,
) -> nn.Module:
    """A registered variant of ``cls``, by timm's ``build_model_with_cfg``; all options are noted.

    Args:
        cls: The class.
        variant: Registered name.
        pretrained: Whether to load weights.
        defaults: The variant's options.
        overrides: The caller's, and timm's; these win.
        levels: How many features the network has, given its options.
        pretrained_filter_fn: For timm: makes weights of others fit.
        **feature_cfg: For timm's features; by default taken from ``forward_intermediates``.
    """
    default = cls.all_options()
    options = {**defaults, **overrides}
    if (
        'num_nodes' in default
        and 'num_nodes' not in overrides
        and is_explicit(options.get('wiring'))
    ):
        options['num_nodes'] = None  # the graphs say how many
    out_indices = options.pop('out_indices', None)
    if out_indices is None:
        out_indices = tuple(range(levels({**default, **options})))
    model = build_model_with_cfg(
        cls,
        variant,
        pretrained,
        pretrained_filter_fn=pretrained_filter_fn,
        feature_cfg={'feature_cls': 'getter', **feature_cfg, 'out_indices': out_indices},
        **options,
    )
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
