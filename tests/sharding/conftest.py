"""Puts ``value_catalog`` on the import path."""

from __future__ import annotations

import pathlib
import sys

CORE = str(pathlib.Path(__file__).parents[1] / "core")
sys.path += [CORE] if CORE not in sys.path else []
