"""Imports point down one chain."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ('timm_topo', 'd2_topo')
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob('*.py'))
}

#: What each part of the core may import from the package. Parts that are not here (analysis,
#: training, ...) may import these and one another; nothing here may import them.
CHAIN = {
    'version': set(),
    'files': set(),
    'watched': set(),
    'registry': set(),
    'checks': set(),
    'wiring': {'files'},
    'generators': {'checks', 'registry', 'wiring'},
    'connectivity': {'checks', 'registry', 'wiring', 'watched'},
    'nodes': {'registry'},
    'stages': {'wiring', 'connectivity'},
    'executors': {'wiring', 'connectivity', 'nodes', 'registry', 'stages', 'watched'},
    'sparsity': {'checks', 'wiring', 'stages'},
    'models': {
        'wiring',
        'generators',
        'connectivity',
        'nodes',
        'stages',
        'sparsity',
        'registry',
        'checks',
    },
}


def imported_modules(source: str, path: str) -> set[str]:
    """Full names of all modules and members that a file imports, wherever in the file."""
    names = set()
    package = path.removesuffix('.py').split('/')[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = '.'.join([*base, *filter(None, [node.module])])
            names |= {f'{prefix}.{alias.name}' for alias in node.names}
    return names


def upward_imports(source: str, path: str) -> set[str]:
    """The parts of the package that the file imports although it should not."""
    part = path.split('/')[1].removesuffix('.py')
    if part not in CHAIN or not path.startswith('timm_topo/'):
        return set()
    names = [name.split('.') for name in imported_modules(source, path)]
    parts = {name[1] for name in names if name[0] == 'timm_topo' and len(name) > 1}
    return parts - CHAIN[part] - {part}


@pytest.mark.parametrize('path', FILES)
def test_imports_point_down_the_chain(path):
    assert upward_imports(FILES[path].read_text(), path) == set()


@pytest.mark.parametrize('path', [path for path in FILES if path.startswith('timm_topo/')])
def test_timm_topo_knows_nothing_of_detectron2(path):
    names = imported_modules(FILES[path].read_text(), path)
    assert not [name for name in names if name.split('.')[0] in ('detectron2', 'd2_topo')]


@pytest.mark.parametrize('path', FILES)
def test_only_public_names_of_timm_are_imported(path):
    names = imported_modules(FILES[path].read_text(), path)
    private = {n for n in names if n.startswith('timm.') and any(p[0] == '_' for p in n.split('.'))}
    assert private == set()


def test_the_chain_names_existing_parts():
    parts = {path.split('/')[1].removesuffix('.py') for path in FILES}
    assert CHAIN.keys() <= parts


@pytest.mark.parametrize(
    ('source', 'path', 'found'),
    [
        ('from ..models import TopoNet', 'timm_topo/stages/graph_stage.py', {'models'}),
        ('from ..analysis.prune import prune', 'timm_topo/models/toponet.py', {'analysis'}),
        ('from .. import checkpoint', 'timm_topo/nodes/sepconv.py', {'checkpoint'}),
        ('import timm_topo.training', 'timm_topo/sparsity.py', {'training'}),
        ('from timm_topo.stages import x', 'timm_topo/wiring.py', {'stages'}),
        ('from ..executors import use', 'timm_topo/stages/stage.py', {'executors'}),
        ('def f():\n    from .generators import x', 'timm_topo/wiring.py', {'generators'}),
        ('from .base import x', 'timm_topo/connectivity/fixed.py', set()),
        ('from .models import x', 'timm_topo/task.py', set()),
    ],
)
def test_an_upward_import_would_be_seen(source, path, found):
    assert upward_imports(source, path) == found
