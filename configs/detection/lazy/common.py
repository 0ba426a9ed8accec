"""What all detectors here share: data, schedule, optimizer, and how a backbone is put in."""

from detectron2.config import LazyCall as L

from d2_topo import TopoBackbone, zoo
from d2_topo.data import training_set

dataloader = zoo('common/data/coco.py', 'dataloader')
dataloader.train.mapper.image_format = 'RGB'  # testing takes over what training has
dataloader.train.dataset.update(_target_=training_set, num_classes='${model.roi_heads.num_classes}')
lr_multiplier = zoo('common/coco_schedule.py', 'lr_multiplier_1x')
optimizer = zoo('common/optim.py', 'SGD')
train = zoo('common/train.py', 'train')
# train.init_checkpoint: a checkpoint of timm (.pth.tar, .safetensors), or a saved network


def with_topo_backbone(model, out_features):
    """The detector with a backbone of ours, whose ``name`` is still to be set."""
    model.pixel_mean = [123.675, 116.28, 103.53]  # timm's ImageNet, RGB
    model.pixel_std = [58.395, 57.12, 57.375]
    model.input_format = 'RGB'
    model.backbone.bottom_up = L(TopoBackbone)(
        name='toponet_adaptive',
        out_features=out_features,
        norm='FrozenBN',
        freeze_at=2,
        sparsity_weight=0.0,
        pixel_mean='${...pixel_mean}',
        pixel_std='${...pixel_std}',
        input_format='${...input_format}',
    )
    return model
