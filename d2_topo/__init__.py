"""detectron2 FPN backbones made of timm_topo networks (to come; see CHANGELOG.md)."""
