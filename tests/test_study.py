"""Studies and the tools around them: networks adapting to data sets, from training to tables."""

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

import timm_topo
from timm_topo.analysis.compare import threshold_sweep
from timm_topo.analysis.cost import count_parameters
from timm_topo.analysis.prune import DisconnectedError, edge_mask, edge_weights, mask_edges, prune
from timm_topo.analysis.tables import group, read_csv, read_numbers
from timm_topo.data import load_dataset
from timm_topo.experiments import reproduce
from timm_topo.experiments import study as study_module
from timm_topo.experiments.reproduce import Reproduction
from timm_topo.experiments.study import KINDS, Study
from timm_topo.experiments.sweep import sweep
from timm_topo.experiments.table import Row, Table
from timm_topo.generators import make_wiring
from timm_topo.training.evaluate import accuracy
from timm_topo.training.loop import train
from timm_topo.training.options import labelled, parse_args

TRAINING = {
    'model': 'dagnet',
    'model_kwargs': {'num_nodes': 6, 'channels': 2, 'sparsity_weight': 0.3},
    'train_images': 64, 'epochs': 4, 'batch_size': 32, 'validation_batch_size': 360, 'workers': 0,
    'aug': False, 'lr': 0.2, 'smoothing': 0.0, 'tensorboard': False,
}  # fmt: skip
AT = 'seed_0_at_0.004'
PRINTED = {'thresholded': {'log_paths': '4.03 ± 1.03'}, 'rerun': {'epoch_seconds': '21.65'}}
EASY = {'easy': 'colour/digits'}
DATA = {'easy': 'colour/digits', 'hard': 'tiles/digits'}


def make_study(output: Path, seeds=(0,), data=None, training=None, **options) -> Study:
    options = {'threshold': 0.004, 'thresholds': (0.001, 0.004, 0.99), **options}
    rows = tuple(
        Row(
            name=label,
            recipe=None,
            options={**TRAINING, 'dataset': name, **(training or {})},
            own=frozenset({'dataset'}),
            processes=1,
            paper={},
            kinds={
                'thresholded': {'log_paths': '4.03 ± 1.03'},
                'rerun': {'epoch_seconds': '21.65'},
            },
        )
        for label, name in (data or DATA).items()
    )
    table = Table(Path('x.yaml'), 'A study', 'No paper', '', None, (0,), ('top1',), rows, options)
    return Study(Reproduction(table, output, rows, seeds), **options)


def run(study: Study) -> str:
    """Without processes of their own: they would be most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, 'run_all', in_process)
        return study.run(jobs=1)


def in_process(commands, jobs, done, devices) -> dict:
    for folder, command in commands.items():
        trained(parse_args(command[command.index('train') + 1 :]))
        done(folder)
    return {}


trained = train  # what tests replace


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A study of two data sets and one seed."""
    output = tmp_path_factory.mktemp('study')
    return output, run(make_study(output))


def loaded(folder: Path) -> torch.nn.Module:
    return timm_topo.load(folder).eval()


# -- studies --------------------------------------------------------------------------------------


def test_every_network_of_a_study_is_what_it_is_called(finished):
    output, _ = finished
    rows = read_csv(output / 'results.csv')
    assert [(row['label'], row['kind']) for row in rows] == [
        (label, kind) for label in DATA for kind in KINDS
    ]
    for label, name in DATA.items():
        home = output / label
        full, pruned = loaded(home / 'seed_0' / 'model'), loaded(home / AT / 'pruned')
        expected, report = prune(full, 0.004)
        assert pruned.dag.wiring == expected.dag.wiring
        rerun, fitted = (loaded(home / AT / k / 'model') for k in ('rerun', 'fitted'))
        assert rerun.dag.wiring == fitted.dag.wiring == pruned.dag.wiring
        assert rerun.sizes == full.sizes
        assert fitted.sizes['channels'] >= full.sizes['channels']
        data = load_dataset(name, split='validation')
        networks = dict(zip(KINDS, (full, pruned, rerun, fitted)))
        for row in (row for row in rows if row['label'] == label):
            model = networks[row['kind']]
            assert float(row['top1']) == pytest.approx(accuracy(model, data), abs=0.3)
            assert int(row['parameters']) == count_parameters(model)
            assert int(row['edges']) == model.dag.wiring.num_edges
            assert int(row['nodes']) == model.dag.wiring.num_nodes
        off = abs(count_parameters(fitted) - count_parameters(full))
        assert off < count_parameters(full) / 2
        assert report.edges[1] < report.edges[0]


