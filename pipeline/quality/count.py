"""Counts the findings of a table of answers, and says when a job's alarms stop it."""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from mediamill.pipeline.ledger.state import Counts
from mediamill.pipeline.quality.findings import KINDS, findings
from mediamill.pipeline.quality.repeated_texts import RepeatedTexts
from mediamill.schemas import columns as c
from mediamill.schemas.job_alarms import Alarms
from mediamill.schemas.task import Question


def count_findings(
    table: pa.Table, questions: Sequence[Question], language: str | None
) -> tuple[dict[str, int], RepeatedTexts]:
    """Returns the number of rows with each finding, and the texts of the table.

    table: of result rows; a question without a column of texts is left out. A row counts once for
    each kind, whatever number of its answers has it. language: see `findings`.
    """
    counts: Counter[str] = Counter()
    texts = RepeatedTexts()
    by_row: list[set[str]] = [set() for _ in range(table.num_rows)]
    names = set(table.column_names)
    for question in questions:
        if question.column(c.TEXT) not in names:
            continue
        answers = [
            table[question.column(name)].to_pylist()
            for name in (c.TEXT, c.FINISH_REASON, c.MEAN_LOGPROB)
        ]
        for kinds, (text, reason, logprob) in zip(by_row, zip(*answers, strict=True), strict=True):
            kinds.update(findings(text, reason, logprob, language))
        texts.add(text for text in answers[0] if text is not None)
    for kinds in by_row:
        counts.update(kinds)
    return dict(counts), texts


def alarm(alarms: Alarms, counts: Counts, repeated: tuple[str, int] | None) -> str | None:
    """Returns why the job should stop, or None.

    counts: of the run's finished rows. repeated: its commonest text, and that text's rows.
    """
    if counts.ok < alarms.rows:
        return None
    text, same = repeated or ("", 0)
    for kind in (*KINDS, "repeated"):
        highest = getattr(alarms, kind)
        rows = same if kind == "repeated" else counts.findings.get(kind, 0)
        if highest is not None and rows > highest * counts.ok:
            example = f" (such as {text!r})" if kind == "repeated" else ""
            return (
                f"too many answers have the finding {kind}{example}: found {rows} of {counts.ok} "
                f"in this run, expected at most {100 * highest:g} % (alarms.{kind}); finished rows "
                f"are kept: fix the cause, or raise alarms.{kind}"
            )
    return None
