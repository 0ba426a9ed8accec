"""What earlier versions saved loads and computes the same: see golden/saved/README.md."""

import argparse
import shutil
import tempfile
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import Tensor

import timm_topo
from timm_topo import checkpoint
from timm_topo.analysis.history import read_snapshot
from timm_topo.analysis.prune import edge_weights
from timm_topo.connectivity.router import RouterConnectivity
from timm_topo.training.restore import restore

SAVED = Path(__file__).parent / 'golden' / 'saved'
NETWORKS = sorted((SAVED / 'networks').iterdir())


def pictures(channels: int = 3, height: int = 40, width: int = 32) -> Tensor:
    """Two images by a formula: generators of random numbers may change."""
    values = torch.arange(2 * channels * height * width, dtype=torch.float64).square() / 1e4
    return values.sin().float().view(2, channels, height, width)


def assert_expected(got: dict[str, Tensor], folder: Path) -> None:
    """Up to rounding, which differs between CPUs."""
    expected = load_file(folder / 'expected.safetensors')
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(
            got[name],
            value,
            rtol=0,
            atol=1e-4 * scale,
            msg=lambda m: f'{name}: {m}',  # noqa: B023
        )


def by_timm(folder: Path) -> torch.nn.Module:
    return timm.create_model(f'local-dir:{folder}', pretrained=True)


def saved_again(folder: Path) -> torch.nn.Module:
    """In the format of today, where all options are explicit."""
    with tempfile.TemporaryDirectory() as scratch:
        return by_timm(timm_topo.save(timm_topo.load(folder), Path(scratch) / 'net'))


#: timm alone knows no migrations: it does not read what has options that are gone.
READ = [
    pytest.param(read, folder, id=f'{folder.name}-{read.__name__}')
    for folder in NETWORKS
    for read in (timm_topo.load, by_timm, saved_again)
    if read is not by_timm or '"centered"' not in (folder / 'config.json').read_text()
]


@pytest.mark.parametrize(('read', 'folder'), READ)
@torch.no_grad()
def test_a_saved_network_computes_what_it_did(folder, read):
    model = read(folder).eval()
    maps = model.forward_intermediates(pictures(), intermediates_only=True)
    features = {f'feature_{i}': F.adaptive_avg_pool2d(x, 2) for i, x in enumerate(maps)}
    assert_expected({'output': model(pictures()), **features}, folder)


def test_older_routers_train_with_a_soft_gate():
    """As they did when nothing told it."""
    for name in ('dgnet', 'routed', 'randwire_routed'):
        model = timm_topo.load(SAVED / 'networks' / name)
        rules = [module for module in model.modules() if isinstance(module, RouterConnectivity)]
        assert {rule.gate for rule in rules} == {'soft'}


@torch.no_grad()
def test_a_run_computes_what_it_did():
    """By the network it saved, and by its last checkpoint with the options beside it."""
    run = SAVED / 'run'
    last = restore(run / 'last.pth.tar')
    assert_expected({'last': last(pictures(1)), 'model': restore(run)(pictures(1))}, run)
    for name, weights in read_snapshot(run, 3).items():
        torch.testing.assert_close(edge_weights(last)[name], weights, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_run_that_rewires_computes_what_it_did():
    with pytest.warns(UserWarning, match='resnet18 re-wired is another function'):
        last = restore(SAVED / 'run_rewired' / 'last.pth.tar')
    assert_expected({'last': last(pictures(1))}, SAVED / 'run_rewired')


@torch.no_grad()
def test_a_checkpoint_of_timms_training_computes_what_it_did():
    output = restore(SAVED / 'timm_training' / 'last.pth.tar')(pictures())
    expected = load_file(SAVED / 'networks' / 'static' / 'expected.safetensors')['output']
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


#: By folder: an option, and where it stands among those of the training.
OPTIONS = {
    'run': ('model_kwargs', 'stem_width'),
    'run_rewired': ('rewire_kwargs', 'exact'),
    'timm_training': ('model_kwargs', 'stem_width'),
}


@pytest.mark.filterwarnings('ignore:.*re-wired is another function')
@pytest.mark.parametrize('name', OPTIONS)
@torch.no_grad()
def test_options_of_older_trainings_are_migrated(name, tmp_path, monkeypatch):
    """As if one had been a list, before formats had numbers."""
    place, option = OPTIONS[name]

    def older(options: dict) -> dict:
        return {**options, place: {**options[place], option: [options[place][option]]}}

    def step(network: dict) -> dict:
        args = dict(network['model_args'])
        if option in args:
            (args[option],) = args[option]
        return {**network, 'model_args': args}

    folder = shutil.copytree(SAVED / name, tmp_path / name)
    if name == 'timm_training':
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(folder / 'last.pth.tar', weights_only=True)
        stored['args'] = argparse.Namespace(**older(vars(stored['args'])))
        torch.save(stored, folder / 'last.pth.tar')
    else:
        options = yaml.safe_load((folder / 'args.yaml').read_text())
        (folder / 'args.yaml').write_text(yaml.safe_dump(older(options)))
    x = pictures(3 if name == 'timm_training' else 1)
    expected = restore(SAVED / name / 'last.pth.tar')(x)
    monkeypatch.setattr(checkpoint, 'MIGRATIONS', (step,))
    assert torch.equal(restore(folder / 'last.pth.tar')(x), expected)


@torch.no_grad()
def test_a_detector_computes_what_it_did():
    pytest.importorskip(
        'detectron2',
        reason='detectron2 is not installed: '
        'https://detectron2.readthedocs.io/tutorials/install.html',
    )
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from d2_topo import add_topo_config

    folder = SAVED / 'detector'
    cfg = get_cfg()
    add_topo_config(cfg)
    cfg.merge_from_file(str(folder / 'config.yaml'))
    detector = build_model(cfg).eval()
    DetectionCheckpointer(detector).load(str(folder / 'model_final.pth'))
    pixels = (pictures(3, 64, 64) + 1) * 127.5
    images = detector.preprocess_image([{'image': image} for image in pixels])
    got = detector.backbone(images.tensor)
    logits, deltas = detector.head([got[name] for name in detector.head_in_features])
    for kind, maps in (('logits', logits), ('deltas', deltas)):
        got |= {f'{kind}_{i}': x for i, x in enumerate(maps)}
    assert_expected(got, folder)
