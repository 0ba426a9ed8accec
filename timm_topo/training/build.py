"""The parts of a run: data, model, task, optimizer and loaders, each from timm."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
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
from ..connectivity import decay_edge_weights, exempt_from_weight_decay, scale_edge_rate
from ..data import Portion, class_names, load_dataset, summary
from ..generators import with_seed
from ..images import image_mode
from ..models import rewire
from ..task import TopoDistillationTask, TopoTask
from .log import RunLog, stages_of
from .options import TrainingOptions
from .weights import load_weights, pretrained_weights

__all__ = [
    'NO_WEIGHTS', 'Run', 'build', 'build_model', 'build_optimizer', 'default_name',
    'split_rewire_kwargs',
]  # fmt: skip

#: Options of a training that starts from no weights, or from those of a saved network.
NO_WEIGHTS = dict(initial_checkpoint='', pretrained=False, pretrained_path='')

_OF_REWIRE = ('wiring', 'projection', 'exact', 'sparsity', 'sparsity_weight', 'projected_entry')


@dataclass
class Run:
    """Everything a run is made of."""

    args: TrainingOptions
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
    told: list[str] = field(default_factory=list)  # what there is to say at the start

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


def default_name(args: TrainingOptions) -> str:
    """Name of the experiment where none is given."""
    model = Path(args.from_saved).name if args.from_saved else args.model
    if args.rewire is not None:
        model += '-rewired'
    if args.snapshot is not None:
        model += f'-epoch_{snapshot_name(args.snapshot)}'
    return f'{model}-{(args.dataset or Path(args.data_dir or "folder").name).replace("/", "_")}'


def build(args: TrainingOptions, device: torch.device):
    """Data, model, task and optimizer, not yet wrapped for several processes."""
    options = dict(download=args.dataset_download, seed=args.seed, batch_size=args.batch_size)
    mode = image_mode(_image_channels(args))
    if args.aa and mode != 'RGB':
        raise ValueError(f'--aa {args.aa} is for images with 3 channels, these are {mode}')
    if args.dataset == '' and Path(args.data_dir or '').is_file():
        raise ValueError(f'{args.data_dir} is one file, which both splits would read: unpack it')
    trained, evaluated = (
        load_dataset(args.dataset, args.data_dir, split, mode, is_training=training, **options)
        for split, training in ((args.train_split, True), (args.val_split, False))
    )
    classes = _check_classes(args, trained, evaluated)
    if args.train_images:
        trained = Portion(trained, args.train_images)
    told = [
        f'{split}: {summary(dataset)}'
        for split, dataset in ((args.train_split, trained), (args.val_split, evaluated))
    ]
    model = build_model(args, classes, told)
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
    loss = dict(soft_targets=True) if mixed else dict(smoothing=args.smoothing)
    task = _task(args, model, data_config, criterion_kwargs=loss, device=device, verbose=False)
    optimizer = build_optimizer(args, model)
    amp_dtype = getattr(torch, args.amp_dtype)
    if args.amp and amp_dtype == torch.float16 and device.type == 'cpu':
        raise ValueError('float16 underflows without a scaler; on CPU use --amp-dtype bfloat16')
    run = Run(
        args=args,
        device=device,
        task=task,
        optimizer=optimizer,
        loader_train=_train_loader(args, trained, data_config, device, model),
        loader_eval=_eval_loader(args, evaluated, data_config, device),
        autocast=partial(torch.autocast, device.type, amp_dtype) if args.amp else nullcontext,
        scaler=NativeScaler(device.type)
        if args.amp and amp_dtype == torch.float16 and device.type == 'cuda'
        else None,
        log=RunLog(None),
        told=told,
    )
    return run, data_config, classes


def _task(args: TrainingOptions, model: nn.Module, data_config: dict, **options):
    """timm's task with the sparsity term, by distillation where a teacher is given."""
    weights = dict(
        distill_loss_weight=args.distill_loss_weight, task_loss_weight=args.task_loss_weight
    )
    if args.kd_model_name is None:
        if given := [name for name, value in weights.items() if value is not None]:
            raise ValueError(f'--{given[0].replace("_", "-")} needs --kd-model-name')
        return TopoTask(model, **options)
    teacher = _teacher(args.kd_model_name, model)
    cfg = model.pretrained_cfg
    try:  # timm converts between the preprocessing of both
        model.pretrained_cfg = {**cfg, **{name: data_config[name] for name in ('mean', 'std')}}
        return TopoDistillationTask(
            model, teacher, temperature=args.kd_temperature, **weights, **options
        )
    finally:
        model.pretrained_cfg = cfg


