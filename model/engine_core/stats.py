"""Statistics of an engine."""

from dataclasses import dataclass


@dataclass
class EngineStats:
    """Totals since the engine was made, unless stated otherwise.

    prompt_tokens: computed. reused_tokens: of prompts, taken from the cache or shared in a prefill.
    visual_tokens: made by the vision tower. generated_tokens: of outputs.
    prefill_seconds, decode_seconds: of the host, waiting for the device included. vision_seconds:
        the part of prefill_seconds spent in the vision tower.
    rows, rows_peak: running sequences, now and at most after any admission.
    pages: of the cache, slots of a contiguous cache included; 0 before the first request.
    pages_in_use, pages_peak: now, and at most after any admission.
    cache_tokens: capacity of the cache.
    shortages: how often memory ran out in a step.
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
