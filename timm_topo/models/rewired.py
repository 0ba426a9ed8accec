"""Residual CNNs of timm, their shortcuts replaced by weighted edges (TopoNet, sections 3.2, 4.1).

:func:`rewire` turns every residual stage of a timm model into a :class:`GraphStage` whose nodes are
timm's own blocks without their shortcut. With the complete wiring and all edge weights 1 that is
the same function, so a pretrained network can be re-wired, trained on with learned connectivity
and pruned into a shallower one.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import timm
import torch
from timm.models import (
    ByobNet,
    ConvNeXt,
    EfficientNet,
    MobileNetV3,
    RegNet,
    ResNet,
    ResNetV2,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    group_parameters,
    register_model,
)
from torch import nn

from ..connectivity import build_connectivity
from ..generators import make_wiring
from ..nodes import ConvNorm
from ..nodes.residual import Residual, block_name, known_blocks, take_apart
from ..sparsity import check_sparsity
from ..stages import GraphStage, graph_stages
from .base import GraphNet

__all__ = ['Rewired', 'create_rewired', 'rewire', 'unwire']


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

    @torch.jit.ignore
    def plain(self) -> nn.Module:
        """The plain network of timm, freshly initialised, with this network's classes."""
        args = {**self.base_args, 'num_classes': self.num_classes}
        return timm.create_model(self.base, **args)

    @torch.jit.ignore
    def plain_names(self) -> dict[str, str | None]:
        """Name in the plain network's state dict for every name here; None for what is new."""
        return dict(_plain_names(self, '', ''))

    @torch.jit.ignore
    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Load weights of this network, or of the plain one.

        From the plain network's weights come all but edge weights and added projections, which
        stay as they are.
        """
        names = self.plain_names()
        moved = {plain: own for own, plain in names.items() if plain and plain != own}
        if moved.keys() & state_dict.keys() and not set(moved.values()) & state_dict.keys():
            own = {name: value for name, value in self.state_dict().items() if not names[name]}
            own.update((moved.get(name, name), value) for name, value in state_dict.items())
            state_dict = own
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Fresh weights: timm's own for what is timm's, initial edge weights and projections."""
        plain = self.plain().state_dict()
        names = self.plain_names()
        self.load_state_dict({own: plain[name] for own, name in names.items() if name}, False)
        for stage in graph_stages(self).values():
            stage.connectivity.reset_parameters()
            if _is_new(stage.entry):
                _reset_projection(stage.entry)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False):
        """Parameter groups as in the plain network; edge weights go with the stage's first."""
        names = self.plain_names()
        with torch.device('meta'):
            plain = self.plain()
        layers = group_parameters(plain, plain.group_matcher(coarse), reverse=True)
        order = {own: layers[plain] for own, plain in names.items() if plain in layers}
        for prefix in graph_stages(self):
            inside = [n for own, n in order.items() if own.startswith(f'{prefix}.')]
            order.update((own, min(inside)) for own in names if own.startswith(f'{prefix}.')
                         and own not in order)  # fmt: skip
        return lambda name: order.get(name, math.inf)


class RewiredByobNet(Rewired, ByobNet):
    """ByobNet with graph stages."""


class RewiredConvNeXt(Rewired, ConvNeXt):
    """ConvNeXt with graph stages."""


class RewiredEfficientNet(Rewired, EfficientNet):
    """EfficientNet, MobileNetV2, MNASNet... with graph stages."""


class RewiredMobileNetV3(Rewired, MobileNetV3):
    """MobileNetV3, MobileNetV4... with graph stages."""


class RewiredRegNet(Rewired, RegNet):
    """RegNet with graph stages."""


class RewiredResNet(Rewired, ResNet):
    """ResNet with graph stages."""


class RewiredResNetV2(Rewired, ResNetV2):
    """Pre-activation ResNet with graph stages."""


#: The families of timm that can be re-wired. A new one is a class above, and its block, if new, a
#: row in ``nodes/residual.py``.
FAMILIES = {cls.__mro__[3]: cls for cls in Rewired.__subclasses__()}