def _teacher(name: str, model: nn.Module) -> nn.Module:
    """The network to learn from.

    Raises:
        ValueError: There is none of that name, or it has other classes or image channels.
    """
    folder = Path(name)
    if folder.is_dir():
        teacher = load(folder if (folder / 'config.json').exists() else folder / 'model')
    elif timm.is_model(name.split('.')[0]):
        teacher = timm.create_model(name, pretrained=True)
    else:
        raise ValueError(f'--kd-model-name {name} is no folder of a network, and no name of timm')
    for what in ('num_classes', 'in_chans'):
        has, needs = (getattr(one, what, None) for one in (teacher, model))
        if None not in (has, needs) and has != needs:
            raise ValueError(f'--kd-model-name {name} has {what}={has}, this network {needs}')
    return teacher.requires_grad_(False)


def build_optimizer(args: TrainingOptions, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer; edge weights are decayed where ``args`` say so alone, and have a rate of
    their own there.
    """
    options = {**optimizer_kwargs(cfg=args), **args.opt_kwargs}
    optimizer = create_optimizer_v2(model, **options)
    if args.decay_edges:
        biases = not options.get('filter_bias_and_bn', True)
        decay_edge_weights(optimizer, model, options['weight_decay'], biases)
    else:
        exempt_from_weight_decay(optimizer, model)
    if args.edge_lr_scale != 1:
        scale_edge_rate(optimizer, model, args.edge_lr_scale)
    return optimizer


def _asked_channels(args: TrainingOptions) -> int | None:
    """Channels of the images, where an option tells."""
    told = {
        '--input-size': args.input_size and args.input_size[0],
        '--in-chans': args.in_chans,
        '--model-kwargs in_chans': dict(args.model_kwargs).get('in_chans'),
    }
    told = {name: channels for name, channels in told.items() if channels is not None}
    if len(set(told.values())) > 1:
        raise ValueError(f'options disagree about the channels of the images: {told}')
    return next(iter(told.values()), None)


def _image_channels(args: TrainingOptions) -> int:
    if (asked := _asked_channels(args)) is not None:
        return asked
    if args.from_saved:
        return saved_config(args.from_saved).get('pretrained_cfg', {}).get('input_size', [3])[0]
    return 3


def _check_classes(args: TrainingOptions, trained, evaluated) -> list[str] | None:
    train, validation = class_names(trained), class_names(evaluated)
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


def build_model(
    args: TrainingOptions, classes: list[str] | None, told: list[str] | None = None
) -> nn.Module:
    """The network that ``args`` describe, for these classes where they give no number.

    ``told`` receives what weights that were given are not used for.
    """
    told = [] if told is None else told
    num_classes = len(classes) if args.num_classes is None else args.num_classes
    channels = _asked_channels(args)
    given = {} if channels is None else {'in_chans': channels}
    starts = {f'--{name.replace("_", "-")}': getattr(args, name) for name in NO_WEIGHTS}
    starts = [name for name, value in starts.items() if value]
    if args.fit_parameters and not args.from_saved:
        raise ValueError('--fit-parameters needs --from-saved')
    if args.snapshot is not None and (not args.from_saved or args.from_saved_weights != 'frozen'):
        raise ValueError('--snapshot needs --from-saved RUN/model --from-saved-weights frozen')
    if args.from_saved and args.seed_wiring:
        raise ValueError(f'--seed-wiring: {args.from_saved} has its own wiring')
    if args.from_saved:
        if starts:
            raise ValueError(f'give --from-saved or {starts[0]}, not both')
        _check_structure(args)
        options = {'num_classes': num_classes, **args.model_kwargs, **given}
        if args.drop:  # else as it was saved
            options.setdefault('drop_rate', args.drop)
        if args.fit_parameters:
            return _fitted(args, options)
        model = _rewire(args, load(args.from_saved, **options))
        classes = saved_config(args.from_saved).get('pretrained_cfg', {}).get('num_classes')
        if args.from_saved_weights.startswith('finetune') and classes != num_classes:
            told.append(
                f'the classifier starts anew: {classes} classes in {args.from_saved}, '
                f'{num_classes} here'
            )
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
    if args.initial_checkpoint and len(starts) > 1:
        raise ValueError(f'give --initial-checkpoint or {starts[1]}, not both')
    options = {**args.model_kwargs, **given}
    if args.seed_wiring and args.rewire is None:
        options['wiring'] = _seeded(args, options)
    registered = args.pretrained and not args.pretrained_path
    try:
        model = timm.create_model(
            args.model, registered, num_classes=num_classes, drop_rate=args.drop, **options
        )
    except RuntimeError as error:
        if 'No pretrained weights' not in str(error):
            raise
        raise ValueError(f'timm has no weights of {args.model}: --pretrained-path FILE') from None
    if registered and model.pretrained_cfg['num_classes'] != num_classes:
        told.append(f'the classifier starts anew: {num_classes} classes')
    if args.initial_checkpoint:
        state = read_checkpoint(args.initial_checkpoint)
        told += load_weights(model, state, args.initial_checkpoint)
    if args.pretrained_path:
        state = pretrained_weights(model, args.model, args.pretrained_path, options)
        told += load_weights(model, state, args.pretrained_path, classifier=False)
    return _rewire(args, model)


def _seeded(args: TrainingOptions, options: dict):
    """The wiring of the network, or of re-wiring, drawn by ``--seed``."""
    if args.rewire is None:
        with torch.device('meta'):
            model = timm.create_model(args.model, **options)
        options = getattr(model, '_model_args', {})
    wiring = options.get('wiring')
    seeded = with_seed(wiring, args.seed)
    if seeded == with_seed(wiring, args.seed + 1):
        raise ValueError(f'--seed-wiring needs a random wiring, {args.model} has {wiring!r}')
    return seeded


def _set_snapshot(args: TrainingOptions, model: nn.Module) -> None:
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


def _check_structure(args: TrainingOptions) -> None:
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


def _fitted(args: TrainingOptions, options: dict) -> nn.Module:
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


def _rewire(args: TrainingOptions, model: nn.Module) -> nn.Module:
    if args.rewire is None:
        if args.rewire_kwargs:
            raise ValueError(f'--rewire-kwargs {args.rewire_kwargs} need --rewire')
        return model
    options, of_rule = split_rewire_kwargs(args.rewire_kwargs)
    if args.seed_wiring:
        options['wiring'] = _seeded(args, options)
    try:
        return rewire(model, {'name': args.rewire, **of_rule}, **options)
    except TypeError as error:
        if not of_rule:
            raise
        raise TypeError(
            f'--rewire-kwargs {sorted(of_rule)} are no options of rewire ({", ".join(_OF_REWIRE)}) '
            f'and not all of the rule {args.rewire!r}: {error}'
        ) from None


def _loader(args: TrainingOptions, dataset, data_config: dict, device: torch.device, **options):
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


def _train_loader(args: TrainingOptions, dataset, data_config: dict, device: torch.device, model):
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
    padded = args.crop_padding is not None and args.aug
    interpolation = args.train_interpolation if args.aug else ''
    loader = _loader(
        args,
        dataset,
        data_config,
        device,
        batch_size=args.batch_size,
        is_training=True,
        no_aug=not args.aug,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter or None,
        auto_augment=args.aa,
        interpolation=interpolation or data_config['interpolation'],
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


def _eval_loader(args: TrainingOptions, dataset, data_config: dict, device: torch.device):
    return _loader(
        args,
        dataset,
        data_config,
        device,
        batch_size=args.validation_batch_size or args.batch_size,
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
    )
