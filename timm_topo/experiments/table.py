"""A table of a paper as a YAML file: its rows as trainings, and what the paper prints of them."""

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..analysis.metrics import CHARACTERISTICS
from ..schema import check_plain, read_bounded
from ..training.options import check_options, read_options

__all__ = ['CHOSEN', 'COLUMNS', 'KINDS', 'Row', 'Table', 'read_table']

#: Columns that a table may report, and their heads.
COLUMNS = {
    'top1': 'top-1 (%)',
    'top5': 'top-5 (%)',
    'parameters': 'parameters',
    'parameters_left': 'parameters left',
    'multiply_adds': 'multiply-adds',
    'epoch_seconds': 's per epoch',
    'memory': 'MiB at most',
    **{name: name for name in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')},
}
#: What a study makes of every row: what a threshold leaves of the network, and that trained from
#: scratch with as many channels and with as many parameters as before.
KINDS = ('thresholded', 'rerun', 'fitted')
#: Options of training that the runner chooses.
CHOSEN = frozenset(('output', 'experiment', 'resume', 'seed', 'save'))
_MOST_BYTES = 2**18
_REPORT = ('top1', 'parameters', 'multiply_adds', 'epoch_seconds', 'memory')
_LEVELS = [f'{name}_{level}' for name in ('sparsity', 'nodes') for level in range(3)]
_MEASURED = (*COLUMNS, 'edges', 'sparsity', 'nodes', *_LEVELS, *CHARACTERISTICS)
_NAME = re.compile(r'(?!\.)[\w.+-]+')
_OF_TABLE = {
    'title', 'source', 'note', 'images', 'recipe', 'options', 'processes', 'seeds', 'report',
    'rows', 'study',
}  # fmt: skip
_OF_ROW = {'name', 'recipe', 'options', 'processes', 'paper', 'note', 'command', *KINDS}
_OF_STUDY = {'threshold', 'thresholds', 'fold'}


@dataclass(frozen=True)
class Row:
    """A network of a table.

    Attributes:
        name: Also that of its folder.
        recipe: File with the options of its training, or None.
        options: All of its training: the recipe's, the table's, its own.
        own: Names of its own.
        processes: How many share a batch in the recipe.
        paper: What the paper prints, by column, as printed.
        note: What there is to say about it.
        kinds: What the paper prints of :data:`KINDS`, where it is studied.
        command: Instead of a training of a classifier: one of detectron2, without its last options.
    """

    name: str
    recipe: Path | None
    options: dict
    own: frozenset[str]
    processes: int
    paper: dict[str, str]
    note: str = ''
    kinds: dict[str, dict[str, str]] = field(default_factory=dict)
    command: str = ''


@dataclass(frozen=True)
class Table:
    """Rows, and what they have in common.

    Attributes:
        path: The file.
        title: What it shows.
        source: Where the paper has it.
        note: What there is to say about all rows.
        images: Training images of the data; None where that is not said.
        seeds: A training of each row for each.
        report: Columns, names of :data:`COLUMNS`.
        rows: In their order.
        study: Options of :class:`timm_topo.experiments.study.Study`; None: rows are trained alone.
    """

    path: Path
    title: str
    source: str
    note: str
    images: int | None
    seeds: tuple[int, ...]
    report: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)
    study: dict | None = None

    def choose(self, patterns: Sequence[str] | None) -> list[Row]:
        """Rows by name, wildcards allowed; None: all.

        Raises:
            ValueError: No row has such a name.
        """
        names = [row.name for row in self.rows]
        for pattern in patterns or ():
            if not fnmatch.filter(names, pattern):
                raise ValueError(f'{self.path} has no row {pattern!r}: {", ".join(names)}')
        wanted = patterns or ['*']
        return [row for row in self.rows if any(fnmatch.fnmatch(row.name, p) for p in wanted)]


