"""The number of finished rows of an output or a run, by status, and of their tokens."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counts:
    """The number of finished rows by status, and of their tokens."""

    ok: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    visual_tokens: int = 0
    output_tokens: int = 0

    @property
    def rows(self) -> int:
        return self.ok + sum(self.errors.values())

    def add(self, other: "Counts") -> None:
        self.ok += other.ok
        self.errors = dict(Counter(self.errors) + Counter(other.errors))
        self.prompt_tokens += other.prompt_tokens
        self.visual_tokens += other.visual_tokens
        self.output_tokens += other.output_tokens

    def subtract(self, other: "Counts") -> None:
        self.ok -= other.ok
        self.errors = dict(Counter(self.errors) - Counter(other.errors))
        self.prompt_tokens -= other.prompt_tokens
        self.visual_tokens -= other.visual_tokens
        self.output_tokens -= other.output_tokens
