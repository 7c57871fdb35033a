"""Runs the job's engine on a few prepared rows, to measure its speed and the answers' lengths."""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mediamill.pipeline.ray_cluster.pool_sizes import Pools
from mediamill.schemas import columns as c
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import Task

_WARM_ROWS = 4


@dataclass
class EngineTotals:
    """Seconds of the engine by phase, and what it did meanwhile. other_s: between the phases.

    load_s: to import its libraries and load the checkpoint; library_s: to import them.
    memory: of this process after it.
    """

    rows: int = 0
    visual_tokens: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    other_s: float = 0.0
    load_s: float = 0.0
    library_s: float = 0.0
    memory: int = 0

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return self.vision_s + self.prefill_s + self.decode_s + self.other_s


class EngineRun:
    """The job's engine in this process. It loads torch."""

    def __init__(
        self,
        manifest: ManifestSchema,
        job: JobConfig,
        task: Task,
        checkpoint: Path,
        pools: Pools,
    ) -> None:
        started = time.monotonic()
        from mediamill.pipeline.stages.generate import EngineSize, Generate

        library_s = time.monotonic() - started
        size = EngineSize.of(pools)
        self._generate = Generate(manifest, job, checkpoint, lambda _: None, size, task=task)
        self.totals = EngineTotals(load_s=time.monotonic() - started, library_s=library_s)
        self._warm = False

    def run(self, tables: Sequence[pa.Table]) -> tuple[list[int], list[str | None]]:
        """Returns the output tokens of each row, and its error code."""
        table = pa.concat_tables(tables)
        if not self._warm:  # the first rows of a process are slow
            self._warm = True
            self._generate(table.slice(0, _WARM_ROWS))
        before, started = self._generate.stats, time.monotonic()
        vision, prefill, decode = (
            before.vision_seconds,
            before.prefill_seconds,
            before.decode_seconds,
        )
        result = self._generate(table)
        wall = time.monotonic() - started
        after, totals = self._generate.stats, self.totals
        outputs = [int(tokens or 0) for tokens in result[c.OUTPUT_TOKENS].to_pylist()]
        codes = result[c.ERROR_CODE].to_pylist()
        vision = after.vision_seconds - vision
        prefill = after.prefill_seconds - prefill - vision
        decode = after.decode_seconds - decode
        totals.vision_s += vision
        totals.prefill_s += prefill
        totals.decode_s += decode
        totals.other_s += max(0.0, wall - vision - prefill - decode)
        totals.rows += table.num_rows
        totals.output_tokens += sum(outputs)
        totals.prompt_tokens += sum(
            sum(map(len, prompts or ())) for prompts in table[c.INPUT_IDS].to_pylist()
        )
        totals.visual_tokens += sum(
            int(tokens or 0)
            for tokens, code in zip(
                table[c.VISUAL_TOKENS].to_pylist(), table[c.ERROR_CODE].to_pylist(), strict=True
            )
            if code is None
        )
        totals.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return outputs, codes
