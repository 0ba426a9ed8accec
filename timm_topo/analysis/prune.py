"""Edges out, dead nodes with them: a smaller network that computes the same (TopoNet, section 4.4).

The papers say that a node without in-edges or without out-edges may safely go. Only the second is
exact: a node that nobody feeds still emits what its normalisation makes of zeros, the same map for
every image, so removing it changes whoever reads it. Such nodes are called starved here. What they
emit is folded: added as a constant to the weighted sums of their readers. Where that cannot be
done, the report says so, and by how much outputs differ.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..connectivity.fixed import FixedConnectivity
from ..connectivity.masked import MaskedEdges
from ..executors import adjacency, evaluation_mode, record_runs
from ..stages import Stage, TakesOffsets, compact, graph_stages, is_routed, select_edges
from ..wiring import Wiring
from .cost import input_size_of
from .outputs import named_outputs

__all__ = [
    'ORDERS',
    'DisconnectedError',
    'PruneReport',
    'StageCut',
    'edge_mask',
    'edge_weights',
    'freeze_edge_weights',
    'mask_edges',
    'prune',
    'recalibrate',
    'relative_weights',
    'retrainable',
]


#: Which edges may go first.
ORDERS = ('weakest', 'strongest', 'random')


class DisconnectedError(ValueError):
    """The edges that stay leave a stage without a path from input to output."""


@dataclass(frozen=True)
class StageCut:
    """What pruning did to one stage.

    Attributes:
        name: Module name of the stage.
        edges: Edges before and after.
        nodes: Nodes before and after.
        removed: Ids of the removed nodes.
        starved: Those of them that nobody fed but somebody still read.
        folded: Whether constants stand for them now; without, it is not exact to remove them.
    """

    name: str
    edges: tuple[int, int]
    nodes: tuple[int, int]
    removed: tuple[int, ...]
    starved: tuple[int, ...]
    folded: bool = False


@dataclass(frozen=True)
class PruneReport:
    """What pruning did.

    Attributes:
        cutoff: Edges with ``|weight| <= cutoff`` (relative weight, where asked) were removed; None
            if none was, or if weights depend on the image and none was given.
        stages: One entry per stage.
        parameters: Number of parameters before and after.
        difference: Largest absolute difference between the outputs of the pruned network and of
            the original with the same edges masked, over the probe.
        scale: Largest absolute output of the masked original, to judge ``difference`` by.
    """

    cutoff: float | None
    stages: tuple[StageCut, ...]
    parameters: tuple[int, int]
    difference: float
    scale: float

    @property
    def exact(self) -> bool:
        """Whether what went was dead, or constant and folded: ``difference`` is rounding then."""
        return not any(stage.starved and not stage.folded for stage in self.stages)

    @property
    def edges(self) -> tuple[int, int]:
        """Edges before and after, over all stages."""
        return tuple(sum(stage.edges[i] for stage in self.stages) for i in (0, 1))

    @property
    def nodes(self) -> tuple[int, int]:
        """Nodes before and after, over all stages."""
        return tuple(sum(stage.nodes[i] for stage in self.stages) for i in (0, 1))

    def __str__(self) -> str:
        rows = [
            f'edges {self.edges[0]} -> {self.edges[1]}, nodes {self.nodes[0]} -> {self.nodes[1]}, '
            f'parameters {self.parameters[0]:,} -> {self.parameters[1]:,}'
        ]
        rows += [
            f'  {stage.name}: edges {stage.edges[0]} -> {stage.edges[1]}, '
            f'nodes {stage.nodes[0]} -> {stage.nodes[1]}, removed {list(stage.removed)}'
            + (f', of which starved {list(stage.starved)}' if stage.starved else '')
            + (', folded' if stage.folded else '')
            for stage in self.stages
        ]
        verdict = 'exact: only dead parts went'
        if not self.exact:
            verdict = 'not exact: starved nodes emitted what their normalisation makes of zeros'
        elif any(stage.folded for stage in self.stages):
            verdict = 'exact: constants stand for what starved nodes emitted'
        rows.append(
            f'output differs from the masked original by at most {self.difference:.3g} '
            f'(outputs up to {self.scale:.3g}; {verdict})'
        )
        return '\n'.join(rows)


def edge_weights(model: nn.Module, images: Tensor | None = None) -> dict[str, Tensor]:
    """Edge weights ``(E,)`` by stage name, detached.

    Args:
        model: A model with graph stages.
        images: ``(B, C, H, W)``, preprocessed as in evaluation: weights that depend on the image
            are averaged over them. Not needed for others.

    Raises:
        ValueError: Weights depend on the image and there are none.
    """
    stages = graph_stages(model)
    routed = is_routed(model)
    if routed and images is None:
        raise ValueError('edge weights depend on the image: give images to average them over')
    buffers = adjacency(model, images) if routed else {}
    weights = {}
    for name, stage in stages.items():
        if stage.needs_context:
            sources, targets = zip(*stage.wiring.edges)
            weights[name] = buffers[name][:, targets, sources].mean(0)
        else:
            weights[name] = stage.connectivity.edge_weights().detach()
    return weights


def relative_weights(wiring: Wiring, weights: Tensor) -> Tensor:
    """Edge weights ``(E,)`` over the largest magnitude among the in-edges of the same node.

    Where batch norm follows the weighted sum, scaling all in-edges of a node changes nothing: an
    L1 penalty shrinks them together, and only their ratios say which sources matter.

    >>> relative_weights(Wiring(3, ((0, 1), (0, 2), (1, 2))), torch.tensor([0.5, -0.1, 0.4]))
    tensor([ 1.0000, -0.2500,  1.0000])
    """
    relative = weights.clone()
    for start, stop in wiring.in_edges:
        if stop > start:
            relative[start:stop] /= weights[start:stop].abs().max().clamp(min=1e-12)
    return relative


def edge_mask(
    model: nn.Module,
    threshold: float | None = None,
    fraction: float | None = None,
    relative: bool = False,
    images: Tensor | None = None,
    order: str = 'weakest',
    seed: int = 0,
) -> dict[str, Tensor]:
    """Which edges stay, as booleans ``(E,)`` by stage name.

    For one order and seed, what a fraction removes a larger one removes too.

    Args:
        model: A model with graph stages.
        threshold: Edges with ``|weight| <= threshold`` go; 0 removes exact zeros.
        fraction: Instead, this share of all edges goes (rounded to the nearest number of edges; of
            equal weights the earlier goes first).
        relative: Whether to judge edges by :func:`relative_weights`. A node's strongest in-edge
            counts 1 then and goes last, so that stages are hardly ever cut in two.
        images: See :func:`edge_weights`.
        order: Which edges a fraction takes first: ``'weakest'``, ``'strongest'`` or ``'random'``.
        seed: Of random order.

    Raises:
        ValueError: Not exactly one of the two, a threshold that is negative or not finite, a
            fraction outside [0, 1), an unknown order, one with a threshold, or weights that depend
            on the image without images.
    """
    if (threshold is None) == (fraction is None):
        raise ValueError(f'give threshold or fraction, got {threshold=} and {fraction=}')
    if order not in ORDERS:
        raise ValueError(f'unknown order {order!r}; known: {", ".join(ORDERS)}')
    if threshold is not None and order != 'weakest':
        raise ValueError(f'a threshold takes the weakest edges, not the order {order!r}')
    magnitudes = _magnitudes(model, relative, images)
    if threshold is not None:
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ValueError(f'threshold must be finite and >= 0, got {threshold}')
        return {name: magnitude > threshold for name, magnitude in magnitudes.items()}
    if not 0 <= fraction < 1:
        raise ValueError(f'fraction must be in [0, 1), got {fraction}')
    flat = torch.cat(list(magnitudes.values()))
    first = flat.argsort(stable=True)
    if order == 'strongest':
        first = first.flip(0)
    elif order == 'random':
        first = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[first[: round(fraction * len(flat))]] = False
    return dict(zip(magnitudes, keep.split([len(m) for m in magnitudes.values()])))


def _magnitudes(model: nn.Module, relative: bool, images: Tensor | None) -> dict[str, Tensor]:
    magnitudes = {name: weights.abs() for name, weights in edge_weights(model, images).items()}
    if relative:
        stages = graph_stages(model)
        magnitudes = {n: relative_weights(stages[n].wiring, m) for n, m in magnitudes.items()}
    return magnitudes


@contextmanager
def mask_edges(model: nn.Module, keep: dict[str, Tensor]) -> Iterator[nn.Module]:
    """Run ``model`` with some edge weights taken as zero, whatever its rules are.

    Args:
        model: A model with graph stages.
        keep: Booleans ``(E,)`` by stage name, as from :func:`edge_mask`.
    """
    stages = graph_stages(model)
    rules = {name: stage.connectivity for name, stage in stages.items()}
    try:
        for name, stage in stages.items():
            stage.connectivity = MaskedEdges(rules[name], keep[name])
        yield model
    finally:
        for name, stage in stages.items():
            stage.connectivity = rules[name]


def prune(
    model: nn.Module,
    threshold: float | None = None,
    fraction: float | None = None,
    keep: dict[str, Tensor] | None = None,
    probe: Tensor | None = None,
    relative: bool = False,
    images: Tensor | None = None,
    fold: bool = True,
) -> tuple[nn.Module, PruneReport]:
    """A smaller copy of ``model`` without its weak edges and the nodes that die with them.

    In evaluation the copy computes what ``model`` computes with these edges masked. Constants that
    stand for starved nodes are those at the size of the probe; at other sizes they are exact where
    maps are larger than twice the border that zero padding makes. They cannot be folded for
    branches of ResNeXt blocks, and where the thresholds of routers decide which nodes run.

    Args:
        model: A model with graph stages; left as it is.
        threshold: See :func:`edge_mask`.
        fraction: See :func:`edge_mask`.
        keep: Instead of both, booleans ``(E,)`` by stage name.
        probe: Images ``(B, C, H, W)`` on which the difference is measured; by default two of
            Gaussian noise in the model's input size.
        relative: See :func:`edge_mask`.
        images: See :func:`edge_weights`; not needed with ``keep``.
        fold: Whether constants take the place of starved nodes; without, these just go, as in the
            papers.

    Returns:
        The pruned copy and the report.

    Raises:
        DisconnectedError: The edges that stay leave a stage without a path (a ValueError).
        ValueError: Bad threshold, fraction or mask.
    """
    if keep is None:
        keep = edge_mask(model, threshold, fraction, relative, images)
    elif threshold is not None or fraction is not None or relative:
        raise ValueError('give keep, or threshold, or fraction: not several of them')
    _check_masks(model, keep)
    cutoff = _cutoff(model, keep, relative, images)
    told = '' if cutoff is None else f'(|weight| <= {cutoff:.4g}) '
    smaller = copy.deepcopy(model)
    cuts = []
    for name, stage in graph_stages(smaller).items():
        try:
            cut = select_edges(stage, keep[name].nonzero().flatten().tolist())
        except ValueError:
            raise DisconnectedError(
                f'removing {int((~keep[name]).sum())} of {len(keep[name])} edges of {name} '
                f'{told}leaves no path from its input to its output; '
                'remove fewer edges'
            ) from None
        cuts.append(_describe(name, stage, keep[name], cut))
        parent, _, leaf = name.rpartition('.')
        setattr(smaller.get_submodule(parent), leaf, cut)
    if fold and any(cut.starved for cut in cuts):
        cuts = _fold(model, smaller, keep, cuts, probe)
    with mask_edges(model, keep):
        masked = _probe_output(model, probe)
    report = PruneReport(
        cutoff=cutoff,
        stages=tuple(cuts),
        parameters=tuple(sum(p.numel() for p in m.parameters()) for m in (model, smaller)),
        difference=(masked - _probe_output(smaller, probe)).abs().max().item(),
        scale=masked.abs().max().item(),
    )
    return smaller, report


def _cutoff(
    model: nn.Module, keep: dict[str, Tensor], relative: bool, images: Tensor | None
) -> float | None:
    """The largest magnitude that goes, if any does and magnitudes are known."""
    if images is None and is_routed(model):
        return None
    gone = [m[~keep[name]] for name, m in _magnitudes(model, relative, images).items()]
    return max((g.max().item() for g in gone if len(g)), default=None)


def _check_masks(model: nn.Module, keep: dict[str, Tensor]) -> None:
    stages = graph_stages(model)
    if set(keep) != set(stages):
        raise ValueError(f'keep has masks for {sorted(keep)}, the model has {sorted(stages)}')
    for name, stage in stages.items():
        if keep[name].dtype != torch.bool or keep[name].shape != (stage.wiring.num_edges,):
            raise ValueError(
                f'the mask of {name} must be ({stage.wiring.num_edges},) booleans, got '
                f'{tuple(keep[name].shape)} of {keep[name].dtype}'
            )


def _describe(name: str, stage: Stage, keep: Tensor, cut: Stage) -> StageCut:
    old = stage.wiring
    masked = old.subgraph(edge for edge, stays in zip(old.edges, keep.tolist()) if stays)
    removed = masked.dead_nodes()
    read = {old.num_nodes - 1}  # nodes from which the output can be reached
    for source, target in reversed(masked.edges):
        if target in read:
            read.add(source)
    return StageCut(
        name=name,
        edges=(old.num_edges, cut.wiring.num_edges),
        nodes=(old.num_nodes, cut.wiring.num_nodes),
        removed=removed,
        starved=tuple(node for node in removed if node in read and not _skips(stage, node)),
    )


@torch.no_grad()
def _fold(
    model: nn.Module,
    smaller: nn.Module,
    keep: dict[str, Tensor],
    cuts: list[StageCut],
    probe: Tensor | None,
) -> list[StageCut]:
    """Give the stages of ``smaller`` the constants of starved nodes; the cuts with the outcome."""
    starved = {cut.name: cut.starved for cut in cuts}
    names = {stage: name for name, stage in graph_stages(model).items()}

    def take(stage: Stage, maps: list[Tensor], rows: list[Tensor]) -> dict[int, Tensor]:
        return _constants(stage, starved[names[stage]], maps, rows)

    with mask_edges(model, keep), record_runs(model, take) as constants:
        size = input_size_of(model) if probe is None else probe.shape[1:]
        _probe_output(model, _noise(size))
    folded = []
    for cut in cuts:
        values = constants[cut.name]
        is_folded = bool(cut.starved) and all(value is not None for value in values.values())
        folded.append(dataclasses.replace(cut, folded=is_folded))
        if is_folded:
            kept = [node for node in range(cut.nodes[0]) if node not in cut.removed]
            stage = graph_stages(smaller)[cut.name]
            for node in values.keys() & set(kept):
                stage.add_offset(kept.index(node), values[node])
    return folded


def _constants(
    stage: Stage, starved: Sequence[int], maps: list[Tensor], rows: list[Tensor]
) -> dict[int, Tensor | None]:
    """By reader, what starved nodes add to its sum, ``(C, h, w)``; None if no constant does."""
    thresholds = stage.connectivity.thresholds() if stage.needs_context else None
    foldable = isinstance(stage, TakesOffsets) and (thresholds is None or not thresholds.any())
    constants = {}
    for reader in range(1, stage.wiring.num_nodes):
        read = [k for k, source in enumerate(stage.wiring.preds(reader)) if source in starved]
        if not read:
            continue
        constants[reader] = None
        if foldable:
            weights = rows[reader - 1].detach().expand(len(maps[-1]), -1)
            index = stage.map_index[reader]
            parts = [maps[index[k]] * weights[:, k, None, None, None] for k in read]
            first, second = torch.stack(parts).sum(0)[:2]
            if (first - second).abs().max() <= 1e-5 * first.abs().max():
                constants[reader] = compact(first)
    return constants


def _skips(stage: Stage, node: int) -> bool:
    """Whether a node without weight on its in-edges is not computed anyway."""
    thresholds = stage.connectivity.thresholds() if stage.needs_context else None
    start, stop = stage.wiring.in_edges[node]
    return thresholds is not None and bool((thresholds[start:stop] > 0).all())


@torch.no_grad()
def _probe_output(model: nn.Module, probe: Tensor | None) -> Tensor:
    """All values of all outputs."""
    reference = next(model.parameters())
    if probe is None:
        probe = _noise(input_size_of(model))
    with evaluation_mode(model):
        outputs = named_outputs(model(probe.to(reference)))
    return torch.cat([output.float().flatten() for output in outputs.values()])


def _noise(size: Sequence[int]) -> Tensor:
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """Estimate the batch-norm statistics of ``model`` anew, in place; nothing else changes.

    Removing edges shifts what every later node sees, and the stored statistics no longer fit:
    much of the accuracy that pruning seems to cost comes back by this alone, without labels and
    without training. Batch norm normalises by its batch and collects; everything else runs as in
    evaluation: routers close edges, masks are the K largest, no path is dropped. Statistics are
    those of all batches together. Norms that no image reaches keep theirs.

    Args:
        model: A model with batch normalisation.
        batches: Images ``(B, C, H, W)``, preprocessed as in evaluation; all are used.

    Raises:
        ValueError: No batches.
    """
    if not len(batches):
        raise ValueError('recalibrate needs at least one batch of images')
    estimate = copy.deepcopy(model).eval()
    found = {}
    for norm in estimate.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            found[norm] = _Population()
            norm.register_forward_pre_hook(lambda norm, args: found[norm].collect(norm, args[0]))
    for images in batches:
        estimate(images)
    for norm, population in found.items():
        if population.count:
            norm.running_mean.copy_(population.mean)
            norm.running_var.copy_(population.deviations / population.count)
    model.load_state_dict(estimate.state_dict())
    return model


class _Population:
    """Count, mean and sum of squared deviations ``(C,)`` of what a norm reads, batch by batch."""

    def __init__(self):
        self.count, self.mean, self.deviations = 0, 0.0, 0.0

    def collect(self, norm: nn.Module, x: Tensor) -> None:
        """Add a batch ``(B, C, ...)``, by which ``norm`` is to normalise."""
        values = x.transpose(0, 1).flatten(1).to(norm.running_var.dtype)
        number = values.shape[1]
        norm.training = number > 1  # a single value has no variance: PyTorch refuses it
        variance, mean = torch.var_mean(values, 1, correction=0)
        share, ahead = number / (self.count + number), mean - self.mean
        self.deviations = self.deviations + number * (variance + (1 - share) * ahead.square())
        self.mean = self.mean + share * ahead
        self.count += number


def freeze_edge_weights(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    """Replace every rule of ``model`` by its present weights, fixed; in place.

    Args:
        model: A model with graph stages.
        images: See :func:`edge_weights`.

    Raises:
        ValueError: Weights depend on the image and there are no images.
    """
    weights = edge_weights(model, images)
    for name, stage in graph_stages(model).items():
        stage.connectivity = FixedConnectivity(stage.wiring, weights[name])
    return model


def retrainable(model: nn.Module, alpha: str = 'reset', images: Tensor | None = None) -> nn.Module:
    """A copy with fresh weights in the same wiring, to be trained from scratch (section 4.5).

    Args:
        model: A model with graph stages and ``init_weights``.
        alpha: What becomes of the edge weights: ``'reset'`` to their initial value (a fixed
            rule: 1) and, by a learned rule, learned again; ``'keep'`` as they are and learned on;
            or ``'frozen'`` as they are.
        images: See :func:`edge_weights`; for ``'frozen'`` only.

    Raises:
        ValueError: Another ``alpha``, or weights to freeze that depend on the image without images.
    """
    if alpha not in ('reset', 'keep', 'frozen'):
        raise ValueError(f"alpha must be 'reset', 'keep' or 'frozen', got {alpha!r}")
    fresh = copy.deepcopy(model)
    if alpha == 'frozen':
        freeze_edge_weights(fresh, images)
    learned = {n: copy.deepcopy(s.connectivity) for n, s in graph_stages(fresh).items()}
    fresh.init_weights()
    for stage in graph_stages(fresh).values():
        if isinstance(stage, TakesOffsets):
            stage.clear_offsets()  # constants of the weights before
    if alpha != 'reset':
        for name, stage in graph_stages(fresh).items():
            stage.connectivity = learned[name]
    return fresh
