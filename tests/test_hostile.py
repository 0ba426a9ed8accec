"""Folders from strangers: nothing is fetched, nothing is large, what is wrong is one line."""

import argparse
import copy
import json
import math
import os
import resource
import shutil
import socket
import time
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import timm_topo
from timm_topo.checkpoint import checkpoint_origin, describe, load, saved_config
from timm_topo.cli import main
from timm_topo.schema import check_network
from timm_topo.training.options import parse_args
from timm_topo.training.restore import restore

SIZES = dict(num_nodes=(4, 5), widths=(4, 6), strides=(2, 2), stem_width=4, stem_kernel=3)
RUN = dict(model='test_toponet', model_kwargs={k: list(v) if isinstance(v, tuple) else v
                                               for k, v in SIZES.items()})  # fmt: skip
URL = 'http://192.0.2.1/weights.pth'  # of no machine, RFC 5737


def tiny(**options) -> nn.Module:
    return timm.create_model('test_toponet', **{**SIZES, 'num_classes': 3, **options}).eval()


@pytest.fixture
def fetched(monkeypatch) -> list:
    """What somebody wants of the network; nobody gets it."""
    wanted = []

    def refuse(*args, **kwargs):
        wanted.append(args)
        raise OSError('no network')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    return wanted


def one_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ''
    (line,) = err.strip().splitlines()
    assert line.startswith('error: ')
    return line


# -- nothing is fetched ---------------------------------------------------------------------------

SOURCES = {
    'pretrained': True,
    'pretrained_cfg': {'url': URL},
    'pretrained_cfg_overlay': {'url': URL, 'hf_hub_id': 'someone/something', 'source': 'hf-hub'},
    'checkpoint_path': URL,
    'cache_dir': '/nowhere',
    'features_only': True,
}


def as_args(folder: Path, state: dict, options: dict) -> Path:
    torch.save({'state_dict': state}, folder / 'w.pth')
    (folder / 'args.yaml').write_text(yaml.safe_dump(options))
    return folder / 'w.pth'


def as_namespace(folder: Path, state: dict, options: dict) -> Path:
    args = argparse.Namespace(**options)
    torch.save({'state_dict': state, 'args': args}, folder / 'w.pth')
    return folder / 'w.pth'


@pytest.mark.filterwarnings('ignore:.*re-wired is another function')
@pytest.mark.parametrize('write', [as_args, as_namespace])
@pytest.mark.parametrize('base', [{}, {'rewire': 'alpha'}])
def test_options_of_a_training_fetch_nothing(fetched, tmp_path, capsys, write, base):
    model = timm.create_model('test_resnet', num_classes=3) if base else tiny()
    options = {**RUN, **base}
    if base:
        options |= {'model': 'resnet18', 'model_kwargs': {}, 'rewire_kwargs': {'exact': False}}
        model = timm_topo.rewire(timm.create_model('resnet18', num_classes=3), exact=False)
    for place in ('model_kwargs', 'rewire_kwargs')[: 1 + bool(base)]:
        options[place] = {**options[place], **SOURCES}
    options['initial_checkpoint'] = URL
    path = write(tmp_path, model.state_dict(), options)
    assert main(['inspect', str(path)]) == 0, capsys.readouterr().err
    if not base:
        assert checkpoint_origin(path).graphs is None or write is as_namespace
    assert fetched == []


def test_descriptions_fetch_nothing(fetched, tmp_path, capsys):
    model = tiny()
    folder = timm_topo.save(model, tmp_path / 'net')
    config = json.loads((folder / 'config.json').read_text())
    config['model_args'] |= SOURCES
    config['pretrained_cfg'] |= {
        'url': URL, 'hf_hub_id': 'someone/something', 'hf_hub_filename': 'w.bin',
        'custom_load': 'hf', 'source': 'hf-hub', 'file': '/nowhere', 'state_dict': {'a': 1},
    }  # fmt: skip
    (folder / 'config.json').write_text(json.dumps(config))
    network = {**describe(model), 'model_args': config['model_args']}
    network['pretrained_cfg'] = config['pretrained_cfg']
    stored = {'state_dict': model.state_dict(), 'task_state': {'network': network}}
    torch.save(stored, tmp_path / 'last.pth.tar')
    for path in (folder, tmp_path / 'last.pth.tar'):
        assert main(['inspect', str(path)]) == 0, capsys.readouterr().err
        checkpoint_origin(path)
    assert fetched == []
    assert URL not in json.dumps(saved_config(folder))


