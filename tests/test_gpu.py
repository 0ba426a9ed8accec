"""What only a GPU can tell: the networks there are the networks on CPU, also in half precision."""

import copy

import pytest
import timm
import torch

from timm_topo.executors import set_triton_kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')

NETWORKS = [
    ('test_toponet', {}),
    ('test_toponet', {'connectivity': 'router'}),
    ('test_dagnet', {}),
    ('test_randwire', {}),
    ('test_maskconnect_resnext', {'connectivity': 'alpha'}),
]


@pytest.fixture(params=[False, True], ids=['plain', 'kernels'])
def kernels(request):
    if request.param:
        pytest.importorskip('triton', '3.3', reason='Triton 3.3 or newer is not installed')
    set_triton_kernels(request.param)
    yield
    set_triton_kernels(None)


def results(model, images, dtype=None):
    """Logits in evaluation, and the gradients of a training step."""
    with torch.no_grad(), torch.autocast('cuda', dtype, enabled=dtype is not None):
        logits = copy.deepcopy(model).eval()(images)
    model = copy.deepcopy(model).train()
    with torch.autocast('cuda', dtype, enabled=dtype is not None):
        loss = 256 * model(images).float().square().mean()  # gradients that float16 can hold
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters())
    flat = torch.cat([p.grad.flatten().cpu().double() / 256 for p in model.parameters()])
    return logits.cpu().double(), flat


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(('name', 'options'), NETWORKS)
def test_values_and_gradients_are_those_on_cpu(name, options, layout, kernels, randomise):
    model = randomise(timm.create_model(name, num_classes=5, **options)).double()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    expected = results(model, images)
    model = model.cuda().to(memory_format=layout)
    got = results(model, images.cuda().contiguous(memory_format=layout))
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ('dtype', 'layout'),
    [(torch.float16, torch.channels_last), (torch.bfloat16, torch.contiguous_format)],
)
@pytest.mark.parametrize(('name', 'options'), NETWORKS)
def test_half_precision_is_near(name, options, dtype, layout, kernels, randomise):
    """Under autocast: as near as the type's digits allow."""
    model = randomise(timm.create_model(name, num_classes=5, **options))
    images = torch.randn(4, 3, 64, 64)
    expected = results(copy.deepcopy(model).double(), images.double())
    model = model.cuda().to(memory_format=layout)
    got = results(model, images.cuda().contiguous(memory_format=layout), dtype)
    eps = torch.finfo(dtype).eps
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine - theirs).norm() < 40 * eps * theirs.norm()
