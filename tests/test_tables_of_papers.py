"""Tables of papers: what ``configs/tables`` says, and rows that are run, kept and printed."""

import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from timm_topo.analysis.cost import count_parameters
from timm_topo.analysis.tables import read_numbers
from timm_topo.checkpoint import load
from timm_topo.cli import main
from timm_topo.experiments import reproduce
from timm_topo.experiments.jobs import run_all
from timm_topo.experiments.reproduce import Reproduction
from timm_topo.experiments.table import read_table
from timm_topo.training.build import build_model
from timm_topo.training.command import arguments
from timm_topo.training.options import TrainingOptions, parse_args

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs/tables'
TABLES = {path.stem: read_table(path) for path in sorted(FOLDER.glob('*.yaml'))}
DETECTORS = {name: TABLES.pop(name) for name in ('dgnet_2', 'toponet_5')}
CLASSES = {'': 1000, 'torch/cifar100': 100}
#: Rows whose printed parameters are not those of any reading that we know, or of the other form.
OTHER = {
    'dgnet_1': {'dgnet_resnet18', 'dgnet_resnext50_32x4d'},
    'dgnet_5': {'dgnet_b'},
    'maskconnect_2': {f'8x64d_{m}' for m in ('full', 'learned_k1', 'learned_k4', 'random_k4')},
    'toponet_2': {'adaptive_100', 'plain_2n', 'plain_4n', 'plain_6n', 'adaptive_6n'},
    'toponet_4': {'resnet50', 'complete', 'alpha', 'uniform', 'adaptive'},
}
SMALL = {
    'title': 'Small networks on digits',
    'source': 'No paper, Table 0',
    'images': 1437,
    'options': {
        'dataset': 'digits', 'epochs': 9, 'train_images': 64, 'batch_size': 32, 'workers': 0,
        'validation_batch_size': 360, 'tensorboard': False, 'sched': 'multistep',
        'decay_milestones': [4, 7],
    },
    'seeds': [0, 1],
    'report': ['top1', 'parameters'],
    'rows': [
        {
            'name': 'graph',
            'options': {'model': 'test_toponet', 'model_kwargs': {'in_chans': 1}},
            'paper': {'top1': '12.34 ± 0.56', 'parameters': '0.1M'},
            'note': 'a remark',
        },
        {'name': 'broken', 'options': {'model': 'no_such_model'}},
        {'name': 'other', 'options': {'model': 'test_toponet'}},
    ],
}  # fmt: skip


def written(folder: Path, **changes) -> Path:
    """A file with the small table."""
    path = folder / 'small.yaml'
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return path


def asked(folder: Path, rows=None, **options) -> Reproduction:
    table = read_table(written(folder))
    return Reproduction(table, folder / 'out', table.choose(rows), **{'epochs': 1, **options})


# -- what is in configs/tables ---------------------------------------------------------------------


def test_there_is_a_table_of_every_table_that_trains_classifiers():
    expected = {f'toponet_{i}' for i in (1, 2, 4)} | {f'dgnet_{i}' for i in (1, 4, 5, 6)}
    expected |= {f'maskconnect_{i}' for i in (1, 2, 3)} | {'janik_nowak'}
    assert expected <= TABLES.keys()


@pytest.mark.parametrize('name', TABLES)
def test_rows_have_the_parameters_that_the_paper_prints(name):
    """Within one of the last digit: papers round or cut."""
    missed = set()
    for row in TABLES[name].rows:
        args = TrainingOptions(**row.options)
        classes = list(map(str, range(CLASSES.get(args.dataset, 10))))
        with torch.device('meta'):
            parameters = count_parameters(build_model(args, classes, []))
        printed = row.paper.get('parameters')
        if printed is not None:
            digits = printed[:-1].partition('.')[2]
            ours = parameters / {'k': 1e3, 'M': 1e6}[printed[-1]]
            if abs(ours - float(printed[:-1])) > 10 ** -len(digits):
                missed.add(row.name)
    assert missed == OTHER.get(name, set())


