"""Networks of timm, prepared to hand out feature maps."""

import copy
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from omegaconf import DictConfig, ListConfig
from torch import nn

import timm_topo
from timm_topo.stages import BranchGraph, CrossStageGraph

__all__ = [
    'Level',
    'choose_levels',
    'create_network',
    'cut',
    'frozen_parameters',
    'modules_of',
]

_logger = logging.getLogger('detectron2.d2_topo')  # detectron2 shows what is below its own


@dataclass(frozen=True)
class Level:
    """A feature map: the last one of its stride.

    Attributes:
        index: Its number among the network's ``feature_info``.
        channels: Of the map.
        stride: Pixels of the image per pixel of the map.
    """

    index: int
    channels: int
    stride: int


def create_network(
    name: str | Path | nn.Module, pretrained: bool, options: dict
) -> tuple[nn.Module, str, bool]:
    """The whole network, what to call it, and whether it has more than initial weights.

    A registered name wins over a folder of that name in the current directory; ``./NAME`` is the
    folder.

    Raises:
        ValueError: An unknown name, options for a model that is there already, or a model that
            gives no intermediate features.
    """
    if isinstance(name, nn.Module):
        if not hasattr(name, 'pretrained_cfg'):
            raise ValueError(f'{type(name).__name__} is no whole model of timm.create_model')
        if options or pretrained:
            raise ValueError(f'a model takes no options, got {sorted(options) or "pretrained"}')
        model, name, has_weights = name, name.pretrained_cfg['architecture'], True
    elif isinstance(name, str) and (timm.is_model(name.split('.')[0]) or ':' in name):
        model = timm.create_model(name, pretrained=pretrained, **_plain(options))
        has_weights = pretrained or bool(options.get('checkpoint_path'))
    elif str(name) and Path(name).is_dir():
        model, name, has_weights = timm_topo.load(name, **_plain(options)), str(name), True
    else:
        raise ValueError(
            f'unknown backbone {str(name)!r}: neither a model nor a folder; known: '
            f'{", ".join(_our_models())}, and those of timm (timm.list_models())'
        )
    if has_weights:
        _logger.info(f'the backbone {name} comes with weights; a checkpoint is for the rest')
    if not hasattr(model, 'forward_intermediates'):
        raise ValueError(f'{name} gives no intermediate features (forward_intermediates)')
    return model, name, has_weights


def _our_models() -> list[str]:
    modules = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    return [name for name, module in modules.items() if module.startswith('timm_topo.')]


def _plain(node):
    """Plain dicts and lists instead of those of a config."""
    if isinstance(node, (dict, DictConfig)):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, (list, ListConfig)):
        return [_plain(value) for value in node]
    return node


def choose_levels(model: nn.Module, name: str, out_features: Sequence[str]) -> dict[str, Level]:
    """The levels of a network from stride 4 on, ``res2`` to ``res5``, to the last one asked for.

    Raises:
        ValueError: A feature that the network does not have, or that is named twice, or none.
    """
    levels = {}
    for index, info in enumerate(model.feature_info):
        if info['reduction'] in (4, 8, 16, 32):
            level = Level(index, info['num_chs'], info['reduction'])
            levels[f'res{math.log2(level.stride):.0f}'] = level
    known = set(out_features) <= levels.keys()
    if not known or not out_features or len(set(out_features)) < len(out_features):
        there = ', '.join(f'{key} (stride {level.stride})' for key, level in levels.items())
        raise ValueError(f'out_features {list(out_features)} of {name}: it has {there or "none"}')
    return {key: level for key, level in levels.items() if key <= max(out_features)}


def cut(model: nn.Module, indices: list[int]) -> set[str]:
    """Remove what these features do not need, the classifier in any case; in place.

    Returns:
        What state dicts of the whole network, or of the plain network it was made from, call it.

    Raises:
        ValueError: One graph over all resolutions would lose its end.
    """
    last = len(model.feature_info) - 1
    if max(indices) < last and _has(model, CrossStageGraph):
        stride = model.feature_info[last]['reduction']
        raise ValueError(
            f'out_features must have the last one of a graph over several resolutions, with stride '
            f'{stride}: cut off earlier, it would be another graph than its weights are for'
        )
    before = _all_names(model)
    model.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
    return before - _all_names(model)