def test_the_networks_trained_again_start_from_other_weights(finished):
    output, _ = finished
    for label in DATA:
        args = (output / label / AT / 'rerun' / 'args.yaml').read_text()
        assert 'seed: 1000\n' in args
        assert 'save: last\n' in args
        assert 'sparsity_weight: 0.3\n' in args


def test_a_study_leaves_tables_and_figures(finished):
    output, text = finished
    sweeps = read_csv(output / 'sweep.csv')
    assert [row['threshold'] for row in sweeps] == ['0.001', '0.004', '0.99'] * 2
    graphs = read_csv(output / 'characteristics.csv')
    assert [row['label'] for row in graphs] == list(DATA)
    for row in graphs:
        stage = loaded(output / row['label'] / AT / 'pruned').dag
        assert int(row['edges']) == stage.wiring.num_edges
        assert float(row['sparsity']) == pytest.approx(1 - stage.wiring.num_edges / 15)
    names = {path.stem for path in output.glob('*.svg')}
    assert names == {'thresholds', 'accuracy', 'weights_easy', 'weights_hard', 'graphs'}
    for expected in ('easy', 'hard', *KINDS, 'pca_elongation', 'times faster'):
        assert expected in text
    (log_paths,) = (line for line in text.splitlines() if line.startswith('| log_paths |'))
    assert log_paths.count('| 4.03 ± 1.03 |') == 2
    (rerun,) = (line for line in text.splitlines() if line.startswith('| easy | rerun |'))
    assert '| 21.65 |' in rerun
    assert (output / 'table.md').read_text() == text


def test_a_study_goes_on_where_it_was(finished, monkeypatch):
    """Nothing is trained again; what is missing is made."""
    output, text = finished
    (output / 'results.csv').unlink()
    (output / 'easy' / AT / 'results.csv').unlink()
    monkeypatch.setattr(f'{__name__}.trained', lambda args: pytest.fail('trained again'))
    assert run(make_study(output)) == text
    assert (output / 'results.csv').exists()
    with pytest.raises(pytest.fail.Exception):
        run(make_study(output, seeds=(0, 1)))


def test_other_options_do_not_pass_for_the_old_ones(finished):
    output, _ = finished
    with pytest.raises(RuntimeError, match=r'easy.seed_0 was made with lr 0.2, not 0.01'):
        run(make_study(output, training={'lr': 0.01}))
    with pytest.raises(RuntimeError, match=r'made with dataset colour/digits, not tiles/digits'):
        run(make_study(output, data={'easy': 'tiles/digits'}))
    for name in ('seed', 'model_kwargs'):
        assert name not in study_module._FREE


def test_another_threshold_takes_the_full_graphs_that_are_there(finished, monkeypatch):
    output, _ = finished
    found = []

    def train(args):
        found.append((args.experiment, args.from_saved))
        return real(args)

    real = trained
    monkeypatch.setattr(f'{__name__}.trained', train)
    run(make_study(output, threshold=0.001, thresholds=(0.001, 0.002), data=EASY))
    pruned = str(output / 'easy' / 'seed_0_at_0.001' / 'pruned')
    assert found == [('rerun', pruned), ('fitted', pruned)]
    rows = read_csv(output / 'sweep.csv')
    assert [row['threshold'] for row in rows] == ['0.001', '0.002']
    run(make_study(output))


