"""The coordinator's methods that a write task calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mediamill.pipeline.coordinator.deferred import to_bytes
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.state import Rows


@dataclass(frozen=True)
class LedgerCalls:
    """The coordinator's methods that a write task calls. actor: the coordinator's handle."""

    actor: Any

    def finished(self, rows: Rows) -> Rows:
        import ray

        finished: Rows = ray.get(self.actor.finished.remote(rows))
        return finished

    def commit(self, commit: ledger.Commit) -> ledger.CommitReply:
        import ray

        reply: ledger.CommitReply = ray.get(self.actor.commit.remote(commit))
        return reply

    def published(self, files: Mapping[str, int]) -> ledger.CommitReply:
        import ray

        reply: ledger.CommitReply = ray.get(self.actor.published.remote(files))
        return reply

    def defer(self, rows: pa.Table) -> bool:
        """Keeps rows for another try in a later pass; False if there is no room for them."""
        import ray

        is_kept: bool = ray.get(self.actor.defer.remote(to_bytes(rows)))
        return is_kept
