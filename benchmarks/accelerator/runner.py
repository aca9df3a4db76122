"""Running cases one after another, or several at once where no time counts, whatever becomes of each."""

from __future__ import annotations

import dataclasses
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from benchmarks import harness
from benchmarks.accelerator.budget import Budget, TimeUp
from benchmarks.accelerator.build import reason
from benchmarks.accelerator.cases import Case, Missing, Session
from benchmarks.accelerator.record import ERROR, NOT_RUN, Record


@dataclasses.dataclass
class Runner:
    """What all cases have in common.

    Attributes:
      record: where what became of them is kept.
      budget: the time for all.
      session: what they are given, each with its own lap.
    """

    record: Record
    budget: Budget
    session: Session

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def run(self, cases: Sequence[Case]) -> None:
        """Runs the cases that are due: first those that are not timed, as many at once as there are cores."""
        due = [case for case in cases if self.record.due(case.name)]
        if len(due) < len(cases):
            print(f"{len(cases) - len(due)} of {len(cases)} cases are in the record already")
        untimed, timed = [case for case in due if not case.timed], [case for case in due if case.timed]
        self._rest = sum(case.weight for case in due)
        queue = iter(untimed)

        def work() -> None:
            while True:
                with self._lock:
                    case = next(queue, None)
                if case is None:
                    return
                self._one(case)

        workers = [threading.Thread(target=work, daemon=True) for _ in range(min(harness.cores(), len(untimed)))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for case in timed:
            self._one(case)

    def _one(self, case: Case) -> None:
        start = time.perf_counter()
        entry = self._tried(case)
        with self._lock:
            self._rest -= case.weight
        entry = {"room": case.room, **entry, "seconds": round(time.perf_counter() - start, 2)}
        self.record.put(case.name, entry)
        told = entry.get("reason") or entry.get("error") or ""
        print(f"[{self.budget.used:5.0f} s] {case.name}: {entry['status']}{told and f' ({told[:160]})'}", flush=True)

    def _tried(self, case: Case) -> dict[str, Any]:
        try:
            with self._lock:
                lap = self.budget.lap(case.weight, self._rest)
            return case.run(dataclasses.replace(self.session, lap=lap))
        except TimeUp as error:
            return {"status": NOT_RUN, "reason": f"time: {error}"}
        except Missing as error:
            return {"status": NOT_RUN, "reason": str(error)}
        except Exception as error:  # whatever it is: the others go on
            where = traceback.extract_tb(error.__traceback__)[-1]
            return {"status": ERROR, "error": reason(error), "where": f"{where.name}, line {where.lineno}"}
