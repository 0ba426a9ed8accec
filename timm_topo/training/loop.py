"""The training run: resume, epochs, evaluation, checkpoints, out of timm's own parts.

A resumed run continues bit for bit on CPU: every epoch seeds the generators anew and loader
workers do not outlive an epoch.
"""

import copy
import dataclasses
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import (
    CheckpointSaver,
    dispatch_clip_grad,
    distribute_bn,
    init_distributed_device,
    is_primary,
    random_seed,
    reduce_tensor,
)
from torch import nn

from ..analysis.history import snapshot_updates
from ..analysis.memory import most_memory
from ..analysis.routing import routing, routing_metrics
from ..checkpoint import FORMAT, FORMAT_KEY, read_checkpoint, save
from ..checks import one_line
from ..data import image_files, unreadable
from ..files import locked, write_text
from ..stages import use
from .build import Run, build, default_name
from .checkpoints import checkpoint_of, mend, save_checkpoint
from .evaluate import evaluate, sample
from .log import RunLog, stages_of
from .options import TrainingOptions

__all__ = ['train']

ROUTED_IMAGES = 1024  # per epoch, whose paths are logged


def train(args: TrainingOptions) -> dict:
    """Train, evaluate and save as ``args`` say (see :mod:`timm_topo.training.options`).

    The folder of the run receives ``args.yaml``, ``summary.csv``, TensorBoard events, timm
    checkpoints (``last``, ``model_best``), ``edge_weights/`` every ``snapshot_interval`` epochs
    and, at the end, ``model/``: the best (or the last) weights with their wiring, readable by
    :func:`timm_topo.load` and by timm alone.

    Returns:
        ``folder``, ``best_epoch`` and ``best_top1`` (percent), and ``model``, the folder of the
        saved network.

    Raises:
        FileExistsError: The experiment exists and ``resume`` is not set.
        FileNotFoundError: Data, checkpoint or saved network is missing.
        FloatingPointError: The loss is no longer finite.
        ValueError: Data and model do not fit, or a checkpoint is damaged.
    """
    given = dataclasses.asdict(args)
    args = copy.deepcopy(args)
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    args.experiment = args.experiment or default_name(args)
    folder = Path(args.output) / args.experiment
    _check_device(args.device)
    device = init_distributed_device(args)
    try:
        with locked(folder) if is_primary(args) else nullcontext():
            return _train(args, given, folder, device)
    finally:
        if args.distributed:
            torch.distributed.destroy_process_group()


def _train(args: TrainingOptions, given: dict, folder: Path, device: torch.device) -> dict:
    """A run in a folder that no other one is in."""
    resume = checkpoint_of(folder, args.resume)
    random_seed(args.seed)  # the same weights on every process, before EMA copies them
    run, data_config, classes = build(args, device)
    start_epoch = _resume(run, resume)
    _wrap(run)
    epochs = _schedule(run, start_epoch)
    own = bool(resume) and Path(resume).parent.resolve() == folder.resolve()
    if start_epoch >= epochs and not own:
        raise ValueError(f'{resume} has done {start_epoch} epochs, --epochs leaves none')
    if is_primary(args):
        write_text(folder / 'args.yaml', yaml.safe_dump({**given, FORMAT_KEY: FORMAT}))
        run.log = RunLog(folder, start_epoch, args.tensorboard)
        if start_epoch == 0:
            run.log.snapshot(0, run.model)
        _announce(run, start_epoch, epochs)
        run.saver = CheckpointSaver(
            run.model,
            run.optimizer,
            amp_scaler=run.scaler,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
            max_history=args.checkpoint_hist,
            task=run.task,
        )
        if own:
            mend(run.saver, Path(resume), args.save == 'best')
    try:
        for epoch in range(start_epoch, epochs):
            _epoch(run, epoch, epochs)
    finally:
        run.log.close()
    return _finish(run, folder, data_config, classes)


# -- preparing --------------------------------------------------------------------------------


def _resume(run: Run, checkpoint: str) -> int:
    """Restore model, optimizer, scaler and EMA; the epoch to start with."""
    args, epoch = run.args, 0
    if checkpoint:
        read_checkpoint(checkpoint)  # for its errors
        try:
            epoch = resume_task_checkpoint(
                run.task, checkpoint, run.optimizer, run.scaler, log_info=False
            )
        except RuntimeError as error:
            raise ValueError(f'{checkpoint} is of another model: {one_line(error)}') from None
    if args.model_ema:
        run.task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
        if checkpoint:
            load_task_ema_checkpoint(run.task, checkpoint)
    return epoch or 0


def _check_device(name: str) -> None:
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f'--device {name!r}: {one_line(error)}') from None
    if kind == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'--device {name}: this machine has no CUDA device')


def _wrap(run: Run) -> None:
    """torch.compile, then DDP."""
    if run.args.torchcompile:
        run.task.compile(backend=run.args.torchcompile)
        if run.task.has_ema():
            run.task.compile_ema(backend=run.args.torchcompile)
    if run.args.distributed:
        run.task.prepare_distributed(device_ids=[run.device])


