"""Rules of membership, each left out on purpose: the histories must show what it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from tests.simulation.fleet_shard import Server
from vectorshard.router.fan_out import memory, verdicts
from vectorshard.shard import witnesses
from vectorshard.shard.membership import (
    AcceptedLoss,
    CollectionReport,
    CollectionState,
    ShardReport,
    Statement,
)

Break = Callable[[pytest.MonkeyPatch], None]


def _leaves_no_tombstone(patch: pytest.MonkeyPatch) -> None:
    """A drop removes the register's entry."""

    def drop(server: Server, session: int, incarnation: str) -> bool:
        server.require(session)
        known = server.disk.register.pop(incarnation, None) is not None
        store = server.held(incarnation)
        if store is not None:
            del server.disk.stores[store.name]
        server._changed()
        return known

    patch.setattr(Server, "drop", drop)


def _raises_no_life(patch: pytest.MonkeyPatch) -> None:
    real = Server.accept_loss

    def accept_loss(server: Server, losses: Sequence[AcceptedLoss], life: int) -> None:
        real(server, losses, life)
        server.disk.life = 1

    patch.setattr(Server, "accept_loss", accept_loss)


def _compares_numbers_alone(patch: pytest.MonkeyPatch) -> None:
    def has_commit(collection: CollectionReport, statement: Statement) -> bool:
        return statement.sequence <= collection.sequence

    patch.setattr(witnesses, "has_commit", has_commit)
    patch.setattr(verdicts, "has_commit", has_commit)


def _keeps_only_the_highest(patch: pytest.MonkeyPatch) -> None:
    """Statements are merged by their numbers: a contradiction is hidden."""

    def newer_statements(
        kept: Sequence[Statement], new: Statement, reported: CollectionReport | None = None
    ) -> tuple[Statement, ...]:
        return (max((*kept, new), key=lambda each: (each.life, each.sequence, each.session)),)

    patch.setattr(witnesses, "newer_statements", newer_statements)


def _has_no_witnesses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(witnesses, "newer_statements", lambda kept, new, reported=None: ())


def _ignores_stages(patch: pytest.MonkeyPatch) -> None:
    """Only rows prove that a collection was whole, and a create is complete at once."""
    patch.setattr(verdicts, "proves_whole", lambda collection: False)
    patch.setattr(
        verdicts._Examination, "_other_directory", lambda self, incarnation, report, own=(): ""
    )


def _ignores_directories(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        verdicts._Examination, "_other_directory", lambda self, incarnation, report, own=(): ""
    )


def _accuses_with_slow_reports(patch: pytest.MonkeyPatch) -> None:
    """What is heard in a round accuses in it."""
    real = memory.Memory.acknowledged

    def acknowledged(self: memory.Memory, token: Any) -> None:
        real(self, token)
        self._state_acknowledged()

    patch.setattr(memory.Memory, "acknowledged", acknowledged)


def _judges_at_first_sight(patch: pytest.MonkeyPatch) -> None:
    """A shard is judged by what was known before it, or what it remembers itself, was heard."""
    patch.setattr(memory.Memory, "has_examined", lambda self, report, answering: True)


def _keeps_the_session_of_lost_numbers(patch: pytest.MonkeyPatch) -> None:
    """After an accepted loss, lost numbers belong to the session that wrote those before them."""
    real = Server.accept_loss

    def accept_loss(server: Server, losses: Sequence[AcceptedLoss], life: int) -> None:
        before = {
            store.incarnation: (store.first_sequences, store.sessions)
            for store in server.disk.stores.values()
        }
        try:
            real(server, losses, life)
        finally:
            for store in server.disk.stores.values():
                if store.incarnation in before:
                    store.first_sequences, store.sessions = before[store.incarnation]

    patch.setattr(Server, "accept_loss", accept_loss)


def _serves_foreign_files(patch: pytest.MonkeyPatch) -> None:
    def held(server: Server, incarnation: str) -> Any:
        stores = server.disk.stores.values()
        return next((each for each in stores if each.incarnation == incarnation), None)

    patch.setattr(Server, "held", held)


def _ignores_lost_files(patch: pytest.MonkeyPatch) -> None:
    """The register does not say that files are gone."""
    real = Server.report

    def report(server: Server) -> ShardReport:
        whole = real(server)
        kept = [each for each in whole.collections if each.state is not CollectionState.LOST]
        return replace(whole, collections=tuple(kept))

    patch.setattr(Server, "report", report)


def _forgets_drops(patch: pytest.MonkeyPatch) -> None:
    """Whoever has dropped a collection does not say so when an old disk brings it back."""
    patch.setattr(Server, "_recall", lambda self, others: None)


MUTATIONS: Final[dict[str, tuple[Break, int]]] = {
    "a drop leaves no tombstone": (_leaves_no_tombstone, 53),
    "an accepted loss raises no life": (_raises_no_life, 1),
    "numbers are compared alone": (_compares_numbers_alone, 221),
    "only the highest statement is kept": (_keeps_only_the_highest, 221),
    "there are no witnesses": (_has_no_witnesses, 43),
    "stages and directories are ignored": (_ignores_stages, 27),
    "directories are ignored": (_ignores_directories, 3),
    "slow reports are accused": (_accuses_with_slow_reports, 6),
    "shards are judged at first sight": (_judges_at_first_sight, 475),
    "lost numbers keep their session": (_keeps_the_session_of_lost_numbers, 43),
    "foreign files are served": (_serves_foreign_files, 133),
    "lost files are not reported": (_ignores_lost_files, 171),
    "finished drops are forgotten": (_forgets_drops, 1071),
}
"""Each with the number of a history that shows it; others do as well."""
