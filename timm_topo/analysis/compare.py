"""Networks side by side: accuracy, edges, parameters, multiply-adds, measured time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..stages import graph_stages
from .cost import count_flops, count_parameters, latency
from .metrics import sparsity, stage_sizes
from .prune import DisconnectedError, PruneReport, edge_mask, mask_edges, prune, recalibrate

__all__ = ['THRESHOLDS', 'Cut', 'measure', 'prune_sweep', 'threshold_sweep']

THRESHOLDS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.02, 0.04, 0.08)
Score = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Cut:
    """One step of :func:`prune_sweep`.

    Attributes:
        fraction: Share of the edges asked to go.
        model: The pruned network, with new batch-norm statistics.
        report: What went.
        at_once: Score right after the cut.
        recalibrated: Score with new batch-norm statistics.
    """

    fraction: float
    model: nn.Module
    report: PruneReport
    at_once: float
    recalibrated: float


def prune_sweep(
    model: nn.Module, fractions: Sequence[float], images: Sequence[Tensor], score: Score
) -> Iterator[Cut]:
    """Prune ever more edges, each time from ``model``, without training.

    Ends early, before the fraction that would cut a stage in two.

    Args:
        model: A trained model with graph stages; left as it is.
        fractions: Shares of edges to remove, ascending.
        images: Batches for :func:`timm_topo.analysis.prune.recalibrate`; over the first, weights
            that depend on the image are averaged.
        score: Accuracy of a model, say.
    """
    for fraction in fractions:
        try:
            smaller, report = prune(model, fraction=fraction, images=images[0])
        except DisconnectedError:
            return
        at_once = score(smaller)
        recalibrate(smaller, images)
        yield Cut(fraction, smaller, report, at_once, score(smaller))


def threshold_sweep(
    model: nn.Module,
    thresholds: Sequence[float],
    score: Score,
    images: Tensor | None = None,
    fold: bool = True,
) -> Iterator[dict]:
    """What ever higher thresholds leave of one trained network (Janik & Nowak, Fig. 2a).

    Each row has ``threshold``; ``connected``, 0 where a graph fell apart; ``edges`` and
    ``sparsity`` over all graphs; ``top1_masked``, the score with weak edges set to zero and
    everything else in place; and, while connected, ``nodes`` and ``parameters`` of the smaller
    network, ``top1``, its score, ``starved``, how many of the nodes that went were still read
    though nobody fed them, and ``difference``, by how much outputs change because of them. Of one
    graph over several resolutions also ``sparsity_0``, ``nodes_0``... per stage.

    Args:
        model: A trained model with graph stages; left as it is.
        thresholds: On the absolute edge weight.
        score: Accuracy of a model, say.
        images: As for :func:`timm_topo.analysis.prune.edge_weights`.
        fold: As for :func:`timm_topo.analysis.prune.prune`.
    """
    possible = [sum(stage.level_sizes) for stage in graph_stages(model).values()]
    for threshold in thresholds:
        keep = edge_mask(model, threshold, images=images)
        row = {'threshold': threshold, 'connected': 1}
        try:
            smaller, report = prune(model, keep=keep, fold=fold)
        except DisconnectedError:
            row.update(connected=0, edges=int(sum(mask.sum() for mask in keep.values())))
            with mask_edges(model, keep):
                row['top1_masked'] = score(model)
        else:
            stages = list(graph_stages(smaller).values())
            row.update(edges=report.edges[1], nodes=report.nodes[1])
            if len(stages) == 1:
                row.update(stage_sizes(stages[0]))
            row.update(
                parameters=report.parameters[1],
                starved=sum(len(stage.starved) for stage in report.stages),
                difference=report.difference,
                top1=score(smaller),
            )
            row['top1_masked'] = row['top1']
            if not report.exact:
                with mask_edges(model, keep):
                    row['top1_masked'] = score(model)
        row['sparsity'] = sparsity(row['edges'], *possible)
        yield row


def measure(
    networks: dict[str, nn.Module],
    input_size: Sequence[int],
    score: Score,
    batch_size: int = 8,
    repeats: int = 40,
) -> dict[str, dict]:
    """Score and cost of each network, times measured in turn.

    Args:
        networks: Models by label; the first is the unit of the time ratio.
        input_size: ``(C, H, W)``.
        score: Accuracy of a model, say.
        batch_size: Images per forward pass when time is measured.
        repeats: Rounds.

    Returns:
        By label ``score``, ``edges`` and ``nodes`` (None of plain networks), ``parameters``,
        ``mflops`` (multiply-adds per image in millions), ``ms`` (median per pass) and ``ratio``.
    """
    times = latency(networks, input_size, batch_size, repeats)
    rows = {}
    for label, model in networks.items():
        wirings = [stage.wiring for stage in graph_stages(model, required=False).values()]
        rows[label] = {
            'score': score(model),
            'edges': sum(wiring.num_edges for wiring in wirings) if wirings else None,
            'nodes': sum(wiring.num_nodes for wiring in wirings) if wirings else None,
            'parameters': count_parameters(model),
            'mflops': count_flops(model, input_size).total / 1e6,
            'ms': times[label].median,
            'ratio': times[label].ratio,
        }
    return rows