def _schedule(run: Run, start_epoch: int) -> int:
    """Create the scheduler, at its place for ``start_epoch``; the number of epochs."""
    updates = run.updates_per_epoch
    run.scheduler, epochs = create_scheduler_v2(
        run.optimizer,
        **scheduler_kwargs(run.args, decreasing_metric=False),
        updates_per_epoch=updates,
    )
    scales = {'--layer-decay': run.args.layer_decay, '--edge-lr-scale': run.args.edge_lr_scale}
    scaling = [name for name, scale in scales.items() if scale not in (None, 1)]
    if run.scheduler is None and scaling:
        raise ValueError(f'{scaling[0]} scales what a scheduler sets: --sched constant, not none')
    if start_epoch > 0 and run.scheduler is not None:
        if run.args.sched_on_updates:
            run.scheduler.step_update(start_epoch * updates)
        else:
            run.scheduler.step(start_epoch)
    return epochs


def _announce(run: Run, start_epoch: int, epochs: int) -> None:
    args, task = run.args, run.task
    for line in run.told:
        run.log.say(line)
    parameters = sum(p.numel() for p in run.model.parameters())
    sparsity = f', sparsity {task.sparsity} x {task.sparsity_weight:g}'
    run.log.say(
        f'{args.from_saved or args.model}: {parameters:,} parameters'
        f'{sparsity if task.sparsity != "none" else ""}; '
        f'{args.world_size} x {args.batch_size} images x {args.grad_accum_steps} steps per update '
        f'on {args.device}; epochs {start_epoch + 1} to {epochs}'
    )


# -- running -------------------------------------------------------------------------------------


def _epoch(run: Run, epoch: int, epochs: int) -> None:
    args = run.args
    random_seed(args.seed + epoch * args.world_size, args.rank)
    for part in (run.loader_train.dataset, run.loader_train.sampler):
        if hasattr(part, 'set_epoch'):  # another order in every epoch
            part.set_epoch(epoch)
    if epoch >= round(args.learn_edges * epochs):
        _fix_edges(run)
    train_metrics = _train_epoch(run, epoch, epochs)
    rates = [group['lr'] for group in run.optimizer.param_groups]
    lr = sum(rates) / len(rates)
    _tell_unreadable(run, args.train_split, run.loader_train.dataset, 'replaced')
    if not math.isfinite(train_metrics['loss']):
        raise FloatingPointError(
            f'the loss is {train_metrics["loss"]} in epoch {epoch + 1}: try a smaller --lr, '
            '--warmup-epochs or --clip-grad'
        )
    if args.distributed and args.dist_bn:
        distribute_bn(run.task.get_trainable_module(), args.world_size, args.dist_bn == 'reduce')
    eval_metrics = _evaluate(run, run.task.get_eval_model())
    shown = f'top-1 {eval_metrics["top1"]:.2f}%'
    if run.task.has_ema():
        if args.distributed and args.dist_bn:
            distribute_bn(
                run.task.get_trainable_module(ema=True), args.world_size, args.dist_bn == 'reduce'
            )
        averaged = _evaluate(run, run.task.get_eval_model(ema=True))
        shown += f', averaged weights {averaged["top1"]:.2f}%'
        eval_metrics = {**averaged, 'raw_top1': eval_metrics['top1']}
    _tell_unreadable(run, args.val_split, run.loader_eval.dataset, 'not scored')
    if run.scheduler is not None:
        run.scheduler.step(epoch + 1, eval_metrics['top1'])
    if is_primary(args):
        model = run.evaluated
        routes = _routes(run, model)
        eval_metrics.update(routing_metrics(routes) if routes else {})
        updates = run.updates_per_epoch
        due = updates in snapshot_updates(epoch, updates, args.snapshot_interval)
        snapshot = due or epoch + 1 == epochs
        run.log.epoch(epoch, train_metrics, eval_metrics, lr, model, routes, snapshot)
        save_checkpoint(run.saver, epoch, eval_metrics['top1'])
        run.log.say(
            f'epoch {epoch + 1}/{epochs}: loss {train_metrics["task_loss"]:.4f}, '
            f'sparsity {train_metrics["sparsity"]:.2f}, {shown} '
            f'({train_metrics["seconds"]:.0f} s)'
        )


def _fix_edges(run: Run) -> None:
    """Edge weights stay as they are from now on, in the averaged network too."""
    rules = [stage.connectivity for stage in stages_of(run.model).values()]
    if not any(p.requires_grad for rule in rules for p in rule.parameters()):
        return
    run.log.say('edge weights are fixed from now on')
    for rule, averaged in zip(rules, stages_of(run.evaluated).values()):
        averaged.connectivity.load_state_dict(rule.state_dict())
        rule.requires_grad_(False)
    if run.args.distributed:  # which waits for the gradients that it was built with
        run.task.trainable_module = run.task.trainable_module.module
        run.task.prepare_distributed(device_ids=[run.device])