def read_table(path: str | Path) -> Table:
    """A table from its file.

    Raises:
        OSError: The file or a recipe cannot be read.
        ValueError: It says something that no table says; tells what, and what is allowed.
    """
    path = Path(path)
    try:
        told = yaml.safe_load(read_bounded(path, _MOST_BYTES))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f'{path} is not YAML: {error}') from None
    check_plain(told, path)
    _check_keys(told, path, _OF_TABLE, {'title', 'source', 'rows'})
    seeds, report = told.get('seeds', [0]), told.get('report', list(_REPORT))
    if not _is_list(seeds, int) or len(set(seeds)) < len(seeds):
        raise ValueError(f'{path}: seeds are different whole numbers, got {seeds!r}')
    if not _is_list(report, str) or set(report) - COLUMNS.keys():
        raise ValueError(f'{path}: report is of {", ".join(COLUMNS)}, got {report!r}')
    images = told.get('images')
    if images is not None and not _is_count(images):
        raise ValueError(f'{path}: images is a whole number from 1 on, got {images!r}')
    if not _is_list(told['rows'], dict):
        raise ValueError(f'{path}: rows is a list of mappings, got {told["rows"]!r}')
    if (study := told.get('study')) is not None:
        _check_keys(study, f'{path}, study', _OF_STUDY, set())
    rows = [_row(path, told, row) for row in told['rows']]
    names = [row.name for row in rows]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f'{path}: two rows are called {", ".join(twice)}')
    return Table(
        path=path,
        title=str(told['title']),
        source=str(told['source']),
        note=str(told.get('note', '')),
        images=images,
        seeds=tuple(seeds),
        report=tuple(report),
        rows=tuple(rows),
        study=None if study is None else dict(study),
    )


def _row(path: Path, table: Mapping, told: Mapping) -> Row:
    name = str(told.get('name', ''))
    where = f'{path}, row {name}'
    _check_keys(told, where, _OF_ROW, {'name'})
    if not _NAME.fullmatch(name):
        raise ValueError(f'{where}: a name is of letters, digits and . _ + -')
    if 'command' in told and (both := {'recipe', 'options', 'processes'} & {*told, *table}):
        raise ValueError(f'{where}: a command has no {", ".join(sorted(both))}')
    recipe = told.get('recipe', table.get('recipe'))
    if recipe is not None:
        recipe = path.parent / str(recipe)
    options = {} if recipe is None else read_options(recipe)
    for of, source in ((table, f'{path}, options'), (told, where)):
        given = of.get('options', {})
        if not isinstance(given, Mapping):
            raise ValueError(f'{source}: options is a mapping, got {given!r}')
        given = check_options(given, source)
        if chosen := sorted(CHOSEN & given.keys()):
            raise ValueError(f'{source}: the runner chooses {", ".join(chosen)} itself')
        options.update(given)
    processes = told.get('processes', table.get('processes', 1))
    if not _is_count(processes):
        raise ValueError(f'{where}: processes is a whole number from 1 on, got {processes!r}')
    if table.get('study') is None and (of := sorted(told.keys() & set(KINDS))):
        raise ValueError(f'{where}: {", ".join(of)} belongs to a table with a study')
    kinds = {kind: _printed(where, kind, told[kind], _MEASURED) for kind in KINDS if kind in told}
    return Row(
        name=name,
        recipe=recipe,
        options=options,
        own=frozenset(check_options(told.get('options', {}), where)),
        processes=processes,
        paper=_printed(where, 'paper', told.get('paper', {}), COLUMNS),
        note=str(told.get('note', '')),
        kinds=kinds,
        command=str(told.get('command', '')),
    )


def _printed(where: str, name: str, told: object, known: Collection[str]) -> dict[str, str]:
    if not isinstance(told, Mapping) or told.keys() - set(known):
        raise ValueError(f'{where}: {name} is a mapping of {", ".join(known)}, got {told!r}')
    return {column: str(value) for column, value in told.items()}


def _check_keys(told: object, where: object, known: set[str], needed: set[str]) -> None:
    if not isinstance(told, Mapping):
        raise ValueError(f'{where}: a mapping of {", ".join(sorted(known))} is needed')
    if unknown := sorted(map(str, told.keys() - known)):
        raise ValueError(
            f'{where}: unknown {", ".join(unknown)}; known: {", ".join(sorted(known))}'
        )
    if missing := sorted(needed - told.keys()):
        raise ValueError(f'{where}: {", ".join(missing)} is missing')


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_list(values: object, kind: type) -> bool:
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
    )
