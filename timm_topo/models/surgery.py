"""Taking the residual stages of a timm network apart and putting them together as graphs."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.layers import MixedConv2d
from torch import nn

from ..checks import check_flag
from ..connectivity import build_connectivity
from ..generators import make_wiring
from ..nodes import ConvNorm
from ..nodes.residual import BLOCKS, IN_ORDER, Residual, block_name, known_blocks, take_apart
from ..stages import GraphStage
from .base import GraphNet
from .families import FAMILIES, Rewired, reset_input_conv, reset_projection, rewired_class

__all__ = ['drop_blocks', 'rewire_stages']


#: What of a block is a node: the branch without the shortcut, or all of it.
NODES = ('branch', 'block')


@dataclass(frozen=True)
class _Block:
    """One module of a stage.

    Attributes:
        name: Its name in the plain network.
        module: The module.
        parts: The same, taken apart; None where it is no known residual block.
    """

    name: str
    module: nn.Module
    parts: Residual | None

    @property
    def has_identity(self) -> bool:
        return self.parts is not None and isinstance(self.parts.shortcut, nn.Identity)

    def own(self, part: nn.Module) -> nn.Module:
        """A direct child of the module, in a container that knows its name in the plain network.

        Not marked itself: timm replaces modules, when it converts norms for one.
        """
        child = next(name for name, m in self.module.named_children() if m is part)
        return _from(self.name, nn.Sequential(OrderedDict([(child, part)])))


def rewire_stages(
    model: nn.Module,
    base: str,
    base_args: dict,
    connectivity,
    wiring,
    projection: bool,
    exact: bool,
    projected_entry: bool = False,
    node_ids: Sequence[Sequence[int]] | None = None,
    nodes: str = 'branch',
) -> nn.Module:
    """Rewire ``model``, which ``base`` and ``base_args`` describe, in place.

    The blocks of a stage are cut into segments, each a block without identity shortcut and the
    identity blocks behind it; a segment is one graph. For the other arguments see
    :func:`timm_topo.models.rewired.rewire`; ``node_ids`` are, per graph, those that pruning left.
    """
    flags = {'projection': projection, 'exact': exact, 'projected_entry': projected_entry}
    for name, value in flags.items():
        check_flag(name, value)
    if nodes not in NODES:
        raise ValueError(f'unknown nodes {nodes!r}; known: {", ".join(NODES)}')
    whole = nodes == 'block'
    if whole and (projection or projected_entry):
        raise ValueError('whole blocks keep their own shortcuts: no projection, no projected_entry')
    if connectivity is None:
        connectivity = 'depth_weighted' if whole else 'alpha'
    if isinstance(model, Rewired):
        raise ValueError(f'{model.base} is re-wired already: unwire it first')
    family = None if isinstance(model, GraphNet) else rewired_class(type(model))
    if family is None:
        raise ValueError(
            f'{base} is a {type(model).__name__}, which cannot be re-wired; supported: '
            f'{", ".join(sorted(FAMILIES))}'
        )
    before = set(model.modules())
    stages = {name: _segments(name, module) for name, module in _containers(model).items()}
    graphs = [
        s for segments in stages.values() for s in segments
        if (_has_whole_nodes(s) if whole else _is_graph(s, projection))
    ]  # fmt: skip
    if not graphs:
        raise ValueError(
            f'{base} has no residual stage of known blocks; known: {", ".join(known_blocks())}'
        )
    activation = None if whole else _activation_between(graphs)
    if projected_entry and not any(_keeps_resolution(segment[0]) for segment in graphs):
        raise ValueError(
            f'projected_entry changes nothing in {base}: no stage starts with a residual block '
            'that has a shortcut and keeps the resolution'
        )
    if exact and projected_entry:
        raise ValueError(
            f'{base} cannot be re-wired exactly with projected_entry, which gives first blocks '
            'another input; exact=False re-wires it all the same and measures the difference'
        )
    if exact and activation:
        raise ValueError(
            f'{base} cannot be re-wired exactly: {activation} follows its residual sums; '
            'exact=False re-wires it all the same and measures the difference'
        )
    per_graph = zip(
        _per_graph('wiring', wiring, graphs),
        _per_graph('connectivity', connectivity, graphs),
        _per_graph('node_ids', None if node_ids is None else list(node_ids), graphs),
    )
    built = {
        segment[0].name: _build(segment, stage, projection, projected_entry, whole, *options)
        for stage, (segment, options) in enumerate(zip(graphs, per_graph))
    }
    for name, segments in stages.items():
        if not any(segment[0].name in built for segment in segments):
            continue
        modules = []
        for segment in segments:
            as_it_is = [_from(block.name, block.module) for block in segment]
            modules += built.get(segment[0].name, as_it_is)
        stage = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
        parent, _, leaf = name.rpartition('.')
        setattr(model.get_submodule(parent), leaf, stage)
    model.__class__ = family
    model.base, model.base_args, model.linear = base, base_args, not (activation or projected_entry)
    for module in set(model.modules()) - before:
        module.training = model.training
    checkpointed = [m for m in before if getattr(m, 'grad_checkpointing', False)]
    for module in checkpointed:  # timm would iterate over blocks that are no longer in a row
        module.grad_checkpointing = False
    model.set_grad_checkpointing(bool(checkpointed))
    return model


def drop_blocks(plain: nn.Module, kept: set[str]) -> None:
    """Put ``nn.Identity`` in place of the blocks of a plain network that are not kept, in place.

    Args:
        plain: A network of timm.
        kept: Names of the parameters and buffers that there are values for.

    Raises:
        ValueError: Only a part of a block is kept.
    """
    for name, container in _containers(plain).items():
        for child_name, child in list(container.named_children()):
            own = {f'{name}.{child_name}.{key}' for key in child.state_dict()}
            if own and not own & kept:
                setattr(container, child_name, nn.Identity())
            elif not own <= kept:
                raise ValueError(f'no plain network has a part of {name}.{child_name} alone')


def _containers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that run residual blocks one after the other, by name."""
    found = {}
    for name, module in model.named_modules():
        if any(name.startswith(f'{outer}.') for outer in found):
            continue
        in_order = isinstance(module, nn.Sequential) or block_name(module) in IN_ORDER
        if in_order and any(take_apart(child) is not None for child in module.children()):
            found[name] = module
    return found