def test_without_folding_nodes_that_nobody_feeds_just_go(saved, tmp_path, monkeypatch):
    """Beside the same study with it, of the same full graph."""

    def train(args):
        if args.from_saved:
            raise StopIteration
        timm_topo.save(full, Path(args.output) / args.experiment / 'model')
        return Path(args.output) / args.experiment

    full = loaded(saved)
    tau = next(tau for tau in (0.4, 0.5, 0.6) if prune(full, tau)[1].stages[0].starved)
    monkeypatch.setattr(f'{__name__}.trained', train)
    monkeypatch.setattr(Reproduction, '_keep', lambda *_: None)
    monkeypatch.setattr(study_module, '_row', lambda *_, **row: {**row, 'top1': 0, 'parameters': 1})
    rows = {}
    for fold in (True, False):
        study = make_study(tmp_path, threshold=tau, thresholds=(tau,), fold=fold, data=EASY)
        with pytest.raises(StopIteration):
            run(study)
        suffix = '' if fold else '_unfolded'
        [rows[fold]] = read_csv(tmp_path / 'easy' / f'seed_0_sweep{suffix}.csv')
        pruned = loaded(tmp_path / 'easy' / f'seed_0_at_{tau}{suffix}' / 'pruned')
        expected, _ = prune(full, tau, fold=fold)
        torch.testing.assert_close(pruned.state_dict(), expected.state_dict())
    assert float(rows[True]['difference']) < 1e-3
    assert float(rows[False]['difference']) > 0.01
    assert rows[False]['top1_masked'] == rows[True]['top1']


def test_figures_of_another_run_do_not_stay(finished):
    output, text = finished
    (output / 'embedding.svg').write_text('of more seeds')
    (output / 'weights_gone.svg').write_text('of another data set')
    assert run(make_study(output)) == text
    assert not (output / 'embedding.svg').exists()
    assert not (output / 'weights_gone.svg').exists()


def test_what_is_left_of_any_wiring_is_trained_again(tmp_path):
    """The wiring asked for is that before pruning: it may not come back, nor be drawn anew."""
    wiring = {'name': 'random', 'p': 0.9}
    training = {'seed_wiring': True}
    training['model_kwargs'] = {**TRAINING['model_kwargs'], 'wiring': wiring}
    run(make_study(tmp_path, seeds=(1,), data=EASY, training=training))
    home = tmp_path / 'easy' / 'seed_1_at_0.004'
    full = loaded(tmp_path / 'easy' / 'seed_1' / 'model').dag
    pruned = loaded(home / 'pruned').dag
    assert full.wiring == make_wiring({**wiring, 'seed': 1}, 6)
    assert pruned.wiring.num_edges < full.wiring.num_edges
    for kind in ('rerun', 'fitted'):
        assert loaded(home / kind / 'model').dag.wiring == pruned.wiring


def test_data_that_is_to_be_downloaded_is_downloaded_first(tmp_path, monkeypatch):
    asked = []

    def load(name, folder, split, mode='RGB', **options):
        asked.append(options)
        raise ValueError('stop here')

    monkeypatch.setattr(study_module, 'load_dataset', load)
    with pytest.raises(ValueError, match='stop here'):
        run(make_study(tmp_path, training={'dataset_download': True}))
    assert asked == [{'download': True}]


