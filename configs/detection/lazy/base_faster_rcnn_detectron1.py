"""The papers' 1x, that of Detectron: see ``Base-Topo-FPN-detectron1.yaml``."""

from .base_faster_rcnn import dataloader, lr_multiplier, model, optimizer, train

model.proposal_generator.smooth_l1_beta = 0.1111
model.roi_heads.box_predictor.smooth_l1_beta = 1.0
model.roi_heads.box_pooler.update(sampling_ratio=2, pooler_type='ROIAlign')
dataloader.train.mapper.augmentations[0].short_edge_length = (800,)