def _segments(name: str, container: nn.Module) -> list[list[_Block]]:
    """Cut the blocks of a stage before every block that has no identity shortcut."""
    segments = []
    for child_name, child in container.named_children():
        block = _Block(f'{name}.{child_name}', child, take_apart(child))
        if not block.has_identity or not segments:
            segments.append([])
        segments[-1].append(block)
    return segments


def _is_graph(segment: list[_Block], projection: bool) -> bool:
    first = segment[0].parts
    if len(segment) > 1 or (first is not None and first.shortcut is not None):
        return True
    return projection and _takes_projection(segment[0])


def _has_whole_nodes(segment: list[_Block]) -> bool:
    return segment[-1].has_identity


def _takes_projection(block: _Block) -> bool:
    """Whether it is a residual branch without a shortcut; a mere convolution is not."""
    if block.parts is None or block.parts.shortcut is not None:
        return False
    return BLOCKS[block_name(block.module)].projects


def _activation_between(graphs: list[list[_Block]]) -> str | None:
    """Name of the activation that stands between the sums of a stage, if any."""
    for segment in graphs:
        acts = [block.parts.act for block in segment if block.parts is not None]
        if len(acts) > 1 and acts[0] is not None:
            return type(acts[0]).__name__
    return None


def _build(
    segment: list[_Block],
    stage: int,
    projection: bool,
    projected_entry: bool,
    whole: bool,
    wiring,
    connectivity,
    node_ids,
) -> list[nn.Module]:
    """The graph of a segment, between the norm and the activation that belong to it."""
    first, blocks, norm, reads_input, act = segment[0], segment, None, False, None
    if projected_entry and _keeps_resolution(first):
        entry = _projected_entry(first)
        act = copy.deepcopy(first.parts.act)  # x_0 is not activated, unlike the stage input
    elif first.has_identity:
        entry = nn.Identity()
    elif not whole and first.parts is not None and first.parts.shortcut is not None:
        entry, reads_input = first.own(first.parts.shortcut), True
        norm = first.own(first.parts.norm) if first.parts.norm is not None else None
    elif projection and _takes_projection(first):
        entry, reads_input = _projection(first.parts.branch), True
    else:  # the first block as a whole makes x_0
        entry, blocks = _from(first.name, first.module), segment[1:]
    nodes = []
    for block in blocks:
        if whole:
            nodes.append(_from(block.name, block.module))
            continue
        branch = _from(block.name, block.parts.branch)
        # what the stage reads is activated already, what its sums yield is not
        nodes.append(branch if act is None else nn.Sequential(act, branch))
        act = block.own(block.parts.act) if block.parts.act is not None else None
    last = len(nodes) + 1
    ids = list(range(last + 1) if node_ids is None else node_ids)
    if not set(ids) <= set(range(last + 1)) or not {0, last} <= set(ids):
        raise ValueError(f'{first.name}: nodes {ids} are not 0, {last} and some in between')
    reference = next(first.module.parameters())
    dd = {'device': reference.device, 'dtype': reference.dtype}
    try:
        graph = make_wiring(wiring, len(ids), stage)
        _, channels, _ = _shape(segment[-1].module)
        graph_stage = GraphStage(
            graph,
            build_connectivity(connectivity, graph, channels, **dd),
            entry,
            [nodes[i - 1] for i in ids[1:-1]],
            first_reads_input=reads_input and 1 in ids and last > 1,
            node_ids=ids,
            whole_blocks=whole,
        )
    except (TypeError, ValueError) as error:
        raise type(error)(
            f'the stage that starts with {first.name} has {len(nodes)} nodes between input and '
            f'output: {error}'
        ) from None
    return [module for module in (norm, graph_stage, act) if module is not None]


