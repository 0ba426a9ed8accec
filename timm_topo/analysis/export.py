"""ONNX export, checked against the network it came from."""

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from .cost import input_size_of

__all__ = ['export_onnx']


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_size: Sequence[int] | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Write ``model`` as ONNX with a free batch size, run it in onnxruntime, compare.

    Args:
        model: Any timm model; exported in evaluation mode.
        path: The ``.onnx`` file. It appears only after the check has passed.
        input_size: ``(C, H, W)``; the model's own by default.
        tolerance: Largest difference allowed, relative to the largest output.

    Returns:
        Largest absolute difference of the outputs over three images.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        RuntimeError: The exported network computes something else.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  the exporter needs it
    except ImportError as error:
        raise ImportError(f'{error}; install the export extra: timm-topo[export]') from None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = tuple(input_size or input_size_of(model))
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    training, device = model.training, next(model.parameters()).device
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export-') as folder:
        scratch = Path(folder) / path.name
        try:
            model.eval().cpu()
            with torch.no_grad():
                expected = model(images)
                _export(model, images[:2], scratch)
        finally:
            model.train(training).to(device)
        session = onnxruntime.InferenceSession(scratch, providers=['CPUExecutionProvider'])
        (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        difference = (torch.from_numpy(got) - expected).abs().max().item()
        if not difference <= tolerance * expected.abs().max().item():
            raise RuntimeError(f'the ONNX network differs by {difference:.3g} from {path.name}')
        os.replace(scratch, path)
    return difference


def _export(model: nn.Module, images: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the exporter's own deprecations
        torch.onnx.export(
            model,
            (images,),
            str(path),
            dynamo=True,
            external_data=False,
            input_names=['image'],
            output_names=['logits'],
            dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=65536)},),
            verbose=False,
        )
