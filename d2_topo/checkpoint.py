"""Weights that timm trained, for detectors.

Importing this module lets every ``DetectionCheckpointer`` load them: ``MODEL.WEIGHTS`` and
``train.init_checkpoint`` may name a checkpoint of timm or a saved network. detectron2 has no place
for other formats, so :func:`_load` stands in front of ``DetectionCheckpointer.load``; what is not
timm's goes on as ever. Either way a detector is not evaluated with heads that were not loaded.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from timm.models import adapt_input_conv
from torch import Tensor, nn

from timm_topo.checkpoint import Origin, checkpoint_origin, read_checkpoint

from .backbone import TopoBackbone, describe_misfit, topo_backbone

__all__ = ['LoadReport', 'load_timm_weights']

_logger = logging.getLogger('detectron2.d2_topo')
_detectron2_load = DetectionCheckpointer.load
_detectron2_load_model = DetectionCheckpointer._load_model


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_timm_weights` did: names of tensors.

    Attributes:
        loaded: Tensors of the backbone that were in the checkpoint.
        skipped: Tensors of the checkpoint that the backbone does not have: the classifier, which it
            has cut off, and statistics of batch norms that are group norms now.
        missing: Tensors of the backbone that stay as they are. Only those that re-wiring adds to a
            plain network (edge weights and the like), when its weights are loaded.
    """

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        text = f'loaded {len(self.loaded)} tensors'
        for kind in ('skipped', 'missing'):
            names = getattr(self, kind)
            text += f', {kind} {len(names)}'
            if names:
                text += f' ({", ".join(names[:4])}{", ..." if len(names) > 4 else ""})'
        return text


