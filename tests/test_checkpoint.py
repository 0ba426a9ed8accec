"""Saved networks: back bit for bit, or one error that names the file."""

import copy
import inspect
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import timm_topo
from timm_topo import checkpoint, generators
from timm_topo.analysis.prune import freeze_edge_weights, prune
from timm_topo.checkpoint import (
    FORMAT,
    checkpoint_origin,
    describe,
    graphs_of,
    load,
    read_checkpoint,
    save,
    saved_config,
)
from timm_topo.connectivity.learned import AlphaConnectivity
from timm_topo.training.restore import restore

RULES = ['alpha', 'fixed', 'sigmoid', 'tanh']
WIRINGS = {
    'complete': {},
    'sequential': {},
    'residual': {'interval': 2},
    'random': {'p': 0.5, 'seed': 3},
    'erdos_renyi': {'p': 0.5, 'seed': 3},
    'barabasi_albert': {'m': 2, 'seed': 3},
    'watts_strogatz': {'k': 2, 'p': 0.75, 'seed': 3},
}
SIZES = dict(num_nodes=(6, 7), widths=(4, 6), strides=(1, 2), stem_width=4, num_classes=5)


@pytest.fixture(scope='session')
def tiny(randomise):
    """Function that makes a small network with weights unlike the initial ones."""

    def tiny(**options) -> nn.Module:
        model = randomise(timm.create_model('test_toponet', **{**SIZES, **options}))
        with torch.no_grad():
            for stage in getattr(model, 'stages', ()):
                stage.connectivity.alpha.uniform_(-1, 1)  # a fixed one too
        return model.eval()

    return tiny


@pytest.fixture
def saved(tiny, tmp_path) -> tuple[nn.Module, Path]:
    """A network and the folder that it is saved in."""
    model = tiny()
    return model, save(model, tmp_path / 'net')


def image(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(1))


def wirings(model: nn.Module) -> list:
    return [stage.wiring for stage in model.stages]


def assert_same(loaded: nn.Module, model: nn.Module) -> None:
    """Same wiring, same rules, same values bit for bit, same output."""
    assert wirings(loaded) == wirings(model)
    assert [type(s.connectivity) for s in loaded.stages] == (
        [type(s.connectivity) for s in model.stages]
    )
    got, expected = loaded.state_dict(), model.state_dict()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name], value), name
    assert torch.equal(loaded.eval()(image()), model.eval()(image()))


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, **changes}))


def half_pruned(model: nn.Module) -> nn.Module:
    """Without some edges, and without node 2 of the first stage, which nobody reads then."""
    first, second = wirings(model)
    gone = {(2, n) for n in range(3, 6)}
    keep = {
        'stages.0': torch.tensor([edge not in gone for edge in first.edges]),
        'stages.1': torch.tensor([edge != (1, 4) for edge in second.edges]),
    }
    smaller, _ = prune(model, keep=keep, probe=image())
    assert [w.num_nodes for w in wirings(smaller)] == [5, 7]
    return smaller


# -- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('wiring', sorted(WIRINGS))
def test_every_rule_on_every_wiring_comes_back_bit_for_bit(tiny, tmp_path, rule, wiring):
    model = tiny(connectivity=rule, wiring={'name': wiring, **WIRINGS[wiring]})
    assert_same(load(save(model, tmp_path / 'net')), model)


def test_the_wirings_tried_here_are_all_there_are():
    assert set(WIRINGS) == set(generators.WIRINGS)


def test_rules_that_differ_by_stage_and_their_options_come_back(tiny, tmp_path):
    rules = [{'name': 'alpha', 'init': 0.25}, 'tanh']
    loaded = load(save(tiny(connectivity=rules), tmp_path / 'net'))
    assert loaded.topology()['connectivity'] == [
        {'name': 'alpha', 'init': 0.25, 'weigh_sole': True, 'mean_output': False},
        {'name': 'tanh', 'init': 0.5, 'weigh_sole': True, 'mean_output': False},
    ]
    loaded.init_weights()
    assert (loaded.stages[0].connectivity.edge_weights() == 0.25).all()


def test_a_pruned_network_comes_back(tiny, tmp_path):
    model = half_pruned(tiny())
    assert_same(load(save(model, tmp_path / 'net')), model)


