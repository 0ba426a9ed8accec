"""Tables of papers, trained: rows x seeds, each kept, and the paper's numbers beside ours."""

import copy
import hashlib
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import timm
import torch
import yaml

from ..analysis.cost import count_flops, count_parameters, fvcore_nn, input_size_of
from ..analysis.prune import prune
from ..analysis.tables import markdown_table, mean_and_spread, read_csv
from ..checkpoint import load
from ..files import locked, write_text
from ..training.command import arguments
from ..training.options import TrainingOptions, parse_args
from ..version import __version__
from .cache import FREE, Rows, pending, plain
from .jobs import run_all
from .table import COLUMNS, Row, Table

__all__ = ['FREE_HERE', 'Reproduction']

#: Options that may differ between machines.
FREE_HERE = FREE | {'data_dir', 'dataset_download', 'grad_accum_steps'}


@dataclass
class Reproduction:
    """A table, as it is or smaller, in a folder: ``ROW/seed_N`` is a run.

    A run that is done is not done again, one that was interrupted is gone on with. So is a row of
    ``table.csv`` kept whose run is gone, as long as the options of the row are the same.

    Attributes:
        table: What is trained.
        output: Where to.
        rows: Some of the table's.
        seeds: None: the table's.
        epochs: Likewise. Milestones of a schedule with steps move along.
        train_images: Likewise.
        dataset: Reader of the data; likewise.
        data_dir: Folder of the data, or of the folders that the rows name.
        processes: For each training, a divisor of the recipe's: it takes more steps per update
            instead. None: as in the recipe.
        changes: Arguments of ``topo train`` for all trainings.
        failed: What went wrong, by folder of a run.
    """

    table: Table
    output: Path
    rows: Sequence[Row]
    seeds: Sequence[int] | None = None
    epochs: int | None = None
    train_images: int | None = None
    dataset: str | None = None
    data_dir: str | None = None
    processes: int | None = None
    changes: Sequence[str] = ()
    failed: dict[Path, str] = field(default_factory=dict, init=False)

    def __post_init__(self):
        self.seeds = self.table.seeds if self.seeds is None else tuple(self.seeds)
        of_classifiers = self._smaller() or self.data_dir or self.processes or self.changes
        if of_classifiers and any(row.command for row in self.rows):
            raise ValueError(f'{self.table.path} is of detectors, whose configs say what they are')
        for row in self.rows:
            if self.processes and row.processes % self.processes:
                raise ValueError(
                    f'{row.name} takes {row.processes} processes: --processes is a divisor of '
                    f'that, got {self.processes}'
                )

    # -- options ----------------------------------------------------------------------------------

    @cached_property
    def options(self) -> dict[str, TrainingOptions]:
        """Of the trainings of a row, by its name, whatever the machine."""
        return {row.name: self._options(row) for row in self.table.rows}

    def _options(self, row: Row) -> TrainingOptions:
        paper = TrainingOptions(**row.options)
        argv = [*self.changes, *self._smaller(), '--save', 'last']
        if self.data_dir is not None:
            argv += ['--data-dir', os.path.join(self.data_dir, paper.data_dir or '')]
        options = parse_args(argv, row.options, 'topo table FILE -o FOLDER --')
        if options.sched == 'multistep' and options.decay_milestones == paper.decay_milestones:
            ratio = options.epochs / paper.epochs  # timm decays in the epoch before
            options.decay_milestones = [
                1 + round((one - 1) * ratio) for one in paper.decay_milestones
            ]
        return options

    def _smaller(self) -> list[str]:
        """Arguments that ``topo train`` and ``topo table`` have in common."""
        argv = []
        for name in ('epochs', 'train_images', 'dataset'):
            if getattr(self, name) is not None:
                argv += [f'--{name.replace("_", "-")}', str(getattr(self, name))]
        return argv

    def training(self, row: Row, seed: int, processes: int | None = None) -> TrainingOptions:
        """Of one training of a row; by default as it is started here."""
        options = copy.deepcopy(self.options[row.name])
        options.grad_accum_steps *= row.processes // (processes or self._here)
        options.output, options.experiment = str(self.output / row.name), f'seed_{seed}'
        options.seed, options.resume = seed, 'auto'
        return options

    def digest(self, row: Row) -> str:
        """Of the options that change what a training of a row gives."""
        if row.command:
            return _sha(row.command)
        default, options = TrainingOptions(), vars(self.options[row.name])
        told = {
            name: plain(value)
            for name, value in options.items()
            if value != getattr(default, name) and name not in {*FREE_HERE, 'seed'}
        }
        told |= {'processes': row.processes, 'data_dir': row.options.get('data_dir')}
        return _sha(yaml.safe_dump(told))

    def changed(self) -> list[str]:
        """What is not as in the table's file, in words."""
        sizes, told = {}, {}
        for row in (row for row in self.rows if not row.command):
            paper, ours = TrainingOptions(**row.options), self.options[row.name]
            of = paper.train_images or self.table.images
            if ours.epochs != paper.epochs:
                sizes[f'{ours.epochs} of {paper.epochs} epochs'] = None
            if ours.train_images != paper.train_images:
                sizes[f'{ours.train_images:,} of {f"{of:,}" if of else "all"} images'] = None
            for one in fields(TrainingOptions):
                before, now = getattr(paper, one.name), getattr(ours, one.name)
                if before != now and one.name not in {*FREE_HERE, 'save', 'epochs', 'train_images'}:
                    told[f'{one.name} {now} instead of {before}'] = None
        if set(self.seeds) != set(self.table.seeds):
            sizes[f'seeds {_listed(self.seeds)} instead of {_listed(self.table.seeds)}'] = None
        return [*sizes, *told]

    def summary(self) -> str:
        """How this differs from the table's file, in one line."""
        if changed := self.changed():
            return f"{', '.join(changed)}: not the paper's run"
        count = len(self.seeds)
        return f'As {self.table.path.name} says, {count} seed{"s" if count > 1 else ""}'

    # -- commands ---------------------------------------------------------------------------------

    def commands(self) -> list[str]:
        """``tools/train.py``, or ``train_net.py``, for every row and seed, for a shell."""
        commands = []
        for seed in self.seeds:
            for row in self.rows:
                if row.command:
                    last = ['SEED', str(seed), 'OUTPUT_DIR', str(self.folder(row, seed))]
                    commands.append([*shlex.split(row.command), *last])
                    continue
                processes = self.processes or row.processes
                options = self.training(row, seed, processes)
                commands.append([*_launcher(processes), *self.arguments(row, options)])
        return [shlex.join(command) for command in commands]

    def arguments(self, row: Row, options: TrainingOptions) -> list[str]:
        """Of ``topo train``, for a training of a row."""
        return arguments(options, None if row.recipe is None else os.path.relpath(row.recipe))

    def command(self) -> str:
        """``topo table`` with what changes its result."""
        given = ['topo', 'table', self.table.path.name, '-o', 'FOLDER']
        if tuple(self.seeds) != self.table.seeds:
            given += ['--seeds', *self.seeds]
        given += [*self._smaller(), *(['--data-dir', 'DIR'] if self.data_dir else [])]
        given += ['--', *self.changes] if self.changes else []
        return shlex.join(map(str, given))

    # -- running ----------------------------------------------------------------------------------

    def run(self, jobs: int) -> str:
        """Train what is not done, ``jobs`` at once (0: nothing), and write the table.

        Returns:
            The table.

        Raises:
            RuntimeError: A training failed; the others are done and written by then.
        """
        with self.started():
            self.train(jobs)
            return self.finish(self.markdown())

    @contextmanager
    def started(self) -> Iterator[None]:
        """The folder is ours; what this is about is told."""
        fvcore_nn()  # whatever is missing is missed now
        print(self.summary(), flush=True)
        self.failed.clear()
        with locked(self.output):
            yield

    def train(self, jobs: int) -> None:
        """Train what is not done, and keep what it gave."""
        missing = {self.folder(*one): one for one in self._missing()}
        if jobs and any(row.command for row, _ in missing.values()):
            raise ValueError(
                f'detectors of {self.table.path} are not started here: --print their commands, and '
                '--jobs 0 writes the table of what they gave'
            )
        todo = {at: (row, self.training(row, seed)) for at, (row, seed) in missing.items()}
        self.launch(todo, jobs, lambda at: self._keep(*missing[at]))

    def launch(
        self,
        todo: Mapping[Path, tuple[Row, TrainingOptions]],
        jobs: int,
        done: Callable[[Path], None] = lambda at: None,
    ) -> None:
        """Start trainings, by folder, with the options of each; ``jobs`` at once, or none."""
        if not (jobs and todo):
            return
        start = [sys.executable, '-m']
        if self._here > 1:
            start += ['torch.distributed.run', f'--nproc-per-node={self._here}', '-m']
        commands = {
            at: [*start, 'timm_topo', 'train', *self.arguments(row, options)]
            for at, (row, options) in todo.items()
        }
        self.failed |= run_all(commands, jobs, done, _devices() if self._here == 1 else ())

    def finish(self, table: str) -> str:
        """Write the table and return it, if nothing failed.

        Raises:
            RuntimeError: A training failed.
        """
        write_text(self.output / 'table.md', table)
        if self.failed:
            print(table, flush=True)
            reasons = '; '.join(f'{at}: {reason}' for at, reason in self.failed.items())
            raise RuntimeError(f'{len(self.failed)} trainings failed: {reasons}')
        return table

    @property
    def _here(self) -> int:
        """Processes of a training that is started here."""
        return self.processes or 1

    def _missing(self) -> list[tuple[Row, int]]:
        """Rows and seeds that are still to be trained; what is done is kept."""
        missing = []
        for seed in self.seeds:
            for row in self.rows:
                folder = self.folder(row, seed)
                if row.command:
                    if self._key(row, seed) in self._kept.known:
                        continue
                    if _detected(folder):
                        self._keep(row, seed)
                    else:
                        missing.append((row, seed))
                    continue
                try:
                    todo = pending(folder, self.training(row, seed), FREE_HERE)
                except ValueError as error:
                    self.failed[folder] = str(error)
                    continue
                if self._key(row, seed) in self._kept.known:
                    continue
                if todo is None:
                    self._keep(row, seed)
                else:
                    missing.append((row, seed))
        return missing

    def folder(self, row: Row, seed: int) -> Path:
        """Of the run of a row."""
        return self.output / row.name / f'seed_{seed}'

    # -- results ----------------------------------------------------------------------------------

    @cached_property
    def _kept(self) -> Rows:
        return Rows(self.output / 'table.csv', ('row', 'seed', 'options'))

    def _key(self, row: Row, seed: int) -> tuple:
        return row.name, seed, self.digest(row)

    def _keep(self, row: Row, seed: int) -> None:
        """Write down what a training gave."""
        folder = self.folder(row, seed)
        found = _detected(folder) if row.command else self._classified(folder)
        made = dict(torch=torch.__version__, timm=timm.__version__, timm_topo=__version__)
        key = dict(zip(('row', 'seed', 'options'), self._key(row, seed)))
        self._kept.put({**key, **found, **made})
        write_text(self.output / 'table.md', self.markdown())
        column = self.table.report[0]
        print(f'{folder}: {COLUMNS[column]} {_cell(column, [found[column]])}', flush=True)

    def _classified(self, folder: Path) -> dict[str, float]:
        """What the run of a classifier gave."""
        model, epochs = load(folder / 'model'), read_csv(folder / 'summary.csv')
        found = {
            'top1': float(epochs[-1]['eval_top1']),
            'top5': float(epochs[-1]['eval_top5']),
            'parameters': count_parameters(model),
            'multiply_adds': count_flops(model, input_size_of(model)).conv,
            'epoch_seconds': statistics.median(float(epoch['train_seconds']) for epoch in epochs),
            'epochs': len(epochs),
        }
        memory = [float(epoch['train_memory']) for epoch in epochs if epoch.get('train_memory')]
        if memory:  # older runs did not measure it
            found['memory'] = max(memory)
        if 'parameters_left' in self.table.report:
            found['parameters_left'] = prune(model, 0)[1].parameters[1]
        return found

    def markdown(self) -> str:
        """Means and spreads over seeds, what the paper prints, and how this was made."""
        head, lines = ['row', 'seeds'], []
        printed = {column for row in self.table.rows for column in row.paper}
        for column in self.table.report:
            head += [COLUMNS[column], *(['paper'] if column in printed else [])]
        for row in self.table.rows:
            of = [
                kept
                for key, kept in self._kept.known.items()
                if (key[0], key[2]) == (row.name, self.digest(row))
            ]
            if not of and row not in self.rows:
                continue
            cells = [row.name, str(len(of))]
            for column in self.table.report:
                values = [kept[column] for kept in of if column in kept]
                unknown = 'not measured' if of else 'not run'
                cells.append(_cell(column, values) if values else unknown)
                cells += [row.paper.get(column, 'not printed')] if column in printed else []
            lines.append(cells)
        notes = [f'- {row.name}: {row.note}' for row in self.table.rows if row.note]
        parts = [
            f'{self.summary()}.',
            f'# {self.table.title}',
            f'{self.table.source}. {self.table.note}'.strip(),
            markdown_table(head, lines),
            *(['\n'.join(notes)] if notes else []),
            f'```bash\n{self.command()}\n```',
        ]
        return '\n\n'.join(parts) + '\n'


