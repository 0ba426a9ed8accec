#!/usr/bin/env python
"""detectron2's train_net for yaml configs with a MODEL.TOPO backbone: train, evaluate, resume."""

import argparse
import sys
from pathlib import Path

import torch

try:
    from d2_topo import add_topo_config
except ImportError as missing:  # detectron2, which has the parser
    argparse.ArgumentParser(
        usage='%(prog)s --config-file YAML [options] [--coco NAME JSON IMAGES] [KEY VALUE ...]',
        description=__doc__,
        epilog=f"All options but --coco are detectron2's. {missing}",
    ).parse_known_args()
    sys.exit(f'error: {missing}')
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator, verify_results
from detectron2.utils import comm

from d2_topo.data import register_coco
from timm_topo.connectivity import exempt_from_weight_decay


class Trainer(DefaultTrainer):
    """detectron2's, with COCO's evaluator; edge weights are decayed if ``DECAY_EDGES`` says so."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None):
        folder = output_folder or Path(cfg.OUTPUT_DIR) / 'inference'
        return COCOEvaluator(dataset_name, output_dir=str(folder))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model):
        optimizer = super().build_optimizer(cfg, model)
        if not cfg.MODEL.TOPO.DECAY_EDGES:
            exempt_from_weight_decay(optimizer, model)
        return optimizer


def parse_args():
    parser = default_argument_parser()
    parser.add_argument(
        '--coco', nargs=3, action='append', default=[], metavar=('NAME', 'JSON', 'IMAGES'),
        help='register a data set in COCO format under NAME; may be given several times',
    )  # fmt: skip
    return parser.parse_args()


def setup(args) -> CfgNode:
    for name, annotations, images in args.coco:
        register_coco(name, annotations, images)
    if not Path(args.config_file).is_file():
        raise FileNotFoundError(f'--config-file {args.config_file or "is missing"}: no such file')
    cfg = get_cfg()
    add_topo_config(cfg)
    try:
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
    except AssertionError as error:  # yacs: an unknown key
        raise ValueError(error) from None
    cfg.freeze()
    if cfg.MODEL.DEVICE.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError('there is no CUDA device; on CPU: --num-gpus 0 ... MODEL.DEVICE cpu')
    if args.eval_only and not cfg.MODEL.WEIGHTS and not args.resume:
        raise ValueError('--eval-only needs MODEL.WEIGHTS, a checkpoint of the detector')
    default_setup(cfg, args)
    return cfg


def main(args):
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run() -> None:
    args = parse_args()
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
