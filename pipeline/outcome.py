"""Ends a run: makes its rows visible, and writes its summary as a note into the output."""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from mediamill.pipeline.faults import Drained, RunError
from mediamill.pipeline.ledger import ledger, recovery
from mediamill.pipeline.ledger.state import Counts, LedgerState
from mediamill.pipeline.plan import Plan
from mediamill.pipeline.retry import chosen_rows
from mediamill.pipeline.storage import storage
from mediamill.schemas.result import Summary, summary_dict

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A run and its rows.

    state: of the output's ledger. before: rows that were finished when the run began.
    started: when it began, on the monotonic clock, in seconds.
    left: rows that it has to do.
    """

    plan: Plan
    state: LedgerState
    before: int
    started: float
    run_id: str
    left: int = 0

    @property
    def total(self) -> int:
        """The rows that are finished at the end of the run."""
        return self.before + self.left

    def finish(
        self,
        engines_replaced: int,
        bottleneck: str | None = None,
        engine_rows_s: float | None = None,
        advice: str | None = None,
        later: int = 0,
    ) -> Summary:
        """Makes all rows visible, marks the output as finished, and returns the summary.

        bottleneck: the pool that limited the rate. engine_rows_s, advice: see Summary.
        later: rows that are left for a later run; the output is then not marked as finished.
        Raises RunError when a newer run owns the output.
        """
        try:
            recovery.flush(self.plan.output, self.state)
        except ledger.TakenOverError as error:
            raise RunError(str(error)) from error
        summary = self.summary(self.state.run_counts)
        summary = replace(
            summary,
            engines_replaced=engines_replaced,
            binds=bottleneck,
            engine_rows_s=engine_rows_s,
            advice=advice,
            later=later,
        )
        note = self._note(summary_dict(summary))
        if not ledger.end(self.plan.output, self.state, summary_dict(summary)):
            return summary
        chosen_rows.remove(self.plan.output)
        is_complete = self.state.counts.rows >= self.plan.manifest.rows  # a retry leaves new rows
        if is_complete and not later:
            recovery.mark_finished(self.plan.output, note)
        return summary

    def finish_stopped(self, error: RunError) -> None:
        """Makes the finished rows of a stopped run visible, as far as possible."""
        try:
            recovery.flush(self.plan.output, self.state)
            summary = summary_dict(self.summary(self.state.run_counts)) | {
                "stopped": str(error),
                "on_request": isinstance(error, Drained),
            }
            self._note(summary)
            ledger.end(self.plan.output, self.state, summary)
        except Exception as failure:  # noqa: BLE001 - the user has to see why the run stopped
            _LOG.info("the rows of this run become visible with the next one: %s", failure)

    def finish_idle(self) -> Summary:
        """Returns the summary of a run that had nothing to do, after a note of it, if possible."""
        summary = self.summary(Counts())
        with suppress(Exception):  # nothing but the list of runs needs it
            self._note(summary_dict(summary) | {"idle": True})
        return summary

    def summary(self, counts: Counts) -> Summary:
        """Returns the summary. counts: of the rows that this run finished."""
        return Summary(
            rows=self.state.counts.rows,
            ok=self.state.counts.ok,
            errors=self.state.counts.errors,
            new_errors=counts.errors,
            skipped=self.before,
            prompt_tokens=counts.prompt_tokens,
            visual_tokens=counts.visual_tokens,
            output_tokens=counts.output_tokens,
            seconds=time.monotonic() - self.started,
            output=storage.redact(self.plan.output.url),
            run_id=self.run_id,
            fingerprint=self.plan.fingerprint,
            findings=self.state.counts.findings,
        )

    def _note(self, summary: Mapping[str, object]) -> str:
        """Writes the note, and returns its text."""
        if (retry := self.plan.retry) is not None:
            summary = {**summary, "retry": {"where": retry.where, "changed": retry.changed_text}}
        note = json.dumps(summary, indent=1)
        place = self.plan.output / ledger.HIDDEN / "runs" / f"{self.run_id}.json"
        storage.put(place, note.encode())
        return note
