"""Residual CNNs of timm, their shortcuts replaced by weighted edges (TopoNet, sections 3.2, 4.1).

:func:`rewire` turns every residual stage of a timm model into a :class:`GraphStage` whose nodes are
timm's own blocks without their shortcut. With the complete wiring and all edge weights 1 that is
the same function, so a pretrained network can be re-wired, trained on with learned connectivity
and pruned into a shallower one.
"""

import copy
import math
import warnings

import timm
import torch
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    load_state_dict,
    register_model,
)
from torch import nn

from ..generators import make_wiring
from ..sparsity import check_sparsity, check_sparsity_weight
from ..stages import GraphStage, graph_stages
from .base import note_options
from .families import Rewired, is_new, replaced
from .surgery import drop_blocks, rewire_stages

__all__ = ['create_rewired', 'rewire', 'unwire']


def rewire(
    model: nn.Module,
    connectivity=None,
    wiring='complete',
    projection: bool = False,
    exact: bool = True,
    sparsity: str = 'none',
    sparsity_weight: float = 1e-4,
    projected_entry: bool = False,
    nodes: str = 'branch',
) -> nn.Module:
    """A copy of a residual timm model whose shortcuts are weighted edges.

    A stage of n blocks becomes a graph: the input, a node per block, the output. The branch of
    the first block, which may resize, reads the stage input; its projection, if it has one,
    becomes the entry x_0. Where the first block has no shortcut at all (MobileNetV2), it is the
    entry itself, so the graph has one node less; or, with ``projection``, gets one as in the
    paper: x_0 = BN(conv1x1(x)), with a BN scale that starts at zero.

    With ``nodes='block'`` a node is a whole block, its shortcut and its last activation inside: a
    block reads the block before it with weight 1, and earlier ones with weights that start at 0.
    This is exact for every family. A first block that has no identity shortcut is the entry.

    Args:
        model: From ``timm.create_model``, of a family in ``FAMILIES``; left as it is.
        connectivity: Rule for all graphs, or a list with one each (``build_connectivity``); by
            default ``'alpha'``, and ``'depth_weighted'`` where nodes are blocks.
        wiring: Wiring for all graphs, or a list with one each (``make_wiring``). With
            ``nodes='block'``, ``'sequential'`` is the plain network.
        projection: Whether first blocks without a shortcut get a projection beside them.
        exact: Whether to insist that the function stays the same. False allows families with an
            activation behind the sum (ResNet, RegNet), where identity shortcuts then carry what
            was before it; other wirings; and rules whose weights do not start at 1. The
            difference of the outputs is then measured and told as a warning.
        sparsity: The model's ``sparsity``: ``'none'``, ``'uniform'`` or ``'adaptive'``.
        sparsity_weight: Its lambda.
        projected_entry: Whether first blocks that have a shortcut and keep the resolution read
            the projected x_0 as the others do, as in DG-Net's ResNets, instead of the stage
            input; a first convolution that must read more channels then starts anew, an identity
            shortcut becomes a projection. Another function, so only with ``exact=False``.
        nodes: ``'branch'`` or ``'block'``: the part of a block that is a node.

    Returns:
        The re-wired network, of a subclass of the model's class.

    Raises:
        RuntimeError: The function should have stayed the same and has not.
        TypeError: ``model`` does not come from ``timm.create_model``.
        ValueError: A family that is not supported, no residual stage, a wiring that does not fit
            a stage, or a function that cannot be kept while ``exact``.
    """
    cfg = getattr(model, 'pretrained_cfg', {})
    if not cfg.get('architecture') or not hasattr(model, '_model_args'):
        raise TypeError(f'rewire needs a model of timm.create_model, got {type(model).__name__}')
    check_sparsity(sparsity)
    sparsity_weight = check_sparsity_weight(sparsity_weight)
    args = dict(model._model_args)
    network = rewire_stages(
        copy.deepcopy(model), cfg['architecture'], args, connectivity, wiring, projection, exact,
        projected_entry, nodes=nodes,
    )  # fmt: skip
    _check_same(model, network, exact)
    network.sparsity, network.sparsity_weight = sparsity, sparsity_weight
    network.pretrained_cfg = network.default_cfg = {**cfg, 'architecture': 'rewired'}
    options = {
        **args, 'base': network.base, 'projection': projection, 'exact': exact,
        'sparsity': sparsity, 'sparsity_weight': sparsity_weight,
        'projected_entry': projected_entry, 'nodes': nodes,
    }  # fmt: skip
    return note_options(network, options)