def load_timm_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Load into a backbone, or a detector with one, what timm trained.

    Averaged weights (EMA) are taken where there are any. Weights of the plain network fit its
    re-wired form. Preprocessing that was stored with the weights replaces the backbone's.

    Args:
        model: A :class:`TopoBackbone`, or a detector with one.
        path: ``.pth``, ``.pth.tar`` or ``.safetensors`` file, or the folder of a saved network.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It is damaged, or of another network: by names, shapes, or the wiring that is
            stored with the weights.
    """
    backbone = topo_backbone(model)
    origin = checkpoint_origin(path)
    _check_origin(backbone, origin, path)
    pixels = backbone.pixels.complete(origin.mean, origin.std)
    report = _load_into(backbone, read_checkpoint(origin.weights), path)
    backbone.pixels.set(*pixels)
    backbone.mark_trained(but=report.missing)
    _mark_heads(model, dict(model.named_parameters()))
    _logger.info(f'{path} -> backbone {backbone.name}: {report}; nothing else was loaded')
    return report


def _check_origin(backbone: TopoBackbone, origin: Origin, path: str | Path) -> None:
    """Names and shapes may fit where the function is another one."""
    if origin.graphs:
        if origin.graphs != backbone.graphs:
            raise ValueError(
                f'{path} holds a {origin.architecture} with another wiring or rule than the '
                f'backbone {backbone.name}; if it was pruned, its folder must be the backbone: '
                'MODEL.TOPO.NAME, or name in a LazyConfig'
            )
        return
    body = backbone.model
    own = getattr(body, 'base', None) or body.pretrained_cfg['architecture']
    if origin.architecture and origin.architecture != own:
        raise ValueError(
            f'{path} holds a {origin.architecture}, but the backbone is '
            f'{"a re-wired " if hasattr(body, "base") else ""}{own}'
        )


def _load_into(backbone: TopoBackbone, weights: dict[str, Tensor], path: str | Path) -> LoadReport:
    body, own = backbone.model, backbone.model.state_dict()
    weights = _adapt_stem(weights, body, backbone.pixels.channels)
    before = {name: value.clone() for name, value in own.items()}
    plain = body.plain_names() if hasattr(body, 'plain_names') else {}
    known = {*own, *filter(None, plain.values())}
    skipped = {n for n in weights if n in backbone.cut_off or _is_statistic(n, known)}
    kept = {n: v for n, v in weights.items() if n not in skipped and not _is_counter(n)}
    counters = {n: weights.get(n, v) for n, v in own.items() if _is_counter(n)}
    try:
        body.load_state_dict({**kept, **counters})
    except RuntimeError as error:
        body.load_state_dict(before)  # what did fit was loaded already
        names = {name: n for n, name in plain.items() if name and name not in own}
        kept = {names.get(n, n): v for n, v in kept.items()}
        fits = {n: v for n, v in kept.items() if n not in own or own[n].shape == v.shape}
        why = describe_misfit(own, fits) or str(error).splitlines()[0]
        raise ValueError(
            f'{path} is of another network than the backbone {backbone.name}: {why}'
        ) from None
    loaded = [n for n in own if n in weights or plain.get(n) in weights]
    missing = [n for n in own if n not in loaded and not _is_counter(n)]
    return LoadReport(tuple(loaded), tuple(sorted(skipped)), tuple(missing))


def _adapt_stem(weights: dict[str, Tensor], body: nn.Module, channels: int) -> dict[str, Tensor]:
    """Weights for images of so many channels, where they are for colour images; as timm does."""
    names = body.pretrained_cfg.get('first_conv') or ()
    names = {f'{name}.weight' for name in ([names] if isinstance(names, str) else names)}
    plain = body.plain_names() if hasattr(body, 'plain_names') else {}
    names |= {plain.get(name) for name in names}
    return {
        name: adapt_input_conv(channels, value)
        if name in names and channels != 3 and value.shape[1] == 3
        else value
        for name, value in weights.items()
    }


def _is_statistic(name: str, known: set[str]) -> bool:
    """Of a batch norm that is a group norm here: its scale is known, its statistics are not."""
    norm, _, kind = name.rpartition('.')
    statistic = kind in ('running_mean', 'running_var')
    return statistic and name not in known and f'{norm}.weight' in known


def _is_counter(name: str) -> bool:
    """Of batch norm: how many batches it saw. Frozen and other norms have none."""
    return name.endswith('num_batches_tracked')


def _mark_heads(detector: nn.Module, missing: Iterable[str]) -> None:
    """Refuse to evaluate a detector until its heads, which no checkpoint had, are trained."""
    prefixes = [name for name, m in detector.named_modules() if isinstance(m, TopoBackbone)]
    parameters = {name for name, _ in detector.named_parameters()}
    unloaded = {n for n in parameters & set(missing) if not n.startswith(tuple(prefixes))}
    if not hasattr(detector, 'unloaded') and prefixes:
        detector.register_forward_pre_hook(_check_heads)
    detector.unloaded = sorted(unloaded) if prefixes else []


def _check_heads(detector: nn.Module, inputs: tuple) -> None:
    if detector.training:
        detector.unloaded = []
    elif detector.unloaded and not torch.jit.is_tracing():  # as for counting operations
        raise ValueError(
            f'{len(detector.unloaded)} parameters of the detector were not in its checkpoint, or '
            f'had other shapes, and were not trained since: {", ".join(detector.unloaded[:4])}'
            f'{"..." * (len(detector.unloaded) > 4)}; to evaluate it, give a checkpoint of this '
            'detector (MODEL.WEIGHTS, train.init_checkpoint)'
        )


def _load_heads(detector: nn.Module, path: str) -> None:
    """All of a detector but its backbone, which keeps the weights that it came with.

    Raises:
        ValueError: It came with none; or the checkpoint is of other heads.
    """
    backbone = topo_backbone(detector)
    if not backbone.has_weights:
        raise ValueError(
            f'{path}?heads leaves the backbone {backbone.name} at its initial weights: make it '
            'the folder of a saved network (MODEL.TOPO.NAME, name in a LazyConfig)'
        )
    [prefix] = (name for name, module in detector.named_modules() if module is backbone)
    own = detector.state_dict()
    kept = {name for name in own if name.startswith(f'{prefix}.')}
    heads = {
        name: value
        for name, value in read_checkpoint(path).items()
        if not name.startswith(f'{prefix}.')
    }
    fits = {n: v for n, v in heads.items() if n not in own or own[n].shape == v.shape}
    if why := describe_misfit(own.keys() - kept, fits):
        raise ValueError(f'{path} is of another detector: its heads are not these: {why}')
    detector.load_state_dict({**{name: own[name] for name in kept}, **heads})
    _mark_heads(detector, ())
    _logger.info(f'{path} -> {len(heads)} tensors around the backbone {backbone.name}')


@wraps(_detectron2_load_model)
def _load_model(self, checkpoint):
    incompatible = _detectron2_load_model(self, checkpoint)
    shapes = [name for name, *_ in incompatible.incorrect_shapes]
    _mark_heads(self.model, [*incompatible.missing_keys, *shapes])
    return incompatible


@wraps(_detectron2_load)
def _load(self, path, *args, **kwargs):
    detector = getattr(self.model, 'module', self.model)  # without DistributedDataParallel
    ours = any(isinstance(module, TopoBackbone) for module in detector.modules())
    if not path:
        _mark_heads(detector, dict(detector.named_parameters()))
    elif ours and path.endswith('?heads'):
        _load_heads(detector, PathManager.get_local_path(path.removesuffix('?heads')))
        return {}
    if not path or not ours or '?' in path or path.endswith(('.pkl', '.pyth')):
        return _detectron2_load(self, path, *args, **kwargs)
    local = path if Path(path).is_dir() else PathManager.get_local_path(path)
    if Path(local).is_dir() or local.endswith(('.safetensors', '.tar')):
        load_timm_weights(detector, local)
        return {}
    weights = read_checkpoint(local)  # what it refuses, detectron2 does not get either
    if not weights.keys() & detector.state_dict().keys():
        load_timm_weights(detector, local)
        return {}
    for name, module in detector.named_modules():
        if isinstance(module, TopoBackbone):  # before anything is loaded
            why = module.misfit(weights, f'{name}.' if name else '')
            if why:
                raise ValueError(f'{path} is of another detector: {why}')
    return _detectron2_load(self, path, *args, **kwargs)


DetectionCheckpointer.load, DetectionCheckpointer._load_model = _load, _load_model
