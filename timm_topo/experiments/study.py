"""Networks adapting to data sets (Janik & Nowak, section 4): what a table's rows become.

A row is a data set. Its network is thresholded, and what is left is trained from scratch, with as
many channels and with as many parameters as before.
"""

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
from ..analysis.tables import group, markdown_table, mean_and_spread, read_csv, write_csv
from ..checkpoint import load, save
from ..checks import check_flag, check_number
from ..data import load_dataset
from ..stages import Stage, graph_stages
from ..training.build import NO_WEIGHTS
from ..training.evaluate import accuracy, image_mode
from ..training.options import TrainingOptions
from . import table as of_table
from .cache import pending
from .reproduce import FREE_HERE, Reproduction
from .sweep import sweep
from .table import Row

__all__ = ['KINDS', 'Study']

#: What is compared: the full graph, and what is made of it.
KINDS = ('full', *of_table.KINDS)


@dataclass
class Study:
    """What is made of a table's networks, and tables and figures over them.

    Every step that is done is kept, and another threshold takes the full graphs that are there.
    ``ROW/seed_N`` is the training of a full graph; ``ROW/seed_N_at_TAU`` holds what is made of it
    at a threshold.

    Attributes:
        asked: The table: every row is a data set. The networks trained again use the seed plus
            1000.
        threshold: On |edge weight|, for the networks that are trained again.
        thresholds: Of the sweep.
        fold: Whether constants take the place of nodes that nobody feeds, so that what is left
            computes the same; without, these just go, as in the paper.
    """

    asked: Reproduction
    threshold: float = 0.006
    thresholds: Sequence[float] = THRESHOLDS
    fold: bool = True

    def run(self, jobs: int) -> str:
        """Everything, ``jobs`` trainings at once (0: none); the tables.

        Raises:
            RuntimeError: A training failed; all that does not need it is done by then.
            TypeError: An option of the study is of another type.
            ValueError: A network has several graphs, or weights that depend on the image; a
                threshold is out of range; there are more data sets than a figure shows.
        """
        self._check()
        with self.asked.started():
            self.asked.train(jobs)
            full = [one for one in self._all() if self._is_done(self.asked.folder(*one))]
            todo = {}
            for row, seed in full:
                todo |= self._prune(row, seed)
            self.asked.launch({at: one for at, one in todo.items() if one[1] is not None}, jobs)
            for row, seed in full:
                self._gather(row, seed)
            for name in _WRITTEN:  # by another run, of other data sets or another threshold
                for path in self.output.glob(name):
                    path.unlink()
            table = self.asked.markdown()
            if self._results:
                table += self._tables()
                self._figures()
            return self.asked.finish(table)

    def _check(self) -> None:
        """What would stop the study later stops it before anything is trained."""
        check_flag('fold', self.fold)
        if not isinstance(self.thresholds, Sequence) or not self.thresholds:
            raise ValueError(f'a study needs a list of thresholds, got {self.thresholds!r}')
        for threshold in (self.threshold, *self.thresholds):
            check_number('a threshold', threshold)
            if not (math.isfinite(threshold) and threshold >= 0):
                raise ValueError(f'a threshold must be finite and >= 0, got {threshold}')
        if not 1 <= len(self.asked.rows) <= plot.MOST_SERIES:
            raise ValueError(
                f'1 to {plot.MOST_SERIES} data sets fit a figure, got {len(self.asked.rows)}'
            )
        for row in self.asked.rows:
            self._check_row(self.asked.options[row.name])

    def _check_row(self, options: TrainingOptions) -> None:
        if not timm.is_model(options.model):
            raise ValueError(f'unknown model {options.model!r}: see timm.list_models()')
        for split in (options.train_split, options.val_split):
            download = options.dataset_download
            data = load_dataset(options.dataset, options.data_dir, split, download=download)
            if not isinstance(data, IterableDataset):
                data[0]
        with torch.device('meta'):
            model = timm.create_model(options.model, **options.model_kwargs)
        stages = [module for module in model.modules() if isinstance(module, Stage)]
        if len(stages) != 1 or stages[0].needs_context:
            raise ValueError(
                f'a study is about networks of one graph with static weights, such as dagnet60; '
                f'{options.model} has {len(stages)}'
                + (' that depends on the image' if len(stages) == 1 else '')
            )

    # -- networks ---------------------------------------------------------------------------------

    @property
    def output(self) -> Path:
        """Where to."""
        return self.asked.output

    def _all(self) -> list[tuple[Row, int]]:
        return [(row, seed) for seed in self.asked.seeds for row in self.asked.rows]

    def _is_done(self, run: Path) -> bool:
        return (run / 'model').exists() and run not in self.asked.failed

    def _prune(self, row: Row, seed: int) -> dict[Path, tuple[Row, TrainingOptions | None]]:
        """Sweep and prune a full graph; the trainings of what is left, None where they are done."""
        options = self.asked.training(row, seed)
        run, home, label = self.asked.folder(row, seed), self.at(row, seed), row.name
        device = options.device or ('cuda' if torch.cuda.is_available() else 'cpu')
        model = load(run / 'model').to(device).eval()
        data = load_dataset(options.dataset, options.data_dir, options.val_split, image_mode(model))
        score = partial(accuracy, dataset=data)
        sweep(
            model, self.thresholds, score, self._sweep(row, seed), fold=self.fold, label=label,
            seed=seed,
        )  # fmt: skip
        rows = [_row(run, label=label, seed=seed, kind=KINDS[0])]
        try:
            pruned, report = prune(model, self.threshold, fold=self.fold)
        except DisconnectedError as error:
            print(f'{label}, seed {seed}: {error}', flush=True)
            write_csv(home / 'results.csv', rows)
            return {}
        save(pruned, home / 'pruned')
        left = dict(edges=report.edges[1], nodes=report.nodes[1], parameters=report.parameters[1])
        changed = dict(kind=KINDS[1], top1=score(pruned), epoch_seconds='', **left)
        write_csv(home / 'results.csv', [*rows, {**rows[0], **changed}])
        (stage,) = graph_stages(pruned).values()
        graph = {'label': label, 'seed': seed, **stage_characteristics(stage)}
        write_csv(home / 'characteristics.csv', [{**graph, 'parameters': report.parameters[1]}])
        own = {
            name: value
            for name, value in options.model_kwargs.items()
            if name not in pruned.topology()
        }
        again = {
            **NO_WEIGHTS, 'from_saved': str(home / 'pruned'), 'from_saved_weights': 'reset',
            'seed': 1000 + seed, 'seed_wiring': False, 'model_kwargs': own,
        }  # fmt: skip
        fitted = {**again, 'fit_parameters': rows[0]['parameters']}
        return {
            home / kind: (row, self._pending(home / kind, options, changes))
            for kind, changes in ((KINDS[2], again), (KINDS[3], fitted))
        }

    def _pending(self, folder: Path, options: TrainingOptions, changes: dict):
        """Options of a training that is to be done, None where it is, or cannot be, done."""
        try:
            return pending(folder, options, _FREE, **changes)
        except ValueError as error:
            self.asked.failed[folder] = str(error)

    def _gather(self, row: Row, seed: int) -> None:
        """Add the networks that were trained again to the rows of a full graph."""
        home = self.at(row, seed)
        rows = read_csv(home / 'results.csv')
        for kind in KINDS[2:]:
            if self._is_done(home / kind):
                rows.append(_row(home / kind, label=row.name, seed=seed, kind=kind))
        write_csv(home / 'results.csv', rows)

    def at(self, row: Row, seed: int) -> Path:
        """Folder of what is made of a full graph at the threshold."""
        return self.output / row.name / f'seed_{seed}_at_{self.threshold:g}{self._suffix}'

    def _sweep(self, row: Row, seed: int) -> Path:
        return self.output / row.name / f'seed_{seed}_sweep{self._suffix}.csv'

    @property
    def _suffix(self) -> str:
        return '' if self.fold else '_unfolded'

    # -- tables and figures -----------------------------------------------------------------------

    def _rows(self, name: str) -> list[dict]:
        """Rows of all data sets and seeds, data set by data set."""
        of = self._sweep if name == 'sweep.csv' else lambda *one: self.at(*one) / name
        paths = [of(row, seed) for row in self.asked.rows for seed in self.asked.seeds]
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
        """Accuracy and cost per kind (Table 3), and what is left of the graphs (Tables 1 and 2)."""
        printed = {row.name: {KINDS[0]: row.paper, **row.kinds} for row in self.asked.rows}
        lines = []
        for label, rows in group(self._results, 'label').items():
            seconds = {r['seed']: float(r['epoch_seconds']) for r in rows if r['kind'] == KINDS[0]}
            for kind, of_kind in group(rows, 'kind').items():
                timed = [row for row in of_kind if row['epoch_seconds']]
                faster = [seconds[row['seed']] / float(row['epoch_seconds']) for row in timed]
                cells = [
                    _mean(of_kind, 'top1'),
                    *(_mean(of_kind, key, digits) for key, digits in _SIZES.items()),
                    _mean(of_kind, 'epoch_seconds'),
                    printed[label].get(kind, {}).get('epoch_seconds', _NOT_PRINTED),
                ]
                faster = mean_and_spread(faster) if faster else ''
                lines.append([label, kind, len(of_kind), *cells, faster])
        head = ['data', 'network', 'seeds', 'top-1 (%)', *_SIZES, 's per epoch', 'paper']
        tables = [markdown_table([*head, 'times faster per epoch'], lines)]
        if self._graphs:
            by_label = group(self._graphs, 'label')
            head = [one for label in by_label for one in (label, 'paper')]
            lines = []
            for name in (n for n in self._graphs[0] if n not in ('label', 'seed')):
                lines.append([name])
                for label, rows in by_label.items():
                    paper = printed[label].get(KINDS[1], {}).get(name, _NOT_PRINTED)
                    lines[-1] += [_mean(rows, name, 0 if name == 'parameters' else 3), paper]
            tables.append(markdown_table([f'threshold {self.threshold:g}', *head], lines))
        return '\n'.join(['', *(f'{table}\n' for table in tables)])

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
        seed = self.asked.seeds[0]
        for row in self.asked.rows:
            label, home, run = row.name, self.at(row, seed), self.asked.folder(row, seed)
            if (home / 'pruned').exists() and (run / 'model').exists():
                epochs, weights = read_edge_weights(run)
                ((name, history),) = weights.items()
                full = load(run / 'model')
                small = graph_stages(load(home / 'pruned'))[name]
                ids = small.node_ids
                left = {(ids[s], ids[t]) for s, t in small.wiring.edges}
                kept = [edge in left for edge in graph_stages(full)[name].wiring.edges]
                figures[f'weights_{label}'] = plot.weight_history(epochs, history, kept)
                title = f'{label}, seed {seed}, threshold {self.threshold:g}'
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
_FREE = FREE_HERE | {'from_saved'}  # in the folder of the study, which may move
_NOT_PRINTED = 'not printed'


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