def _has(model: nn.Module, *kinds: type) -> bool:
    return any(isinstance(module, kinds) for module in model.modules())


def _all_names(model: nn.Module) -> set[str]:
    plain = model.plain_names() if hasattr(model, 'plain_names') else {}
    return {*model.state_dict(), *filter(None, plain.values())}


def frozen_parameters(
    model: nn.Module, name: str, levels: dict[str, Level], freeze_at: int, channels: int
) -> set[str]:
    """Names of the parameters that ``freeze_at`` freezes.

    The stem is what timm calls so (``group_matcher``); a level is what its map depends on, by the
    graph of gradients of one image.

    Args:
        model: A network of timm.
        name: What to call it.
        levels: From :func:`choose_levels`.
        freeze_at: 0 nothing, 1 the stem, 2 to 5 what leads to that level.
        channels: Of an image.

    Raises:
        ValueError: Out of range; or a network whose stem cannot be told from the rest.
    """
    known = {0: 'nothing', 1: 'the stem', **{int(key[-1]): key for key in levels}}
    if isinstance(freeze_at, bool) or freeze_at not in known:
        told = ', '.join(f'{at} ({what})' for at, what in known.items())
        raise ValueError(f'freeze_at must be one of {told}; got {freeze_at!r}')
    if freeze_at == 0:
        return set()
    if _has(model, BranchGraph, CrossStageGraph):
        raise ValueError(
            f'freeze_at must be 0 for a graph over several resolutions, got {freeze_at}: other '
            'edges pass its features by'
        )
    level = levels[known[freeze_at]] if freeze_at > 1 else next(iter(levels.values()))
    leading = _leading_to(model, level, channels)
    if freeze_at > 1:
        return leading
    stem = _stem(model)
    if not stem or not stem <= leading:
        others = ', '.join(str(at) for at in known if at != 1)
        raise ValueError(
            f'freeze_at=1: timm does not tell the stem of {name} from the rest; it may be {others}'
        )
    return stem


def _stem(model: nn.Module) -> set[str]:
    """Names of the parameters in the first of timm's groups; empty where timm has none."""
    names = [name for name, _ in model.named_parameters()]
    matcher = model.group_matcher() if hasattr(model, 'group_matcher') else {}
    if callable(matcher):
        return {name for name in names if matcher(name) == 0}
    patterns = matcher.get('stem', [])
    patterns = [patterns] if isinstance(patterns, str) else [pattern for pattern, _ in patterns]
    return {name for name in names if any(re.match(pattern, name) for pattern in patterns)}


def _leading_to(model: nn.Module, level: Level, channels: int) -> set[str]:
    """Names of the parameters that a map depends on, in training."""
    model = copy.deepcopy(model).train()  # batch norm counts what it sees
    names = {id(p): name for name, p in model.named_parameters()}
    size, device = model.pretrained_cfg['input_size'][-2:], next(model.parameters()).device
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        images = torch.rand(2, channels, *size, device=device)
        [y] = model.forward_intermediates(images, indices=[level.index], intermediates_only=True)
    found, seen, ahead = set(), set(), [y.grad_fn]
    while ahead:
        function = ahead.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if hasattr(function, 'variable'):  # where gradients of a parameter are summed
            found.add(names[id(function.variable)])
        ahead += [before for before, _ in function.next_functions]
    return found


def modules_of(model: nn.Module, parameters: set[str]) -> list[str]:
    """Names of the largest modules that have none but these parameters.

    Those without any parameter are among them up to the first module with another one: timm
    registers modules as they are executed.
    """
    own = {
        name: {f'{name}.{n}'.lstrip('.') for n, _ in module.named_parameters()}
        for name, module in model.named_modules()
    }
    found, before = [], bool(parameters)
    for name, module in model.named_modules():
        if any(name.startswith(f'{taken}.' if taken else '') for taken in found):
            continue
        direct = {f'{name}.{n}'.lstrip('.') for n, _ in module.named_parameters(recurse=False)}
        if own[name] <= parameters and (own[name] or before):
            found.append(name)
        elif name and not direct <= parameters:
            before = False
    return found
