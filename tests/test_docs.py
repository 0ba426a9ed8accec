"""README and documentation: code runs, commands parse, links lead somewhere; all is documented."""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
import shlex
import sys
from pathlib import Path

import pytest
import timm
import torch

import timm_topo
from timm_topo.analysis.rankings import RANKINGS
from timm_topo.cli import COMMANDS
from timm_topo.connectivity.base import RULES
from timm_topo.generators import WIRINGS
from timm_topo.training import loop
from timm_topo.training.options import parse_args

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8')
    for path in [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
}
RESULTS = {page for page in PAGES if page.startswith('docs/results')}  # logs of what was done
TAUGHT = [page for page in PAGES if '```' in PAGES[page] and page not in RESULTS]
#: Networks of the text that take long, and some of the same kind that do not.
SMALL = {
    'convnext_tiny': 'test_convnext',
    'resnet18': 'resnet_cifar20',
    'resnet50': 'resnet_cifar20',
}
#: First words of a command that is not ours: timm's script.
THEIRS = 'python train.py'


def blocks(text: str, language: str) -> list[str]:
    """What stands between fences of a language; not in lists, where it records a measurement."""
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def commands(text: str) -> list[str]:
    """The lines of a page that go to a shell, without comments."""
    lines = '\n'.join(blocks(text, 'bash')).replace('\\\n', ' ').splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


# -- Python ---------------------------------------------------------------------------------------


def small(code: str) -> str:
    """Code with small networks and random weights in place of large, pretrained ones."""
    names = '|'.join(SMALL)
    return re.sub(rf"'({names})'(, pretrained=True)?", lambda found: repr(SMALL[found[1]]), code)


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Short trainings in an empty folder; what is registered is forgotten."""
    train = loop.train

    def short(options):
        return train(
            dataclasses.replace(options, epochs=1, train_images=32, batch_size=32, workers=0)
        )

    monkeypatch.setattr(loop, 'train', short)
    monkeypatch.chdir(tmp_path)
    registries = [(registry, dict(registry)) for registry in (RULES, WIRINGS, RANKINGS)]
    yield
    for registry, before in registries:
        registry.clear()
        registry.update(before)


@pytest.mark.filterwarnings('ignore:.*(another function|differ):UserWarning')
@pytest.mark.parametrize('page', [page for page in TAUGHT if blocks(PAGES[page], 'python')])
def test_python_of_a_page_runs(page, stand_ins):
    names = {
        '__name__': 'page',
        'images': torch.randn(4, 3, 32, 32),
        'labels': torch.randint(10, (4,)),
    }
    if page == 'docs/detection.md':
        pytest.importorskip('detectron2')
        model = timm.create_model('toponet_adaptive', widths=(8, 8, 8, 8))
        timm_topo.save(model, 'pruned')
        names |= {'timm_topo': timm_topo, 'model': timm.create_model('test_convnext')}
    for block in blocks(PAGES[page], 'python'):
        if 'TracingAdapter' in block:  # minutes: see test_d2_export.py
            continue
        exec(compile(small(block), page, 'exec'), names)


# -- commands -------------------------------------------------------------------------------------


def check_training(words: list[str]) -> None:
    config = 'configs/classification/toponet_tiny_digits.yaml'
    parse_args([config if word == 'CONFIG' else word for word in words])


def check_make(words: list[str]) -> None:
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    for word in words:
        assert '=' in word or re.search(rf'^{word}:', makefile, re.M), word


def check_pip(words: list[str]) -> None:
    assert words[0] == 'install'
    extras = re.findall(r"^    '(\w+)': \[|^EXTRAS\['(\w+)'\]", SETUP, re.M)
    known = {name for pair in extras for name in pair if name}
    for word in words[1:]:
        package, _, extra = word.rstrip(']').partition('[')
        assert package == '.'
        assert set(extra.split(',')) <= known | {''}


def check_benchmark(words: list[str], monkeypatch) -> None:
    path = ROOT / 'tools/benchmark.py'
    spec = importlib.util.spec_from_file_location('benchmark', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [str(path), *words])
    module.parse_args()


def check_config(words: list[str]) -> None:
    """A detector's training: detectron2 reads the rest."""
    config = words[words.index('--config-file') + 1]
    assert (ROOT / config).is_file() or config == 'output/det/config.yaml'


