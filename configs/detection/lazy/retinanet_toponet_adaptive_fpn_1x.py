"""RetinaNet with FPN, with the settings of detectron2's retinanet_R_50_FPN_1x."""

from d2_topo import with_topo_backbone, zoo

from .common import dataloader, lr_multiplier, optimizer, train

model = with_topo_backbone(zoo('common/models/retinanet.py', 'model'))
model.backbone.bottom_up.name = 'toponet_adaptive'
model.backbone.top_block.in_channels = 1024  # channels of res5
dataloader.train.mapper.use_instance_mask = False
dataloader.train.dataset.num_classes = '${model.num_classes}'
optimizer.lr = 0.01
train.output_dir = 'output/retinanet_toponet_adaptive_fpn_1x'
