"""Eight-bit networks: onnxruntime's static quantization, calibrated on images."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from ..extras import needs
from ..files import replacing, scratch_folder
from .export import export_onnx

__all__ = ['OnnxNetwork', 'export_int8']


def export_int8(model: nn.Module, path: str | Path, batches: Iterable[Tensor]) -> float:
    """Write ``model`` as ONNX whose convolutions and linear layers take eight bits (QDQ format).

    Maps have one scale each, from the range of their values on the calibration images. Weights
    have one per output channel and take seven bits: with eight, sums overflow on CPUs without
    VNNI, silently. Sums over edges and routers stay in float32.

    Args:
        model: Any timm model; exported in evaluation mode.
        path: The ``.onnx`` file. It appears only when it is complete.
        batches: Calibration images ``(B, C, H, W)`` of one size, preprocessed as in evaluation.

    Returns:
        As :func:`timm_topo.analysis.export.export_onnx`, before quantization.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        RuntimeError: The exported network computes something else before quantization.
        ValueError: There are no images.
    """
    with needs('timm-topo[export]'):
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError('quantization needs calibration images, got none')

    class Images(CalibrationDataReader):
        def __init__(self):
            self.batches = chain([first], batches)

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {'image': batch.cpu().numpy()}

    path = Path(path)
    with replacing(path) as scratch, scratch_folder(path) as folder:
        plain, prepared = (folder / f'{kind}-{path.name}' for kind in ('plain', 'prepared'))
        difference = export_onnx(model, plain, first.shape[1:])
        quant_pre_process(plain, prepared)
        quantize_static(
            prepared,
            scratch,
            Images(),
            op_types_to_quantize=['Conv', 'Gemm', 'MatMul'],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_sums(onnx.load(prepared).graph),
        )
    return difference


def _sums(graph) -> list[str]:
    """Names of the matrix products of maps with edge weights."""
    weights = {weight.name for weight in graph.initializer}
    products = [node for node in graph.node if node.op_type == 'MatMul']
    return [node.name for node in products if weights.isdisjoint(node.input)]


class OnnxNetwork(nn.Module):
    """A network of one output in an ``.onnx`` file, run by onnxruntime on the CPU.

    Args:
        path: The file.

    Raises:
        ImportError: onnxruntime is missing.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        with needs('timm-topo[export]'):
            import onnxruntime
        self.session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> the output, on the device of ``x``."""
        (output,) = self.session.run(None, {self.session.get_inputs()[0].name: x.cpu().numpy()})
        return torch.from_numpy(output).to(x.device)
