"""Makes the rules by which a run writes its rows."""

from typing import TYPE_CHECKING

from mediamill.pipeline.ladder.steps import Ladder
from mediamill.pipeline.outcome import Outcome
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.job import JobConfig

if TYPE_CHECKING:
    from mediamill.pipeline.stages.write import OutputRules


def output_rules(job: JobConfig, outcome: Outcome) -> "OutputRules":
    """Returns the rules of a run."""
    from mediamill.pipeline.stages.write import OutputRules

    plan, retry = outcome.plan, outcome.plan.retry
    constants = {
        c.MODEL: storage.redact(job.model),
        c.FINGERPRINT: plan.fingerprint,
        c.RUN_ID: outcome.run_id,
    }
    return OutputRules(
        *(plan.output.url, plan.schema, job.partition_by, job.rows_per_file, constants),
        retries=retry is not None,
        changed=None if retry is None else retry.changed_text,
        questions=plan.task.questions,
        language=job.alarms.expect_language,
        ladder=Ladder(job.retries),
        constrained=job.json_answers.constrained,
    )
