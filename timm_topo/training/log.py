"""The output of a run: a bar or lines on the console, ``summary.csv``, TensorBoard."""

import csv
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..analysis.history import trim_edge_weights, write_edge_weights
from ..analysis.routing import StageRouting
from ..analysis.tables import write_csv
from ..executors import evaluation_mode
from ..extras import needs
from ..files import writing
from ..stages import Stage

__all__ = ['RunLog', 'adjacency_image', 'stages_of']


class RunLog:
    """Console, CSV and TensorBoard of one run. Only the primary process has one that speaks.

    Args:
        folder: Where ``summary.csv`` and the event files go; None: silent.
        start_epoch: First epoch to come: older rows and edge weights are kept, later ones replaced.
        tensorboard: Whether to write event files.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path | None, start_epoch: int = 0, tensorboard: bool = True):
        self.folder = folder
        self.board = None
        self.bar = None
        if folder is None:
            return
        self.rows = _rows(folder / 'summary.csv', start_epoch)
        if self.rows:
            write_csv(folder / 'summary.csv', self.rows)
        else:
            (folder / 'summary.csv').unlink(missing_ok=True)
        trim_edge_weights(folder, start_epoch)
        if tensorboard:
            with needs('timm-topo[train], or --no-tensorboard'):
                from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(str(folder), purge_step=start_epoch)

    def say(self, text: str) -> None:
        """One line on the console."""
        if self.folder is not None:
            tqdm.write(text)
            sys.stdout.flush()

    def start_epoch(self, epoch: int, epochs: int, batches: int) -> None:
        """Open the progress bar, on a terminal."""
        if self.folder is not None and sys.stderr.isatty():
            self.bar = tqdm(total=batches, desc=f'epoch {epoch + 1}/{epochs}', leave=False)

    def batch(self, text: str, line: bool) -> None:
        """One batch is done: move the bar, or print a line if ``line``."""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()
        elif line:
            self.say(f'  {text}')

    def end_epoch(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def epoch(
        self,
        epoch: int,
        train: dict,
        evaluation: dict,
        lr: float,
        model: nn.Module,
        routes: dict[str, StageRouting] | None = None,
        snapshot: bool = True,
    ):
        """Write down what an epoch gave.

        Args:
            epoch: Its number, from 0.
            train: Numbers of the training.
            evaluation: Numbers of the evaluation.
            lr: Learning rate.
            model: The model that was evaluated.
            routes: By stage name, where weights depend on the image.
            snapshot: Whether to keep the edge weights, too.
        """
        if self.folder is None:
            return
        row = {'epoch': epoch}
        for group, metrics in (('train', train), ('eval', evaluation)):
            row |= {f'{group}_{name}': value for name, value in metrics.items()}
        self.rows.append({**row, 'lr': lr})
        write_csv(self.folder / 'summary.csv', self.rows)
        weights = _edge_weights(model, routes)
        if snapshot and weights:
            write_edge_weights(self.folder, epoch + 1, weights)
        if self.board is not None:
            with writing(self.folder):
                self._draw(epoch, train, evaluation, lr, model, weights, routes)

    def _draw(
        self,
        epoch: int,
        train: dict,
        evaluation: dict,
        lr: float,
        model: nn.Module,
        weights: dict[str, Tensor],
        routes: dict[str, StageRouting] | None,
    ) -> None:
        """The same for TensorBoard."""
        for group, metrics in (('train', train), ('eval', evaluation)):
            for name, value in metrics.items():
                self.board.add_scalar(f'{group}/{name}', value, epoch)
        self.board.add_scalar('train/lr', lr, epoch)
        stages = stages_of(model)
        for name, values in weights.items():
            if stages[name].needs_context:
                self._route(name, stages[name], routes[name], epoch)
            image = adjacency_image(stages[name], values)
            self.board.add_histogram(f'edge_weights/{name}', values, epoch)
            self.board.add_image(f'adjacency/{name}', image, epoch)
        self.board.flush()

    def snapshot(self, done: float, model: nn.Module) -> None:
        """Write down the edge weights after ``done`` epochs, before training or within an epoch.

        Those that depend on the image are left out: they have means at the end of an epoch only.
        """
        if self.folder is None:
            return
        if weights := _edge_weights(model):
            write_edge_weights(self.folder, done, weights)

    def _route(self, name: str, stage: Stage, route: StageRouting, epoch: int) -> None:
        """Per stage and image: open edges, computed nodes; per edge: spread, threshold."""
        for key, counts in (('open_edges', route.open_edges), ('nodes', route.computed_nodes)):
            counts = counts.float()
            for kind, value in (
                ('mean', counts.mean()), ('least', counts.min()), ('most', counts.max())
            ):  # fmt: skip
                self.board.add_scalar(f'{key}_per_image/{name}/{kind}', value, epoch)
            self.board.add_histogram(f'{key}_per_image/{name}', counts, epoch)
        self.board.add_histogram(f'edge_weight_spread/{name}', route.spread, epoch)
        thresholds = stage.connectivity.thresholds()
        if thresholds is not None:
            self.board.add_histogram(f'thresholds/{name}', thresholds.float().cpu(), epoch)

    def close(self) -> None:
        """Write the rest and close the files."""
        self.end_epoch()
        if self.board is not None:
            with writing(self.folder):
                self.board.close()


def _rows(path: Path, start_epoch: int) -> list[dict[str, str]]:
    """What ``summary.csv`` has of the epochs before ``start_epoch``."""
    if not path.exists():
        return []
    with open(path, encoding='utf-8', newline='') as file:
        rows = [row for row in csv.DictReader(file) if None not in (*row, *row.values())]
    return [row for row in rows if int(row['epoch']) < start_epoch]


def _edge_weights(
    model: nn.Module, routes: dict[str, StageRouting] | None = None
) -> dict[str, Tensor]:
    """Edge weights ``(E,)`` by stage name; those that depend on the image: their means if known."""
    weights = {}
    for name, stage in stages_of(model).items():
        if not stage.needs_context:
            with evaluation_mode(stage.connectivity) as rule:  # in training, one may change itself
                weights[name] = rule.edge_weights().detach().float().cpu()
        elif routes:
            weights[name] = routes[name].mean
    return weights


def stages_of(model: nn.Module) -> dict[str, Stage]:
    """Graph stages by name; none for a plain timm model."""
    return {n: module for n, module in model.named_modules() if isinstance(module, Stage)}


def adjacency_image(stage: Stage, weights: Tensor, pixels: int = 8) -> Tensor:
    """Adjacency matrix as an image, rows = targets, as in TopoNet's Fig. 3.

    Args:
        stage: The stage.
        weights: Its edge weights ``(E,)``.
        pixels: Size of a cell.

    Returns:
        ``(3, N * pixels, N * pixels)`` in [0, 1]: red is positive, blue negative, white 0, grey
        no edge; full colour at the largest magnitude.
    """
    n = stage.wiring.num_nodes
    image = torch.full((3, n, n), 0.85)
    shade = weights / weights.abs().max().clamp(min=1e-12)
    for (source, target), value in zip(stage.wiring.edges, shade.tolist()):
        fade = 1 - abs(value)
        image[:, target, source] = torch.tensor(
            (1.0, fade, fade) if value >= 0 else (fade, fade, 1.0)
        )
    return image.repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)
