"""Convolutions and batch norm of a node, forward and backward, on memory that is given."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nodes import NodeLayers

__all__ = ['convolve', 'invertible', 'layers_backward', 'norm_into']

aten = torch.ops.aten

# Batch norm's normalised input is read off its output only where rounding moves it by at most so
# many units of rounding of 1 (see invertible).
_MOST_UNITS = 8.0


def convolve(x: Tensor, conv: nn.Conv2d, weight: Tensor) -> Tensor:
    """``conv`` with another ``weight``, which takes the type of x."""
    weight = weight.to(x.dtype)  # under autocast
    if _is_product(x, conv, weight):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def norm_into(out: Tensor, y: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """Batch norm of y, written to ``out``, which must lie in memory as y.

    Returns:
        Mean and 1 / sqrt(variance + eps) as used, ``(2, C)``; in evaluation written on GPUs alone.

    Raises:
        ValueError: One value per channel in training.
    """
    if bn.training and y.numel() == y.shape[1]:
        raise ValueError(
            f'expected more than 1 value per channel in training, got {tuple(y.shape)}'
        )
    dtype = statistics_type(y.device.type, bn.weight.dtype)
    statistics = bn.weight.new_empty(2, y.shape[1], dtype=dtype)
    running = bn.running_mean, bn.running_var
    if bn.training and bn.track_running_stats:
        bn.num_batches_tracked.add_(1)
    elif bn.training:
        running = None, None
    aten.native_batch_norm.out(
        y, bn.weight, bn.bias, *running, bn.training, bn.momentum, bn.eps,
        out=out, save_mean=statistics[0], save_invstd=statistics[1],
    )  # fmt: skip
    return statistics


def statistics_type(device: str, dtype: torch.dtype) -> torch.dtype:
    """The type in which batch norm with parameters of ``dtype`` writes means and scales."""
    return dtype if device == 'cpu' else torch.promote_types(dtype, torch.float32)


def invertible(
    parameters: Sequence[Sequence[Tensor]], statistics: Sequence[Tensor], dtype: torch.dtype
) -> list[bool]:
    """Whether the normalised input of each batch norm can be read off its output x_j.

    x_j = gamma xhat + beta, with xhat = (y - mean) scale, is computed as y (gamma scale) + (beta -
    mean gamma scale) and rounded to ``dtype``. To first order, (x_j - beta) / gamma differs from
    xhat by |beta / gamma| + |xhat| units of rounding of ``dtype``, and by 2 |mean| scale + |xhat|
    units of the type of the computation. The terms that do not come with xhat must be below
    :data:`_MOST_UNITS`, in all channels; else the last convolution is computed anew.

    Args:
        parameters: By node, as from :meth:`timm_topo.nodes.NodeLayers.parameters`.
        statistics: By node, as from :func:`norm_into`.
        dtype: Of the maps.
    """
    if not parameters:
        return []
    gamma, beta = (torch.stack([own[k] for own in parameters]) for k in (-2, -1))
    mean, scale = torch.stack(tuple(statistics)).unbind(1)
    finer = torch.finfo(mean.dtype).eps / torch.finfo(dtype).eps
    units = beta.abs() + 2 * finer * (mean * scale * gamma).abs()
    return (units < _MOST_UNITS * gamma.abs()).all(1).tolist()


def layers_backward(
    layers: NodeLayers,
    parameters: Sequence[Tensor],
    statistics: Tensor,
    read: Tensor,
    x_j: Tensor,
    grad: Tensor,
    inverts: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradients of the layers behind the activation.

    Args:
        layers: Of the node.
        parameters: Of the layers, as they were in the forward pass.
        statistics: As :func:`norm_into` returned them.
        read: Input of the first convolution.
        x_j: The map of the node.
        grad: Its gradient.
        inverts: Whether to read the input of batch norm off x_j, instead of convolving anew.

    Returns:
        The gradient of ``read``, and the gradients of ``parameters``.
    """
    *kernels, gamma, beta = parameters
    inputs = [read]
    for conv, kernel in zip(layers.convs[:-1], kernels):
        inputs.append(convolve(inputs[-1], conv, kernel))
    mean, scale = statistics
    if inverts:  # batch norm from its output: xhat = (x_j - beta) / gamma has mean 0, scale 1
        y, mean, per, weight = x_j, beta, 1 / gamma, gamma * gamma * scale
    else:
        y, per, weight = convolve(inputs[-1], layers.convs[-1], kernels[-1]), scale, gamma
    grad, grad_gamma, grad_beta = aten.native_batch_norm_backward(
        grad, y, weight, None, None, mean, per, True, layers.norm.eps, [True, True, True]
    )
    grad_kernels = []
    for conv, kernel, x in reversed(list(zip(layers.convs, kernels, inputs))):
        grad, grad_kernel = _convolution_backward(grad, x, conv, kernel)
        grad_kernels.insert(0, grad_kernel)
    return grad, (*grad_kernels, grad_gamma, grad_beta)


def _convolution_backward(
    grad: Tensor, x: Tensor, conv: nn.Conv2d, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weight of a convolution."""
    narrow = weight.to(x.dtype)
    if _is_product(x, conv, weight):
        rows, grads = (t.permute(0, 2, 3, 1) for t in (x, grad))
        grad = (grads @ narrow.flatten(1)).permute(0, 3, 1, 2)
        grad_weight = (grads.flatten(0, 2).t() @ rows.flatten(0, 2)).view_as(weight)
        return grad, grad_weight.to(weight.dtype)
    grad, grad_weight, _ = aten.convolution_backward(
        grad, x, narrow, None, conv.stride, conv.padding, conv.dilation,
        False, [0, 0], conv.groups, [True, True, False],
    )  # fmt: skip
    return grad, grad_weight.to(weight.dtype)


def _is_product(x: Tensor, conv: nn.Conv2d, weight: Tensor) -> bool:
    """Whether to convolve by one product of matrices.

    On CPU a convolution first brings its weights into another order. With more weights than
    values in x, this takes longer than the product.
    """
    pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    small = x.numel() < weight.numel() and x.device.type == 'cpu'
    return small and channels_last and pointwise and conv.padding == (0, 0)
