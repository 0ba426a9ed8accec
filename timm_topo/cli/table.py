"""A table of a paper, trained: rows x seeds, and the paper's numbers beside ours.

FILE is one of configs/tables, or one like it. FOLDER/ROW/seed_N is the run of a row; what is done
is kept, and the same command goes on where it was. FOLDER gets table.csv and table.md. Whatever
makes the table smaller is told in the first line. Behind -- come options of topo train, for all
rows. A table with a study (Janik & Nowak's) also thresholds its networks, trains what is left
again, and draws figures.

examples:
  topo table configs/tables/toponet_1.yaml -o output/toponet_1 --data-dir DIR --print
  topo table configs/tables/toponet_1.yaml -o output/toponet_1 --data-dir DIR --rows plain adaptive
  topo table configs/tables/toponet_1.yaml -o small --data-dir DIR --epochs 20 --seeds 0 -- --amp
"""

import argparse
from pathlib import Path

from ..training.options import positive

TRAINS = True
RESUMES = '; the same command goes on where it was'
_OURS = ('output', 'experiment', 'resume', 'seed', 'save', 'config', 'grad_accum_steps')
_BEFORE = ('epochs', 'train_images', 'dataset', 'data_dir')

_OF_STUDY = ('from_saved', 'from_saved_weights', 'fit_parameters', 'snapshot')


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('file', type=Path, metavar='FILE', help='YAML, see configs/tables')
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FOLDER')
    parser.add_argument(
        '--print', dest='show', action='store_true',
        help='print the rows as commands for a scheduler, and start nothing',
    )  # fmt: skip
    parser.add_argument(
        '--jobs', type=_jobs, metavar='N',
        help='trainings at once; 0: none, the table of what is done (default: one per GPU, or one '
        'per core)',
    )  # fmt: skip
    parser.add_argument(
        '--processes', type=positive, metavar='N',
        help="per training, a divisor of the recipe's: the rest become steps per update (default: "
        "1; with --print the recipe's)",
    )  # fmt: skip
    group = parser.add_argument_group('of the table')
    group.add_argument('--rows', nargs='+', metavar='NAME', help='wildcards allowed')
    group.add_argument('--seeds', nargs='+', type=int, metavar='N')
    group.add_argument('--epochs', type=positive, metavar='N')
    group.add_argument('--train-images', type=positive, metavar='N', help='always the same ones')
    group.add_argument('--dataset', dest='reader', metavar='NAME', help='as for topo train')
    group.add_argument('--data-dir', dest='folder', metavar='DIR')


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that do not go together, and those of this command alone."""
    if args.seeds and len(set(args.seeds)) < len(args.seeds):
        parser.error('a seed is given twice')
    given = _names(args.training or ())
    if chosen := [name for name in _OURS if name in given]:
        parser.error(f'a table chooses {", ".join(chosen)} itself')
    if before := [name for name in _BEFORE if name in given]:
        parser.error(f'{", ".join(before)} stands before --')


def run(args: argparse.Namespace) -> dict:
    """Train the table, or print its commands; its rows."""
    from ..experiments.reproduce import Reproduction
    from ..experiments.table import read_table

    table = read_table(args.file)
    rows = table.choose(args.rows)
    given = _names(args.training or ())
    if table.study is not None and (chosen := [name for name in _OF_STUDY if name in given]):
        raise ValueError(f'a study chooses {", ".join(chosen)} itself')
    for row in table.rows:
        if chosen := sorted(row.own & given):
            raise ValueError(f'row {row.name} of {table.path} chooses {", ".join(chosen)} itself')
    asked = Reproduction(
        table=table,
        output=args.output,
        rows=rows,
        seeds=args.seeds,
        epochs=args.epochs,
        train_images=args.train_images,
        dataset=args.reader,
        data_dir=args.folder,
        processes=args.processes,
        changes=args.training or (),
    )
    if args.show:
        return {'summary': asked.summary(), 'commands': asked.commands()}
    jobs = _free(args.processes or 1) if args.jobs is None else args.jobs
    if table.study is None:
        done = asked.run(jobs)
    else:
        from ..experiments.study import Study

        done = Study(asked, **table.study).run(jobs)
    return {'summary': asked.summary(), 'table': done, 'output': args.output}


def text(result: dict) -> str:
    """The table, or its commands."""
    if 'commands' in result:
        return '\n'.join([f'# {result["summary"]}', *result['commands']])
    return f'{result["table"]}\nwritten: {result["output"]}'


def _names(arguments: list[str]) -> set[str]:
    """Options that arguments of ``topo train`` are about."""
    long = [one[2:].partition('=')[0] for one in arguments if one.startswith('--')]
    names = {name.replace('-', '_') for name in long}
    names |= {name.removeprefix('no_') for name in names}
    return names | ({'config'} if any(one.startswith('-c') for one in arguments) else set())


def _jobs(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f'must be a whole number from 0 on, got {value!r}')
    return int(value)


def _free(processes: int) -> int:
    """Trainings of so many processes that run at once without sharing a GPU or a core."""
    import torch

    from ..experiments.jobs import cores

    return max(1, (torch.cuda.device_count() or cores()) // processes)