def rewire(
    model: nn.Module,
    connectivity='alpha',
    wiring='complete',
    projection: bool = False,
    exact: bool = True,
    sparsity: str = 'none',
    sparsity_weight: float = 1e-4,
) -> nn.Module:
    """A copy of a residual timm model whose shortcuts are weighted edges.

    A stage of n blocks becomes a graph: the input, a node per block, the output. The branch of
    the first block, which may resize, reads the stage input; its projection, if it has one,
    becomes the entry x_0. Where the first block has no shortcut at all (MobileNetV2), it is the
    entry itself, so the graph has one node less; or, with ``projection``, gets one as in the
    paper: x_0 = BN(conv1x1(x)), with a BN scale that starts at zero.

    Args:
        model: From ``timm.create_model``, of a family in ``FAMILIES``; left as it is.
        connectivity: Rule for all graphs, or a list with one each (``build_connectivity``).
        wiring: Wiring for all graphs, or a list with one each (``make_wiring``).
        projection: Whether first blocks without a shortcut get a projection beside them.
        exact: Whether to insist that the function stays the same. False allows families with an
            activation behind the sum (ResNet, RegNet), where identity shortcuts then carry what
            was before it; other wirings; and rules whose weights do not start at 1. The
            difference of the outputs is then measured and told as a warning.
        sparsity: The model's ``sparsity``: ``'none'``, ``'uniform'`` or ``'adaptive'``.
        sparsity_weight: Its lambda.

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
    args = dict(model._model_args)
    network = _rewire(
        copy.deepcopy(model), cfg['architecture'], args, connectivity, wiring, projection, exact
    )
    if exact:
        _check_identical(network.base, network)
    network.sparsity = check_sparsity(sparsity)
    network.sparsity_weight = sparsity_weight
    network.pretrained_cfg = network.default_cfg = {**cfg, 'architecture': 'rewired'}
    network._model_args = {
        **args, 'base': network.base, 'projection': projection, 'exact': exact,
        'sparsity': sparsity, 'sparsity_weight': sparsity_weight,
    }  # fmt: skip
    _compare(model, network, exact)
    return network


def unwire(model: nn.Module) -> nn.Module:
    """The plain timm network with the weights of a re-wired one.

    It computes the same, but for families with an activation behind the residual sum, where the
    difference is measured and told as a warning.

    Raises:
        RuntimeError: The function should have stayed the same and has not.
        TypeError: ``model`` is not re-wired.
        ValueError: It computes what the plain network cannot: an edge weight other than 1, a
            wiring other than the complete one, or a projection that the plain network lacks.
    """
    if not isinstance(model, Rewired):
        raise TypeError(f'unwire needs a re-wired network, got {type(model).__name__}')
    for name, stage in graph_stages(model).items():
        weights = stage.connectivity.edge_weights()
        off = (weights - 1).abs().max().item()
        if off > 0:
            raise ValueError(f'{name} has edge weights other than 1, by up to {off:.3g}')
        complete = make_wiring('complete', stage.wiring.num_nodes)
        if stage.wiring != complete or stage.node_ids[-1] != stage.wiring.num_nodes - 1:
            raise ValueError(f'{name} is not completely wired: {stage.wiring}')
        if _is_new(stage.entry) and (stage.entry.bn.weight.any() or stage.entry.bn.bias.any()):
            raise ValueError(f'{name} uses a projection that the plain network does not have')
    reference = next(model.parameters())
    plain = model.plain().to(device=reference.device, dtype=reference.dtype)
    names = model.plain_names()
    state = {names[own]: value for own, value in model.state_dict().items() if names[own]}
    plain.load_state_dict(state)
    _compare(plain, model, model.linear)
    return plain.train(model.training)


# -- taking a network apart -----------------------------------------------------------------------


@dataclass
class _Segment:
    """A first module and the identity blocks behind it: what becomes one graph.

    Attributes:
        names: Plain names of the modules.
        modules: The modules.
        parts: The same, taken apart; None for a module that cannot be.
    """

    names: list[str] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    parts: list[Residual | None] = field(default_factory=list)


def _segments(name: str, container: nn.Module) -> list[_Segment]:
    """Cut the blocks of a stage before every block that has no identity shortcut."""
    segments = []
    for child_name, child in container.named_children():
        parts = take_apart(child)
        identity = parts is not None and isinstance(parts.shortcut, nn.Identity)
        if not identity or not segments:
            segments.append(_Segment())
        segments[-1].names.append(f'{name}.{child_name}')
        segments[-1].modules.append(child)
        segments[-1].parts.append(parts)
    return segments


def _is_graph(segment: _Segment, projection: bool) -> bool:
    head = segment.parts[0]
    if len(segment.modules) > 1 or (head is not None and head.shortcut is not None):
        return True
    return projection and _takes_projection(segment)


def _takes_projection(segment: _Segment) -> bool:
    """Whether the first block is a residual branch without a shortcut; a mere conv is not."""
    head = segment.parts[0]
    if head is None or head.shortcut is not None:
        return False
    return not block_name(segment.modules[0]).endswith('.ConvBnAct')


def _containers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that run residual blocks one after the other, by name."""
    found = {}
    for name, module in model.named_modules():
        if any(name.startswith(f'{outer}.') for outer in found):
            continue
        in_order = isinstance(module, nn.Sequential) or block_name(module) == 'regnet.RegStage'
        if in_order and any(take_apart(child) is not None for child in module.children()):
            found[name] = module
    return found