SETUP = (ROOT / 'setup.py').read_text(encoding='utf-8')
OURS = {
    'tools/train.py': check_training,
    'make': check_make,
    'pip': check_pip,
    'd2_topo.train_net': check_config,
}


@pytest.mark.parametrize('page', [page for page in TAUGHT if commands(PAGES[page])])
def test_commands_of_a_page_are_ones_that_work(page, check_example, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in commands(PAGES[page]):
        words = shlex.split(line)
        if words[:2] == ['topo', 'train']:
            check_training(words[2:])
        elif words[0] == 'topo':
            check_example(line)
        elif 'tools/benchmark.py' in words[:2]:
            check_benchmark(words[2:], monkeypatch)
        elif not line.startswith(THEIRS):
            start = next((i for i, word in enumerate(words) if word in OURS), None)
            assert start is not None, f'unknown command: {line}'
            OURS[words[start]](words[start + 1 :])


def test_all_commands_are_taught():
    lines = [shlex.split(line) for page in TAUGHT for line in commands(PAGES[page])]
    assert {words[1] for words in lines if words[0] == 'topo'} == set(COMMANDS)


@pytest.mark.parametrize('page', TAUGHT)
def test_words_that_readers_fill_in_are_explained(page):
    explained = set(re.findall(r'`([A-Z0-9]+)`', PAGES['docs/index.md'] + PAGES[page]))
    for line in commands(PAGES[page]):
        assert not re.search(r'(?<![\w.])/(?:data|home|mnt)\b', line), line
        for word in shlex.split(line):
            used = set(re.findall(r'(?<![A-Z_.\d])[A-Z][A-Z0-9]{2,}(?![A-Z_.])', word))
            assert used <= explained | {'DETECTRON2'}, line


def test_ci_runs_the_command_of_the_readme():
    assert (ROOT / '.ci/run').read_text().splitlines()[-1] in commands(PAGES['README.md'])


# -- links and names ------------------------------------------------------------------------------


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_to_files(page):
    for link in re.findall(r'\]\(([^)#\s]+)', PAGES[page]):
        if not link.startswith('https://'):
            assert ((ROOT / page).parent / link).exists(), link


def test_the_site_shows_every_page():
    text = (ROOT / 'docs/site/mkdocs.yml').read_text(encoding='utf-8')
    shown = set(re.findall(r'[\w/]+\.md', text))
    assert shown == {page.removeprefix('docs/') for page in PAGES if page != 'README.md'}


def test_the_readme_is_read_in_two_minutes():
    assert len(PAGES['README.md'].splitlines()) <= 120


def public(module) -> dict:
    """A module, its public functions and classes, and what these define, by name."""
    found = {module.__name__: module}
    for name, thing in vars(module).items():
        kind = inspect.isclass(thing) or inspect.isfunction(thing)
        if not kind or name.startswith('_') or thing.__module__ != module.__name__:
            continue
        found[f'{module.__name__}.{name}'] = thing
        for method, what in vars(thing).items() if inspect.isclass(thing) else ():
            function = inspect.isfunction(getattr(what, '__func__', what))
            if not method.startswith('_') and (function or isinstance(what, property)):
                found[f'{module.__name__}.{name}.{method}'] = getattr(thing, method)
    return found


def test_all_that_is_public_is_documented():
    """By itself or, a method, by the contract that it fulfils."""
    names = [one.name for one in pkgutil.walk_packages(timm_topo.__path__, 'timm_topo.')]
    modules = [importlib.import_module(name) for name in names if not name.endswith('__main__')]
    things = {name: thing for module in modules for name, thing in public(module).items()}
    assert len(things) > 2 * len(modules)
    assert [name for name, thing in things.items() if not inspect.getdoc(thing)] == []
