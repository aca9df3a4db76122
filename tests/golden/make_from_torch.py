"""Makes from_torch.npz: what torch's side of ``examples/from_torch.py`` leaves after each step, in float64.

Run by hand where torch is installed (2.13 made the file that is kept here); tests and example need only the file:

    python tests/golden/make_from_torch.py
"""

from __future__ import annotations

import pathlib
import runpy

import numpy as np

HERE = pathlib.Path(__file__).parent


def main() -> None:
    """Writes the file."""
    example = runpy.run_path(str(HERE.parents[1] / "examples" / "from_torch.py"))
    arrays = {
        f"{name}/{key}": value
        for name, pair in example["IDIOMS"].items()
        for key, value in example["stacked"](pair.torch()).items()
    }
    np.savez_compressed(HERE / "from_torch.npz", **arrays)


if __name__ == "__main__":
    main()