def _rewire(
    model, base, base_args, connectivity, wiring, projection, exact, node_ids=None
) -> nn.Module:
    """Rewire ``model`` in place and return it."""
    family = next((FAMILIES[cls] for cls in type(model).__mro__ if cls in FAMILIES), None)
    if isinstance(model, GraphNet) or family is None:
        raise ValueError(
            f'{base} is a {type(model).__name__}, which cannot be re-wired; supported: '
            f'{", ".join(sorted(cls.__name__ for cls in FAMILIES))}'
        )
    stages = {name: _segments(name, module) for name, module in _containers(model).items()}
    graphs = [s for cut in stages.values() for s in cut if _is_graph(s, projection)]
    if not graphs:
        raise ValueError(
            f'{base} has no residual stage of known blocks; known: {", ".join(known_blocks())}'
        )
    nonlinear = _activation_between(graphs)
    if exact and nonlinear:
        raise ValueError(
            f'{base} cannot be re-wired exactly: {nonlinear} follows its residual sums; '
            'exact=False re-wires it all the same and measures the difference'
        )
    specs = zip(
        _per_graph('wiring', wiring, graphs),
        _per_graph('connectivity', connectivity, graphs),
        _per_graph('node_ids', None if node_ids is None else list(node_ids), graphs),
    )
    built = {
        id(segment): _graph(segment, stage, projection, *spec)
        for stage, (segment, spec) in enumerate(zip(graphs, specs))
    }
    for name, cut in stages.items():
        if not any(id(segment) in built for segment in cut):
            continue
        modules = []
        for segment in cut:
            if id(segment) in built:
                modules += built[id(segment)]
            else:
                modules += [_from(segment.names[i], m) for i, m in enumerate(segment.modules)]
        parent, _, leaf = name.rpartition('.')
        stage = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
        setattr(model.get_submodule(parent), leaf, stage.train(model.training))
    model.__class__ = family
    model.base, model.base_args, model.linear = base, base_args, nonlinear is None
    return model


