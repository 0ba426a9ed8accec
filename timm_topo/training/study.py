"""Networks adapting to data sets (Janik & Nowak, section 4): trainings, tables and figures."""

import copy
import statistics
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import yaml

from ..analysis import plot
from ..analysis.compare import threshold_sweep
from ..analysis.cost import count_parameters
from ..analysis.history import read_edge_weights
from ..analysis.metrics import CHARACTERISTICS, embed, similarity, stage_characteristics
from ..analysis.prune import DisconnectedError, edge_weights, prune
from ..analysis.tables import group, mean_and_spread, read_csv, text_table, write_csv
from ..checkpoint import load, save
from ..data import load_dataset
from ..stages import CrossStageGraph, graph_stages
from .evaluate import accuracy
from .loop import train

__all__ = ['KINDS', 'THRESHOLDS', 'Study']

#: What is compared: the full graph, what a threshold leaves of it, and that trained from scratch
#: with as many channels and with as many parameters as the full graph.
KINDS = ('full', 'thresholded', 'rerun', 'rerun, fitted')
THRESHOLDS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.02, 0.04, 0.08)


@dataclass
class Study:
    """Folders of trainings per data set and seed, and tables and figures over them.

    Every step that is done is kept: a study that was interrupted goes on where it was.

    Attributes:
        output: Where to.
        data: By label, name and folder of a data set, as :func:`timm_topo.data.load_dataset` takes
            them.
        seeds: One full training for each; the networks trained again use the seed plus 1000.
        options: Of all trainings, as from :func:`timm_topo.training.options.parse_args`.
        threshold: On |edge weight|, for the networks that are trained again.
        thresholds: Of the sweep.
    """

    output: Path
    data: dict[str, tuple[str, str | None]]
    seeds: Sequence[int]
    options: Namespace
    threshold: float = 0.006
    thresholds: Sequence[float] = THRESHOLDS

    def run(self) -> str:
        """Everything, seed by seed; the tables as text.

        Raises:
            ValueError: A network has several graphs, or weights that depend on the image; the
                folder holds a study with other options; or as for
                :func:`timm_topo.training.loop.train`.
        """
        asked = {'threshold': self.threshold, 'thresholds': [float(t) for t in self.thresholds]}
        _check_same(self.output / 'study.yaml', asked)
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / 'study.yaml').write_text(yaml.safe_dump(asked), encoding='utf-8')
        for seed in self.seeds:
            for label in self.data:
                self._one(label, seed)
        self._figures()
        return self._tables()

    # -- networks ---------------------------------------------------------------------------------

    def home(self, label: str, seed: int) -> Path:
        """Folder of one data set and seed."""
        return self.output / label / str(seed)

    def _one(self, label: str, seed: int) -> None:
        home = self.home(label, seed)
        full = self._fit(home / 'full', label, seed=seed)
        rows = [_row(full, label=label, seed=seed, kind=KINDS[0])]
        model = load(full / 'model').eval()
        stages = list(graph_stages(model).values())
        if len(stages) > 1 or stages[0].needs_context:
            raise ValueError('a study is about networks of one graph with static weights: dagnet')
        score = partial(accuracy, dataset=self._evaluation(label))
        if not (home / 'sweep.csv').exists():
            steps = threshold_sweep(model, self.thresholds, score)
            write_csv(home / 'sweep.csv', [{'label': label, 'seed': seed, **s} for s in steps])
        try:
            pruned, report = prune(model, self.threshold)
        except DisconnectedError as error:
            print(f'{label}, seed {seed}: {error}', flush=True)
        else:
            save(pruned, home / 'pruned')
            left = dict(edges=report.edges[1], nodes=report.nodes[1])
            rows.append({**rows[0], 'kind': KINDS[1], 'top1': score(pruned), **left})
            rows[-1].update(parameters=report.parameters[1], epoch_seconds='')
            again = dict(
                from_saved=str(home / 'pruned'),
                seed=1000 + seed,
                model_kwargs={
                    name: value
                    for name, value in self.options.model_kwargs.items()
                    if name not in pruned.topology()  # which the saved network tells
                },
            )
            runs = {KINDS[2]: self._fit(home / 'rerun', label, **again)}
            again['fit_parameters'] = rows[0]['parameters']
            runs[KINDS[3]] = self._fit(home / 'fitted', label, **again)
            rows += [_row(run, label=label, seed=seed, kind=kind) for kind, run in runs.items()]
            graph = stage_characteristics(graph_stages(pruned)[next(iter(graph_stages(pruned)))])
            graph = {'label': label, 'seed': seed, **graph, 'parameters': report.parameters[1]}
            write_csv(home / 'characteristics.csv', [graph])
        write_csv(home / 'results.csv', rows)

    def _fit(self, folder: Path, label: str, **options) -> Path:
        """One training, gone on with, or left alone where it is done."""
        args = copy.deepcopy(self.options)
        args.dataset, args.data_dir = self.data[label]
        args.output, args.experiment, args.resume = str(folder.parent), folder.name, 'auto'
        args.save, args.from_saved_weights = 'last', 'reset'
        vars(args).update(options)
        _check_same(folder / 'args.yaml', vars(args))
        if not (folder / 'model').exists():
            print(f'== {folder}', flush=True)
            train(args)
        return folder

    def _evaluation(self, label: str):
        name, folder = self.data[label]
        return load_dataset(name, folder, self.options.val_split)

    # -- tables and figures -----------------------------------------------------------------------

    def _rows(self, name: str) -> list[dict]:
        """Rows of all data sets and seeds, data set by data set."""
        paths = [self.home(label, seed) / name for label in self.data for seed in self.seeds]
        rows = [row for path in paths if path.exists() for row in read_csv(path)]
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
                cells = [_mean(of_kind, 'top1'), *(_mean(of_kind, key, 0) for key in _WHOLE)]
                lines.append([label, kind, *cells, mean_and_spread(faster) if faster else ''])
        head = ['data', 'network', 'top-1 (%)', *_WHOLE, 'times faster per epoch']
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
            home = self.home(label, self.seeds[0])
            epochs, weights = read_edge_weights(home / 'full')
            (history,) = weights.values()
            kept = abs(history[-1]) > self.threshold
            figures[f'weights_{label}'] = plot.weight_history(epochs, history, kept)
            if (home / 'pruned').exists():
                panels.append(_panel(label, home / 'pruned'))
        if panels:
            figures['graphs'] = plot.graphs(panels, columns=1)
        if len(self._graphs) > 2 and set(CHARACTERISTICS) <= set(self._graphs[0]):
            labels = [row['label'] for row in self._graphs]
            figures['similarity'] = plot.similarity_matrix(similarity(self._graphs), labels)
            figures['embedding'] = plot.embedding(embed(self._graphs), labels)
        for name, figure in figures.items():
            plot.save_figure(figure, self.output / f'{name}.svg')


_WHOLE = ('parameters', 'edges', 'nodes')
#: Options of a training that do not change what it gives, or name places that may move.
_FREE = {
    'config', 'device', 'workers', 'log_interval', 'no_tensorboard', 'checkpoint_hist', 'output',
    'experiment', 'resume', 'data_dir', 'from_saved', 'validation_batch_size',
}  # fmt: skip


def _check_same(path: Path, asked: dict) -> None:
    """Whether what is there was made with the options asked for."""
    if not path.exists():
        return
    made = yaml.safe_load(path.read_text(encoding='utf-8'))
    for name in sorted(set(made) & set(asked) - _FREE):
        if made[name] != asked[name]:
            raise ValueError(
                f'{path.parent} was made with {name} {made[name]}, not {asked[name]}: choose '
                'another folder for the study'
            )


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
    levels = stage.levels if isinstance(stage, CrossStageGraph) else None
    weights = edge_weights(model)[name]
    return plot.Panel(label, stage.wiring, weights, stage.node_ids, levels)
