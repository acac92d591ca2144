"""What a router logs of missing shards: each loss once, and its end. No clock, no input or output.

A shard that is only restarted, or not yet cross-examined, is no loss: nothing is logged of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import structlog

from vectorshard.router.fan_out.verdicts import CollectionVerdict
from vectorshard.shard.errors import CollectionDamaged, ShardMissing, VectorShardError

_log = structlog.get_logger(__name__)


class MissingLog:
    """Which missing shards the log names."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], tuple[str, str]] = {}

    def tell(
        self,
        absent: Mapping[str, Mapping[int, VectorShardError]],
        answered: Collection[int],
        verdicts: Mapping[str, CollectionVerdict],
    ) -> None:
        """Log what has changed since the last round.

        Parameters
        ----------
        absent
            The leaf shards that must not be asked, and why, by incarnation.
        answered
            The leaf shards that made a report in this round.
        verdicts
            Of this round, by incarnation.
        """
        for incarnation, errors in absent.items():
            verdict = verdicts.get(incarnation)
            name = verdict.name if verdict is not None else ""
            for shard, error in errors.items():
                told = name, str(error)
                lost = isinstance(error, ShardMissing | CollectionDamaged)
                if lost and self._told.get((incarnation, shard)) != told:
                    self._told[incarnation, shard] = told
                    _log.error("shard missing", shard=shard, collection=name, reason=str(error))
        for (incarnation, shard), (name, _) in list(self._told.items()):
            # One that does not answer, or is not judged yet, may still have lost its rows.
            if shard in answered and shard not in absent.get(incarnation, {}):
                del self._told[incarnation, shard]
                _log.warning("shard no longer missing", shard=shard, collection=name)
