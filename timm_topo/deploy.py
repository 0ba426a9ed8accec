"""Networks as they are run for good: constants in place of learned weights, no batch norm.

A graph stage chooses an executor at every call, and its equation is exported. A deployed stage is
fixed: edge weights are numbers, edges of weight 0 are gone, a sum starts from
an earlier one where it can, and a chain of blocks is a chain of blocks.
"""

import copy
from collections import Counter

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .analysis.cost import input_size_of
from .analysis.outputs import named_outputs
from .executors import evaluation_mode
from .executors.prefix_sums import Sum, keeps_input, plan
from .stages import GraphStage, Stage, graph_stages, select_edges

__all__ = ['DeployedStage', 'deploy']

_CONVS = (nn.Conv2d, Conv2dSame)  # whose forward is a convolution by their weight


class DeployedStage(nn.Module):
    """A graph stage with static edge weights, ready to be run, traced and exported.

    Args:
        stage: The stage; its modules are shared.

    Raises:
        ValueError: Edge weights depend on the image.
    """

    def __init__(self, stage: GraphStage):
        super().__init__()
        if stage.needs_context:
            raise ValueError('edge weights that depend on the image cannot be constants')
        stage = _without_zeros(stage)
        self.wiring, self.node_ids = stage.wiring, stage.node_ids
        self.first_reads_input = stage.first_reads_input
        self.entry, self.nodes, self.transitions = stage.entry, stage.nodes, stage.transitions
        self.offsets = nn.ModuleList([*stage.offsets, stage.output_offset])
        self.transitions_of = stage.transitions_of
        weights = tuple(stage.connectivity.edge_weights().detach().double().tolist())
        keep = tuple(map(keeps_input, self.nodes))
        self.sums = plan(stage.map_index, weights, keep, self.first_reads_input)
        self.copies = _copies(self.sums, keep, self.transitions_of, self.first_reads_input)

    def forward(self, x: Tensor) -> Tensor:
        """Stage input ``(B, C_in, H_in, W_in)`` -> stage output ``(B, C, H, W)``."""
        maps, totals = self._spread(0, self.entry(x)), []
        for node, (base, rest) in enumerate(self.sums, start=1):
            inputs = [x] if self.first_reads_input and node == 1 else maps
            total = _total(None if base is None else totals[base - 1], rest, inputs)
            total = self.offsets[node - 1](total.clone() if self.copies[node - 1] else total)
            totals.append(total)
            if node <= len(self.nodes):
                maps += self._spread(node, self.nodes[node - 1](total))
        return total

    def _spread(self, node: int, x_j: Tensor) -> list[Tensor]:
        return [x_j, *(self.transitions[k](x_j) for k in self.transitions_of[node])]

    def extra_repr(self) -> str:
        return f'{self.wiring}'


def _without_zeros(stage: GraphStage) -> GraphStage:
    """``stage`` without edges of weight 0, but for those of nodes that read nothing else."""
    weights = stage.connectivity.edge_weights().tolist()
    kept = []
    for start, stop in stage.wiring.in_edges:
        carry = [edge for edge in range(start, stop) if weights[edge] != 0]
        kept += carry or range(start, stop)
    return stage if len(kept) == len(weights) else select_edges(stage, kept)


def _total(base: Tensor | None, rest: tuple[tuple[int, float], ...], maps: list[Tensor]) -> Tensor:
    """base + the weighted rest; the map itself where it is alone and weighs 1."""
    total = base
    for place, weight in rest:
        if total is None:
            total = maps[place] if weight == 1 else maps[place] * weight
        else:
            total = torch.add(total, maps[place], alpha=weight)
    return total


def _copies(
    sums: tuple[Sum, ...], keep: tuple[bool, ...], transitions_of: list[list[int]], reads_x: bool
) -> list[bool]:
    """Whether each sum is copied: a node may overwrite what it reads, and others read it later."""
    stored, reads, first_place = [], [], 0  # by step: what its total is stored in
    places = []
    for later in transitions_of:
        places.append(first_place)
        first_place += 1 + len(later)
    node_of = {place: node for node, place in enumerate(places)}
    for node, (base, rest) in enumerate(sums, start=1):
        terms = ['x' if reads_x and node == 1 else ('map', node_of.get(p, p)) for p, _ in rest]
        of_base = None if base is None else stored[base - 1]
        alone = base is None and len(rest) == 1 and rest[0][1] == 1
        stored.append(terms[0] if alone else of_base if not rest else ('sum', node))
        reads.append({*terms, *([of_base] if base is not None else ())})
    copies = []
    for step, buffer in enumerate(stored):
        overwrites = step < len(keep) and not keep[step]
        again = buffer == 'x' or any(buffer in later for later in reads[step + 1 :])
        copies.append(overwrites and again)
    return copies


