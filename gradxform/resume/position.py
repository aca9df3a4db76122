"""Where a reader of data is, beside a state."""

from __future__ import annotations

import base64
from typing import Any, Protocol

from gradxform.resume.manifest import Json


class Position(Protocol):
    """A reader of data that can say where it is and go there: an iterator of Grain's, for instance.

    Of several processes the first one's is kept, and told to all: it has to be a place among global batches.
    """

    def get_state(self) -> Any:
        """What JSON can hold, or bytes."""

    def set_state(self, state: Any) -> None:
        """Goes there."""


def told(position: Position) -> dict[str, Json]:
    """Where it is, as JSON holds it."""
    state = position.get_state()
    return {"bytes": base64.b64encode(state).decode()} if isinstance(state, bytes) else {"state": state}


def tell(position: Position, saved: dict[str, Json]) -> None:
    """Sends it to where it was."""
    text = saved.get("bytes")
    position.set_state(base64.b64decode(text) if isinstance(text, str) else saved["state"])
