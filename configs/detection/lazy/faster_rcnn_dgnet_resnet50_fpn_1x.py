from .base_faster_rcnn_detectron1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = 'dgnet_resnet50'
train.output_dir = 'output/faster_rcnn_dgnet_resnet50_fpn_1x'
