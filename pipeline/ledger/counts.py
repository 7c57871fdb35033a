"""The number of finished rows of an output or a run, by status, and of their tokens."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counts:
    """The number of finished rows by status, of their tokens, and of ok rows with each finding.

    findings: by kind, see pipeline/quality/findings.py; older records have none.
    """

    ok: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    visual_tokens: int = 0
    output_tokens: int = 0
    findings: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.ok + sum(self.errors.values())

    def add(self, other: "Counts") -> None:
        self.ok += other.ok
        self.errors = dict(Counter(self.errors) + Counter(other.errors))
        self.prompt_tokens += other.prompt_tokens
        self.visual_tokens += other.visual_tokens
        self.output_tokens += other.output_tokens
        self.findings = dict(Counter(self.findings) + Counter(other.findings))

    def subtract(self, other: "Counts") -> None:
        self.ok -= other.ok
        self.errors = dict(Counter(self.errors) - Counter(other.errors))
        self.prompt_tokens -= other.prompt_tokens
        self.visual_tokens -= other.visual_tokens
        self.output_tokens -= other.output_tokens
        self.findings = dict(Counter(self.findings) - Counter(other.findings))
