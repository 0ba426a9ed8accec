"""detectron2's own training scripts, for yaml and for Python configs: train, evaluate, resume.

``python -m d2_topo.train_net`` runs ``tools/train_net.py`` or ``tools/lazyconfig_train_net.py`` of
the installed detectron2, found beside its package: ``python -m tools.train_net`` is whichever
``tools`` comes first, and many repositories have one.
"""

import argparse
import importlib.util
import logging
import re
import sys
from pathlib import Path
from types import ModuleType

import detectron2
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.engine import default_argument_parser, launch
from detectron2.modeling import build_backbone
from detectron2.utils import comm
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import timm_topo
from d2_topo import add_topo_config
from d2_topo.backbone import topo_backbone
from d2_topo.data import register_coco
from d2_topo.engine import Settings, extend
from timm_topo.checkpoint import read_checkpoint

#: What the parsers of yaml, LazyConfigs and overrides raise.
PARSERS = (HydraException, OmegaConfBaseException, YAMLError)


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = default_argument_parser()
    parser.add_argument(
        '--coco', nargs=3, action='append', default=[], metavar=('NAME', 'JSON', 'IMAGES'),
        help='register a data set in COCO format under NAME; may be given several times',
    )  # fmt: skip
    return parser.parse_args()


def is_lazy(path: Path) -> bool:
    """Whether a config is a LazyConfig, as Python or as a run saved it, instead of yacs's yaml.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        why = 'a folder' if path.is_dir() and path.name else 'no such file'
        raise FileNotFoundError(f'--config-file {path if path.name else "is missing"}: {why}')
    text = '' if path.suffix == '.py' else path.read_text(encoding='utf-8')
    return path.suffix == '.py' or bool(re.search('^dataloader:', text, re.MULTILINE))


def script(name: str) -> ModuleType:
    """One of detectron2's own scripts, from the installed detectron2.

    Raises:
        FileNotFoundError: It was installed without them.
    """
    path = Path(detectron2.__file__).parents[1] / 'tools' / f'{name}.py'
    if not path.is_file():
        raise FileNotFoundError(f'detectron2 was installed without its script {path}')
    spec = importlib.util.spec_from_file_location(f'detectron2_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def default_config() -> CfgNode:
    """detectron2's, with our keys."""
    cfg = get_cfg()
    add_topo_config(cfg)
    return cfg


def read(args: argparse.Namespace):
    """The config of a command: yacs's or omegaconf's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or lacks a key that is given.
    """
    lazy = is_lazy(Path(args.config_file))
    try:
        if lazy:
            return LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
        cfg = default_config()
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
        return cfg
    except (AssertionError, KeyError, SyntaxError, *PARSERS) as error:
        told = ' '.join(str(error.__cause__ or error).split())
        raise ValueError(f'--config-file {args.config_file}: {told}') from None


def check(args: argparse.Namespace) -> None:
    """Find what is wrong with a command before any process is started.

    Raises:
        FileNotFoundError: There is no config file, or a data set without its files.
        ValueError: It cannot be read or be run.
    """
    for data in args.coco:
        register_coco(*data)
    cfg, several = read(args), False
    lazy = not isinstance(cfg, CfgNode)
    if lazy:
        device, weights = cfg.train.device, cfg.train.init_checkpoint
        several = cfg.train.ddp.get('device_ids', '') is None
    else:
        device, weights = cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS
    on_cpu, start = (
        ('train.device=cpu', 'train.init_checkpoint')
        if lazy
        else ('MODEL.DEVICE cpu', 'MODEL.WEIGHTS')
    )
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'there is no CUDA device; on CPU: --num-gpus 0 ... {on_cpu}')
    if device == 'cpu' and args.num_gpus * args.num_machines > 1 and not several:
        raise ValueError(
            f'--num-gpus {args.num_gpus} with {on_cpu}: on CPU --num-gpus 0, or a LazyConfig with '
            'train.ddp.device_ids=null'
        )
    if args.eval_only and not weights and (lazy or not args.resume):
        raise ValueError(f'--eval-only needs {start}, a checkpoint of the detector')
    Settings.of(cfg)


def main(args: argparse.Namespace):
    """One process of a training or evaluation; its results."""
    for data in args.coco:
        register_coco(*data)
    cfg = read(args)
    part = script('train_net' if isinstance(cfg, CfgNode) else 'lazyconfig_train_net')
    part.get_cfg = default_config
    settings = Settings.of(cfg)
    extend(part, settings)
    results = part.main(args)
    if not args.eval_only and comm.is_main_process():
        save_network(cfg, settings)
    return results


def save_network(cfg, settings: Settings) -> None:
    """Write the backbone of a finished run as a saved network, ``model``, for ``topo``."""
    folder, file = Path(settings.folder), 'model_ema' if settings.ema_decay else 'model_final'
    lazy = not isinstance(cfg, CfgNode)
    backbone = instantiate(cfg.model.backbone) if lazy else build_backbone(cfg)
    weights = read_checkpoint(folder / f'{file}.pth').items()
    backbone.load_state_dict(
        {n.removeprefix('backbone.'): v for n, v in weights if n.startswith('backbone.')}
    )
    try:
        timm_topo.save(topo_backbone(backbone).whole(), folder / 'model')
    except (FileExistsError, ValueError) as error:
        logging.getLogger('detectron2.d2_topo').info(f'{folder}/model is not written: {error}')


def run() -> None:
    """Train or evaluate a detector on the processes asked for."""
    args = parse_args()
    check(args)
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == '__main__':
    try:
        run()
    except KeyboardInterrupt:
        sys.exit('\ninterrupted; --resume goes on from the last checkpoint')
    except (AssertionError, ImportError, LookupError, OSError, RuntimeError) as error:
        sys.exit(f'error: {error}')  # of what goes wrong in training detectron2 logs the traceback
    except (TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
