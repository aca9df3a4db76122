"""Where a reader of data is, beside a state."""

from __future__ import annotations

import base64
import json
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
    """Where it is, as JSON holds it.

    Raises:
      TypeError: JSON cannot, or would give back something else.
    """
    state = position.get_state()
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    try:
        back = json.loads(json.dumps(state))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"position: expected bytes or what JSON can hold, got a {type(state).__name__}: {error}"
        ) from error
    if repr(back) != repr(state):
        raise TypeError(f"position: expected what JSON gives back as it is, got {state!r}, of which it makes {back!r}")
    return {"state": state}


def tell(position: Position, saved: dict[str, Json]) -> None:
    """Sends it to where it was."""
    text = saved.get("bytes")
    position.set_state(base64.b64decode(text) if isinstance(text, str) else saved["state"])
