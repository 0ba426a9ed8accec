"""Keys that yaml configs of detectron2 get."""

from detectron2.config import CfgNode

from timm_topo.checkpoint import FORMAT

__all__ = ['add_topo_config']


def add_topo_config(cfg: CfgNode) -> None:
    """Add ``MODEL.TOPO`` to a config, in place; see :class:`d2_topo.TopoBackbone`.

    ``SOLVER.ACCUMULATE``, ``SOLVER.EMA_DECAY`` and ``SOLVER.AMP.PRECISION`` are for
    ``d2_topo.train_net``, see :class:`d2_topo.engine.Settings`. ``MODEL.BACKBONE.FREEZE_AT``,
    ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD``, ``INPUT.FORMAT`` and ``MODEL.FPN`` keep detectron2's
    meaning.
    """
    topo = cfg.MODEL.TOPO = CfgNode()
    # A model of timm by name (ours are registered), or the folder of a saved (pruned) network.
    topo.NAME = 'toponet_adaptive'
    # Options of the model: wiring, connectivity, base (for 'rewired')... In a file: yacs takes no
    # new keys on the command line.
    topo.KWARGS = CfgNode(new_allowed=True)
    # Format of NAME and KWARGS: of today, unless a config.yaml that was written with a detector
    # tells an older one.
    topo.FORMAT = FORMAT
    # Whether timm fetches the weights it has under this name.
    topo.PRETRAINED = False
    # Subset of res2 (stride 4), res3, res4, res5 (stride 32).
    topo.OUT_FEATURES = ['res2', 'res3', 'res4', 'res5']
    # FrozenBN, BN, SyncBN or GN, instead of the network's batch norms.
    topo.NORM = 'FrozenBN'
    # Recompute in the backward pass instead of storing: less memory, more time.
    topo.ACTIVATION_CHECKPOINT = False
    # lambda of TopoNet's Eq. 6: weight of the L1 on edge weights, in the loss dict; 0 is without.
    # Needs the meta architecture TopoRCNN or TopoRetinaNet.
    topo.SPARSITY_WEIGHT = 0.0
    # uniform or adaptive; '' is the model's own.
    topo.SPARSITY = ''
    # Whether weight decay acts on edge weights too.
    topo.DECAY_EDGES = False
    # By how much the learning rate is lowered from a layer to the one before it.
    topo.LAYER_DECAY = 1.0
    # In how many parts a process takes its batch; decay of averaged weights, 0 is without; float16
    # or bfloat16.
    cfg.SOLVER.ACCUMULATE = 1
    cfg.SOLVER.EMA_DECAY = 0.0
    cfg.SOLVER.AMP.PRECISION = 'float16'
