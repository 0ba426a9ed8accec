"""Networks of timm as detectron2 backbones."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from timm_topo.checkpoint import graphs_of
from timm_topo.sparsity import check_sparsity, check_sparsity_weight, sparsity_loss
from timm_topo.stages import GraphStage, graph_stages, record_adjacency

from .network import choose_levels, create_network, cut, modules_until
from .norm import convert_norm, freeze_modules, has_frozen_norm
from .pixels import FORMATS, Pixels

__all__ = [
    'TopoBackbone',
    'build_retinanet_topo_fpn_backbone',
    'build_topo_backbone',
    'build_topo_fpn_backbone',
    'topo_backbone',
]

LEVELS = ('res2', 'res3', 'res4', 'res5')


class TopoBackbone(Backbone):
    """A network of timm, with or without graph stages, that returns ``res2`` to ``res5``.

    ``res2`` is the last map at stride 4, and so on to ``res5`` at stride 32. The network itself is
    ``model``, with the parameter names that timm's checkpoints have; its classifier and whatever
    comes after the last feature are cut off.

    Images may arrive in any of detectron2's usual forms: what the detector calls ``pixel_mean``,
    ``pixel_std`` and ``input_format`` is turned into the preprocessing that the classifier was
    trained with (nothing is done where they agree). That preprocessing is taken from the network,
    then from the checkpoint with its weights, and is saved with the detector.

    Args:
        name: A model of timm by name, ``timm_topo``'s included; the folder of a saved network
            (``timm_topo.save``), pruned or not, whose weights are loaded too; or a model from
            ``timm.create_model`` or ``timm_topo.rewire``, which is changed in place.
        out_features: Some of ``res2``, ``res3``, ``res4``, ``res5``.
        norm: ``'FrozenBN'``, ``'BN'``, ``'SyncBN'`` or ``'GN'``, instead of batch norm.
        freeze_at: How much is frozen, counted as in detectron2: 0 nothing, 1 the stem (what comes
            before ``res2``), 2 the stem and ``res2``, up to 5.
        pretrained: Whether timm fetches the weights it has under this name.
        activation_checkpoint: Recompute in the backward pass instead of storing.
        sparsity_weight: lambda of TopoNet, Eq. 6; with 0, :meth:`take_losses` is empty.
        sparsity: ``'uniform'`` or ``'adaptive'``; by default the network's own.
        pixel_mean: What the detector subtracts, per channel in the order of ``input_format``, for
            values from 0 to 255. By default images arrive as the classifier wants them.
        pixel_std: What it divides by then.
        input_format: ``'RGB'``, ``'BGR'`` or ``'L'``: the order of the channels.
        **kwargs: Options of the network.

    Raises:
        ValueError: An unknown name, feature, norm or format, or ``freeze_at`` out of range; a
            network without such features; or without graph stages, where there is a
            ``sparsity_weight`` or ``activation_checkpoint``.
    """

    def __init__(
        self,
        name: str | Path | nn.Module,
        out_features: Sequence[str] = LEVELS,
        *,
        norm: str = 'FrozenBN',
        freeze_at: int = 0,
        pretrained: bool = False,
        activation_checkpoint: bool = False,
        sparsity_weight: float = 0.0,
        sparsity: str | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        input_format: str = 'RGB',
        **kwargs,
    ):
        super().__init__()
        if not isinstance(name, nn.Module):
            kwargs.setdefault('in_chans', FORMATS.get(input_format, 3))
        model, self.name, self.has_weights = create_network(name, pretrained, kwargs)
        levels = choose_levels(model, self.name, out_features)
        self._out_features = sorted(out_features)
        self._out_feature_channels = {key: levels[key].channels for key in self._out_features}
        self._out_feature_strides = {key: levels[key].stride for key in self._out_features}
        self._indices = [levels[key].index for key in self._out_features]
        self.graphs = graphs_of(model)
        self.cut_off = cut(model, self._indices)
        model = convert_norm(model, norm)
        freeze_modules(model, modules_until(model, levels, freeze_at))
        self.fixed = f'freeze_at={freeze_at}' if freeze_at else ''  # would keep random weights
        if not self.fixed and has_frozen_norm(model):
            self.fixed = norm
        if activation_checkpoint:
            graph_stages(model)  # or an error: not all of timm's networks checkpoint features
            model.set_grad_checkpointing(True)
        self._set_sparsity(model, sparsity_weight, sparsity)
        self.model = model
        cfg = model.pretrained_cfg
        self.pixels = Pixels(cfg['mean'], cfg['std'], pixel_mean, pixel_std, input_format)

    # -- what detectron2 asks for

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest feature."""
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images ``(B, C, H, W)``, preprocessed by the detector -> maps by name.

        ``res2`` is ``(B, C_2, H / 4, W / 4)`` and so on; detectors pad images to multiples of
        the coarsest stride.

        Raises:
            RuntimeError: In training: nobody took the losses of the last forward pass.
            ValueError: The images are smaller than the coarsest stride; or, in training, random
                weights are frozen.
        """
        if min(x.shape[-2:]) < self.size_divisibility:
            raise ValueError(
                f'images of {x.shape[-2]}x{x.shape[-1]} pixels are smaller than the stride '
                f'{self.size_divisibility} of {list(self._out_features)[-1]}'
            )
        if self.training and self.fixed and not self.has_weights:
            raise ValueError(
                f'the backbone {self.name} has random weights, and {self.fixed} would leave them '
                'so: give the weights that timm trained (MODEL.WEIGHTS, train.init_checkpoint), '
                'or train from scratch with norm BN, SyncBN or GN and freeze_at=0'
            )
        x = self.pixels(x)
        due = self.training and self.sparsity_weight > 0
        recording = due and self.routed
        with record_adjacency(self.model) if recording else nullcontext() as adjacency:
            maps = self.model.forward_intermediates(
                x, indices=self._indices, intermediates_only=True, output_fmt='NCHW'
            )
        if due:
            if self._losses:
                raise RuntimeError(
                    f'the backbone has sparsity_weight={self.sparsity_weight:g}, but the detector '
                    'does not take its losses: use TopoRCNN, TopoRetinaNet or TopologyLoss'
                )
            penalty = sparsity_loss(self.model, self.sparsity, adjacency)
            self._losses = {'loss_topology': self.sparsity_weight * penalty}
        return dict(zip(self._out_features, maps))

    # -- the topology term

    def take_losses(self) -> dict[str, Tensor]:
        """``{'loss_topology': lambda * sum_e w_e |a_e|}`` of the last forward pass in training.

        Empty without a ``sparsity_weight``. Edge weights that depend on the image count with their
        mean over the batch.
        """
        losses, self._losses = self._losses, {}
        return losses

    def _set_sparsity(self, model: nn.Module, weight: float, kind: str | None) -> None:
        self.sparsity_weight = check_sparsity_weight(weight)
        self.sparsity = check_sparsity(kind or getattr(model, 'sparsity', 'none'))
        stages = [module for module in model.modules() if isinstance(module, GraphStage)]
        self.routed = any(stage.needs_context for stage in stages)
        self._losses = {}
        if not self.sparsity_weight:
            return
        graph_stages(model)  # or an error
        if self.sparsity == 'none':
            raise ValueError(
                f'sparsity_weight={weight:g}, but {self.name} has no sparsity of its own: give '
                "sparsity='uniform' or 'adaptive'"
            )

    # -- weights

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """As always, but another network's weights are an error even where loading is not strict.

        detectron2 loads what fits and only warns about the rest.
        """
        given = {k.removeprefix(prefix) for k in state_dict if k.startswith(prefix)}
        given = {k for k in given if k.removeprefix('model.') not in self.cut_off}
        own = {k for k in self.state_dict() if k in given or not k.startswith('pixels.')}
        misfit = describe_misfit(own, given)
        if misfit:
            raise ValueError(
                f'this checkpoint is not of a detector with the backbone {self.name}: {misfit}'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.has_weights = True


def describe_misfit(own: Iterable[str], given: Iterable[str]) -> str:
    """What is missing and what is too much among the names of two state dicts; '' if nothing.

    Counters of batch norm, which frozen and other norms lack, do not matter.
    """
    own, given = (
        {name for name in names if not name.endswith('num_batches_tracked')}
        for names in (own, given)
    )
    kinds = {'missing (or of another shape)': own - given, 'unknown': given - own}
    told = [f'{len(n)} are {kind}, such as {min(n)}' for kind, n in kinds.items() if n]
    return f'of {len(own)} tensors here and {len(given)} there, {"; ".join(told)}' if told else ''


def topo_backbone(model: nn.Module) -> TopoBackbone:
    """The backbone of a detector.

    Raises:
        ValueError: It has no :class:`TopoBackbone`, or several.
    """
    found = [module for module in model.modules() if isinstance(module, TopoBackbone)]
    if len(found) != 1:
        raise ValueError(f'{type(model).__name__} has {len(found)} TopoBackbones instead of one')
    return found[0]


# -- yaml configs ---------------------------------------------------------------------------------


@BACKBONE_REGISTRY.register()
def build_topo_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TopoBackbone:
    """The backbone of ``MODEL.TOPO`` (``add_topo_config``), without FPN.

    Raises:
        ValueError: See :class:`TopoBackbone`; or a ``SPARSITY_WEIGHT`` with a meta architecture
            that would not take the loss.
    """
    if not hasattr(cfg.MODEL, 'TOPO'):
        raise ValueError('the config has no MODEL.TOPO: call add_topo_config(cfg) first')
    topo = cfg.MODEL.TOPO
    if topo.SPARSITY_WEIGHT and not cfg.MODEL.META_ARCHITECTURE.startswith('Topo'):
        raise ValueError(
            f'MODEL.TOPO.SPARSITY_WEIGHT={topo.SPARSITY_WEIGHT:g} needs MODEL.META_ARCHITECTURE '
            f'TopoRCNN or TopoRetinaNet, got {cfg.MODEL.META_ARCHITECTURE}'
        )
    options = dict(
        norm=topo.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pretrained=topo.PRETRAINED,
        activation_checkpoint=topo.ACTIVATION_CHECKPOINT,
        sparsity_weight=topo.SPARSITY_WEIGHT,
        sparsity=topo.SPARSITY or None,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        input_format=cfg.INPUT.FORMAT,
    )
    twice = sorted(options.keys() & topo.KWARGS.keys())
    if twice:
        raise ValueError(f'MODEL.TOPO.KWARGS has {twice}, for which there are keys of their own')
    return TopoBackbone(topo.NAME, topo.OUT_FEATURES, **options, **topo.KWARGS)


@BACKBONE_REGISTRY.register()
def build_topo_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The backbone of ``MODEL.TOPO`` with an FPN; p6 by subsampling, for RPN."""
    return _fpn(cfg, build_topo_backbone(cfg, input_shape), lambda _: LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_topo_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The backbone of ``MODEL.TOPO`` with an FPN; p6 and p7 by convolutions on ``res5``."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return _fpn(
        cfg,
        build_topo_backbone(cfg, input_shape),
        lambda shapes: LastLevelP6P7(shapes['res5'].channels, channels),
    )


def _fpn(cfg: CfgNode, bottom_up: TopoBackbone, top_block) -> FPN:
    shapes = bottom_up.output_shape()
    unknown = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in shapes]
    if unknown or 'res5' not in shapes:
        raise ValueError(
            f'MODEL.FPN.IN_FEATURES {cfg.MODEL.FPN.IN_FEATURES} and res5 (for the coarsest level) '
            f'must be among MODEL.TOPO.OUT_FEATURES {list(shapes)}'
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block(shapes),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
