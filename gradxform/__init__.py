"""gradxform: everything that shapes a training run, as pure, composable values.

Transformations, optimizers and selectors are named here; the other rooms are modules: ``gx.schedules``, ``gx.norm``,
``gx.augment``, ``gx.losses``, ``gx.masking``, ``gx.precision``, ``gx.sharding``, ``gx.resume``,
``gx.transfer``, ``gx.plot``.
"""

import sys as _sys

from gradxform import augment, losses, masking, norm, plot, precision, resume, schedules, sharding, transfer
from gradxform.core.average import incremental_update
from gradxform.core.bricks import Leafwise
from gradxform.core.config import from_config, to_config
from gradxform.core.elsewhere import answer as _answer
from gradxform.core.manual import ShardingError
from gradxform.core.schedule import Schedule, schedule
from gradxform.core.selectors import Selector, ndim_at_least, path_matches
from gradxform.core.slots import Slot
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.types import DType, Scalar, ScalarOrSchedule
from gradxform.optimizers.adafactor import adafactor
from gradxform.optimizers.adam import adam, adamw, amsgrad, nadam, nadamw, radam
from gradxform.optimizers.adaptive import adabelief, lion, yogi
from gradxform.optimizers.large_batch import lamb, lars
from gradxform.optimizers.muon import muon
from gradxform.optimizers.rmsprop import adagrad, rmsprop
from gradxform.optimizers.sgd import sgd
from gradxform.transforms.accumulate import accumulate
from gradxform.transforms.adam import (
    scale_by_adam,
    scale_by_amsgrad,
    scale_by_belief,
    scale_by_nadam,
    scale_by_radam,
    scale_by_yogi,
)
from gradxform.transforms.clip import adaptive_grad_clip, clip, clip_by_block_rms, clip_by_global_norm, global_norm
from gradxform.transforms.combine import apply_updates, chain, identity, named_chain, set_to_zero, stateless
from gradxform.transforms.decay import add_decayed_weights
from gradxform.transforms.factored import scale_by_factored_rms
from gradxform.transforms.gradient import add_noise, centralize
from gradxform.transforms.inspect import hyperparams, metrics
from gradxform.transforms.lion import scale_by_lion
from gradxform.transforms.masking import freeze, masked, partition, selective_transform
from gradxform.transforms.momentum import ema, trace
from gradxform.transforms.muon import scale_by_muon
from gradxform.transforms.nonfinite import NonfiniteError, all_finite, check_finite, skip_nonfinite
from gradxform.transforms.record import record_norms
from gradxform.transforms.rms import scale_by_rms, scale_by_rss, scale_by_stddev
from gradxform.transforms.scale import scale, scale_by_learning_rate, scale_by_param_block_rms, scale_by_schedule
from gradxform.transforms.trust_ratio import scale_by_trust_ratio

__version__ = "0.1.0"

__all__ = [
    "accumulate",
    "adabelief",
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "all_finite",
    "amsgrad",
    "apply_updates",
    "augment",
    "centralize",
    "chain",
    "check_finite",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "DType",
    "ema",
    "freeze",
    "from_config",
    "global_norm",
    "hyperparams",
    "identity",
    "incremental_update",
    "lamb",
    "lars",
    "Leafwise",
    "lion",
    "losses",
    "masked",
    "masking",
    "metrics",
    "muon",
    "nadam",
    "nadamw",
    "named_chain",
    "ndim_at_least",
    "NonfiniteError",
    "norm",
    "partition",
    "path_matches",
    "plot",
    "precision",
    "radam",
    "record_norms",
    "resume",
    "rmsprop",
    "Scalar",
    "ScalarOrSchedule",
    "scale",
    "scale_by_adam",
    "scale_by_amsgrad",
    "scale_by_belief",
    "scale_by_factored_rms",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_param_block_rms",
    "scale_by_radam",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "scale_by_yogi",
    "Schedule",
    "schedule",
    "schedules",
    "selective_transform",
    "Selector",
    "set_to_zero",
    "sgd",
    "sharding",
    "ShardingError",
    "skip_nonfinite",
    "Slot",
    "stateless",
    "to_config",
    "trace",
    "transfer",
    "Transformation",
    "transformation",
    "yogi",
]

# Names that other libraries have, and those of another room, are told by NAMES.md where they are asked for.
_ROOMS = {"gx": _sys.modules[__name__]} | {
    f"gx.{room.__name__.rpartition('.')[2]}": room
    for room in (augment, losses, masking, norm, plot, precision, resume, schedules, sharding, transfer)
}
for _room in _ROOMS.values():
    _answer(_room, _ROOMS)