@pytest.mark.parametrize(
    'name', ['hf-hub:someone/something', 'hf_hub:someone/something', 'local-dir:/nowhere', URL]
)
def test_names_from_elsewhere_are_unknown(fetched, tmp_path, name):
    state = tiny().state_dict()
    for write in (as_args, as_namespace):
        with pytest.raises(ValueError, match='unknown model'):
            restore(write(tmp_path, state, {**RUN, 'model': name}))
    network = {**describe(tiny()), 'architecture': name}
    torch.save({'state_dict': state, 'task_state': {'network': network}}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='unknown model'):
        restore(tmp_path / 'x.pth')
    assert fetched == []


# -- what no network has --------------------------------------------------------------------------

IMPOSSIBLE = {
    ('model_args', 'node_ids'): [
        [[0, 1, 2, 10**18], [0, 1, 2, 3, 4]], [[0, -1, 2, 3], [0, 1, 2, 3, 4]], [], [[], []], 3,
        [None, None], {'0': 1}, 'ids',
    ],
    ('model_args', 'strides'): [[0, 2], [2, -2], 'ab', [None, 2], {}, [2.5, 2]],
    ('model_args', 'widths'): [[10**9, 6], [], [0, 6], None, 7, [4] * 10**4],
    ('model_args', 'wiring'): [
        None, [], [None, None], 'complete' * 9, [{'num_nodes': 10**18, 'edges': []}] * 2,
        [{'num_nodes': 4, 'edges': [[0, 10**30]]}] * 2, [{'num_nodes': 4, 'edges': 7}] * 2,
        [{'name': 'complete', 'edges': None}] * 2,
    ],
    ('model_args', 'connectivity'): [[], [3, 4], [{'name': ['alpha']}] * 2, [{}] * 2, {'name': {}}],
    ('model_args', 'num_classes'): [-1, 2.5, 'three', 10**12, [3], True],
    ('model_args', 'in_chans'): [0, -3, 10**6, '3', [3]],
    ('model_args', 'norm_layer'): [3, 'system', ['batchnorm2d'], {}],
    ('model_args', 'node'): [3, ['sepconv'], None, 'eval'],
    ('model_args',): [[], 'args', 3, None],
    ('pretrained_cfg', 'input_size'): [[3, 0, 96], [3, 10**9, 10**9], [3], 3, [3, 'a', 'b']],
    ('pretrained_cfg', 'mean'): ['a', [None], [math.inf] * 3, [[[0]]] * 3, 0.5, True],
    ('pretrained_cfg', 'std'): [[0, 0, 0], -1, [None]],
    ('pretrained_cfg', 'crop_pct'): [0, 'all', math.nan, [1]],
    ('pretrained_cfg', 'classifier'): [3, [3], {'a': 'b'}],
    ('pretrained_cfg',): [[1], 'cfg', 3],
    ('num_classes',): [-1, 'a', 10**9, [], {}],
    ('architecture',): [None, 3, 'hf-hub:a/b', 'os.system', ['test_toponet']],
}  # fmt: skip
HARMLESS = (None, [], {}, '', True)  # some options may be these


def changed(config: dict, place: tuple, value) -> dict:
    config = copy.deepcopy(config)
    at = config
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    return config


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> Path:
    return timm_topo.save(tiny(), tmp_path_factory.mktemp('saved') / 'net')