def _from(name: str, module: nn.Module) -> nn.Module:
    """Mark ``module`` as what the plain network calls ``name``."""
    module.origin = name
    return module


def _per_graph(name: str, value, graphs: Sequence) -> list:
    if not isinstance(value, (list, tuple)):
        return [value] * len(graphs)
    if len(value) != len(graphs):
        raise ValueError(f'{name} has {len(value)} entries for {len(graphs)} stages: {value}')
    return list(value)


def _shape(module: nn.Module) -> tuple[int, int, int]:
    """Input channels, output channels and stride of a block, from a run without data."""
    first = next(m for m in module.modules() if isinstance(m, (nn.Conv2d, MixedConv2d)))
    in_chs = sum(first.splits) if isinstance(first, MixedConv2d) else first.in_channels
    ghost = copy.deepcopy(module).to('meta').eval()
    dtype = next(ghost.parameters()).dtype
    output = ghost(torch.empty(1, in_chs, 64, 64, device='meta', dtype=dtype))
    return in_chs, output.shape[1], 64 // output.shape[2]


def _projection(module: nn.Module, beside: bool = True) -> ConvNorm:
    """x_0 = BN(conv1x1(x)), shaped as ``module``; beside it adding nothing at first."""
    reference = next(module.parameters())
    in_chs, out_chs, stride = _shape(module)
    projection = ConvNorm(
        in_chs, out_chs, 1, stride, device=reference.device, dtype=reference.dtype
    )
    reset_projection(projection, beside)
    return projection


def _keeps_resolution(block: _Block) -> bool:
    """Whether it is a residual block with a shortcut and stride 1."""
    if block.parts is None or block.parts.shortcut is None:
        return False
    return _shape(block.module)[2] == 1


def _projected_entry(first: _Block) -> nn.Module:
    """The projection to x_0 that the first block itself reads too (DG-Net's first stages).

    The block's first convolution is made anew where it has to read another number of channels.

    Raises:
        ValueError: The block shares a norm with its shortcut (pre-activation), or its first
            convolution has groups.
    """
    if first.parts.norm is not None:
        raise ValueError(f'projected_entry does not fit the pre-activation block {first.name}')
    _, out_chs, _ = _shape(first.module)
    name, conv = next(
        (n, m) for n, m in first.parts.branch.named_modules() if isinstance(m, nn.Conv2d)
    )
    if conv.in_channels != out_chs:
        if conv.groups != 1 or '.' in name:
            raise ValueError(f'projected_entry does not fit {first.name}, which starts with {conv}')
        wider = nn.Conv2d(
            out_chs, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
            conv.dilation, bias=conv.bias is not None, device=conv.weight.device,
            dtype=conv.weight.dtype,
        )  # fmt: skip
        wider.origin, wider.instead_of = None, f'{first.name}.{name}'
        reset_input_conv(wider)
        setattr(first.parts.branch, name, wider)
    if first.has_identity:
        return _projection(first.module, beside=False)
    return first.own(first.parts.shortcut)
