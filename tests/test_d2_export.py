"""Detectors leave PyTorch: traced, and as ONNX, with static and with routed backbones."""

import pytest
import torch

pytest.importorskip(
    'detectron2',
    reason='detectron2 is not installed: https://detectron2.readthedocs.io/tutorials/install.html',
)

import onnxruntime
from detectron2.config import instantiate
from detectron2.export import TracingAdapter

from d2_topo import with_topo_backbone, zoo
from timm_topo.executors import adjacency

pytestmark = pytest.mark.filterwarnings('ignore')  # of tracing: sizes become constants
FILES = {'faster_rcnn': 'mask_rcnn_fpn', 'retinanet': 'retinanet'}


def detector(kind: str, rule: str):
    """A small one, with edges that are closed for some images and not for others."""
    cfg = zoo(f'common/models/{FILES[kind]}.py', 'model')
    with_topo_backbone(cfg, 'test_toponet', norm='BN', freeze_at=0, connectivity=rule)
    if kind == 'retinanet':
        cfg.update(test_score_thresh=0.0, test_topk_candidates=30)
        cfg.backbone.top_block.in_channels = 48
    else:
        for part in ('mask_in_features', 'mask_pooler', 'mask_head'):
            cfg.roi_heads.pop(part)
        cfg.roi_heads.box_predictor.test_score_thresh = 0.0
        cfg.proposal_generator.update(pre_nms_topk=(50, 50), post_nms_topk=(20, 20))
    torch.manual_seed(0)
    model = instantiate(cfg).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(('cls_score.weight', 'objectness_logits.weight')):
            torch.nn.init.normal_(parameter, std=0.05)  # scores far from one another
        if name.endswith('connectivity.tau'):
            torch.nn.init.constant_(parameter, 0.5)
        if name.endswith('connectivity.weight'):
            torch.nn.init.normal_(parameter, std=2.0)
    return model


def boxes_alone(model, inputs):
    """At the size of the network's input, as raw tensors."""
    if hasattr(model, 'inference'):
        return model.inference(inputs, do_postprocess=False)
    return model(inputs)


def rows(outputs) -> torch.Tensor:
    """A row per detection: box, category, score."""
    boxes, *others, _ = (tensor.float() for tensor in outputs)
    return torch.cat([boxes, *(other[:, None] for other in others)], 1)


@pytest.mark.parametrize('rule', ['alpha', 'router'])
@pytest.mark.parametrize('kind', FILES)
def test_traced_and_as_onnx_it_detects_the_same(kind, rule, tmp_path):
    """In another image too than that of the export, for which other edges are open."""
    model = detector(kind, rule)
    images = [torch.randint(0, 256, (3, 96, 128)).float() // k for k in (1, 9)]
    exported = TracingAdapter(model, [{'image': images[0]}], boxes_alone).eval()
    with torch.no_grad():
        traced = torch.jit.trace(exported, (images[0],), check_trace=False)
        torch.onnx.export(
            exported, (images[0],), tmp_path / 'm.onnx', input_names=['image'], dynamo=False,
            opset_version=17,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(tmp_path / 'm.onnx')
        for image in images:
            expected = rows(exported(image))
            assert len(expected) > 20
            for found in (traced(image), session.run(None, {'image': image.numpy()})):
                found = rows(map(torch.as_tensor, found))
                torch.testing.assert_close(*(x[:, -1].sort()[0] for x in (found, expected)))
                # of scores that differ by less than rounding does, the order may differ
                same = (expected[:, None] - found[None]).abs().amax(-1) < 0.05
                assert same.any(1).float().mean() > (0.9 if image is images[0] else 0.3)
    if rule == 'router':
        body = model.backbone.bottom_up
        opened = [open_edges(body, image) for image in images]
        assert opened[0] != opened[1]


def open_edges(body, image) -> list:
    maps = adjacency(body, (image[None] - 116) / 57)
    return [(matrix != 0).tolist() for matrix in maps.values()]