def test_grey_networks_are_evaluated_on_grey_images(tmp_path):
    training = {'model_kwargs': {**TRAINING['model_kwargs'], 'in_chans': 1}}
    run(make_study(tmp_path, data={'grey': 'digits'}, training=training))
    assert (tmp_path / 'thresholds.svg').exists()


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (dict(threshold=-1.0), 'finite and >= 0, got -1'),
        (dict(thresholds=(0.1, math.nan)), 'finite and >= 0, got nan'),
        (dict(thresholds=()), r'a list of thresholds, got \(\)'),
        (dict(thresholds=0.1), 'a list of thresholds, got 0.1'),
        (dict(data={str(n): 'digits' for n in range(7)}), '1 to 6 data sets .* got 7'),
        (dict(model='test_toponet'), 'networks of one graph .*test_toponet has 4'),
        (dict(model='resnet18'), 'resnet18 has 0'),
        (dict(model='dagnetwork'), "unknown model 'dagnetwork'"),
        (dict(data={'a': 'digits', 'b': 'digitz'}), "unknown data set 'digitz'"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_is_trained(change, told, tmp_path):
    if 'model' in change:
        change = dict(training={**change, 'model_kwargs': {}})
    study = make_study(tmp_path / 'out', **change)
    with pytest.raises(ValueError, match=told):
        run(study)
    assert not (tmp_path / 'out').exists()


def test_a_threshold_that_cuts_a_network_apart_is_told_and_the_others_go_on(
    tmp_path, monkeypatch, capsys
):
    """No network is trained again, and none is a silent random predictor."""
    text = run(make_study(tmp_path, threshold=0.999))
    told = capsys.readouterr().out
    assert told.count('leaves no path from its input to its output') == 2
    rows = read_csv(tmp_path / 'results.csv')
    assert [row['kind'] for row in rows] == [KINDS[0]] * 2
    assert not list(tmp_path.glob('*/*/*/pruned'))
    assert KINDS[1] not in text
    assert (tmp_path / 'accuracy.svg').exists()


# -- thresholds -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def saved(tmp_path_factory, randomise) -> Path:
    """A dagnet whose edges have all kinds of weights, one of them starving a node at 0.5."""
    torch.manual_seed(1)
    model = randomise(timm.create_model('dagnet', num_nodes=9, channels=2))
    return timm_topo.save(model, tmp_path_factory.mktemp('saved') / 'net')


def test_a_sweep_tells_what_pruning_and_masking_do_at_each_threshold(saved):
    model = loaded(saved)
    images = torch.randn(4, 3, 32, 32)

    def score(network):
        with torch.no_grad():
            return network.eval()(images).square().sum().item()

    thresholds = (0, 0.2, 0.4, 0.5, 0.6, 0.75)
    rows = list(threshold_sweep(model, thresholds, score))
    assert [row['threshold'] for row in rows] == list(thresholds)
    starved, cut = 0, 0
    for row in rows:
        keep = edge_mask(model, row['threshold'])
        with mask_edges(model, keep):
            assert row['top1_masked'] == pytest.approx(score(model), rel=1e-4)
        try:
            smaller, report = prune(model, row['threshold'])
        except DisconnectedError:
            cut += 1
            assert row['connected'] == 0
            assert row['edges'] == int(keep['dag'].sum())
            assert 'top1' not in row
            continue
        assert row['connected'] == 1
        assert row['top1'] == pytest.approx(score(smaller), rel=1e-4)
        assert row['edges'] == report.edges[1]
        assert row['sparsity'] == pytest.approx(1 - report.edges[1] / 36)
        assert row['nodes'] == report.nodes[1]
        assert row['parameters'] == count_parameters(smaller)
        assert row['starved'] == len(report.stages[0].starved)
        assert sum(row[f'nodes_{level}'] for level in range(3)) == row['nodes']
        starved += row['starved'] > 0
    assert cut >= 1
    assert starved >= 1  # the question that the paper does not ask is asked here


def test_a_sweep_writes_one_row_per_network_and_threshold(tool, saved, tmp_path):
    status, out, err = tool(
        'sweep', f'a={saved}', f'b={saved}', f'b={timm_topo.save(loaded(saved), tmp_path / "b")}',
        '--dataset', 'colour/digits', '--thresholds', 0.1, 0.3, 0.99,
        '--csv', tmp_path / 's.csv', '--figure', tmp_path / 's.png',
    )  # fmt: skip
    assert (status, err) == (0, '')
    rows = read_csv(tmp_path / 's.csv')
    assert [(r['label'], r['threshold']) for r in rows] == [
        (label, tau) for label in 'abb' for tau in ('0.1', '0.3', '0.99')
    ]
    assert 'cut apart' in out
    model, data = loaded(saved), load_dataset('colour/digits', split='validation')
    smaller, _ = prune(model, 0.3)
    assert float(rows[1]['top1']) == pytest.approx(accuracy(smaller, data))
    assert Image.open(tmp_path / 's.png').size[0] > 500


def test_a_sweep_that_was_interrupted_goes_on(saved, tmp_path):
    """Rows are those of a sweep in one go; what is there is not measured again."""
    model, path, scored = loaded(saved), tmp_path / 's.csv', []

    def score(smaller):
        scored.append(count_parameters(smaller))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return scored[-1] / 7

    thresholds = (0.05, 0.1, 0.2, 0.3)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, thresholds, score, path, label='a')
    before = len(read_csv(path))
    assert 0 < before < 4
    scored = [0, 0, 0]
    rows = sweep(model, thresholds, score, path, label='a')
    straight = sweep(model, thresholds, lambda m: count_parameters(m) / 7, label='a')
    assert rows == straight == read_numbers(path)
    again = len(scored)
    sweep(model, thresholds, score, path, label='a')
    assert len(scored) == again
    sweep(model, thresholds[:1], score, path, label='b')
    assert len(scored) == again + 1
    assert len(read_csv(path)) == 5


