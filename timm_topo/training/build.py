"""What a run is made of: data, model, task, optimizer and loaders, each from timm."""

import math
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from timm.data import FastCollateMixup, create_loader, resolve_input_data_config
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.utils import CheckpointSaver, NativeScaler, unwrap_model
from torch import nn
from torchvision.transforms import Compose, RandomCrop, Resize

from ..analysis.fit import fit_channels
from ..analysis.history import read_snapshot, snapshot_name
from ..analysis.process import set_edge_weights
from ..analysis.prune import freeze_edge_weights, retrainable
from ..checkpoint import load, read_checkpoint, saved_config
from ..connectivity import exempt_from_weight_decay
from ..data import Portion, class_names, load_dataset
from ..models import rewire
from ..task import TopoTask
from .log import RunLog, stages_of

__all__ = ['Run', 'build', 'build_model', 'default_name', 'split_rewire_kwargs']

_OF_REWIRE = ('wiring', 'projection', 'exact', 'sparsity', 'sparsity_weight', 'projected_entry')


@dataclass
class Run:
    """Everything a run is made of."""

    args: Namespace
    device: torch.device
    task: TopoTask
    optimizer: torch.optim.Optimizer
    loader_train: object
    loader_eval: object
    autocast: Callable
    scaler: NativeScaler | None
    log: RunLog
    saver: CheckpointSaver | None = None
    scheduler: object = None

    @property
    def model(self) -> nn.Module:
        """The bare model inside DDP and torch.compile."""
        return unwrap_model(self.task.get_trainable_module())

    @property
    def evaluated(self) -> nn.Module:
        """The bare model whose accuracy counts: the average of the weights, where it is kept."""
        return unwrap_model(self.task.get_eval_model(ema=self.task.has_ema()))

    @property
    def updates_per_epoch(self) -> int:
        """Steps of the optimizer."""
        return math.ceil(len(self.loader_train) / self.args.grad_accum_steps)


def default_name(args: Namespace) -> str:
    """Name of the experiment where none is given."""
    model = Path(args.from_saved).name if args.from_saved else args.model
    if args.rewire is not None:
        model += '-rewired'
    if args.snapshot is not None:
        model += f'-epoch_{snapshot_name(args.snapshot)}'
    return f'{model}-{(args.dataset or Path(args.data_dir or "folder").name).replace("/", "_")}'


