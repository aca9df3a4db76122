"""The page of prose of the room: its code runs as one session, and both loops go on to the same numbers."""

from __future__ import annotations

import pathlib
import re
import signal
from typing import Any

import jax
import numpy as np

import gradxform as gx

PAGE = pathlib.Path(gx.resume.__file__).with_name("README.md")


def test_both_loops_go_on_and_have_as_many_lines_as_it_says() -> None:
    text = PAGE.read_text()
    assert max(map(len, text.splitlines())) <= 120
    begins, ours, by_hand = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    # Of three lines and of sixteen the page speaks; two are those of a loop that does not go on, and imports no lines.
    for code, count in ((ours, 3), (by_hand, 16)):
        lines = [line for line in code.splitlines() if line and not line.startswith("import")]
        assert len([line for line in lines if not re.match(r"\s*(for step in|state, loss =)", line)]) == count
    session: dict[str, Any] = {}
    handler = signal.getsignal(signal.SIGTERM)
    ends = []
    try:
        exec(begins, session)
        for code in (ours, by_hand):
            for steps, folder in ((3, "tempfile.mkdtemp()"), (8, "by_hand")):  # the second goes on
                session["steps"] = steps
                exec(code.replace("tempfile.mkdtemp()", folder), session)
                ends.append([np.asarray(x) for x in jax.tree.leaves(session["state"])])
            assert session["run"].first == 3 and session.get("latest", 2) == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    for a, b in zip(ends[:2], ends[2:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (ends[0][0] != ends[1][0]).any()
