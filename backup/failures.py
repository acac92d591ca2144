"""What fails with a target, or with a backup in it: part of the tree of shard.errors."""

from __future__ import annotations

from vectorshard.shard.errors import CorruptData, VectorShardError


class TargetError(VectorShardError):
    """A read or write of a backup's target failed."""


class ObjectNotFound(TargetError):
    """The target has no object of this name."""


class ObjectExists(TargetError):
    """The target has an object of this name already."""


class BackupNotFound(TargetError):
    """The target has no backup of this name, or no backup at all."""


class FormatUnknown(TargetError):
    """A release with another format of manifests wrote the backup."""


class BackupAmbiguous(TargetError):
    """The target has no backup that is obviously the one: the operator has to name it."""


class BackupDamaged(CorruptData):
    """An object of a backup is missing, or does not match its checksum."""


class BackupIncomplete(VectorShardError):
    """Rows are damaged, or a shard is missing: only a partial backup can be made."""


class DirectoryNotEmpty(VectorShardError):
    """A restore needs an empty directory."""
