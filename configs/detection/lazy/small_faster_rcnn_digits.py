"""The small Faster R-CNN on the built-in digits: 'make demo-detection' runs it."""

from .small_faster_rcnn import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 120
train.output_dir = 'output/small_faster_rcnn_digits'
model.roi_heads.num_classes = 10
model.proposal_generator.update(pre_nms_topk=(200, 200), post_nms_topk=(100, 50))
model.roi_heads.box_predictor.test_topk_per_image = 20
for _loader, _name in (
    (dataloader.train, 'topo_digits_train'),
    (dataloader.test, 'topo_digits_val'),
):
    _loader.dataset.names = _name
    _loader.mapper.augmentations = _loader.mapper.augmentations[:1]  # digits are not flipped
    _loader.mapper.augmentations[0].update(short_edge_length=128, max_size=128)