def _detected(folder: Path) -> dict[str, float]:
    """What the run of a detector gave: the last evaluation in detectron2's file; none yet: {}."""
    path, found = folder / 'metrics.json', {}
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else ():
        row = json.loads(line)
        if 'bbox/AP' in row:
            found = {name.removeprefix('bbox/'): row[name] for name in row if 'bbox/' in name}
    return {name: value for name, value in found.items() if name in COLUMNS}


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return ['python', 'tools/train.py']
    return ['torchrun', f'--nproc-per-node={processes}', 'tools/train.py']


def _devices() -> list[str]:
    """GPUs that this process sees."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    count = torch.cuda.device_count()
    return visible.split(',')[:count] if visible else list(map(str, range(count)))


def _listed(numbers: Sequence[int]) -> str:
    return ' '.join(map(str, numbers))


def _cell(column: str, values: Sequence[float]) -> str:
    if column in ('parameters', 'parameters_left'):
        same = len(set(values)) == 1
        return f'{values[0]:,}' if same else f'{min(values):,} to {max(values):,}'
    if column == 'multiply_adds':
        values = [value / 1e6 for value in values]
        return f'{mean_and_spread(values[:1] if len(set(values)) == 1 else values)} M'
    return mean_and_spread(values, 0 if column in ('epoch_seconds', 'memory') else 2)
