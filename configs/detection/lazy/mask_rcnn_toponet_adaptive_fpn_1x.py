from .base_mask_rcnn import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = 'toponet_adaptive'
train.output_dir = 'output/mask_rcnn_toponet_adaptive_fpn_1x'