def _tell_unreadable(run: Run, split: str, dataset, what: str) -> None:
    """Say how many images of all processes cannot be read, once for each number."""
    files, _ = image_files(dataset)
    if files is None:
        return
    if run.args.distributed:
        flags = files.unreadable.to(run.device, torch.uint8)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        files.unreadable |= flags.bool().cpu()
    told = unreadable(dataset)
    if told and told not in run.told:
        run.told.append(told)
        run.log.say(f'{split}, {what}: {told}')


def _routes(run: Run, model: nn.Module) -> dict | None:
    """How some evaluation images go through the stages, where that depends on the image."""
    if not any(stage.needs_context for stage in stages_of(model).values()):
        return None
    with run.autocast():
        return routing(model, sample(run.loader_eval, ROUTED_IMAGES), ROUTED_IMAGES)


def _train_epoch(run: Run, epoch: int, epochs: int) -> dict:
    args, loader, steps = run.args, run.loader_train, run.args.grad_accum_steps
    start = time.perf_counter()
    run.task.get_trainable_module().train()  # averaged weights stay in evaluation
    run.optimizer.zero_grad()
    run.log.start_epoch(epoch, epochs, len(loader))
    sums, count = torch.zeros(3, dtype=torch.float64, device=run.device), 0
    first = updates = epoch * run.updates_per_epoch
    snapshots = snapshot_updates(epoch, run.updates_per_epoch, args.snapshot_interval)
    for batch, (images, target) in enumerate(loader):
        last = batch + 1 == len(loader)
        update = last or (batch + 1) % steps == 0
        share = min(steps, len(loader) - batch // steps * steps)
        result = _backward(run, images, target, share, update)
        losses = torch.stack([result['loss'], result['task_loss'], result['sparsity']])
        sums += losses.detach().double() * len(target)
        count += len(target)
        if update:
            run.optimizer.zero_grad()
            updates += 1
            run.task.update_ema(step=updates)
            if args.sched_on_updates and run.scheduler is not None:
                run.scheduler.step_update(updates)
            if updates - first in snapshots and not last:
                run.log.snapshot(snapshots[updates - first], run.evaluated)
        line = last or (batch + 1) % args.log_interval == 0
        if line or run.log.bar is not None:
            run.log.batch(_progress(batch, loader, sums, count, start) if line else '', line)
    run.log.end_epoch()
    means = sums / count
    if args.distributed:
        means = reduce_tensor(means, args.world_size)
    loss, task_loss, sparsity = means.tolist()
    seconds = time.perf_counter() - start
    found = dict(loss=loss, task_loss=task_loss, sparsity=sparsity, seconds=seconds)
    memory = most_memory(run.device)
    return found if memory is None else {**found, 'memory': memory}


def _progress(batch: int, loader, sums: torch.Tensor, count: int, start: float) -> str:
    _, task_loss, sparsity = (sums / count).tolist()
    rate = count / (time.perf_counter() - start)
    return (
        f'batch {batch + 1}/{len(loader)}: loss {task_loss:.4f}, sparsity {sparsity:.2f}, '
        f'{rate:.0f} images/s per process'
    )


def _backward(run: Run, images, target, share: int, update: bool) -> dict:
    """Forward, backward and, at the end of an accumulation, the optimizer's step."""
    args, module = run.args, run.task.get_trainable_module()
    if args.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    wait = module.no_sync() if args.distributed and not update else nullcontext()
    twice = getattr(run.optimizer, 'is_second_order', False)
    with wait:
        with use('reference') if twice else nullcontext(), run.autocast():
            result = run.task(images, target)
        loss = result['loss'] / share
        clip = dict(clip_grad=args.clip_grad, clip_mode=args.clip_mode)
        parameters = list(run.task.get_clip_parameters(exclude_head=args.clip_mode == 'agc'))
        if run.scaler is not None:
            run.scaler(
                loss, run.optimizer, parameters=parameters, create_graph=twice, need_update=update,
                **clip,
            )  # fmt: skip
            return result
        loss.backward(create_graph=twice)
    if update:
        if args.clip_grad is not None:
            dispatch_clip_grad(parameters, args.clip_grad, mode=args.clip_mode)
        run.optimizer.step()
    return result


def _evaluate(run: Run, model: nn.Module) -> dict:
    return evaluate(
        model,
        run.loader_eval,
        run.device,
        run.autocast,
        run.args.channels_last,
        run.args.distributed,
    )


def _finish(run: Run, folder: Path, data_config: dict, classes: list[str] | None) -> dict:
    """Save the best or the last weights with their wiring."""
    if not is_primary(run.args):
        return {}
    chosen = copy.deepcopy(run.model).cpu()
    name = 'model_best.pth.tar' if run.args.save == 'best' else 'last.pth.tar'
    chosen.load_state_dict(read_checkpoint(folder / name))
    kept = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')
    data_config = {k: data_config[k] for k in kept}
    model_folder = save(chosen, folder / 'model', label_names=classes, data_config=data_config)
    run.log.say(
        f'best: top-1 {run.saver.best_metric:.2f}% in epoch {run.saver.best_epoch + 1}; '
        f'saved network ({run.args.save} epoch): {model_folder}'
    )
    return {
        'folder': folder,
        'model': model_folder,
        'best_epoch': run.saver.best_epoch,
        'best_top1': run.saver.best_metric,
    }
