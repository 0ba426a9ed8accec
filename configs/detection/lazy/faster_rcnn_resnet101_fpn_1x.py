from .base_faster_rcnn_detectron1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = 'resnet101'
train.output_dir = 'output/faster_rcnn_resnet101_fpn_1x'