def build(args: Namespace, device: torch.device):
    """Data, model, task and optimizer, not yet wrapped for several processes."""
    options = dict(download=args.dataset_download, seed=args.seed, batch_size=args.batch_size)
    mode = 'L' if _image_channels(args) == 1 else 'RGB'
    data = {
        split: load_dataset(
            args.dataset,
            args.data_dir,
            split,
            mode,
            is_training=split == args.train_split,
            **options,
        )
        for split in (args.train_split, args.val_split)
    }
    classes = _check_classes(args, data)
    trained = data[args.train_split]
    if args.train_images:
        trained = Portion(trained, args.train_images)
    model = build_model(args, classes)
    data_config = resolve_input_data_config(model, vars(args))
    model.to(device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    if args.sync_bn and args.distributed:
        args.dist_bn = ''
        model = convert_sync_batchnorm(model)
    mixed = args.mixup > 0 or args.cutmix > 0
    if mixed and args.batch_size % 2:
        raise ValueError(f'mixup and cutmix need an even --batch-size, got {args.batch_size}')
    task = TopoTask(
        model,
        criterion_kwargs=dict(soft_targets=True) if mixed else dict(smoothing=args.smoothing),
        device=device,
        verbose=False,
    )
    optimizer = create_optimizer_v2(model, **{**optimizer_kwargs(cfg=args), **args.opt_kwargs})
    exempt_from_weight_decay(optimizer, model)
    amp_dtype = getattr(torch, args.amp_dtype)
    if args.amp and amp_dtype == torch.float16 and device.type == 'cpu':
        raise ValueError('float16 underflows without a scaler; on CPU use --amp-dtype bfloat16')
    run = Run(
        args=args,
        device=device,
        task=task,
        optimizer=optimizer,
        loader_train=_train_loader(args, trained, data_config, device, model),
        loader_eval=_eval_loader(args, data[args.val_split], data_config, device),
        autocast=partial(torch.autocast, device.type, amp_dtype) if args.amp else nullcontext,
        scaler=NativeScaler(device.type)
        if args.amp and amp_dtype == torch.float16 and device.type == 'cuda'
        else None,
        log=RunLog(None),
    )
    return run, data_config, classes


def _image_channels(args: Namespace) -> int:
    if args.input_size:
        return args.input_size[0]
    if args.from_saved:
        return saved_config(args.from_saved).get('pretrained_cfg', {}).get('input_size', [3])[0]
    return args.model_kwargs.get('in_chans', 3)


def _check_classes(args: Namespace, data: dict) -> list[str] | None:
    train, validation = (class_names(data[split]) for split in (args.train_split, args.val_split))
    if train is None:
        if args.num_classes is None:
            raise ValueError(f'data set {args.dataset!r} does not tell its classes: --num-classes')
        return None
    if validation is not None and train != validation:
        odd = sorted(set(train) ^ set(validation))[:5]
        raise ValueError(
            f'training data has {len(train)} classes, validation data {len(validation)}; '
            f'not in both: {", ".join(odd)}'
        )
    if args.num_classes is not None and args.num_classes != len(train):
        raise ValueError(
            f'--num-classes {args.num_classes}, but the data has {len(train)} classes '
            f'({", ".join(train[:5])}...)'
        )
    return train


def build_model(args: Namespace, classes: list[str] | None) -> nn.Module:
    """The network that ``args`` describe, for these classes where they give no number."""
    num_classes = len(classes) if args.num_classes is None else args.num_classes
    if args.fit_parameters and not args.from_saved:
        raise ValueError('--fit-parameters needs --from-saved')
    if args.snapshot is not None and (not args.from_saved or args.from_saved_weights != 'frozen'):
        raise ValueError('--snapshot needs --from-saved RUN/model --from-saved-weights frozen')
    if args.from_saved:
        if args.initial_checkpoint:
            raise ValueError('give --from-saved or --initial-checkpoint, not both')
        _check_structure(args)
        options = dict(num_classes=num_classes, **args.model_kwargs)
        if args.drop:  # else as it was saved
            options['drop_rate'] = args.drop
        if args.fit_parameters:
            return _fitted(args, options)
        model = _rewire(args, load(args.from_saved, **options))
        if args.from_saved_weights == 'finetune':
            return model
        finetuned = args.from_saved_weights == 'finetune-frozen'
        routed = any(stage.needs_context for stage in stages_of(model).values())
        if routed and (finetuned or args.from_saved_weights == 'frozen'):
            raise ValueError(
                f'edge weights of {args.from_saved} depend on the image and cannot be frozen: '
                f'--from-saved-weights {"finetune" if finetuned else "keep"}'
            )
        if finetuned:
            return freeze_edge_weights(model)
        if args.snapshot is not None:
            _set_snapshot(args, model)
        return retrainable(model, args.from_saved_weights)
    if ':' not in args.model and not timm.is_model(args.model):
        raise ValueError(f'unknown model {args.model!r}: see timm.list_models()')
    if args.initial_checkpoint:
        read_checkpoint(args.initial_checkpoint)  # for its errors
    options = dict(args.model_kwargs)
    if args.input_size:
        options['in_chans'] = args.input_size[0]
    try:
        model = timm.create_model(
            args.model,
            num_classes=num_classes,
            drop_rate=args.drop,
            checkpoint_path=args.initial_checkpoint,
            **options,
        )
    except RuntimeError as error:
        if 'state_dict' not in str(error):
            raise
        reason = ' '.join(str(error).split())[:200]
        raise ValueError(f'{args.initial_checkpoint} is of another model: {reason}') from None
    return _rewire(args, model)


def _set_snapshot(args: Namespace, model: nn.Module) -> None:
    """Give the saved network the edge weights that its run had earlier."""
    run = Path(args.from_saved).resolve().parent
    weights = read_snapshot(run, args.snapshot)
    try:
        set_edge_weights(model, weights)
    except ValueError as error:
        raise ValueError(
            f'the edge weights that {run} had after {args.snapshot:.10g} epochs do not fit '
            f'{args.from_saved}: {error}'
        ) from None


def _check_structure(args: Namespace) -> None:
    """A saved network has its own graphs and sizes: others would not fit, or would replace them."""
    saved = saved_config(args.from_saved).get('model_args') or {}
    for name in {'wiring', 'node_ids'} & set(args.model_kwargs) & set(saved):
        raise ValueError(
            f'{args.from_saved} has its own {name}, --model-kwargs or the config give another: '
            'give --model-kwargs without it'
        )
    for name in ('num_nodes', 'num_stages', 'channels', 'widths', 'strides'):
        asked, has = args.model_kwargs.get(name), saved.get(name)
        alike = [list(v) if isinstance(v, (list, tuple)) else v for v in (asked, has)]
        if None not in (asked, has) and alike[0] != alike[1]:
            raise ValueError(
                f'{args.from_saved} has {name}={has}, --model-kwargs or the config say {asked}: '
                'give --model-kwargs without it'
            )


def _fitted(args: Namespace, options: dict) -> nn.Module:
    """The saved wiring with fresh weights, as wide as ``--fit-parameters`` says."""
    if args.from_saved_weights != 'reset' or args.rewire is not None:
        raise ValueError('--fit-parameters trains from scratch: --from-saved-weights reset alone')
    saved = saved_config(args.from_saved).get('model_args') or {}
    if 'channels' not in saved:
        raise ValueError(
            f'--fit-parameters chooses the option channels, which {args.from_saved} does not have'
        )
    options.pop('channels', None)  # a config may tell the network's own

    def build(channels: int) -> nn.Module:
        return load(args.from_saved, pretrained=False, channels=channels, **options)

    return build(fit_channels(build, args.fit_parameters))


def split_rewire_kwargs(kwargs: Mapping) -> tuple[dict, dict]:
    """``--rewire-kwargs``: options of :func:`timm_topo.rewire`, and options of the rule."""
    options = {key: kwargs[key] for key in _OF_REWIRE if key in kwargs}
    return options, {key: value for key, value in kwargs.items() if key not in _OF_REWIRE}


def _rewire(args: Namespace, model: nn.Module) -> nn.Module:
    if args.rewire is None:
        if args.rewire_kwargs:
            raise ValueError(f'--rewire-kwargs {args.rewire_kwargs} need --rewire')
        return model
    options, of_rule = split_rewire_kwargs(args.rewire_kwargs)
    try:
        return rewire(model, {'name': args.rewire, **of_rule}, **options)
    except TypeError as error:
        if not of_rule:
            raise
        raise TypeError(
            f'--rewire-kwargs {sorted(of_rule)} are no options of rewire ({", ".join(_OF_REWIRE)}) '
            f'and not all of the rule {args.rewire!r}: {error}'
        ) from None


def _loader(args: Namespace, dataset, data_config: dict, device: torch.device, **options):
    return create_loader(
        dataset,
        input_size=data_config['input_size'],
        mean=data_config['mean'],
        std=data_config['std'],
        num_workers=args.workers,
        distributed=args.distributed,
        pin_memory=device.type == 'cuda',
        device=device,
        persistent_workers=False,
        **options,
    )


def _train_loader(args: Namespace, dataset, data_config: dict, device: torch.device, model):
    collate = None
    if args.mixup > 0 or args.cutmix > 0:
        collate = FastCollateMixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            label_smoothing=args.smoothing,
            num_classes=model.num_classes,
        )
    padded = args.crop_padding is not None and not args.no_aug
    loader = _loader(
        args,
        dataset,
        data_config,
        device,
        batch_size=args.batch_size,
        is_training=True,
        no_aug=args.no_aug,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter or None,
        auto_augment=args.aa,
        interpolation=data_config['interpolation'] if args.no_aug else args.train_interpolation,
        re_prob=args.reprob,
        re_mode='pixel',
        collate_fn=collate,
    )
    if padded:
        size = data_config['input_size'][-2:]
        _, *rest = loader.dataset.transform.transforms  # all but the random resized crop
        crop = [Resize(size), RandomCrop(size, padding=args.crop_padding)]
        loader.dataset.transform = Compose([*crop, *rest])
    if len(loader) == 0:
        raise ValueError(
            f'{len(dataset)} training images make no batch of {args.batch_size} '
            f'in {args.world_size} process(es)'
        )
    return loader


def _eval_loader(args: Namespace, dataset, data_config: dict, device: torch.device):
    return _loader(
        args,
        dataset,
        data_config,
        device,
        batch_size=args.validation_batch_size or args.batch_size,
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
    )
