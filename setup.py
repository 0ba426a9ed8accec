"""Package metadata. ``pip install .`` for the models, ``pip install '.[all]'`` for everything."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r"__version__ = '(.+)'", (HERE / 'timm_topo/version.py').read_text(encoding='utf-8')
).group(1)
EXTRAS = {
    'train': ['scikit-learn', 'tensorboard'],
    'analysis': ['fvcore', 'matplotlib', 'scikit-learn', 'scipy'],
    'export': ['onnx', 'onnxruntime', 'onnxscript'],
}
DOCS = ['mkdocs<2', 'mkdocs-material', 'mkdocstrings[python]']
EXTRAS['all'] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
EXTRAS['docs'] = DOCS
EXTRAS['test'] = [*EXTRAS['all'], *DOCS, 'hypothesis', 'pytest', 'pytest-xdist', 'ruff']
EXTRAS['detection'] = ['detectron2']  # not on PyPI: installed as its own install page says

setup(
    name='timm-topo',
    version=VERSION,
    description='CNNs whose connectivity is learned instead of designed, as timm models',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    entry_points={'console_scripts': ['topo = timm_topo.cli:main']},
    packages=find_packages(include=['timm_topo*', 'd2_topo*']),
    package_data={'timm_topo.models': ['counts.json'], 'timm_topo.report': ['templates/*']},
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.6',
        'torchvision',
        'timm>=1.0.31',
        'networkx>=3.0',
        'safetensors',
        'jinja2',
        'jsonargparse>=4.40',
    ],
    extras_require=EXTRAS,
)
