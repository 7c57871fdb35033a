"""Turns what the ledger knows when a run ends into a Summary, and into a note in the output.

Why a run ended is handed in; how it ran is not known here.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ledger import ledger, staging
from mediamill.pipeline.ledger.state import Counts, LedgerState
from mediamill.pipeline.plan import Plan
from mediamill.pipeline.storage import storage
from mediamill.schemas.result import Summary, summary_dict

_LOG = logging.getLogger(__name__)
_CHAINED = "The above exception was the direct cause of the following exception"


@dataclass(frozen=True)
class Outcome:
    """What can be said of one run, at its end.

    before: rows that were finished when it began. started: on the monotonic clock, in seconds.
    """

    plan: Plan
    state: LedgerState
    before: int
    started: float
    run_id: str

    def finish(self, engines: int, binds: str | None = None) -> Summary:
        """Makes all rows visible, and notes that they are there.

        engines: that broke and were replaced. binds: the stage that the others waited for. Raises
        RunError when a newer run owns the output.
        """
        try:
            staging.flush(self.plan.output, self.state)
        except ledger.TakenOverError as error:
            raise RunError(str(error)) from error
        made = self.summary(self.state.run_counts)
        summary = replace(made, engines_replaced=engines, binds=binds)
        note = self._note(summary_dict(summary))
        if ledger.end(self.plan.output, self.state, summary_dict(summary)):
            staging.mark_finished(self.plan.output, note)
        return summary

    def keep(self, stopped: RunError) -> None:
        """Makes visible what a run that stopped has finished, as far as that is possible."""
        try:
            staging.flush(self.plan.output, self.state)
            said = summary_dict(self.summary(self.state.run_counts))
            said = {**said, "stopped": str(stopped)}
            self._note(said)
            ledger.end(self.plan.output, self.state, said)
        except Exception as error:  # noqa: BLE001 - why the run stopped is what the user has to know
            _LOG.info("what this run has finished becomes visible with the next one: %s", error)

    def summary(self, made: Counts) -> Summary:
        """Of a run that made so much itself."""
        return Summary(
            rows=self.state.counts.rows,
            ok=self.state.counts.ok,
            errors=self.state.counts.errors,
            skipped=self.before,
            prompt_tokens=made.prompt_tokens,
            visual_tokens=made.visual_tokens,
            output_tokens=made.output_tokens,
            seconds=time.monotonic() - self.started,
            output=storage.redact(self.plan.output.url),
            run_id=self.run_id,
            fingerprint=self.plan.fingerprint,
        )

    def _note(self, said: Mapping[str, object]) -> str:
        note = json.dumps(said, indent=1)
        place = self.plan.output / ledger.HIDDEN / "runs" / f"{self.run_id}.json"
        storage.put(place, note.encode())
        return note


def reason(error: BaseException) -> str:
    """The first cause of what Ray raised, in one line."""
    while isinstance(inner := getattr(error, "cause", None) or error.__cause__, BaseException):
        if _CHAINED in str(error):
            # An error of the stages' own: only the text of the remote traceback knows it.
            return _raised(str(error).partition(_CHAINED)[0].splitlines())
        error = inner
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _raised(traceback: Sequence[str]) -> str:
    """The line after the last frame, without the names of modules."""
    lines = [line for line in traceback if line.strip()]
    frames = [number for number, line in enumerate(lines) if line.startswith(" ")]
    name, colon, message = lines[min(frames[-1] + 1, len(lines) - 1) if frames else 0].partition(
        ":"
    )
    return f"{name.rpartition('.')[2]}{colon}{message}"