@pytest.fixture
def peak():
    """Function that gives the bytes by which this process has grown at most."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return lambda: (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


@pytest.mark.parametrize('place', IMPOSSIBLE, ids='.'.join)
def test_what_no_network_has_is_one_line(saved, tmp_path, capsys, peak, place):
    config, folder = json.loads((saved / 'config.json').read_text()), tmp_path / 'net'
    for value in IMPOSSIBLE[place]:
        shutil.copytree(saved, folder)
        (folder / 'config.json').write_text(json.dumps(changed(config, place, value)))
        start = time.perf_counter()
        status = main(['inspect', str(folder)])
        if status or value not in HARMLESS:
            assert status == 1, f'{place} {value!r:.50}'
            line = one_line(capsys)
            assert str(folder) in line
            assert len(line) < 1000
        capsys.readouterr()
        assert time.perf_counter() - start < 20
        assert sorted(os.listdir(folder)) == ['config.json', 'model.safetensors']
        shutil.rmtree(folder)
    assert peak() < 2**28


@pytest.mark.parametrize(
    ('name', 'value'),
    [('num_classes', -1), ('input_size', [3]), ('input_size', 7), ('mean', [0.5, 0.5]),
     ('std', [0.0]), ('model_kwargs', 7), ('model_kwargs', {'wiring': {'a': [[[[]]]]}}),
     ('model_kwargs', {'node_ids': [[0, 10**18]]}), ('drop', 'x'), ('from_saved', 7),
     ('rewire', 7), ('fit_parameters', 10**30), ('img_size', -5), ('crop_pct', 'x')],
)  # fmt: skip
def test_options_that_nobody_means_are_one_line(tmp_path, capsys, name, value):
    path = as_namespace(tmp_path, tiny().state_dict(), {**RUN, name: value})
    assert main(['inspect', str(path)]) == 1
    assert str(path) in one_line(capsys)


@pytest.mark.parametrize('content', ['[' * 10**5, '{"a":' * 10**5, '1' * 10**5, '"' + 'a' * 2**25])
def test_files_that_are_no_descriptions_are_one_line(saved, tmp_path, capsys, content):
    folder = shutil.copytree(saved, tmp_path / 'net')
    (folder / 'config.json').write_text(content)
    assert main(['inspect', str(folder)]) == 1
    assert len(one_line(capsys)) < 1000


BOMB = '\n'.join(
    ['a0: &a0 [1, 1]', *(f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 12))]
)


@pytest.mark.parametrize(
    'text',
    ['[' * 10**4, 'model_kwargs: &a {b: *a}', f'model: test_toponet\nmodel_kwargs:\n  x: 1\n{BOMB}',
     'model: &a [*a]', 'model: 2020-02-02', 'a' * 2**19, '? [1, 2]\n: 3', 'seed: ' + '9' * 5000],
)  # fmt: skip
def test_yaml_without_end_is_one_line(tmp_path, capsys, peak, text):
    torch.save({'state_dict': tiny().state_dict()}, tmp_path / 'w.pth')
    (tmp_path / 'args.yaml').write_text(text)
    assert main(['inspect', str(tmp_path / 'w.pth')]) == 1
    line = one_line(capsys)
    assert 'args.yaml' in line
    assert len(line) < 1000
    assert peak() < 2**28


def leaves(value, at: tuple = ()) -> list[tuple]:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found = [place for name, one in items for place in leaves(one, (*at, name))]
        return [at, *found] if at else found
    return [at]


VALID = describe(tiny(node_ids=[[0, 1, 2, 3], [0, 1, 2, 3, 4]]))
WORSE = st.one_of(
    st.none(), st.booleans(), st.text(max_size=5), st.lists(st.integers(-3, 3), max_size=4),
    st.integers(-(10**20), 10**20), st.floats(),
    st.dictionaries(st.text(max_size=3), st.integers()),
    st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=3), max_leaves=9),
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(leaves(VALID)), value=WORSE)
def test_a_changed_description_is_a_network_or_one_error(saved, tmp_path, place, value):
    folder = tmp_path / 'net'
    folder.mkdir(exist_ok=True)
    shutil.copy(saved / 'model.safetensors', folder)
    (folder / 'config.json').write_text(json.dumps(changed(VALID, place, value)))
    try:
        model = load(folder)
    except ValueError as error:
        assert str(folder) in str(error)  # noqa: PT017
    else:
        assert isinstance(model, nn.Module)
        assert checkpoint_origin(folder).graphs


def test_networks_that_are_registered_are_possible():
    for name in ('toponet_adaptive', 'maskconnect_resnext101_64x4d', 'dgnet_resnet101', 'dagnet60'):
        with torch.device('meta'):
            network = describe(timm.create_model(name))
        assert check_network(network) == network


def test_a_network_larger_than_its_weights_is_not_made(saved, tmp_path, peak):
    folder = shutil.copytree(saved, tmp_path / 'net')
    config = json.loads((folder / 'config.json').read_text())
    config['model_args']['widths'] = [2**12, 2**12]
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r'net: the weights do not fit the network: they have'):
        load(folder)
    state, options = tiny().state_dict(), {**RUN['model_kwargs'], 'widths': [2**12, 2**12]}
    with pytest.raises(ValueError, match=r'the weights do not fit the network: they have'):
        restore(as_args(tmp_path, state, {**RUN, 'model_kwargs': options}))
    assert peak() < 2**28


def test_a_checkpoint_that_was_compressed_is_refused(tmp_path):
    """A megabyte may be a terabyte."""
    torch.save({'a': torch.zeros(10**6)}, tmp_path / 'w.pth')
    with zipfile.ZipFile(tmp_path / 'w.pth') as plain, zipfile.ZipFile(
        tmp_path / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED
    ) as bomb:  # fmt: skip
        for entry in plain.namelist():
            bomb.writestr(entry, plain.read(entry))
    with pytest.raises(ValueError, match=r'bomb\.pth is truncated, damaged .*compressed'):
        timm_topo.checkpoint.read_checkpoint(tmp_path / 'bomb.pth')


# -- what saving keeps ----------------------------------------------------------------------------


def test_rates_of_dropping_are_saved(tmp_path):
    net = timm_topo.load(timm_topo.save(tiny(drop_rate=0.25), tmp_path / 'net'))
    assert net.head.drop.p == 0.25
    sizes = dict(depths=(1, 1, 2, 1), dims=(4, 4, 4, 4), num_classes=2)
    plain = timm.create_model('convnext_atto', **sizes, drop_rate=0.25, drop_path_rate=0.5)
    for model in (plain, timm_topo.rewire(plain)):
        again = timm_topo.load(timm_topo.save(model, tmp_path / 'net'))
        rates = [m.drop_prob for m in model.modules() if hasattr(m, 'drop_prob')]
        assert [m.drop_prob for m in again.modules() if hasattr(m, 'drop_prob')] == rates
        assert max(rates) == 0.5
        assert again.head.drop.p == 0.25
        args = parse_args(
            ['--from-saved', str(tmp_path / 'net'), '--from-saved-weights', 'finetune']
        )
        tuned = timm_topo.training.build.build_model(args, list('ab'))
        assert tuned.head.drop.p == 0.25
        args.drop = 0.75
        assert timm_topo.training.build.build_model(args, list('ab')).head.drop.p == 0.75


def test_what_was_replaced_by_hand_is_told(tmp_path, recwarn):
    model = tiny()
    timm_topo.save(model, tmp_path / 'net')
    assert not recwarn
    model.act = nn.GELU()
    with pytest.warns(UserWarning, match=r'net does not tell .*: act is GELU\(.*\), not ReLU\(\)$'):
        timm_topo.save(model, tmp_path / 'net')
    model.act = nn.PReLU()
    with pytest.warns(UserWarning, match=r'act is gone, not ReLU\(\)$'):
        timm_topo.save(model, tmp_path / 'net')