@pytest.mark.parametrize('name', TABLES)
def test_printed_commands_mean_the_rows(name, tmp_path, monkeypatch):
    """The parser of training reads what the file says and the seed."""
    monkeypatch.chdir(ROOT)
    table = TABLES[name]
    asked = Reproduction(table, tmp_path, table.rows, seeds=[7])
    for row, command in zip(table.rows, map(shlex.split, asked.commands()), strict=True):
        at = command.index('tools/train.py')
        many = ['torchrun', f'--nproc-per-node={row.processes}']
        assert command[:at] == (['python'] if row.processes == 1 else many)
        chosen = dict(
            output=str(tmp_path / row.name), experiment='seed_7', seed=7, resume='auto', save='last'
        )
        assert parse_args(command[at + 1 :]) == TrainingOptions(**{**row.options, **chosen})


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_are_printed_and_what_they_gave_is_read(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = DETECTORS[name]
    asked = Reproduction(table, tmp_path, table.rows)
    first = table.rows[0]
    for row, command in zip(table.rows, map(shlex.split, asked.commands()), strict=True):
        config = Path(command[command.index('--config-file') + 1])
        assert command[:3] == ['python', '-m', 'd2_topo.train_net']
        assert config.is_file()
        assert row.name in config.stem
        assert command[-4:] == ['SEED', '0', 'OUTPUT_DIR', str(tmp_path / row.name / 'seed_0')]
        weights = Path(command[command.index('MODEL.WEIGHTS') + 1])
        of = TABLES[weights.parts[1]]
        assert weights.parts[2] in [row.name for row in of.rows]
    with pytest.raises(ValueError, match='not started here'):
        asked.run(jobs=1)
    (tmp_path / first.name / 'seed_0').mkdir(parents=True)
    lines = '{"loss": 1, "iteration": 19}\n{"bbox/AP": 1.5, "bbox/AP-cat": 3, "iteration": 20}\n'
    (tmp_path / first.name / 'seed_0/metrics.json').write_text(lines)
    assert f'| {first.name} | 1 | 1.50 | {first.paper["AP"]} |' in asked.run(jobs=0)
    with pytest.raises(ValueError, match='is of detectors'):
        Reproduction(table, tmp_path, table.rows, epochs=3)


def test_with_fewer_processes_a_batch_is_as_large(tmp_path):
    table = TABLES['dgnet_6']
    few = Reproduction(table, tmp_path, table.choose(['resnet50']), processes=4)
    (command,) = few.commands()
    assert command.startswith('torchrun --nproc-per-node=4 tools/train.py')
    assert '--grad-accum-steps 4 ' in command
    assert few.summary() == 'As dgnet_6.yaml says, 1 seed'


def test_milestones_move_with_the_epochs_but_not_when_they_are_given():
    table = TABLES['dgnet_6_cifar100']
    found = [
        Reproduction(table, Path('x'), table.rows, epochs=20, changes=changes).options['plain']
        for changes in ((), ('--decay-milestones', '5'), ('--sched', 'cosine'))
    ]
    assert [one.decay_milestones for one in found] == [[7, 13, 17], [5], [61, 121, 161]]


def test_arguments_say_every_kind_of_value(tmp_path):
    kwargs = {'b': 'none', 'c': None, 'd': {'e': [1, 2.5]}, 'f': 'a b', 'g': True}
    options = TrainingOptions(model_kwargs=kwargs, mean=[0.1, 1e-5, 3.0], aug=False, lr=1e-4)
    assert parse_args(arguments(options)) == options
    config = tmp_path / 'x.yaml'
    config.write_text('crop_pct: 0.5')
    with pytest.raises(ValueError, match=r'x\.yaml has crop_pct, which no argument'):
        arguments(TrainingOptions(), str(config))


# -- rows that are run -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A folder where the small table was run, and what went wrong."""
    folder = tmp_path_factory.mktemp('table')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', str(ROOT))
        with pytest.raises(RuntimeError) as failed:
            asked(folder, ['graph', 'broken'], seeds=[0]).run(jobs=2)
    return folder, str(failed.value)


@pytest.fixture
def nothing_starts(monkeypatch):
    monkeypatch.setattr(reproduce, 'run_all', lambda todo, *_: pytest.fail(f'started {todo}'))


def test_a_row_that_fails_is_told_and_loses_no_other(finished):
    folder, failed = finished
    assert re.match(r'1 trainings failed: \S+broken/seed_0: .*no_such_model', failed)
    (row,) = read_numbers(folder / 'out/table.csv')
    assert (row['row'], row['seed'], row['epochs']) == ('graph', 0, 1)
    run = folder / 'out/graph/seed_0'
    (epoch,) = read_numbers(run / 'summary.csv')
    assert [row['top1'], row['top5']] == [epoch['eval_top1'], epoch['eval_top5']]
    assert row['parameters'] == count_parameters(load(run / 'model'))
    assert row['multiply_adds'] > 0
    assert row['torch'] == torch.__version__


def test_the_table_has_the_papers_numbers_beside_ours_and_says_that_it_is_smaller(finished):
    folder, _ = finished
    told = (folder / 'out/table.md').read_text()
    assert told.splitlines()[0] == (
        '1 of 9 epochs, seeds 0 instead of 0 1, decay_milestones [1, 2] instead of [4, 7]: '
        "not the paper's run."
    )
    (row,) = read_numbers(folder / 'out/table.csv')
    expected = f'{row["top1"]:.2f} | 12.34 ± 0.56 | {row["parameters"]:,} | 0.1M'
    assert f'| graph | 1 | {expected} |\n' in told
    assert '| broken | 0 | not run | not printed | not run | not printed |' in told
    assert '- graph: a remark' in told
    assert 'topo table small.yaml -o FOLDER --seeds 0 --epochs 1\n' in told


@pytest.mark.usefixtures('nothing_starts')
def test_what_is_done_is_not_done_again(finished, tmp_path, monkeypatch):
    """Not where the run is there, and not where only its row is; nor for another data folder."""
    folder, _ = finished
    rows = ['graph']
    before = (folder / 'out/table.csv').read_text()
    assert 'not run' not in asked(folder, rows, seeds=[0], data_dir='elsewhere').run(jobs=1)
    (folder / 'out/table.csv').unlink()
    asked(folder, rows, seeds=[0]).run(jobs=1)
    assert (folder / 'out/table.csv').read_text() == before
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/table.csv').write_text(before)
    asked(tmp_path, rows, seeds=[0]).run(jobs=1)
    assert (tmp_path / 'out/table.csv').read_text() == before


def test_what_is_missing_or_made_otherwise_is_trained(finished, tmp_path, monkeypatch):
    folder, _ = finished
    started = []
    monkeypatch.setattr(reproduce, 'run_all', lambda todo, *_: started.append(todo) or {})
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/table.csv').write_text((folder / 'out/table.csv').read_text())
    asked(tmp_path, ['graph'], seeds=[0, 1]).run(jobs=1)
    asked(tmp_path, ['graph'], seeds=[0], epochs=2).run(jobs=1)
    found = [[path.relative_to(tmp_path / 'out') for path in todo] for todo in started]
    assert found == [[Path('graph/seed_1')], [Path('graph/seed_0')]]
    assert len(read_numbers(tmp_path / 'out/table.csv')) == 1  # others may want it
    with pytest.raises(RuntimeError, match='was made with decay_milestones'):
        asked(folder, ['graph'], seeds=[0], epochs=2).run(jobs=1)


def test_without_jobs_the_table_of_what_is_done_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, 'run_all', lambda *_: pytest.fail('started'))
    table = asked(tmp_path, ['graph', 'other']).run(jobs=0)
    assert table.count('| 0 | not run |') == 2
    assert 'broken' not in table


