"""What a start finds in a data directory, compared with its register.

Each directory in `collections/` is served, set aside, or none of the shard's business; each
collection that the register names and that is not there is LOST. Nothing that may hold rows is
removed, but for collections whose drop is registered. docs/formats.md lists the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from vectorshard.shard.membership import CollectionState
from vectorshard.shard.storage.data_directory import BUILDING, DataDirectory
from vectorshard.shard.storage.register import Registered, RegisterEntry
from vectorshard.shard.storage.stored_entry import CollectionFiles

_log = structlog.get_logger(__name__)

PUT_BACK: Final = (
    "Put the collection's directory back and restart the shard. If it is lost, a fleet records "
    "that with `vectorshard accept-loss`, through a router"
)
MOVE_BACK: Final = (
    "Move the directory back to where it belongs, put this shard's own one in its place, and "
    "restart the shard"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A collection that a data directory has, or should have.

    `state` is LIVE if it is to be opened, which may still fail; else LOST or FOREIGN, with a reason
    and what an operator does about it. The incarnation is empty if it is unknown. If its files
    could not be read, `was_read` is false: once they are open, they are to be `judged`.
    """

    name: str
    incarnation: str
    path: Path
    state: CollectionState = CollectionState.LIVE
    reason: str = ""
    cure: str = ""
    was_read: bool = True


Look = Callable[[Path], CollectionFiles | None]
"""Says what is in a directory; None if it holds no collection, or is unreadable."""


def take_stock(directory: DataDirectory, look: Look) -> list[Place]:
    """Return the collections of a directory by name; finish what a crash interrupted.

    A directory of an earlier release has its identity and its register from here on. OSError if the
    disk fails.
    """
    found = {path.name: look(path) for path in directory.collection_directories()}
    if not directory.register.is_whole:
        own = ("", directory.directory)
        directory.register.replace(
            (
                RegisterEntry(incarnation=files.incarnation, name=name, state=Registered.LIVE)
                for name, files in found.items()
                if files is not None and files.name == name and files.directory in own
            ),
            unread=(name for name, files in found.items() if files is None),
        )
    directory.raise_life(directory.life)  # writes the identity of a directory that had none
    places = {
        name: place
        for name, files in found.items()
        if (place := judged(directory, name, files)) is not None
    }
    for entry in directory.register.entries:
        if entry.state is Registered.LIVE and entry.name not in places:
            places[entry.name] = _lost(directory, entry)
    for stray in directory.strays():
        _log.warning("stray path ignored", path=str(stray), reason="it is not a collection")
    return [places[name] for name in sorted(places)]


def judged(directory: DataDirectory, name: str, files: CollectionFiles | None) -> Place | None:
    """Return the collection in the directory of this name; None if it holds none.

    It is registered if its create was interrupted, and dropped if its drop was.
    """
    register, path = directory.register, directory.collection_directory(name)
    registered = register.live_incarnation(name)
    if files is None:
        if not registered and not directory.has_files_of_collection(name):
            _log.warning("stray path ignored", path=str(path), reason="it is not a collection")
            return None
        # Opening it says what is wrong, or succeeds: what kept it from being read may be over.
        return Place(name=name, incarnation=registered, path=path, was_read=False)
    if files.name != name:
        if not registered:
            reason = f"it holds a copy of collection {files.name!r}"
            _log.warning("stray path ignored", path=str(path), reason=reason)
            return None
        return _foreign(name, registered, path, f"its files are of collection {files.name!r}")
    incarnation = files.incarnation
    if files.directory not in ("", directory.directory):
        reason = f"its files belong to another data directory than {directory.path}"
        return _foreign(name, registered or incarnation, path, reason)
    if register.state_of(incarnation) is Registered.DROPPED:
        directory.drop_collection(name, incarnation)
        return None
    if registered and registered != incarnation:
        return _foreign(name, registered, path, "its files are of another incarnation")
    if not registered:
        if files.directory and files.has_rows and not register.is_unread(name):
            reason = "its files are a copy of a collection that was dropped"
            return _foreign(name, incarnation, path, reason)
        # Its create was interrupted, or it could not be read when the register was made.
        register.put(incarnation, name, Registered.LIVE)
        _log.info("collection adopted", collection=name, incarnation=incarnation)
    return Place(name=name, incarnation=incarnation, path=path)


def _foreign(name: str, incarnation: str, path: Path, reason: str) -> Place:
    return Place(
        name=name,
        incarnation=incarnation,
        path=path,
        state=CollectionState.FOREIGN,
        reason=reason,
        cure=MOVE_BACK,
    )


def _lost(directory: DataDirectory, entry: RegisterEntry) -> Place:
    path = directory.collection_directory(entry.name)
    reason, cure = "its directory is gone", PUT_BACK
    if path.with_name(BUILDING + path.name).is_dir():
        reason = "its directory is gone, because a repair was interrupted"
        cure = "Stop the shard and end the repair with `vectorshard repair DIR --write`"
    elif path.is_symlink():
        reason = f"its directory is a link to {path.readlink()}, which is absent"
    return Place(
        name=entry.name,
        incarnation=entry.incarnation,
        path=path,
        state=CollectionState.LOST,
        reason=reason,
        cure=cure,
    )