def _graph(
    segment: _Segment, stage: int, projection: bool, wiring, connectivity, node_ids
) -> list[nn.Module]:
    """The graph stage of a segment, between the norm and the activation that belong to it."""
    head, norm, raw = segment.parts[0], None, False
    blocks = list(zip(segment.names, segment.parts))
    if head is not None and isinstance(head.shortcut, nn.Identity):
        entry = nn.Identity()
    elif head is not None and head.shortcut is not None:
        shortcut = next(n for n, m in segment.modules[0].named_children() if m is head.shortcut)
        entry, raw = _from(f'{segment.names[0]}.{shortcut}', head.shortcut), True
        if head.norm is not None:
            norm = _from(f'{segment.names[0]}.norm1', head.norm)
    elif projection and _takes_projection(segment):
        entry, raw = _projection(head.branch), True
    else:  # the first block as a whole makes x_0
        entry, blocks = _from(segment.names[0], segment.modules[0]), blocks[1:]
    nodes, act = [], None
    for name, parts in blocks:
        branch = _from(name, parts.branch)
        # what the stage reads is activated already, what its sums yield is not
        nodes.append(nn.Sequential(act, branch) if act is not None else branch)
        act = parts.act
    count = len(nodes) + 2
    ids = list(range(count)) if node_ids is None else list(node_ids)
    if not set(ids) <= set(range(count)) or len(ids) < 2 or ids[-1] != count - 1:
        raise ValueError(f'{segment.names[0]}: nodes {ids} are not among 0..{count - 1}')
    try:
        graph = make_wiring(wiring, len(ids), stage)
        reference = next(segment.modules[0].parameters())
        channels = _shape(segment.modules[-1])[1]
        dd = {'device': reference.device, 'dtype': reference.dtype}
        rule = build_connectivity(connectivity, graph, channels, **dd)
        raw_entry = raw and len(ids) > 2 and ids[1] == 1
        kept = [nodes[i - 1] for i in ids[1:-1]]
        graph_stage = GraphStage(graph, rule, entry, kept, raw_entry, ids)
    except ValueError as error:
        raise ValueError(
            f'the stage that starts with {segment.names[0]} has {len(nodes)} nodes between input '
            f'and output: {error}'
        ) from None
    return [module for module in (norm, graph_stage, act) if module is not None]


def _from(name: str, module: nn.Module) -> nn.Module:
    """Mark ``module`` as what the plain network calls ``name``."""
    module.origin = name
    return module


def _is_new(entry: nn.Module) -> bool:
    """Whether an entry is a projection that the plain network does not have."""
    return isinstance(entry, ConvNorm) and not hasattr(entry, 'origin')


def _plain_names(
    module: nn.Module, own: str, plain: str | None
) -> Iterator[tuple[str, str | None]]:
    if isinstance(module, GraphStage):
        plain = None  # what is not marked inside is new
    plain = f'{module.origin}.' if hasattr(module, 'origin') else plain
    keys = [*module._parameters, *(set(module._buffers) - module._non_persistent_buffers_set)]
    for key in keys:
        if getattr(module, key) is not None:
            yield own + key, None if plain is None else plain + key
    for key, child in module.named_children():
        yield from _plain_names(child, f'{own}{key}.', None if plain is None else f'{plain}{key}.')


def _per_graph(name: str, value, graphs: Sequence) -> list:
    if not isinstance(value, (list, tuple)):
        return [value] * len(graphs)
    if len(value) != len(graphs):
        raise ValueError(f'{name} has {len(value)} entries for {len(graphs)} stages: {value}')
    return list(value)


def _shape(module: nn.Module) -> tuple[int, int, int]:
    """Input channels, output channels and stride of a block, from a run without data."""
    in_chs = next(m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d))
    ghost = copy.deepcopy(module).to('meta').eval()
    dtype = next(ghost.parameters()).dtype
    output = ghost(torch.empty(1, in_chs, 64, 64, device='meta', dtype=dtype))
    return in_chs, output.shape[1], 64 // output.shape[2]


def _projection(branch: nn.Module) -> ConvNorm:
    reference = next(branch.parameters())
    in_chs, out_chs, stride = _shape(branch)
    projection = ConvNorm(
        in_chs, out_chs, 1, stride, device=reference.device, dtype=reference.dtype
    )
    _reset_projection(projection)
    return projection