def deploy(model: nn.Module, probe: Tensor | None = None) -> nn.Module:
    """A copy of ``model`` for inference alone, with the same outputs.

    Graph stages with static edge weights become :class:`DeployedStage`; batch norm goes into the
    convolution before it; blocks that timm can re-parametrise are. Stages whose weights depend on
    the image, and stages of branches, stay as they are. It cannot be trained or saved: save
    ``model``; export this one.

    Args:
        model: Any network; left as it is.
        probe: Images ``(B, C, H, W)`` on which outputs are compared; by default two of noise in
            the model's input size.

    Raises:
        RuntimeError: Outputs differ by more than rounding.
    """
    reference = next(model.parameters())
    if probe is None:
        noise = torch.Generator().manual_seed(0)
        probe = torch.randn(2, *input_size_of(model), generator=noise)
    probe = probe.to(reference)
    with torch.no_grad(), evaluation_mode(model):
        before = named_outputs(model(probe))
    deployed = reparameterize_model(copy.deepcopy(model)).eval().requires_grad_(False)
    for name, stage in graph_stages(deployed, required=False).items():
        if isinstance(stage, GraphStage) and not stage.needs_context:
            parent, _, leaf = name.rpartition('.')
            setattr(deployed.get_submodule(parent), leaf, DeployedStage(stage))
    with torch.no_grad():
        _fold_norms(deployed, probe)
        after = named_outputs(deployed(probe))
    tolerance = max(1e-4, 8 * torch.finfo(reference.dtype).eps)
    for name, value in before.items():
        scale, off = value.abs().max().item(), (value - after[name]).abs().max().item()
        if not off <= tolerance * max(scale, 1.0):
            raise RuntimeError(
                f'{type(model).__name__} deployed is another function: {name} differs by {off:.3g} '
                f'(up to {scale:.3g})'
            )
    deployed.deployed = True
    return deployed


def _fold_norms(model: nn.Module, probe: Tensor) -> None:
    """Put batch norms into the convolutions whose only reader they are, in place."""
    pairs, calls, outputs = {}, Counter(), {}
    reads = _Reads()
    graphs = [stage for stage in model.modules() if isinstance(stage, Stage)]
    inside = {module for stage in graphs for module in stage.modules()}
    hooks = []

    def after_conv(conv: nn.Module, _, output: Tensor) -> None:
        calls[conv] += 1
        outputs[id(output)] = (conv, output)  # kept alive: the id stays its own
        reads.count[id(output)] = 0

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        conv, _ = outputs.get(id(inputs[0]), (None, None))
        pairs[norm] = conv

    for module in set(model.modules()) - inside:
        if type(module) in _CONVS:
            hooks.append(module.register_forward_hook(after_conv))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        with reads:
            model(probe)
    finally:
        for hook in hooks:
            hook.remove()
    alone = {conv for conv, output in outputs.values() if reads.count[id(output)] == 1}
    for name, norm in list(model.named_modules()):
        conv = pairs.get(norm)
        once = conv in alone and calls[conv] == 1 and calls[norm] == 1
        if not once or norm.running_mean is None:
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight,
            norm.bias,
        )  # fmt: skip
        parent, _, leaf = name.rpartition('.')
        behind = nn.Identity()
        if isinstance(norm, BatchNormAct2d):
            behind = nn.Sequential(norm.drop, norm.act) if _acts(norm.drop) else norm.act
        setattr(model.get_submodule(parent), leaf, behind.eval())


class _Reads(TorchDispatchMode):
    """Counts the operators that read a tensor, by its id."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = tree_leaves((args, kwargs))
        self.count.update({id(one) for one in given if isinstance(one, Tensor)})
        return function(*args, **(kwargs or {}))


def _acts(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity)
