"""Augmentation of images on the device: pairs (sample, apply) that chain."""

from gradxform.augment.augmentation import Augmentation, augmentation
from gradxform.augment.compose import chain, one_of, random_apply, two_views, views
from gradxform.augment.copy_paste import copy_paste
from gradxform.augment.geometry.affine import (
    random_affine,
    random_flip_left_right,
    random_flip_up_down,
    random_rotation,
    rotate,
)
from gradxform.augment.geometry.borders import Border
from gradxform.augment.geometry.crop import center_crop, random_crop, random_resized_crop
from gradxform.augment.geometry.displacement import Displacement
from gradxform.augment.geometry.elastic import elastic_deformation
from gradxform.augment.geometry.iou_crop import random_iou_crop
from gradxform.augment.geometry.object_crop import random_object_crop
from gradxform.augment.geometry.pad import letterbox, pad, pad_to
from gradxform.augment.geometry.perspective import random_perspective
from gradxform.augment.geometry.placement import Affine, Map, Projective
from gradxform.augment.geometry.resize import resize
from gradxform.augment.geometry.run import Geometric, Resampling
from gradxform.augment.geometry.slivers import drop_slivers
from gradxform.augment.geometry.turns import random_d4, random_rot90, random_transpose
from gradxform.augment.geometry.zoom import random_scale_jitter, random_zoom_out
from gradxform.augment.mixing import cutmix, mixup, mixup_or_cutmix
from gradxform.augment.mosaic import mosaic
from gradxform.augment.photometry.channels import channel_shuffle
from gradxform.augment.photometry.compression import jpeg
from gradxform.augment.photometry.erase import cutout, random_erasing
from gradxform.augment.photometry.jitter import (
    color_jitter,
    random_brightness,
    random_contrast,
    random_grayscale,
    random_hue,
    random_saturation,
)
from gradxform.augment.photometry.levels import (
    autocontrast,
    equalize,
    gaussian_blur,
    invert,
    posterize,
    random_gamma,
    sharpness,
    solarize,
)
from gradxform.augment.photometry.noise import gaussian_noise
from gradxform.augment.photometry.normalize import normalize
from gradxform.augment.policies.aug_mix import aug_mix
from gradxform.augment.policies.auto_augment import auto_augment
from gradxform.augment.policies.byol import byol_views
from gradxform.augment.policies.photometric_distort import random_photometric_distort
from gradxform.augment.policies.rand_augment import rand_augment, trivial_augment
from gradxform.augment.policies.simclr import simclr_views
from gradxform.augment.policies.three_augment import three_augment
from gradxform.augment.stage import Mix, Pixelwise, Stage

__all__ = [
    "Affine",
    "Augmentation",
    "Border",
    "Displacement",
    "Geometric",
    "Map",
    "Mix",
    "Pixelwise",
    "Projective",
    "Resampling",
    "Stage",
    "aug_mix",
    "augmentation",
    "auto_augment",
    "autocontrast",
    "byol_views",
    "center_crop",
    "chain",
    "channel_shuffle",
    "color_jitter",
    "copy_paste",
    "cutmix",
    "cutout",
    "drop_slivers",
    "elastic_deformation",
    "equalize",
    "gaussian_blur",
    "gaussian_noise",
    "invert",
    "jpeg",
    "letterbox",
    "mixup",
    "mixup_or_cutmix",
    "mosaic",
    "normalize",
    "one_of",
    "pad",
    "pad_to",
    "posterize",
    "rand_augment",
    "random_affine",
    "random_apply",
    "random_brightness",
    "random_contrast",
    "random_crop",
    "random_d4",
    "random_erasing",
    "random_flip_left_right",
    "random_flip_up_down",
    "random_gamma",
    "random_grayscale",
    "random_hue",
    "random_iou_crop",
    "random_object_crop",
    "random_perspective",
    "random_photometric_distort",
    "random_resized_crop",
    "random_rot90",
    "random_rotation",
    "random_saturation",
    "random_scale_jitter",
    "random_transpose",
    "random_zoom_out",
    "resize",
    "rotate",
    "sharpness",
    "simclr_views",
    "solarize",
    "three_augment",
    "trivial_augment",
    "two_views",
    "views",
]