def test_a_network_pruned_frozen_and_pruned_again_comes_back(tiny, tmp_path):
    model = freeze_edge_weights(half_pruned(tiny(connectivity=['tanh', 'sigmoid'])))
    model, _ = prune(model, fraction=0.1, probe=image())
    loaded = load(save(model, tmp_path / 'net'))
    assert_same(loaded, model)
    assert not any(name.endswith('alpha') for name, _ in loaded.named_parameters())


def test_other_options_come_back(tiny, tmp_path):
    model = tiny(sparsity='uniform', sparsity_weight=0.5, output_stride=8, global_pool='max')
    loaded = load(save(model, tmp_path / 'net'))
    assert (loaded.sparsity, loaded.sparsity_weight) == ('uniform', 0.5)
    assert_same(loaded, model)


def test_another_classifier_comes_back(tiny, tmp_path):
    model = tiny()
    model.reset_classifier(3, 'max')
    assert_same(load(save(model, tmp_path / 'net')), model)


def test_timm_alone_reads_a_saved_network(tiny, tmp_path):
    model = half_pruned(tiny(wiring='complete'))
    folder = save(model, tmp_path / 'net')
    assert_same(timm.create_model(f'local-dir:{folder}', pretrained=True), model)


def test_the_weights_alone_fit_a_network_of_the_same_options(saved):
    model, folder = saved
    again = timm.create_model(
        'test_toponet', **SIZES, checkpoint_path=str(folder / 'model.safetensors')
    )
    assert_same(again, model)


def test_a_channels_last_network_is_saved_and_left_in_its_layout(tiny, tmp_path):
    model = tiny().to(memory_format=torch.channels_last)
    pointwise = model.stages[0].nodes[0].conv_pw.weight
    strides = pointwise.stride()
    loaded = load(save(model, tmp_path / 'net'))
    assert pointwise.stride() == strides
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize('training', [True, False])
def test_saving_leaves_the_network_as_it_is(tiny, tmp_path, training):
    model = tiny().train(training)
    before = copy.deepcopy(model.state_dict())
    save(model, tmp_path / 'net')
    assert model.training is training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_random_wiring_is_rebuilt_from_edges_though_its_generator_changed(
    tiny, tmp_path, monkeypatch
):
    model = tiny(wiring={'name': 'random', 'p': 0.5, 'seed': 3})
    folder = save(model, tmp_path / 'net')

    def changed(num_nodes, p, seed=0):
        raise AssertionError('the generator was asked')

    monkeypatch.setitem(generators.WIRINGS, 'random', changed)
    assert_same(load(folder), model)


def test_the_config_lists_every_edge_and_is_readable_json(saved):
    model, folder = saved
    assert json.loads((folder / 'config.json').read_text()) == saved_config(folder)
    args = saved_config(folder)['model_args']
    assert args['wiring'] == [w.to_dict() for w in wirings(model)]
    assert args['num_nodes'] == [6, 7]
    assert saved_config(folder)['architecture'] == 'test_toponet'


def test_names_of_classes_and_preprocessing_are_kept(tiny, tmp_path):
    data = {'input_size': (3, 24, 24), 'mean': (0.1, 0.2, 0.3), 'std': (0.4, 0.5, 0.6)}
    folder = save(tiny(), tmp_path / 'net', label_names=list('abcde'), data_config=data)
    assert saved_config(folder)['label_names'] == list('abcde')
    loaded = load(folder)
    assert tuple(loaded.pretrained_cfg['input_size']) == (3, 24, 24)
    assert tuple(loaded.pretrained_cfg['mean']) == (0.1, 0.2, 0.3)


# -- loading with other options -------------------------------------------------------------------


def test_another_number_of_classes_keeps_everything_but_the_classifier(saved):
    model, folder = saved
    loaded = load(folder, num_classes=7).eval()
    assert loaded(image()).shape == (2, 7)
    assert torch.equal(loaded.forward_features(image()), model.forward_features(image()))


def test_no_classes_gives_pooled_features(saved):
    model, folder = saved
    expected = model.forward_head(model.forward_features(image()), pre_logits=True)
    assert torch.equal(load(folder, num_classes=0).eval()(image()), expected)


