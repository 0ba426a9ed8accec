"""Networks adapting to data sets (Janik & Nowak, section 4): trainings, tables and figures."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import timm
import torch
from torch.utils.data import IterableDataset

from .. import plot
from ..analysis.compare import THRESHOLDS
from ..analysis.cost import count_parameters
from ..analysis.history import read_edge_weights
from ..analysis.metrics import embed, similarity, stage_characteristics
from ..analysis.prune import DisconnectedError, edge_weights, prune
from ..analysis.tables import group, mean_and_spread, read_csv, text_table, write_csv
from ..checkpoint import load, save
from ..data import load_dataset
from ..files import locked
from ..stages import Stage, graph_stages
from ..training.build import NO_WEIGHTS
from ..training.evaluate import accuracy, image_mode
from ..training.loop import train
from ..training.options import TrainingOptions
from .cache import FREE, pending
from .sweep import sweep

__all__ = ['KINDS', 'Study']

#: What is compared: the full graph, what a threshold leaves of it, and that trained from scratch
#: with as many channels and with as many parameters as the full graph.
KINDS = ('full', 'thresholded', 'rerun', 'rerun, fitted')


@dataclass
class Study:
    """Folders of trainings per data set and seed, and tables and figures over them.

    Every step that is done is kept: a study that was interrupted goes on where it was, and another
    threshold takes the full graphs that are there. ``LABEL/SEED/full`` is the training of a full
    graph; ``LABEL/SEED/at_TAU`` holds what is made of it at a threshold.

    Attributes:
        output: Where to.
        data: By label, name and folder of a data set, as :func:`timm_topo.data.load_dataset` takes
            them.
        seeds: One full training for each; the networks trained again use the seed plus 1000.
        options: Of all trainings, as from :func:`timm_topo.training.options.parse_args`.
        threshold: On |edge weight|, for the networks that are trained again.
        thresholds: Of the sweep.
        fold: Whether constants take the place of nodes that nobody feeds, so that what is left
            computes the same; without, these just go, as in the paper.
    """

    output: Path
    data: dict[str, tuple[str, str | None]]
    seeds: Sequence[int]
    options: TrainingOptions
    threshold: float = 0.006
    thresholds: Sequence[float] = THRESHOLDS
    fold: bool = True

    def run(self) -> str:
        """Everything, seed by seed; the tables as text.

        Raises:
            ValueError: A network has several graphs, or weights that depend on the image; a
                threshold is out of range; there are more data sets than a figure shows; the folder
                holds trainings with other options; or as for
                :func:`timm_topo.training.loop.train`.
        """
        self._check()
        with locked(self.output):
            return self._run()

    def _run(self) -> str:
        for seed in self.seeds:
            for label in self.data:
                self._one(label, seed)
        for name in _WRITTEN:  # by another run, of other data sets or another threshold
            for path in self.output.glob(name):
                path.unlink()
        tables = self._tables()
        self._figures()
        return tables

    def _check(self) -> None:
        """What would stop the study later stops it before anything is trained."""
        for threshold in (self.threshold, *self.thresholds):
            if not (math.isfinite(threshold) and threshold >= 0):
                raise ValueError(f'a threshold must be finite and >= 0, got {threshold}')
        if not 1 <= len(self.data) <= plot.MOST_SERIES:
            raise ValueError(
                f'1 to {plot.MOST_SERIES} data sets fit a figure, got {len(self.data)}'
            )
        if not self.seeds or not self.thresholds:
            raise ValueError('a study needs at least one seed and one threshold')
        if not timm.is_model(self.options.model):
            raise ValueError(f'unknown model {self.options.model!r}: see timm.list_models()')
        for name, folder in self.data.values():
            for split in (self.options.train_split, self.options.val_split):
                download = self.options.dataset_download
                data = load_dataset(name, folder, split, download=download)
                if not isinstance(data, IterableDataset):
                    data[0]
        with torch.device('meta'):
            model = timm.create_model(self.options.model, **self.options.model_kwargs)
        stages = [module for module in model.modules() if isinstance(module, Stage)]
        if len(stages) != 1 or stages[0].needs_context:
            raise ValueError(
                f'a study is about networks of one graph with static weights, such as dagnet60; '
                f'{self.options.model} has {len(stages)}'
                + (' that depends on the image' if len(stages) == 1 else '')
            )

    # -- networks ---------------------------------------------------------------------------------

    def home(self, label: str, seed: int) -> Path:
        """Folder of one data set and seed."""
        return self.output / label / str(seed)

    def _one(self, label: str, seed: int) -> None:
        home = self.home(label, seed)
        full = self._fit(home / 'full', label, seed=seed)
        rows = [_row(full, label=label, seed=seed, kind=KINDS[0])]
        model = load(full / 'model').to(self._device).eval()
        name, folder = self.data[label]
        data = load_dataset(name, folder, self.options.val_split, image_mode(model))
        score = partial(accuracy, dataset=data)
        sweep(
            model, self.thresholds, score, self._sweep(label, seed), fold=self.fold, label=label,
            seed=seed,
        )  # fmt: skip
        home = self._at(label, seed)
        try:
            pruned, report = prune(model, self.threshold, fold=self.fold)
        except DisconnectedError as error:
            print(f'{label}, seed {seed}: {error}', flush=True)
        else:
            save(pruned, home / 'pruned')
            left = dict(edges=report.edges[1], nodes=report.nodes[1])
            rows.append({**rows[0], 'kind': KINDS[1], 'top1': score(pruned), **left})
            rows[-1].update(parameters=report.parameters[1], epoch_seconds='')
            given = self.options.model_kwargs
            own = {name: given[name] for name in given if name not in pruned.topology()}
            again = dict(from_saved=str(home / 'pruned'), seed=1000 + seed, model_kwargs=own)
            again |= {**NO_WEIGHTS, 'seed_wiring': False}
            runs = {KINDS[2]: self._fit(home / 'rerun', label, **again)}
            again['fit_parameters'] = rows[0]['parameters']
            runs[KINDS[3]] = self._fit(home / 'fitted', label, **again)
            rows += [_row(run, label=label, seed=seed, kind=kind) for kind, run in runs.items()]
            (stage,) = graph_stages(pruned).values()
            graph = stage_characteristics(stage)
            graph = {'label': label, 'seed': seed, **graph, 'parameters': report.parameters[1]}
            write_csv(home / 'characteristics.csv', [graph])
        write_csv(home / 'results.csv', rows)

    def _fit(self, folder: Path, label: str, **options) -> Path:
        """One training, gone on with, or left alone where it is done."""
        dataset, data_dir = self.data[label]
        changes = dict(dataset=dataset, data_dir=data_dir, save='last', from_saved_weights='reset')
        args = pending(folder, self.options, _FREE, **changes, **options)
        if args is not None:
            print(f'== {folder}', flush=True)
            train(args)
        return folder

    def _at(self, label: str, seed: int) -> Path:
        return self.home(label, seed) / f'at_{self.threshold:g}{self._suffix}'

    def _sweep(self, label: str, seed: int) -> Path:
        return self.home(label, seed) / f'sweep{self._suffix}.csv'

    @property
    def _suffix(self) -> str:
        return '' if self.fold else '_unfolded'

    @property
    def _device(self) -> str:
        return self.options.device or ('cuda' if torch.cuda.is_available() else 'cpu')

    # -- tables and figures -----------------------------------------------------------------------

    def _rows(self, name: str) -> list[dict]:
        """Rows of all data sets and seeds, data set by data set."""
        of = self._sweep if name == 'sweep.csv' else lambda *one: self._at(*one) / name
        paths = [of(label, seed) for label in self.data for seed in self.seeds]
        rows = [row for path in paths if path.exists() for row in read_csv(path)]
        if name == 'sweep.csv':  # which may hold others
            rows = [row for row in rows if float(row['threshold']) in self.thresholds]
        if rows:
            write_csv(self.output / name, rows)
        return rows

    @cached_property
    def _results(self) -> list[dict]:
        return self._rows('results.csv')

    @cached_property
    def _graphs(self) -> list[dict]:
        return self._rows('characteristics.csv')

    def _tables(self) -> str:
        """Accuracy and cost per kind; Tables 1 and 2."""
        lines = []
        for label, rows in group(self._results, 'label').items():
            seconds = {r['seed']: float(r['epoch_seconds']) for r in rows if r['kind'] == KINDS[0]}
            for kind, of_kind in group(rows, 'kind').items():
                timed = [row for row in of_kind if row['epoch_seconds']]
                faster = [seconds[row['seed']] / float(row['epoch_seconds']) for row in timed]
                cells = [
                    _mean(of_kind, 'top1'),
                    *(_mean(of_kind, key, digits) for key, digits in _SIZES.items()),
                ]
                faster = mean_and_spread(faster) if faster else ''
                lines.append([label, kind, len(of_kind), *cells, faster])
        head = ['data', 'network', 'seeds', 'top-1 (%)', *_SIZES, 'times faster per epoch']
        tables = [text_table(head, lines)]
        if self._graphs:
            by_label = group(self._graphs, 'label')
            names = [n for n in self._graphs[0] if n not in ('label', 'seed')]
            lines = [
                [name, *(_mean(rows, name, 0 if name == 'parameters' else 3)
                         for rows in by_label.values())]
                for name in names
            ]  # fmt: skip
            tables.append(text_table([f'threshold {self.threshold:g}', *by_label], lines))
        return '\n\n'.join(tables)

    def _figures(self) -> None:
        scores = {
            label: {
                kind: [float(row['top1']) for row in of_kind]
                for kind, of_kind in group(rows, 'kind').items()
            }
            for label, rows in group(self._results, 'label').items()
        }
        figures = {
            'thresholds': plot.threshold_curves(group(self._rows('sweep.csv'), 'label')),
            'accuracy': plot.accuracy_bars(scores),
        }
        panels = []
        for label in self.data:
            home = self._at(label, self.seeds[0])
            epochs, weights = read_edge_weights(self.home(label, self.seeds[0]) / 'full')
            ((name, history),) = weights.items()
            if (home / 'pruned').exists():
                full = load(self.home(label, self.seeds[0]) / 'full' / 'model')
                small = graph_stages(load(home / 'pruned'))[name]
                ids = small.node_ids
                left = {(ids[s], ids[t]) for s, t in small.wiring.edges}
                kept = [edge in left for edge in graph_stages(full)[name].wiring.edges]
                figures[f'weights_{label}'] = plot.weight_history(epochs, history, kept)
                title = f'{label}, seed {self.seeds[0]}, threshold {self.threshold:g}'
                panels.append(_panel(title, home / 'pruned'))
        if panels:
            figures['graphs'] = plot.graphs(panels, columns=1, limit=plot.shared_limit(panels))
        if len(self._graphs) > 2:
            labels = [row['label'] for row in self._graphs]
            figures['similarity'] = plot.similarity_matrix(similarity(self._graphs), labels)
            figures['embedding'] = plot.embedding(embed(self._graphs), labels)
        for name, figure in figures.items():
            plot.save_figure(figure, self.output / f'{name}.svg')


_SIZES = {'parameters': 0, 'edges': 1, 'nodes': 1}  # and their digits
_WRITTEN = (
    'results.csv', 'sweep.csv', 'characteristics.csv', 'thresholds.svg', 'accuracy.svg',
    'graphs.svg', 'similarity.svg', 'embedding.svg', 'weights_*.svg',
)  # fmt: skip
_FREE = FREE | {'from_saved'}  # in the folder of the study, which may move


def _mean(rows: Sequence[dict], column: str, digits: int = 2) -> str:
    values = [float(row[column]) for row in rows if row.get(column)]
    return mean_and_spread(values, digits) if values else ''


def _row(run: Path, **row) -> dict:
    """What a training gave."""
    model, epochs = load(run / 'model'), read_csv(run / 'summary.csv')
    wirings = [stage.wiring for stage in graph_stages(model).values()]
    return {
        **row,
        'top1': float(epochs[-1]['eval_top1']),
        'parameters': count_parameters(model),
        'edges': sum(wiring.num_edges for wiring in wirings),
        'nodes': sum(wiring.num_nodes for wiring in wirings),
        'epoch_seconds': statistics.median(float(epoch['train_seconds']) for epoch in epochs),
    }


def _panel(label: str, folder: Path) -> plot.Panel:
    model = load(folder)
    ((name, stage),) = graph_stages(model).items()
    weights = edge_weights(model)[name]
    return plot.Panel(label, stage.wiring, weights, stage.node_ids, stage.levels)
