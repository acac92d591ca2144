"""A target in an object store that speaks S3. Needs the extra `s3`; nothing else imports obstore.

Credentials, region, endpoint and server-side encryption come from the environment: obstore reads
the variables AWS_*. docs/backups.md names those that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from vectorshard.backup.failures import ObjectExists, ObjectNotFound, TargetError
from vectorshard.backup.targets import StoredObject

try:
    import obstore
    from obstore import exceptions
    from obstore.store import S3Store
except ImportError as error:
    raise TargetError(
        "a target in an object store needs the extra s3: pip install 'vectorshard[s3]'"
    ) from error

if TYPE_CHECKING:
    from obstore import PutMode

T = TypeVar("T")

REQUEST_TIMEOUT: Final = timedelta(seconds=60)
RETRIES_MAX: Final = 8
RETRY_TIMEOUT: Final = timedelta(minutes=3)
"""How long one request is repeated while the store is unreachable or overloaded."""
MULTIPART_BYTES: Final = 64 * 1024 * 1024
"""Objects above this size are stored in parts: S3 takes at most 5 GiB in one request."""


class S3Target:
    """The objects below a prefix: `where` is s3://BUCKET/PREFIX."""

    def __init__(self, where: str) -> None:
        bucket, _, prefix = where.removeprefix("s3://").partition("/")
        if not bucket:
            raise TargetError(f"{where}: expected s3://BUCKET/PREFIX")
        self._where = where.rstrip("/")
        self._prefix = prefix.strip("/")
        try:
            self._store = S3Store(
                bucket,
                # Plain HTTP only where the endpoint says so: the default is HTTPS.
                client_options={"timeout": REQUEST_TIMEOUT, "allow_http": True},
                retry_config={"max_retries": RETRIES_MAX, "retry_timeout": RETRY_TIMEOUT},
            )
        except (exceptions.BaseError, ValueError) as error:
            raise TargetError(f"{where}: {_text_of(error)}") from error

    @property
    def where(self) -> str:
        """The target, as s3://BUCKET/PREFIX."""
        return self._where

    def put(self, name: str, contents: bytes, *, if_absent: bool = False) -> None:
        """Store an object; with `if_absent`, ObjectExists if there is one."""
        mode: PutMode = "create" if if_absent else "overwrite"
        in_parts = not if_absent and len(contents) > MULTIPART_BYTES
        put = partial(obstore.put, self._store, self._path(name), contents, mode=mode)
        self._ask(name, lambda: put(use_multipart=in_parts))

    def get(self, name: str) -> bytes:
        """Return an object; ObjectNotFound if it is absent."""
        path = self._path(name)
        return self._ask(name, lambda: bytes(obstore.get(self._store, path).bytes()))

    def get_range(self, name: str, first: int, size_bytes: int) -> bytes:
        """Return a part of an object; ObjectNotFound if it is absent."""
        path = self._path(name)
        return self._ask(
            name,
            lambda: bytes(obstore.get_range(self._store, path, start=first, length=size_bytes)),
        )

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects below a folder, by name."""
        pages = obstore.list(self._store, prefix=self._path(prefix))
        before = len(self._prefix) + 1 if self._prefix else 0

        def next_page() -> Sequence[StoredObject]:
            return [
                StoredObject(
                    name=found["path"][before:],
                    size_bytes=found["size"],
                    written_at=found["last_modified"].timestamp(),
                )
                for found in next(pages, [])
            ]

        while page := self._ask(prefix, next_page):
            yield from page

    def delete(self, name: str) -> None:
        """Delete an object; one that is absent changes nothing."""
        path = self._path(name)
        with suppress(ObjectNotFound):
            self._ask(name, lambda: obstore.delete(self._store, path))

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _ask(self, name: str, request: Callable[[], T]) -> T:
        where = f"{self._where}/{name}"
        try:
            return request()
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            raise ObjectNotFound(f"{where} does not exist: {_text_of(error)}") from error
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise ObjectExists(f"{where} exists already") from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise TargetError(f"{where}: {_text_of(error)}") from error


def _text_of(error: Exception) -> str:
    """Return the first lines of an error: obstore appends how it looks inside."""
    return " ".join(str(error).partition("\n\nDebug source:")[0].split())