def test_trainings_end_with_their_runner(tmp_path):
    """By SIGTERM, as of a scheduler, while one is done and another is not."""
    sleep = 'import os, sys, time; print(os.getpid(), flush=True); time.sleep(float(sys.argv[1]))'
    commands = {
        tmp_path / name: [sys.executable, '-c', sleep, seconds]
        for name, seconds in (('short', '0.5'), ('long', '60'))
    }
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run_all(commands, 2, lambda path: signal.raise_signal(signal.SIGTERM))
    assert time.perf_counter() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / 'long.log').read_text()), 0)


def test_jobs_share_devices_and_say_what_went_wrong(tmp_path):
    say = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES']); sys.exit({})"
    commands = {
        tmp_path / str(i): [sys.executable, '-c', say.format(repr('error: of') if i == 2 else 0)]
        for i in range(3)
    }
    done = []
    failed = run_all(commands, 3, done.append, ['4', '7'])
    assert sorted(done) == [tmp_path / '0', tmp_path / '1']
    assert failed == {tmp_path / '2': 'of'}
    assert [(tmp_path / f'{i}.log').read_text()[0] for i in range(3)] == ['4', '7', '4']


# -- wrong input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'colour': 1}, 'small.yaml: unknown colour; known: images, note'),
        ({'rows': SMALL['rows'] + SMALL['rows'][:1]}, 'small.yaml: two rows are called graph'),
        ({'rows': []}, 'rows is a list of mappings'),
        ({'rows': [{'options': {}}]}, 'name is missing'),
        ({'rows': [{'name': '../x'}]}, 'row ../x: a name is of letters'),
        ({'rows': [{'name': 'a', 'options': {'colour': 1}}]}, 'row a: unknown option colour'),
        ({'rows': [{'name': 'a', 'options': {'lr': 'x'}}]}, "row a: bad value for lr: 'x'"),
        ({'rows': [{'name': 'a', 'options': {'seed': 1}}]}, 'the runner chooses seed itself'),
        ({'rows': [{'name': 'a', 'paper': {'colour': 1}}]}, 'paper is a mapping of top1, top5'),
        ({'rows': [{'name': 'a', 'rerun': {}}]}, 'rerun belongs to a table with a study'),
        ({'rows': [{'name': 'a', 'command': 'x'}]}, 'a command has no options'),
        ({'study': {'tau': 1}}, 'study: unknown tau; known: fold, threshold, thresholds'),
        ({'rows': [{'name': 'a', 'processes': 0}]}, 'processes is a whole number from 1 on, got 0'),
        ({'recipe': 'missing.yaml'}, 'missing.yaml'),
        ({'report': ['colour']}, 'report is of top1, top5'),
        ({'seeds': [1, 1]}, 'seeds are different whole numbers'),
        ({'images': 'many'}, "images is a whole number from 1 on, got 'many'"),
    ],
)
def test_wrong_files_are_refused(tmp_path, changes, match):
    with pytest.raises((ValueError, OSError), match=match):
        read_table(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ('args', 'status', 'match'),
    [
        (['--rows', 'none*'], 1, r"has no row 'none\*': graph, broken, other"),
        (
            ['--processes', '2'],
            1,
            'takes 1 processes: --processes is a divisor of that, got 2',
        ),
        (['--seeds', '1', '1'], 2, 'a seed is given twice'),
        (['--', '--seed', '3'], 2, 'a table chooses seed itself'),
        (['--', '-c', 'x.yaml'], 2, 'a table chooses config itself'),
        (['--', '--epochs=3'], 2, 'epochs stands before --'),
        (['--', '--model', 'resnet18'], 1, 'row graph of .* chooses model itself'),
        (['--', '--colour'], 2, 'colour'),
    ],
)
def test_wrong_usage_is_told(tmp_path, capsys, args, status, match):
    try:
        found = main(['table', str(written(tmp_path)), '-o', str(tmp_path / 'x'), '--print', *args])
    except SystemExit as stop:
        found = stop.code
    assert found == status
    assert re.search(match, capsys.readouterr().err)
    assert not (tmp_path / 'x').exists()


def test_printing_starts_nothing(tmp_path, capsys):
    args = ['--print', '--seeds', '3', '--train-images', '32', '--', '--lr', '0.2']
    assert main(['table', str(written(tmp_path)), '-o', str(tmp_path / 'x'), *args]) == 0
    first, *commands = capsys.readouterr().out.splitlines()
    assert (
        first
        == "# 32 of 64 images, seeds 3 instead of 0 1, lr 0.2 instead of 0.1: not the paper's run"
    )
    assert [parse_args(shlex.split(one)[2:]).lr for one in commands] == [0.2] * 3
    assert not (tmp_path / 'x').exists()
