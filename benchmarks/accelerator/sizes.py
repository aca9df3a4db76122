"""How large the arrays are: those of a device, and tiny ones that show on any machine that the whole works."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

from benchmarks import trees


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shapes of all cases.

    Attributes:
      copy: numbers in the array that is copied, float32; more than any cache holds.
      matmul: rows and columns of the matrices that are multiplied.
      trees: of parameters, by name.
      norms: shapes by norm, the features last, larger than the caches of a device.
      pairs: of NT-Xent.
      features: of NT-Xent.
      dtypes: of NT-Xent.
      images: how many images of how many rows and columns are augmented.
      pretraining: batches of the pretraining step, of shape (batch, height, width, channels).
      checked: images in a check, and their rows and columns.
      vectors: vectors in a check, and their features.
      turn: seconds that a call is repeated in its turn.
    """

    copy: int
    matmul: int
    trees: Mapping[str, Callable[[], trees.Shapes]]
    norms: Mapping[str, tuple[int, ...]]
    pairs: tuple[int, ...]
    features: tuple[int, ...]
    dtypes: tuple[str, ...]
    images: tuple[int, int]
    pretraining: Mapping[str, tuple[int, int, int, int]]
    checked: tuple[int, int]
    vectors: tuple[int, int]
    turn: float


FULL = Sizes(
    copy=1 << 28,
    matmul=8192,
    trees={
        "46M": trees.transformer,
        "350M": functools.partial(trees.transformer, 50257, 1024, 24),
        "1,000 leaves": trees.thousand,
    },
    norms={
        "LayerNorm": (65536, 1024),
        "RMSNorm": (65536, 1024),
        "BatchNorm": (256, 56, 56, 64),
        "GroupNorm": (512, 28, 28, 128),
    },
    pairs=(4096, 16384, 65536, 262144, 1048576),
    features=(128, 256),
    dtypes=("bfloat16", "float32"),
    images=(256, 224),
    pretraining={"digits": (64, 8, 8, 1), "colour": (256, 32, 32, 3)},
    checked=(16, 64),
    vectors=(512, 64),
    turn=0.03,
)
TINY = Sizes(
    copy=1 << 12,
    matmul=64,
    trees={
        "1 layer": functools.partial(trees.transformer, 64, 16, 1),
        "8 leaves": functools.partial(trees.thousand, 8),
    },
    norms={"LayerNorm": (16, 32), "RMSNorm": (16, 32), "BatchNorm": (2, 4, 4, 32), "GroupNorm": (2, 4, 4, 64)},
    pairs=(16, 32),
    features=(8,),
    dtypes=("bfloat16", "float32"),
    images=(2, 16),
    pretraining={"digits": (4, 8, 8, 1)},
    checked=(2, 16),
    vectors=(16, 8),
    turn=0.0,
)
SIZES = {"full": FULL, "tiny": TINY}