@torch.no_grad()
def _reset_projection(projection: ConvNorm) -> None:
    nn.init.kaiming_normal_(projection.conv.weight, mode='fan_out', nonlinearity='relu')
    projection.bn.reset_parameters()
    nn.init.zeros_(projection.bn.weight)  # adds nothing at first


# -- the same function ----------------------------------------------------------------------------


def _activation_between(graphs: list[_Segment]) -> str | None:
    """Name of the activation that stands between the sums of a stage, if any."""
    for segment in graphs:
        acts = [parts.act for parts in segment.parts if parts is not None]
        if len(acts) > 1 and acts[0] is not None:
            return type(acts[0]).__name__
    return None


def _check_identical(base: str, network: nn.Module) -> None:
    for name, stage in graph_stages(network).items():
        why = ''
        if stage.wiring != make_wiring('complete', stage.wiring.num_nodes):
            why = f'the wiring of {name} is not complete'
        elif stage.needs_context:
            why = f'the edge weights of {name} depend on the image'
        elif not torch.equal(w := stage.connectivity.edge_weights(), torch.ones_like(w)):
            why = f'the edge weights of {name} start at {w[0].item():.3g}, not at 1'
        if why:
            raise ValueError(f'{base} would not stay the same: {why}; exact=False allows it')


@torch.no_grad()
def _compare(model: nn.Module, network: nn.Module, exact: bool) -> None:
    """Measure by how much the outputs differ; raise or warn."""
    reference = next(model.parameters())
    if reference.is_meta:
        return
    channels, height, width = model.pretrained_cfg['input_size']
    noise = torch.Generator().manual_seed(0)
    probe = torch.randn(2, getattr(model, 'in_chans', channels), height, width, generator=noise)
    probe = probe.to(reference)
    outputs = []
    for candidate in (model, network):
        training = candidate.training
        try:
            outputs.append(candidate.eval()(probe).float())
        finally:
            candidate.train(training)
    difference = (outputs[0] - outputs[1]).abs().max().item()
    scale = outputs[0].abs().max().item()
    measured = f'outputs differ by up to {difference:.3g} (outputs up to {scale:.3g})'
    if not exact:
        warnings.warn(f'{network.base} re-wired is another function: {measured}', stacklevel=3)
    elif not difference <= 1e4 * torch.finfo(reference.dtype).eps * max(scale, 1e-3):
        raise RuntimeError(
            f'{network.base} re-wired should be the same function, but {measured}: the blocks of '
            f'timm {timm.__version__} are not what they were'
        )


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
        for key, default in (('connectivity', 'alpha'), ('wiring', 'complete'),
                             ('projection', False), ('exact', True), ('node_ids', None))
    }  # fmt: skip
    sparsity = check_sparsity(options.pop('sparsity', 'none'))
    sparsity_weight = options.pop('sparsity_weight', 1e-4)
    given = options.pop('pretrained_cfg', None)
    overlay = options.pop('pretrained_cfg_overlay', None)
    if not timm.is_model(base):
        raise ValueError(f'unknown base {base!r}: see timm.list_models()')
    from_base = pretrained and given is None and not overlay
    feature_cfg = dict(feature_cls='getter')

    def build(**kwargs) -> nn.Module:
        plain = timm.create_model(base, pretrained=from_base, **kwargs)
        base_args = {k: v for k, v in kwargs.items() if k not in ('device', 'dtype')}
        network = _rewire(plain, base, base_args, **graph)
        network.sparsity, network.sparsity_weight = sparsity, sparsity_weight
        if 'out_indices' not in options:
            feature_cfg['out_indices'] = tuple(range(len(network.feature_info)))
        return network

    cfg = given or {**get_pretrained_cfg(base).to_dict(), 'architecture': variant}
    return build_model_with_cfg(
        build,
        variant,
        pretrained and not from_base,
        pretrained_cfg=cfg,
        pretrained_cfg_overlay=overlay,
        feature_cfg=feature_cfg,
        **options,
    )


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
