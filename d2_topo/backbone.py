"""Networks of timm as detectron2 backbones."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from detectron2.modeling import Backbone
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from timm_topo.checkpoint import graphs_of
from timm_topo.connectivity import undecayed_parameters
from timm_topo.executors import record_adjacency
from timm_topo.sparsity import check_sparsity, check_sparsity_weight, sparsity_loss
from timm_topo.stages import Stage, graph_stages

from .network import choose_levels, create_network, cut, frozen_parameters, modules_of
from .norm import convert_norm, freeze_parameters, frozen_names
from .pixels import Pixels, channels_of

__all__ = ['TopoBackbone', 'topo_backbone']

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

    Loading a state dict that lacks weights of the backbone, or has others, is an error even where
    loading is not strict: detectron2 loads what fits and only warns about the rest.

    Args:
        name: A model of timm by name, ``timm_topo``'s included; the folder of a saved network
            (``timm_topo.save``), pruned or not, whose weights are loaded too; or a trained model
            from ``timm.create_model`` or ``timm_topo.rewire``, which is changed in place.
        out_features: Some of ``res2``, ``res3``, ``res4``, ``res5``.
        norm: ``'FrozenBN'``, ``'BN'``, ``'SyncBN'`` or ``'GN'``, instead of batch norm.
        freeze_at: How much is frozen, counted as in detectron2: 0 nothing, 1 the stem (as timm
            counts it), 2 the stem and whatever else ``res2`` is made of, up to 5. In training too
            it runs as in evaluation: no path is dropped, no mask drawn, and routers close edges.
        pretrained: Whether timm fetches the weights it has under this name.
        activation_checkpoint: Recompute in the backward pass instead of storing.
        decay_edges: Whether detectron2's optimizers decay edge weights too, with biases and
            thresholds of routers.
        layer_decay: By how much detectron2's optimizers lower the learning rate from a layer to the
            one before it, of timm's layers (``group_matcher``); the last has the detector's.
        sparsity_weight: lambda of TopoNet, Eq. 6; with 0, :meth:`take_losses` is empty.
        sparsity: ``'uniform'`` or ``'adaptive'``; by default the network's own.
        pixel_mean: What the detector subtracts, per channel in the order of ``input_format``, for
            values from 0 to 255. By default images arrive as the classifier wants them.
        pixel_std: What it divides by then.
        input_format: ``'RGB'``, ``'BGR'`` or ``'L'`` (gray): the order of the channels. Images of
            any other number of channels, as many as ``pixel_mean`` has, may be called anything
            else. Weights for colour images are adapted to them, as timm does.
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
        decay_edges: bool = False,
        layer_decay: float = 1.0,
        sparsity_weight: float = 0.0,
        sparsity: str | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        input_format: str = 'RGB',
        **kwargs,
    ):
        super().__init__()
        channels = channels_of(input_format, pixel_mean)
        if not isinstance(name, nn.Module):
            kwargs.setdefault('in_chans', channels)
        self._options = None if isinstance(name, nn.Module) else kwargs
        model, self.name, self.has_weights = create_network(name, pretrained, kwargs)
        levels = choose_levels(model, self.name, out_features)
        self._out_features = sorted(out_features)
        self._out_feature_channels = {key: levels[key].channels for key in self._out_features}
        self._out_feature_strides = {key: levels[key].stride for key in self._out_features}
        self._indices = [levels[key].index for key in self._out_features]
        self.graphs = graphs_of(model)
        self._digest = _digest(self.graphs)
        self.register_buffer('graph_digest', torch.tensor(self._digest, dtype=torch.uint8))
        self.cut_off = cut(model, self._indices)
        frozen = frozen_parameters(model, self.name, levels, freeze_at, channels)
        self._stopped = modules_of(model, frozen)
        model = convert_norm(model, norm)
        freeze_parameters(model, frozen, self._stopped)
        self._frozen = frozen_names(model)
        self.mark_trained(() if self.has_weights else model.state_dict())
        if activation_checkpoint:
            graph_stages(model)  # or an error: not all of timm's networks checkpoint features
            model.set_grad_checkpointing(True)
        self._set_sparsity(model, sparsity_weight, sparsity)
        self.model = model
        self.decay_edges, self.layer_decay = decay_edges, layer_decay
        #: Of the trainer, where it is ours: ``d2_topo.engine.Settings``.
        self.settings = None
        if not 0 < layer_decay <= 1:
            raise ValueError(f'layer_decay must be in (0, 1], got {layer_decay}')
        cfg = model.pretrained_cfg
        self.pixels = Pixels(cfg['mean'], cfg['std'], pixel_mean, pixel_std, input_format)
        self.train(self.training)

    # -- what detectron2 asks for

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest feature."""
        return max(self._out_feature_strides.values())

    def train(self, mode: bool = True) -> 'TopoBackbone':
        """Training mode, but for what ``freeze_at`` freezes; or evaluation mode."""
        super().train(mode)
        for name in self._stopped:
            self.model.get_submodule(name).eval()
        return self

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
        if self.training and self.stuck:
            raise ValueError(
                f'{len(self.stuck)} tensors of the backbone {self.name}, such as '
                f'{min(self.stuck)}, would stay at their initial values (freeze_at, FrozenBN): '
                'give the weights that timm trained (MODEL.WEIGHTS, train.init_checkpoint), of '
                'this network itself, or train with norm BN, SyncBN or GN and freeze_at=0'
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
                    'did not take its losses after the last forward pass: use TopoRCNN, '
                    'TopoRetinaNet or TopologyLoss'
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
        stages = [module for module in model.modules() if isinstance(module, Stage)]
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

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters without weight decay, whatever the optimizer has for the others."""
        names = set() if self.decay_edges else undecayed_parameters(self)
        return [parameter for name, parameter in self.named_parameters() if name in names]

    def rate_scales(self) -> dict[nn.Parameter, float]:
        """By how much of the detector's learning rate each parameter is trained."""
        if self.layer_decay == 1:
            return {}
        groups = param_groups_layer_decay(self.model, layer_decay=self.layer_decay)
        return {p: group['lr_scale'] for group in groups for p in group['params']}

    # -- weights

    def mark_trained(self, but: Iterable[str] = ()) -> None:
        """Note that weights were loaded, for all of ``model`` but these tensors.

        Edge weights do not count: their initial values are chosen, not random.
        """
        names = {name for name in but if '.connectivity.' not in name}
        #: Tensors with initial values that training would not change.
        self.stuck = names & self._frozen

    def whole(self) -> nn.Module:
        """The network as timm makes it, without classifier, with these weights: to be saved.

        Raises:
            ValueError: It was given as a model, has lost more than its end, or has other norms.
        """
        told = self._options is not None and not any(
            isinstance(module, nn.GroupNorm) for module in self.model.modules()
        )
        if told:
            options = {**self._options, 'num_classes': 0}
            options.pop('checkpoint_path', None)
            model, *_ = create_network(self.name, False, options)
            told = len(model.feature_info) == self._indices[-1] + 1
        if not told:
            raise ValueError(
                f'the backbone {self.name} is no whole network: made of a model, of group norms '
                'instead of its own, or cut off before its last feature'
            )
        model.load_state_dict({**model.state_dict(), **self.model.state_dict()})
        stats = {name: getattr(self.pixels, name).tolist() for name in ('mean', 'std')}
        model.pretrained_cfg = {**model.pretrained_cfg, **stats}
        return model.eval()

    def misfit(self, state_dict: dict[str, Tensor], prefix: str) -> str:
        """Why a detector's weights are not of this backbone; '' if they are.

        Args:
            state_dict: Of the detector.
            prefix: Of the backbone in it, ``'backbone.bottom_up.'``.
        """
        own = self.state_dict()
        given = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        given = {
            name: value
            for name, value in given.items()
            if name.removeprefix('model.') not in self.cut_off
            and (name not in own or own[name].shape == value.shape)
        }
        optional = [n for n in own if n not in given and not n.startswith('model.')]
        why = describe_misfit(own.keys() - optional, given)
        digest = given.get('graph_digest')
        if not why and digest is not None and digest.tolist() != self._digest:
            why = 'other wirings or rules'
        return why and f'its backbone is not this {self.name}: {why}'

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        misfit = self.misfit(state_dict, prefix)
        if misfit:
            raise ValueError(f'this checkpoint is of another detector: {misfit}')
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.mark_trained()


def _digest(graphs: list[dict] | None) -> list[int]:
    """32 bytes that tell other graphs apart, for detectors' checkpoints."""
    return list(hashlib.sha256(json.dumps(graphs, sort_keys=True).encode()).digest())


def describe_misfit(own: Iterable[str], given: Iterable[str]) -> str:
    """Missing and superfluous names between two state dicts; '' if nothing.

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
