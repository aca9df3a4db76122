"""Self-supervised objectives: contrastive, consistent, and masked."""

from gradxform.losses.consistency import jensen_shannon
from gradxform.losses.contrastive import clip_loss, info_nce, nt_xent, sup_con
from gradxform.losses.masked import masked_cross_entropy, masked_l1, masked_mse, masked_smooth_l1
from gradxform.losses.momentum import MemoryQueue, ema_update, enqueue, init_queue
from gradxform.losses.redundancy import barlow_twins, vicreg
from gradxform.losses.regression import byol, simsiam
from gradxform.losses.siglip import siglip

__all__ = [
    "MemoryQueue",
    "barlow_twins",
    "byol",
    "clip_loss",
    "ema_update",
    "enqueue",
    "info_nce",
    "init_queue",
    "jensen_shannon",
    "masked_cross_entropy",
    "masked_l1",
    "masked_mse",
    "masked_smooth_l1",
    "nt_xent",
    "siglip",
    "simsiam",
    "sup_con",
    "vicreg",
]