def test_labels_are_given_or_taken_from_the_folder():
    assert labelled('easy=runs/a=b/model') == ('easy', 'runs/a=b/model')
    assert labelled('runs/first/model') == ('runs/first/model', 'runs/first/model')
    assert labelled('runs/a=b') == ('runs/a=b', 'runs/a=b')
    assert labelled('pruned') == ('pruned', 'pruned')


def test_a_pruned_network_is_timed_beside_the_whole_one(tool, saved, tmp_path):
    smaller, _ = prune(loaded(saved), fraction=0.4)
    timm_topo.save(smaller, tmp_path / 'thin')
    args = ['--batch-size', 2, '--repeats', 2]
    for how in ((), ('--train',)):
        status, out, err = tool('benchmark', saved, tmp_path / 'thin', *args, *how)
        assert (status, err) == (0, '')
        assert [str(folder) in out for folder in (saved, tmp_path / 'thin')] == [True, True]
    status, _, err = tool('benchmark', tmp_path / 'none', *args)
    assert status == 1
    assert 'is no saved network' in err


# -- characteristics ------------------------------------------------------------------------------


def test_characteristics_of_networks_as_columns(tool, saved, tmp_path):
    smaller, _ = prune(loaded(saved), fraction=0.4)
    timm_topo.save(smaller, tmp_path / 'thin')
    named = (f'full={saved}', f'full={saved}', f'thin={tmp_path / "thin"}')
    args = ('--csv', tmp_path / 'c.csv', '--repeats', 1, '--batch-size', 1)
    status, out, err = tool('compare', *named, *args)
    assert (status, err) == (0, '')
    assert out.splitlines()[0].split() == ['full', 'thin']
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:] if line}
    assert lines['max_path'][:3] == ['8.000', '±', '0.000']
    assert lines['mean_degree'][:3] == ['8.000', '±', '0.000']
    rows = read_csv(tmp_path / 'c.csv')
    assert [row['label'] for row in rows] == ['full', 'full', 'thin']
    assert int(rows[2]['edges']) == smaller.dag.wiring.num_edges
    assert float(rows[0]['log_paths']) == pytest.approx(7 * math.log(2))
    assert int(rows[2]['parameters']) == count_parameters(smaller)
    for kind in ('similarity', 'embedding', 'graph'):
        path = tmp_path / f'{kind}.svg'
        assert tool('plot', kind, *named, '-o', path)[0] == 0
        assert path.read_text().startswith('<?xml')


@pytest.mark.parametrize('rule', ['alpha', 'router'])
def test_networks_of_several_graphs_have_a_point_for_each(tool, tmp_path, monkeypatch, rule):
    from timm_topo import plot

    model = timm.create_model('test_toponet', connectivity=rule)
    timm_topo.save(model, tmp_path / 'net')
    seen = []
    monkeypatch.setattr(plot, 'similarity_matrix', lambda matrix, labels: seen.append(labels))
    monkeypatch.setattr(plot, 'save_figure', lambda figure, path: path)
    status, _, err = tool('plot', 'similarity', f'a={tmp_path}/net', '-o', tmp_path / 's.svg')
    assert (status, err.count('error')) == (0, 0)
    assert seen == [[f'a graph {n}' for n in (1, 2, 3, 4)]]


# -- contact sheets -------------------------------------------------------------------------------


def test_a_contact_sheet_has_a_row_per_data_set(tool, tmp_path):
    names = ['digits', 'colour/digits', 'tiles:size=16/digits']
    status, _, err = tool('plot', 'images', *names, '-o', tmp_path / 'sheet.svg')
    assert (status, err) == (0, '')
    text = (tmp_path / 'sheet.svg').read_text()
    assert text.count('<image') == 30