def test_one_channel_takes_the_sum_of_the_stem_over_colours(saved):
    model, folder = saved
    loaded = load(folder, in_chans=1).eval()
    grey = image(1)
    torch.testing.assert_close(loaded(grey), model(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize('indices', [None, (0, 2)])
def test_features_of_a_saved_pruned_network_are_its_intermediates(tiny, tmp_path, indices):
    model = half_pruned(tiny())
    folder = save(model, tmp_path / 'net')
    options = {} if indices is None else {'out_indices': indices}
    features = load(folder, features_only=True, **options).eval()
    expected = model.forward_intermediates(image(), indices=indices, intermediates_only=True)
    got = features(image())
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert features.feature_info.channels() == [4, 4, 6] if indices is None else [4, 6]


def test_fresh_weights_in_the_saved_wiring(tiny, tmp_path):
    model = half_pruned(tiny())
    loaded = load(save(model, tmp_path / 'net'), pretrained=False)
    assert wirings(loaded) == wirings(model)
    assert (loaded.stages[0].connectivity.edge_weights() == 1).all()
    assert not torch.equal(loaded.stem.conv.weight, model.stem.conv.weight)


def test_an_option_that_contradicts_the_wiring_is_refused(saved):
    with pytest.raises(ValueError, match='num_nodes=5 contradicts'):
        load(saved[1], num_nodes=(5, 5))


def test_an_unknown_option_is_refused(saved):
    with pytest.raises(TypeError, match='num_clases'):
        load(saved[1], num_clases=3)


# -- saving is all or nothing ---------------------------------------------------------------------


def test_parents_are_made_and_the_folder_is_returned(tiny, tmp_path):
    folder = save(tiny(), str(tmp_path / 'some' / 'where'))
    assert folder == tmp_path / 'some' / 'where'
    assert sorted(os.listdir(folder)) == ['config.json', 'model.safetensors']
    assert os.listdir(tmp_path / 'some') == ['where']


def test_an_empty_folder_is_filled(tiny, tmp_path):
    (tmp_path / 'net').mkdir()
    load(save(tiny(), tmp_path / 'net'))


def test_an_old_saved_network_is_replaced_as_a_whole(tiny, tmp_path):
    save(tiny(), tmp_path / 'net', label_names=list('abcde'))
    model = half_pruned(tiny())
    save(model, tmp_path / 'net')
    assert_same(load(tmp_path / 'net'), model)
    assert saved_config(tmp_path / 'net').get('label_names') is None
    assert os.listdir(tmp_path) == ['net']


def test_the_old_network_survives_a_write_that_fails(saved, tiny, monkeypatch):
    old, folder = saved

    def fail(model, scratch, **options):
        (Path(scratch) / 'model.safetensors').write_bytes(b'half of it')
        raise OSError('disk full')

    monkeypatch.setattr(checkpoint, 'save_for_hf', fail)
    with pytest.raises(OSError, match='disk full'):
        save(tiny(stem_width=8), folder)
    assert_same(load(folder), old)
    assert os.listdir(folder.parent) == [folder.name]


def test_the_old_network_survives_a_replacement_that_fails(saved, tiny, monkeypatch):
    old, folder = saved
    replace = os.replace

    def fail_on_new(source, target):
        if (Path(source) / 'config.json').is_file() and Path(target) == folder:
            monkeypatch.setattr(os, 'replace', replace)  # once
            raise OSError('permission denied')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', fail_on_new)
    with pytest.raises(OSError, match='permission denied'):
        save(tiny(stem_width=8), folder)
    assert_same(load(folder), old)
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.parametrize('name', ['notes.txt', 'model.safetensors'])
def test_a_foreign_folder_is_refused_and_left_alone(tiny, tmp_path, name):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / name).write_text('precious')
    with pytest.raises(FileExistsError, match=r'mine exists and holds no saved network'):
        save(tiny(), tmp_path / 'mine')
    assert (tmp_path / 'mine' / name).read_text() == 'precious'
    assert os.listdir(tmp_path / 'mine') == [name]
    assert os.listdir(tmp_path) == ['mine']


def test_a_foreign_folder_with_a_config_of_its_own_is_refused(tiny, tmp_path):
    (tmp_path / 'config.json').write_text('{"my": "application"}')
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(FileExistsError, match='holds no saved network'):
        save(tiny(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['config.json', 'thesis.tex']


def test_saving_to_the_working_directory_loses_nothing(saved, monkeypatch):
    model, folder = saved
    monkeypatch.chdir(folder)
    with suppress(OSError, ValueError):  # refused or done, both will do
        save(model, '.')
    assert_same(load(folder), model)


def test_a_model_that_timm_did_not_make_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r'save needs a whole model .*, got Linear'):
        save(nn.Linear(2, 2), tmp_path / 'net')
    assert os.listdir(tmp_path) == []


def test_a_feature_network_is_refused(tiny, tmp_path):
    with pytest.raises(TypeError, match='got FeatureListNet'):
        save(tiny(features_only=True), tmp_path / 'net')
    assert os.listdir(tmp_path) == []


def test_a_plain_timm_network_is_saved_as_timm_does(tmp_path):
    model = timm.create_model('resnet10t', num_classes=3).eval()
    again = load(save(model, tmp_path / 'net')).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_a_rule_without_a_name_cannot_be_saved(tiny, tmp_path):
    class NamelessConnectivity(AlphaConnectivity):
        pass

    model = tiny(connectivity=NamelessConnectivity)
    with pytest.raises(
        ValueError,
        match='NamelessConnectivity has no name: decorate it with @register_connectivity',
    ):
        save(model, tmp_path / 'net')
    assert os.listdir(tmp_path) == []


# -- what cannot be loaded ------------------------------------------------------------------------


def assert_refused(folder: Path, error: type, match: str) -> None:
    """``load`` raises ``error`` with ``match`` in it, and with the path."""
    with pytest.raises(error, match=match) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    assert_refused(tmp_path / 'none', FileNotFoundError, r'config\.json is missing')


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_a_missing_file_is_named(saved, name):
    (saved[1] / name).unlink()
    assert_refused(saved[1], FileNotFoundError, f'is no saved network: {name} is missing')


@pytest.mark.parametrize('share', [0, 0.001, 0.01, 0.3, 0.5, 0.9, 1])
def test_truncated_weights_are_refused(saved, share):
    file = saved[1] / 'model.safetensors'
    content = file.read_bytes()
    file.write_bytes(content[: min(int(share * len(content)), len(content) - 1)])
    assert_refused(saved[1], ValueError, r'model\.safetensors is truncated or damaged')


@pytest.mark.parametrize('content', [b'', b'{"architecture": "test_to', b'\xff\xfe{}', b'nonsense'])
def test_a_config_that_is_not_json_is_refused(saved, content):
    (saved[1] / 'config.json').write_bytes(content)
    assert_refused(saved[1], ValueError, r'config\.json is not JSON')


@pytest.mark.parametrize('content', ['{}', '[]', '"test_toponet"', '3', 'null'])
def test_a_config_without_architecture_is_refused(saved, content):
    (saved[1] / 'config.json').write_text(content)
    assert_refused(saved[1], ValueError, r'config\.json names no architecture')


@pytest.mark.parametrize('architecture', [None, 3, ['test_toponet']])
def test_an_architecture_that_is_no_name_is_refused(saved, architecture):
    edit_config(saved[1], architecture=architecture)
    assert_refused(saved[1], ValueError, 'architecture')


def test_an_unknown_architecture_is_refused(saved):
    edit_config(saved[1], architecture='toponet_of_tomorrow')
    assert_refused(saved[1], ValueError, "holds a 'toponet_of_tomorrow', which timm does not know")


def test_a_newer_format_asks_for_an_upgrade(saved):
    edit_config(saved[1], timm_topo_format=checkpoint.FORMAT + 1)
    newer = f'has format {checkpoint.FORMAT + 1}, this version reads up to {checkpoint.FORMAT}:'
    assert_refused(saved[1], ValueError, newer)


@pytest.mark.parametrize('format_', ['2', None, -1, True])
def test_a_format_that_is_no_number_is_refused(saved, format_):
    edit_config(saved[1], timm_topo_format=format_)
    assert_refused(saved[1], ValueError, f'has format {format_!r}, not a number from 0 on')


def test_a_wiring_with_a_cycle_is_refused(saved):
    args = saved_config(saved[1])['model_args']
    args['wiring'][0]['edges'][0] = [1, 0]
    edit_config(saved[1], model_args=args)
    assert_refused(saved[1], ValueError, r'edge \(1, 0\) goes against the node order')


def test_weights_of_another_network_are_refused(saved, tiny, tmp_path):
    other = save(tiny(widths=(4, 8)), tmp_path / 'other')
    shutil.copy(other / 'model.safetensors', saved[1])
    assert_refused(saved[1], ValueError, 'the weights do not fit the network')


def test_weights_of_another_wiring_are_refused(saved, tiny, tmp_path):
    other = save(half_pruned(tiny()), tmp_path / 'other')
    shutil.copy(other / 'model.safetensors', saved[1])
    assert_refused(saved[1], ValueError, 'the weights do not fit the network')


# -- formats --------------------------------------------------------------------------------------


def test_the_config_tells_its_format(saved):
    assert json.loads((saved[1] / 'config.json').read_text())['timm_topo_format'] == FORMAT


@pytest.mark.parametrize(
    'name',
    ['test_toponet', 'test_dagnet', 'test_randwire', 'test_maskconnect_resnet',
     'test_maskconnect_resnext', 'dgnet_resnet18', 'rewired'],
)  # fmt: skip
def test_all_options_are_saved_whatever_their_defaults(name):
    """Those of training alone apart: dropout."""
    with torch.device('meta'):
        model = timm.create_model(name)
    rewired = isinstance(model, timm_topo.models.Rewired)
    made_by = inspect.signature(timm_topo.rewire).parameters if rewired else model.all_options()
    options = set(made_by) - {'device', 'dtype', 'drop_rate', 'model'}
    assert options | ({'base'} if rewired else set()) <= describe(model)['model_args'].keys()


def test_masks_of_older_networks_lose_the_options_of_their_learning():
    """Whether the rule is named, described, or made by the options of a network."""
    said, learning = {'name': 'mask', 'fan_in': 2}, {'centered': True, 'normalised': False}
    for given, expected in (
        (dict(connectivity='mask'), dict(connectivity={'name': 'mask'})),
        (dict(connectivity=['alpha', {**said, **learning}]), dict(connectivity=['alpha', said])),
        (dict(fan_in=2, **learning), dict(fan_in=2)),
        (dict(fan_in=2), dict(fan_in=2)),
    ):
        network = {'architecture': 'maskconnect_resnet38', 'model_args': given}
        assert checkpoint.migrate(network, 1, 'net')['model_args'] == expected
    network = {'architecture': 'toponet_alpha', 'model_args': {'num_nodes': 4}}
    assert checkpoint.migrate(network, 1, 'net') == network


def renamed(old: str, new: str) -> Callable[[dict], dict]:
    """A migration after which option ``old`` is called ``new``."""

    def step(network: dict) -> dict:
        network['model_args'][new] = network['model_args'].pop(old)
        return network

    return step


@pytest.mark.parametrize(('number', 'name'), [(None, 'a'), (0, 'a'), (1, 'b'), (2, 'stem_width')])
def test_a_network_of_an_older_format_computes_the_same(saved, monkeypatch, number, name):
    """Step by step from its own format on; what is saved again is of today's."""
    model, folder = saved
    config = json.loads((folder / 'config.json').read_text())
    config['model_args'][name] = config['model_args'].pop('stem_width')
    del config['timm_topo_format']
    if number is not None:
        config['timm_topo_format'] = number
    (folder / 'config.json').write_text(json.dumps(config))
    steps = (renamed('a', 'b'), renamed('b', 'stem_width'))
    monkeypatch.setattr(checkpoint, 'MIGRATIONS', steps)
    monkeypatch.setattr(checkpoint, 'FORMAT', 2)
    assert_same(load(folder), model)
    assert json.loads((folder / 'config.json').read_text()) == config
    assert checkpoint_origin(folder).graphs == graphs_of(model)
    again = saved_config(save(load(folder), folder))
    assert (again['timm_topo_format'], again['model_args']['stem_width']) == (2, 4)


def test_a_description_in_a_checkpoint_of_a_training_is_migrated(saved, tmp_path, monkeypatch):
    model, file = saved[0], tmp_path / 'last.pth.tar'
    network = describe(model)
    network['model_args']['b'] = network['model_args'].pop('stem_width')
    torch.save({'state_dict': model.state_dict(), 'task_state': {'network': network}}, file)
    steps = (*[None] * checkpoint.FORMAT, renamed('b', 'stem_width'))
    monkeypatch.setattr(checkpoint, 'MIGRATIONS', steps)
    monkeypatch.setattr(checkpoint, 'FORMAT', len(steps))
    assert_same(restore(file), model)
    assert checkpoint_origin(file).graphs == graphs_of(model)
    monkeypatch.setattr(checkpoint, 'FORMAT', 0)
    with pytest.raises(
        ValueError, match=r'last\.pth\.tar has format \d, this version reads up to 0'
    ):
        restore(file)


# -- checkpoints ----------------------------------------------------------------------------------


def weights() -> dict[str, torch.Tensor]:
    return {'a': torch.randn(3, 4), 'b.c': torch.arange(5)}


def assert_equal(got: dict, expected: dict) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize('suffix', ['.pth', '.pth.tar', '.pt'])
@pytest.mark.parametrize('key', [None, 'state_dict', 'model'])
def test_weights_are_read_from_wherever_training_puts_them(tmp_path, suffix, key):
    path, expected = tmp_path / f'last{suffix}', weights()
    torch.save(expected if key is None else {key: expected, 'epoch': 3}, path)
    assert_equal(read_checkpoint(path), expected)
    assert_equal(read_checkpoint(str(path)), expected)


def test_averaged_weights_come_first(tmp_path):
    raw, averaged = weights(), weights()
    torch.save({'state_dict': raw, 'state_dict_ema': averaged, 'epoch': 3}, tmp_path / 'last.pth')
    assert_equal(read_checkpoint(tmp_path / 'last.pth'), averaged)
    torch.save({'state_dict': raw, 'state_dict_ema': None}, tmp_path / 'last.pth')
    assert_equal(read_checkpoint(tmp_path / 'last.pth'), raw)


def test_prefixes_of_parallel_and_compiled_models_are_dropped(tmp_path):
    expected = weights()
    for prefix in ('module.', '_orig_mod.'):
        torch.save({prefix + k: v for k, v in expected.items()}, tmp_path / 'last.pth')
        assert_equal(read_checkpoint(tmp_path / 'last.pth'), expected)


def test_safetensors_are_read(tmp_path):
    expected = weights()
    save_file(expected, tmp_path / 'model.safetensors')
    assert_equal(read_checkpoint(tmp_path / 'model.safetensors'), expected)


@pytest.mark.parametrize('name', ['none.pth', 'none.safetensors', ''])
def test_a_missing_checkpoint_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r'checkpoint .*does not exist') as caught:
        read_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def assert_unreadable(path: Path) -> None:
    with pytest.raises(ValueError, match='is truncated, damaged or not just weights') as caught:
        read_checkpoint(path)
    assert f'checkpoint {path}' in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def write_checkpoint(path: Path, kind: str) -> None:
    if kind == 'safetensors':
        save_file(weights(), path)
    else:
        torch.save(
            {'state_dict': weights(), 'epoch': 3},
            path,
            _use_new_zipfile_serialization=kind == 'zip',
        )


@pytest.mark.parametrize(
    'kind',
    [
        'zip',
        'legacy',
        'safetensors',
    ],
)
def test_a_checkpoint_cut_anywhere_is_refused(tmp_path, kind):
    path = tmp_path / ('last.safetensors' if kind == 'safetensors' else 'last.pth')
    write_checkpoint(path, kind)
    content = path.read_bytes()
    for cut in [*range(0, len(content) - 1, 37), len(content) - 1]:
        path.write_bytes(content[:cut])
        assert_unreadable(path)


@pytest.mark.parametrize(
    'content',
    [
        b'hello world',
        b'\x80\x02}q\x00',
        bytes(range(256)),
        b'PK',
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / 'last.pth').write_bytes(content)
    assert_unreadable(tmp_path / 'last.pth')


@pytest.mark.parametrize('content', [[1, 2], torch.ones(3), 'text', {'state_dict': 3}])
def test_a_checkpoint_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'last.pth')
    assert_unreadable(tmp_path / 'last.pth')


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('write', [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_code_in_a_checkpoint_is_never_executed(tmp_path, write):
    path, marker = tmp_path / 'last.pth', tmp_path / 'executed'
    write({'state_dict': weights(), 'extra': Hostile(marker)}, path)
    assert_unreadable(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Hostile(marker)))  # it would have been noticed
    assert marker.exists()


def test_the_package_offers_saving_and_loading():
    assert timm_topo.save is save
    assert timm_topo.load is load
