"""C bottleneck branches of a ResNeXt block at once (Xie et al., 2017; MaskConnect, Fig. 1b)."""

import copy
from collections.abc import Callable, Sequence

import torch
from timm.layers import create_conv2d
from torch import Tensor, nn

from .conv_norm import ConvNorm

__all__ = ['BranchBlock', 'BranchConv1x1']


class BranchConv1x1(nn.Conv2d):
    """A 1x1 convolution with as many groups as branches, without bias.

    Eagerly it runs as one batched matrix product, which for many narrow groups is several times
    as fast as what convolution libraries do; in what is traced, compiled or exported it is the
    convolution.

    Args:
        branches: Groups.
        in_chs: Input channels of each.
        out_chs: Output channels of each.
        device: Where parameters live.
        dtype: Their type.
    """

    def __init__(self, branches: int, in_chs: int, out_chs: int, device=None, dtype=None):
        channels = branches * in_chs, branches * out_chs
        super().__init__(*channels, 1, groups=branches, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return super().forward(x)
        weight = self.weight.view(self.groups, -1, self.weight.shape[1])
        batch, _, height, width = x.shape
        maps = x.reshape(batch, self.groups, self.weight.shape[1], height * width)
        return torch.matmul(weight, maps).view(batch, self.out_channels, height, width)


class BranchBlock(nn.Module):
    """Per branch 1x1, 3x3 and 1x1 convolution on a map of its own, as grouped convolutions.

    Branch k computes F_k(x_k) and, beside it, shortcut(x_k): the identity, or where the shape
    changes a 1x1 convolution and norm that all branches share. :meth:`mix` makes of them what the
    branches of the next block read.

    Args:
        branches: C.
        in_chs: Channels of the map that each branch reads.
        out_chs: Channels of the map that each branch makes.
        width: Channels inside a branch.
        stride: Of the 3x3 convolutions and the shortcut.
        branch_norm: Whether each branch has a norm of its own behind its last convolution.
            Otherwise one norm, shared, follows the sum over branches, as in ResNeXt.
        average: Whether shortcuts are averaged, see :meth:`mix`; otherwise summed, as printed.
        norm_layer: Normalisation of each channel on its own.
        device: Where parameters live.
        dtype: Their type.

    Raises:
        ValueError: A normalisation over several channels.
    """

    def __init__(
        self,
        branches: int,
        in_chs: int,
        out_chs: int,
        width: int,
        stride: int = 1,
        branch_norm: bool = True,
        average: bool = True,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.branches, self.in_chs, self.out_chs = branches, in_chs, out_chs
        self.branch_norm, self.average = branch_norm, average
        chs, outs = branches * width, branches * out_chs
        self.conv1 = BranchConv1x1(branches, in_chs, width, **dd)
        self.bn1 = norm_layer(chs, **dd)
        self.conv2 = create_conv2d(chs, chs, 3, stride=stride, groups=branches, **dd)
        self.bn2 = norm_layer(chs, **dd)
        self.conv3 = BranchConv1x1(branches, width, out_chs, **dd)
        self.bn3 = norm_layer(outs if branch_norm else out_chs, **dd)
        if not hasattr(self.bn1, 'num_features'):
            raise ValueError(
                f'norm_layer {type(self.bn1).__name__} takes channels of several branches '
                'together: it must be a batch norm or another one per channel'
            )
        self.act1, self.act2, self.act3 = (nn.ReLU(inplace=True) for _ in range(3))
        same = in_chs == out_chs and stride == 1
        self.downsample = (
            nn.Identity() if same else ConvNorm(in_chs, out_chs, 1, stride, norm_layer, **dd)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, in_chs, H, W)`` -> F_k(x_k) and shortcut(x_k), ``(B, C, out_chs, H', W')``."""
        inner = self.act1(self.bn1(self.conv1(x.flatten(1, 2))))
        inner = self.conv3(self.act2(self.bn2(self.conv2(inner))))
        if self.branch_norm:
            inner = self.bn3(inner)
        beside = self.downsample(x.flatten(0, 1))
        batch, height, width = x.shape[0], inner.shape[2], inner.shape[3]
        shape = (batch, self.branches, self.out_chs, height, width)
        return inner.reshape(shape), beside.reshape(shape)  # unflatten is not in ONNX opset 11

    def mix(self, inner: Tensor, beside: Tensor, weights: Tensor) -> Tensor:
        """x'_i = ReLU(norm(sum_k w_ik F_k(x_k)) + s_i sum_k w_ik shortcut(x_k)).

        The paper prints the sum of both, s_i = 1. Then even ResNeXt, all w_ik = 1, would not be
        the special case that the paper takes it for, and what the shortcuts carry would grow K
        times per block: past float32 in the paper's deepest network. Here s_i = 1 / K by default
        (K the number of w_ik other than 0).

        Args:
            inner: F_k(x_k), ``(B, C, out_chs, H, W)``.
            beside: shortcut(x_k), likewise.
            weights: w, ``(C', C)``.

        Returns:
            ``(B, C', out_chs, H, W)``.
        """
        batch, rows = inner.shape[0], weights.shape[0]
        chs, height, width = inner.shape[2:]
        kept = weights
        if self.average:
            kept = _mean_weights(weights)
        weights = weights.to(inner.dtype).expand(batch, -1, -1)
        kept = kept.to(beside.dtype).expand(batch, -1, -1)
        beside = torch.bmm(kept, beside.flatten(2))
        mixed = torch.bmm(weights, inner.flatten(2))
        if not self.branch_norm:
            mixed = self.bn3(mixed.view(batch * rows, chs, height, width)).view_as(beside)
        return self.act3(mixed + beside).view(batch, rows, chs, height, width)

    def select(self, kept: Sequence[int]) -> 'BranchBlock':
        """A copy with only the branches ``kept``."""
        smaller = copy.deepcopy(self)
        smaller.branches = len(kept)
        for name in ('conv1', 'bn1', 'conv2', 'bn2', 'conv3') + ('bn3',) * self.branch_norm:
            _take(getattr(smaller, name), self.branches, kept)
        return smaller


def _mean_weights(weights: Tensor) -> Tensor:
    """``weights`` over the number of those that are not 0, row by row."""
    return weights / weights.ne(0).sum(1, keepdim=True).clamp(min=1)


torch.fx.wrap('_mean_weights')  # a leaf for symbolic tracing: nobody observes counts


def _take(module: nn.Module, branches: int, kept: Sequence[int]) -> None:
    """Leave a grouped convolution or its norm only some groups, in place."""
    index = torch.as_tensor(kept)
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if tensor is None or tensor.ndim == 0:
                continue
            groups = tensor.detach().unflatten(0, (branches, -1))
            part = groups[index.to(tensor.device)].flatten(0, 1).clone()
            if isinstance(tensor, nn.Parameter):
                part = nn.Parameter(part, requires_grad=tensor.requires_grad)
            tensors[name] = part
    for name in ('in_channels', 'out_channels', 'num_features', 'groups'):
        if hasattr(module, name):
            setattr(module, name, getattr(module, name) // branches * len(kept))
