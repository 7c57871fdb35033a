"""What an engine has done so far, counted.

Turns the events that the engine reports into one frozen record. It does not know requests.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """Since the engine was made. Tokens: of prompts computed, of prompts taken over from other
    rows, made by the vision tower, generated. Seconds: of the host, the waiting for results
    included; those of the vision tower are part of the prefill's.

    pages: of the cache, shelves' slots among them; 0 before the first request. `rows`,
    `pages_in_use`: now; their peaks: the most at the end of any step's admission. shortages: times
    that memory ran out in a step.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    visual_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    prefill_seconds: float = 0.0
    vision_seconds: float = 0.0
    decode_seconds: float = 0.0
    rows: int = 0
    rows_peak: int = 0
    pages: int = 0
    pages_in_use: int = 0
    pages_peak: int = 0
    cache_tokens: int = 0
    admitted: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    shortages: int = 0


class Tally:
    """Counts up. Its fields are those of `EngineStats` that are events."""

    def __init__(self) -> None:
        self.prompt_tokens = self.reused_tokens = self.generated_tokens = self.steps = 0
        self.prefill_seconds = self.decode_seconds = 0.0
        self.rows_peak = self.pages_peak = 0
        self.admitted = self.finished = self.cancelled = self.failed = self.shortages = 0