def unwire(model: nn.Module) -> nn.Module:
    """The plain timm network with the weights of a re-wired one.

    It computes the same, but for families with an activation behind the residual sum, where the
    difference is measured and told as a warning. Blocks whose node was removed are
    ``nn.Identity``; such a network has no name in timm: :func:`timm_topo.save` takes the re-wired
    one.

    Raises:
        RuntimeError: The function should have stayed the same and has not.
        TypeError: ``model`` is not re-wired.
        ValueError: It computes what the plain network cannot: an edge weight other than 1, a
            wiring other than the complete one, or a projection that the plain network lacks.
    """
    if not isinstance(model, Rewired):
        raise TypeError(f'unwire needs a re-wired network, got {type(model).__name__}')
    for name, stage in graph_stages(model).items():
        why = _unlike_plain(stage)
        if not why and is_new(stage.entry) and not _adds_nothing(stage.entry):
            why = 'a projection of its own'
        elif not why and replaced(stage):
            why = 'an input convolution of its own'
        if why:
            raise ValueError(f'no plain {model.base} computes the same: {name} has {why}')
    reference = next(model.parameters())
    plain = model.plain().to(device=reference.device, dtype=reference.dtype)
    names = model.plain_names()
    drop_blocks(plain, {name for name in names.values() if name})
    state = {names[own]: value for own, value in model.state_dict().items() if names[own]}
    plain.load_state_dict(state)
    learned = {names[own]: parameter.requires_grad for own, parameter in model.named_parameters()}
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(learned[name])
    architecture = plain.pretrained_cfg['architecture']
    plain.pretrained_cfg = {**model.pretrained_cfg, 'architecture': architecture}
    plain.default_cfg = plain.pretrained_cfg
    _compare(plain, model, model.linear, stacklevel=3)
    return plain.train(model.training)


def _adds_nothing(projection: nn.Module) -> bool:
    norm = projection.bn
    return norm.weight.is_meta or not (norm.weight.any() or norm.bias.any())


# -- the same function ----------------------------------------------------------------------------


def _unlike_plain(stage: GraphStage) -> str:
    """What of a stage no shortcut can do, if anything."""
    whole = stage.whole_blocks
    if not whole and stage.wiring != make_wiring('complete', stage.wiring.num_nodes):
        return 'a wiring other than the complete one'
    if stage.needs_context:
        return 'edge weights that depend on the image'
    weights = stage.connectivity.edge_weights()
    plain = [float(not whole or source == target - 1) for source, target in stage.wiring.edges]
    if sum(plain) < stage.wiring.num_nodes - 1:
        return 'a block that does not read the block before it'
    plain = torch.tensor(plain).to(weights)
    if not weights.is_meta and (weights != plain).any():
        off = weights[(weights - plain).abs().argmax()].item()
        return f'edge weights other than those of shortcuts, such as {off:.3g}'
    return ''


def _check_same(model: nn.Module, network: Rewired, exact: bool) -> None:
    """Whether ``network`` may stay as it is, made of ``model``."""
    for name, stage in graph_stages(network).items():
        why = _unlike_plain(stage)
        if why and exact:
            raise ValueError(
                f'{network.base} would not stay the same: {name} has {why}; exact=False allows it'
            )
        if why:
            return _compare(model, network, False)
    return _compare(model, network, network.linear)


def _compare(model: nn.Module, network: Rewired, same: bool, stacklevel: int = 4) -> None:
    """Measure by how much the outputs differ; raise or warn.

    Where they must not differ, weights that are all zero are filled first: in a fresh network,
    whose branches may end in zeros, every wiring would compute the same.
    """
    if next(model.parameters()).is_meta:
        return
    channels, height, width = model.pretrained_cfg['input_size']
    noise = torch.Generator().manual_seed(0)
    probe = torch.randn(2, getattr(model, 'in_chans', channels), height, width, generator=noise)
    outputs = []
    with torch.no_grad():
        for candidate in (model, network):
            candidate = copy.deepcopy(candidate).eval()
            reference = next(candidate.parameters())
            if reference.dtype in (torch.float16, torch.bfloat16):
                candidate = candidate.float()
            if same:
                _open_branches(candidate)
            outputs.append(candidate(probe.to(next(candidate.parameters()))))
    difference = (outputs[0] - outputs[1]).abs().max().item()
    scale = outputs[0].abs().max().item()
    measured = f'outputs differ by up to {difference:.3g} (outputs up to {scale:.3g})'
    if not math.isfinite(scale):
        raise RuntimeError(f'{network.base} gives outputs that are not finite')
    if not same:
        if difference == 0:
            measured += ', as long as its branches are zero'
        warnings.warn(
            f'{network.base} re-wired is another function: {measured}', stacklevel=stacklevel
        )
    elif not difference <= 1e-3 * max(scale, 1e-3):
        raise RuntimeError(
            f're-wired and plain {network.base} should be the same function, but {measured}: '
            'either the model was changed after timm.create_model, or the blocks of timm '
            f'{timm.__version__} are not what they were'
        )


