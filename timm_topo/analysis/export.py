"""ONNX, checked against the network it came from, and the graph for other programs."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor, nn

from ..executors import evaluation_mode
from ..extras import needs
from ..files import replacing
from ..stages import graph_stages
from .cost import input_size_of
from .outputs import named_outputs
from .prune import edge_weights

__all__ = ['export_graphml', 'export_onnx']


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_size: Sequence[int] | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Write ``model`` as ONNX with a free batch size, run it in onnxruntime, compare.

    Outputs have the names of :func:`timm_topo.analysis.outputs.named_outputs`: ``logits``, or of
    networks that return maps, their keys or places.

    Args:
        model: Any timm model; exported in evaluation mode.
        path: The ``.onnx`` file. It appears only after the check has passed.
        input_size: ``(C, H, W)``; the model's own by default.
        tolerance: Largest difference allowed, of each output relative to its largest value.

    Returns:
        Largest absolute difference of the outputs over three images.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        RuntimeError: The exported network computes something else.
    """
    with needs('timm-topo[export]'):
        import onnxruntime
        import onnxscript  # noqa: F401  the exporter needs it
    path = Path(path)
    size = tuple(input_size or input_size_of(model))
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    device = next(model.parameters()).device
    with evaluation_mode(model), replacing(path) as scratch:
        try:
            model.cpu()
            with torch.no_grad():
                expected = named_outputs(model(images))
                _export(model, images[:2], scratch)
        finally:
            model.to(device)
        session = onnxruntime.InferenceSession(scratch, providers=['CPUExecutionProvider'])
        got = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        differences = []
        for (name, one), other in zip(expected.items(), got, strict=True):
            difference = (torch.from_numpy(other) - one).abs().max().item()
            if not difference <= tolerance * one.abs().max().item():
                told = f'the ONNX network differs by {difference:.3g} from {path.name}'
                raise RuntimeError(f'{told} in {name}')
            differences.append(difference)
    return max(differences)


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
            output_names=list(named_outputs(model(images))),
            dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=65536)},),
            verbose=False,
        )


def export_graphml(model: nn.Module, path: str | Path, images: Tensor | None = None) -> nx.DiGraph:
    """Write all graphs of ``model`` as GraphML, which networkx, Gephi and yEd read.

    Nodes are called STAGE/ID, with their ``stage``, ``id`` (before pruning) and ``level``; edges
    have a ``weight``. Stages are not joined: what is between them is no edge.

    Args:
        model: A model with graph stages.
        path: The ``.graphml`` file.
        images: See :func:`timm_topo.analysis.prune.edge_weights`.

    Returns:
        The graph.
    """
    graph = nx.DiGraph()
    weights = edge_weights(model, images)
    for name, stage in graph_stages(model).items():
        nodes = [f'{name}/{node}' for node in stage.node_ids]
        for node, label, level in zip(stage.node_ids, nodes, stage.levels):
            graph.add_node(label, stage=name, id=node, level=level)
        for (source, target), weight in zip(stage.wiring.edges, weights[name].tolist()):
            graph.add_edge(nodes[source], nodes[target], weight=weight)
    path = Path(path)
    with replacing(path) as part:
        nx.write_graphml(graph, str(part))
    return graph