def test_a_contact_sheet_shows_each_class_once(tool, tmp_path, monkeypatch):
    from timm_topo import plot

    shown = {}
    monkeypatch.setattr(plot, 'contact_sheet', lambda rows, names: shown.update(rows, names=names))
    monkeypatch.setattr(plot, 'save_figure', lambda *_: 'nothing')
    assert tool('plot', 'images', 'digits', '-o', tmp_path / 'x.png')[0] == 0
    data = load_dataset('digits')
    for label, image in enumerate(shown['digits']):
        same = [i for i in range(len(data)) if np.array_equal(image, np.asarray(data[i][0]))]
        assert label in [data[i][1] for i in same]
    assert shown['names'] == [str(digit) for digit in range(10)]


def test_a_sorted_folder_is_not_shown_under_the_wrong_names(tool, tmp_path, monkeypatch):
    from timm_topo import plot

    for n, name in enumerate(('black', 'grey', 'white')):
        folder = tmp_path / 'train' / name
        folder.mkdir(parents=True)
        for i in range(150):
            Image.new('L', (4, 4), 100 * n).save(folder / f'{i}.png')
    shown = {}
    monkeypatch.setattr(plot, 'contact_sheet', lambda rows, names: shown.update(rows, names=names))
    monkeypatch.setattr(plot, 'save_figure', lambda *_: 'nothing')
    assert tool('plot', 'images', f'@{tmp_path}', '-o', tmp_path / 'x.png')[0] == 0
    (images,) = (row for name, row in shown.items() if name != 'names')
    assert [image.max() for image in images] == [0, 100, 200]
    assert shown['names'] == ['black', 'grey', 'white']


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'args', 'told'),
    [
        ('sweep', ['NONE', '--dataset', 'digits', '--csv', 'x.csv'], 'NONE is no checkpoint'),
        ('sweep', ['SAVED', '--dataset', 'nodigits', '--csv', 'x.csv'], 'unknown data set'),
        (
            'sweep',
            ['SAVED', '--dataset', 'digits', '--thresholds', '-1', '--csv', 'x.csv'],
            'threshold must be finite and >= 0, got -1',
        ),
        ('compare', ['NONE'], 'NONE is no checkpoint'),
        ('plot', ['similarity', 'SAVED', '-o', 'x.svg'], 'compared with one another, got 1'),
        ('plot', ['graph', 'SAVED', '-o', 'x.zip'], 'x.zip is not one of .svg, .png, .pdf'),
        ('plot', ['images', 'digits@/nowhere', '-o', 'x.png'], 'digits are built in'),
        ('plot', ['images', 'colour/idx@/nowhere', '-o', 'x.png'], '/nowhere does not exist'),
    ],
)
def test_tools_name_what_is_wrong(name, args, told, tool, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = tool(name, *(str(saved) if arg == 'SAVED' else arg for arg in args))
    assert status == 1
    (line,) = err.strip().splitlines()
    assert line.startswith('error: ')
    assert told in line
    assert list(tmp_path.iterdir()) == []


def test_a_study_by_its_command(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, 'run_all', in_process)
    table = {
        'title': 'A study', 'source': 'No paper', 'options': TRAINING, 'seeds': [0, 1],
        'study': {'threshold': 0.004, 'thresholds': [0.004]},
        'rows': [{'name': 'easy', 'options': {'dataset': 'colour/digits'}}],
    }  # fmt: skip
    (tmp_path / 'x.yaml').write_text(yaml.safe_dump(table))
    args = [tmp_path / 'x.yaml', '-o', tmp_path / 'out', '--jobs', 1]
    status, _, err = tool('table', *args, '--', '--from-saved', 'x')
    assert (status, err) == (1, 'error: a study chooses from_saved itself\n')
    status, _, err = tool('table', *args)
    assert (status, err) == (0, '')
    assert len(read_csv(tmp_path / 'out/results.csv')) == 2 * len(KINDS)
    rows = group(read_csv(tmp_path / 'out/characteristics.csv'), 'seed')
    assert list(rows) == ['0', '1']
    full = [loaded(tmp_path / f'out/easy/seed_{seed}/model') for seed in (0, 1)]
    weights = [edge_weights(model)['dag'] for model in full]
    assert not torch.equal(*weights)