def _open_branches(model: nn.Module) -> None:
    added = {id(p) for stage in model.modules() if isinstance(stage, GraphStage)
             if is_new(stage.entry) for p in stage.entry.parameters()}  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith('weight') and id(parameter) not in added and not parameter.any():
            parameter.fill_(1 / parameter[0].numel())


# -- as timm models -------------------------------------------------------------------------------


def create_rewired(variant: str, pretrained: bool, defaults: dict, overrides: dict) -> nn.Module:
    """A registered re-wired network: its ``defaults``, what the caller overrides.

    Args:
        variant: Registered name.
        pretrained: Whether to load weights: those of ``pretrained_cfg`` (a saved network, a file),
            else those that timm has for the plain network.
        defaults: Options of :func:`rewired`.
        overrides: The same and those of the plain network; these win.
    """
    options = {**defaults, **overrides}
    base = options.pop('base')
    graph = {
        key: options.pop(key, default)
        for key, default in (('connectivity', None), ('wiring', 'complete'),
                             ('projection', False), ('exact', True),
                             ('projected_entry', False), ('node_ids', None),
                             ('nodes', 'branch'))
    }  # fmt: skip
    sparsity = check_sparsity(options.pop('sparsity', 'none'))
    sparsity_weight = check_sparsity_weight(options.pop('sparsity_weight', 1e-4))
    given = options.pop('pretrained_cfg', None)
    overlay = options.pop('pretrained_cfg_overlay', None)
    if not timm.is_model(base):
        raise ValueError(f'unknown base {base!r}: see timm.list_models()')
    known = get_pretrained_cfg(base)
    cfg = given or {**(known.to_dict() if known else {}), 'architecture': variant}
    from_base = pretrained and given is None and not _is_rewired((overlay or {}).get('file'))
    feature_cfg = dict(feature_cls='getter')

    def build(**kwargs) -> nn.Module:
        if from_base:  # by all that timm knows about its checkpoints
            source = dict(pretrained_cfg_overlay=overlay, cache_dir=options.get('cache_dir'))
            plain = timm.create_model(base, pretrained=True, **source, **kwargs)
        else:
            plain = timm.create_model(base, **kwargs)
        base_args = {k: v for k, v in kwargs.items() if k not in ('device', 'dtype')}
        network = rewire_stages(
            copy.deepcopy(plain) if from_base else plain, base, base_args, **graph
        )
        if from_base:
            _check_same(plain, network, graph['exact'])
        network.sparsity, network.sparsity_weight = sparsity, sparsity_weight
        if 'out_indices' not in options:
            feature_cfg['out_indices'] = tuple(range(len(network.feature_info)))
        return network

    model = build_model_with_cfg(
        build,
        variant,
        pretrained and not from_base,
        pretrained_cfg=cfg,
        pretrained_cfg_overlay=overlay,
        feature_cfg=feature_cfg,
        **options,
    )
    noted = {'base': base, **graph, 'sparsity': sparsity, 'sparsity_weight': sparsity_weight}
    return note_options(model, noted)


def _is_rewired(file: str | None) -> bool:
    """Whether a checkpoint is of a network with graph stages, and not of a plain one."""
    if not file or str(file).endswith('.npz'):  # arrays are other people's
        return False
    return any('.connectivity.' in name for name in load_state_dict(str(file)))


default_cfgs = generate_default_cfgs(
    {
        'rewired.untrained': {
            key: get_pretrained_cfg('mobilenetv2_100').to_dict()[key]
            for key in (
                'input_size', 'pool_size', 'crop_pct', 'interpolation', 'mean', 'std',
                'num_classes', 'first_conv', 'classifier',
            )
        }
    }
)  # fmt: skip


@register_model
def rewired(pretrained: bool = False, **kwargs) -> nn.Module:
    """Any residual CNN of timm, re-wired: ``base`` (default ``mobilenetv2_100``) names it.

    Options of :func:`rewire` and, for the rest, those of the base. ``node_ids`` per stage says
    which nodes pruning left.
    """
    return create_rewired('rewired', pretrained, dict(base='mobilenetv2_100'), kwargs)
