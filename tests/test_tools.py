"""The command-line tools: what they write, what they print, and one line when they fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
from torch import nn

import timm_topo

ROOT = Path(__file__).parents[1]
TOOLS = sorted((ROOT / 'tools').glob('*.py'))


@pytest.fixture(scope='module')
def saved(tmp_path_factory, randomise) -> Path:
    """A small network for digits, saved; its edges weigh 0.01, 0.02... but for one path."""
    torch.manual_seed(0)
    model = randomise(
        timm.create_model(
            'toponet_tiny_adaptive', num_nodes=(4, 4), widths=(8, 12), strides=(2, 2), stem_width=4
        )
    )
    with torch.no_grad():
        for stage in model.stages:
            stage.connectivity.alpha.copy_(torch.arange(1, 7) / 100)
            stage.connectivity.alpha[stage.wiring.edges.index((0, 3))] = 1.0
    return timm_topo.save(model, tmp_path_factory.mktemp('tools') / 'net')


def shell(name: str, *args) -> subprocess.CompletedProcess:
    """The same as a process of its own, from another folder."""
    return subprocess.run(
        [sys.executable, '-m', 'timm_topo', name, *map(str, args)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_one_error(status: int, out: str, err: str, match: str) -> None:
    assert status not in (0, None)
    assert 'Traceback' not in out + err
    (line,) = err.strip().splitlines()
    assert line.startswith('error: ')
    assert re.search(match, line), line


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# -- all tools ------------------------------------------------------------------------------------


@pytest.mark.parametrize('path', TOOLS, ids=lambda path: path.stem)
def test_every_tool_is_short(path):
    assert len(path.read_text(encoding='utf-8').splitlines()) < 150


def test_the_tools_are_found():
    assert {'benchmark', 'demo', 'train'} <= {path.stem for path in TOOLS}


# -- prune ----------------------------------------------------------------------------------------


def test_prune_by_threshold_writes_a_network_that_loads(saved, tmp_path):
    """As a process: edges 0.01 and 0.02 of both stages go."""
    done = shell('prune', saved, '--threshold', 0.02, '-o', tmp_path / 'out')
    assert (done.returncode, done.stderr) == (0, '')
    model, pruned = timm_topo.load(saved), timm_topo.load(tmp_path / 'out')
    assert f'parameters {parameters(model):,} -> {parameters(pruned):,}' in done.stdout
    assert done.stdout.splitlines()[-1] == f'saved: {tmp_path / "out"}'
    for before, after in zip(model.stages, pruned.stages, strict=True):
        assert before.wiring.num_edges == 6
        assert (after.connectivity.edge_weights() > 0.02).all()
    assert pruned(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_prune_by_fraction_prints_what_was_gained(saved, tool, tmp_path):
    status, out, err = tool('prune', saved, '--fraction', 0.5, '-o', tmp_path / 'out')
    assert (status, err) == (0, '')
    before, after = timm_topo.load(saved), timm_topo.load(tmp_path / 'out')
    assert parameters(after) < parameters(before)
    for label, model in (('before', before), ('after', after)):
        edges = sum(stage.wiring.num_edges for stage in model.stages)
        (line,) = [line for line in out.splitlines() if line.startswith(label)]
        assert f'{edges} edges  {parameters(model):,} parameters' in line
        assert re.search(r'[\d.]+ M multiply-adds  [\d.]+ ms for 8 images \(x[\d.]+\)$', line)


def test_prune_with_a_data_set_recalibrates_and_tells_accuracy(saved, tool, tmp_path):
    args = (saved, '--fraction', 0.5, '--dataset', 'digits')
    status, plain, err = tool('prune', *args, '-o', tmp_path / 'plain')
    assert (status, err) == (0, '')
    status, out, err = tool('prune', *args, '--recalibrate', 1, '-o', tmp_path / 'new')
    assert (status, err) == (0, '')
    for text in (plain, out):
        assert len(re.findall(r'top-1 \d+\.\d\d%$', text, re.M)) == 2
    old, new = (timm_topo.load(tmp_path / name).state_dict() for name in ('plain', 'new'))
    changed = {name.rpartition('.')[2] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {'running_mean', 'running_var', 'num_batches_tracked'}


def test_a_grey_network_is_judged_on_grey_images(tool, tmp_path):
    sizes = dict(num_nodes=(4, 4), widths=(8, 12), strides=(2, 2), stem_width=4, in_chans=1)
    timm_topo.save(timm.create_model('toponet_tiny_adaptive', **sizes), tmp_path / 'net')
    args = ('--fraction', 0, '--dataset', 'digits', '--recalibrate', 1, '-o', tmp_path / 'out')
    status, out, _ = tool('prune', tmp_path / 'net', *args)
    assert status == 0
    assert len(re.findall(r'top-1 \d+\.\d\d%$', out, re.M)) == 2


def test_a_pruned_network_can_be_pruned_again(saved, tool, tmp_path):
    for source, target, threshold in ((saved, 'one', 0.02), (tmp_path / 'one', 'two', 0.5)):
        status, _, _ = tool('prune', source, '--threshold', threshold, '-o', tmp_path / target)
        assert status == 0
    assert [s.wiring.edges for s in timm_topo.load(tmp_path / 'two').stages] == [((0, 1),)] * 2


def test_an_error_is_one_line_and_a_status_for_the_shell(tmp_path):
    done = shell('prune', tmp_path / 'none', '--fraction', 0.5, '-o', tmp_path / 'out')
    assert done.returncode == 1
    result = done.returncode, done.stdout, done.stderr
    assert_one_error(*result, r'none is no checkpoint: there is neither')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ('amount', 'match'),
    [
        (('--fraction', 0.99), r'edges of stages\.0 .*leaves no path'),
        (('--fraction', 1.0), r'fraction must be in \[0, 1\), got 1\.0'),
        (('--threshold', -1), r'threshold must be finite and >= 0, got -1\.0'),
        (('--threshold', 'nan'), r'threshold must be finite and >= 0, got nan'),
        (('--fraction', 0.5, '--dataset', 'digitz'), r"unknown data set 'digitz'"),
    ],
)
def test_prune_refuses_in_one_line_and_writes_nothing(saved, tool, tmp_path, amount, match):
    assert_one_error(*tool('prune', saved, *amount, '-o', tmp_path / 'out'), match)
    assert os.listdir(tmp_path) == []


def test_prune_leaves_a_foreign_folder_alone(saved, tool, tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    result = tool('prune', saved, '--fraction', 0.5, '-o', tmp_path)
    assert_one_error(*(result[0], '', result[2]), 'holds no saved network')
    assert os.listdir(tmp_path) == ['thesis.tex']


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        ((), 'one of the arguments --threshold --fraction is required'),
        (('--threshold', 0.1, '--fraction', 0.1), 'not allowed with argument'),
        (('--threshold', 'much'), "invalid float value: 'much'"),
        (('--fraction', 0.5, '--recalibrate', 2), '--recalibrate needs --dataset'),
    ],
)
def test_prune_shows_its_usage_when_options_do_not_fit(saved, tool, tmp_path, args, match):
    status, _, err = tool('prune', saved, *args, '-o', tmp_path / 'out')
    assert status == 2
    assert err.startswith('usage: ')
    assert match in err.splitlines()[-1]


# -- export ---------------------------------------------------------------------------------------


def test_export_writes_a_file_that_onnxruntime_runs(saved, tool, tmp_path):
    status, out, _ = tool('export', saved, '-o', tmp_path / 'net.onnx')
    assert status == 0
    told = r'onnxruntime agrees with PyTorch to [\d.e-]+\nwritten: '
    assert re.fullmatch(rf'{told}{tmp_path}/net\.onnx\n', out)
    session = onnxruntime.InferenceSession(
        tmp_path / 'net.onnx', providers=['CPUExecutionProvider']
    )
    images = torch.randn(3, 3, 32, 32)
    (logits,) = session.run(None, {'image': images.numpy()})
    expected = timm_topo.load(saved).eval()(images).detach()
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def test_export_of_a_missing_network_is_one_error(tool, tmp_path):
    result = tool('export', tmp_path / 'none', '-o', tmp_path / 'net.onnx')
    assert_one_error(*result, r'none is no checkpoint: there is neither')
    assert os.listdir(tmp_path) == []


def test_export_with_an_input_that_does_not_fit_is_one_error(saved, tool, tmp_path):
    result = tool('export', saved, '-o', tmp_path / 'net.onnx', '--input-size', 4, 32, 32)
    assert_one_error(*result, 'channels')
    assert os.listdir(tmp_path) == []


# -- models ------


def test_models_prints_parameters_of_every_match(tool):
    status, out, err = tool('models', 'test_toponet', 'toponet_tiny_*')
    assert (status, err) == (0, '')
    _, *rows = out.splitlines()
    names = ['test_toponet', 'toponet_tiny_adaptive', 'toponet_tiny_residual2']
    assert [row.split()[0] for row in rows] == names
    for row, side in zip(rows, ('96', '32', '32'), strict=True):
        name, size, count, conv, total = row.split()
        assert count == f'{parameters(timm.create_model(name)):,}'
        assert size == f'{side}x{side}'
        assert 0 < float(conv) < float(total)


def test_models_at_another_size(tool):
    """Twice the height and width, four times the multiply-adds of the convolutions."""
    counted = []
    for size in (32, 64):
        status, out, err = tool('models', 'toponet_tiny_adaptive', '--input-size', 3, size, size)
        assert status == 0, err
        line = out.splitlines()[-1].split()
        assert line[1] == f'{size}x{size}'
        counted.append(float(line[3]))
    assert counted[1] == pytest.approx(4 * counted[0], rel=1e-3)
    status, _, err = tool('models', 'test_toponet', '--input-size', 3, 0, 8)
    assert status == 2
    assert "must be a whole number from 1 on, got '0'" in err


def test_models_lists_all_networks_beside_the_papers(tool):
    status, out, err = tool('models')
    assert (status, err) == (0, '')
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    ours = [n for n in timm.list_models() if is_ours(n) and not n.startswith('test_')]
    assert set(rows) == set(ours) - {'rewired'}  # any network of timm
    assert rows['toponet_adaptive'].split()[3:] == [
        '3820.98',
        '23.23',
        'M',
        '3.95',
        '78.60',
        'ImageNet',
    ]


def is_ours(name: str) -> bool:
    return timm.models.model_entrypoint(name).__module__.startswith('timm_topo.')


def test_models_of_an_unknown_name_are_one_error(tool):
    assert_one_error(*tool('models', 'toponet_of_tomorrow'), 'no registered model')
