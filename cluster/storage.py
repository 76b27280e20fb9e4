"""Objects by URL: a bucket with a prefix (s3://bucket/prefix) or a folder.

The protocol is what a run needs and no more: get, put, create, list, delete. Both stores keep one law
(tests/cluster/test_storage.py): a put is seen whole or not at all, and a get returns the bytes of one version.

An object store that fails is asked again, with random pauses that grow, until `Retry.limit_s` have passed without a
byte; a body that is cut or stalls continues from the byte it reached, of the same version of the object.
"""

import contextlib
import logging
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

import boto3
import botocore.config
import botocore.exceptions
import urllib3.exceptions

from cluster.errors import DamagedError, InputError, NotFound, StorageUnavailable

MAX_PAUSE_S = 10.0
_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_MISSING = {"404", "NoSuchKey", "NotFound"}
_REFUSED = {"400", "401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
# Answers below 500 that another try may well change; the last is that of two writers at the same moment.
_TRANSIENT = {"SlowDown", "RequestTimeout", "IncompleteBody", "BadDigest", "ConditionalRequestConflict"}
# A connection that is cut or silent. While a body is read they are outside boto3's own retries (boto/boto3#4111).
_BROKEN = (
    urllib3.exceptions.HTTPError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    ConnectionError,
    TimeoutError,
)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long an object store that fails is asked again; folders are not."""

    limit_s: float = 300.0
    """Seconds without a byte, after which it counts as gone. Ranks wait for each other longer than that."""
    stall_s: float = 30.0
    """Seconds of silence after which a connection counts as broken."""


@dataclass
class Traffic:
    """What was read through a store, and how often it had to be asked again."""

    read_bytes: int = 0
    retries: int = 0
    resumed_reads: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, read_bytes: int = 0, retries: int = 0, resumed_reads: int = 0) -> None:
        """Adds to the counters; many threads may."""
        with self._lock:
            self.read_bytes += read_bytes
            self.retries += retries
            self.resumed_reads += resumed_reads


class Store(Protocol):
    """Objects under one URL; keys are relative and use '/'."""

    url: str
    traffic: Traffic

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes [start, end) of an object (end None: to its end). Raises NotFound."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Writes an object whole; readers see the old one or the new one."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Writes an object if there is none. False where one with other bytes is there.

        Of callers at the same moment one wins on folders and on AWS. OpenStack Swift looks before it writes: there
        several may be told that they won, and the bytes of the last of them stay.
        """
        ...

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with the prefix, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        ...


def open_store(url: str | Path, retry: Retry | None = None) -> Store:
    """The store of a URL. Nothing is contacted until the first call."""
    url = str(url)
    if url.startswith("s3://"):
        return S3Store(url, retry or Retry())
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):  # pipe: and its like above all: no URL is ever a command
        raise InputError(f"{url}: only folders and s3://bucket/prefix can be used")
    return FolderStore(url)


def join(url: str | Path, *parts: str) -> str:
    """The URL of something under another: join("s3://b/p", "x") == "s3://b/p/x"."""
    return "/".join([str(url).rstrip("/"), *parts])


def absolute(url: str | Path) -> str:
    """The same place for a process in another folder."""
    return str(url) if "://" in str(url) else str(Path(url).expanduser().absolute())


def read_url(url: str) -> bytes:
    """The bytes of one file or object named by its full URL. Raises NotFound."""
    parent, _, name = str(url).rstrip("/").rpartition("/")
    return open_store(parent or ("/" if str(url).startswith("/") else ".")).get(name)


class FolderStore:
    """A folder on a file system that all readers share."""

    def __init__(self, url: str):
        self.url = absolute(url)
        self.traffic = Traffic()
        self._root = Path(self.url)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        try:
            with open(self._path(key), "rb") as file:
                file.seek(start)
                data = file.read() if end is None else file.read(end - start)
            self.traffic.add(read_bytes=len(data))
            return data
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{join(self.url, key)}: no such file") from None
        except PermissionError:
            raise InputError(f"{join(self.url, key)}: not readable by this user") from None

    def put(self, key: str, data: bytes) -> None:
        self._write(key, data, os.replace)

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._write(key, data, _link)
        except FileExistsError:
            return self.get(key) == data
        return True

    def _write(self, key: str, data: bytes, place: Callable[[str, Path], None]) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, data, place)
        except FileExistsError:
            raise
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error

    def list(self, prefix: str = "") -> list[str]:
        # Only the folder that the prefix names is walked, not the whole store.
        start = self._root / prefix.rpartition("/")[0]
        # os.walk passes over folders that somebody removes meanwhile; links to folders are not followed.
        files = (Path(folder, name) for folder, _, names in os.walk(start) for name in names)
        found = (path.relative_to(self._root).as_posix() for path in files)
        return sorted(key for key in found if key.startswith(prefix) and not key.endswith(_PARTIAL))

    def delete(self, key: str) -> None:
        path = self._path(key)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # an empty folder is no object: S3 would not show it either
            left = list(path.parent.iterdir())
            if all(other.name.endswith(_PARTIAL) for other in left):  # what killed writers left
                for partial in left:
                    partial.unlink(missing_ok=True)
                path.parent.rmdir()

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise InputError(f"{key!r}: leads out of {self.url}")
        return self._root / key


_PARTIAL = ".partial"
_UMASK = os.umask(0o022)  # can only be read by setting it
os.umask(_UMASK)
_FILE_MODE = 0o666 & ~_UMASK


def _write_whole(path: Path, data: bytes, place: Callable[[str, Path], None]) -> None:
    """Writes beside the path, makes the bytes durable, then names them: no crash leaves half a file under the name."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, _FILE_MODE)  # mkstemp's is for this user alone
        place(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _link(partial: str, path: Path) -> None:
    """Names the file if the name is free, in one step (NFS included). Raises FileExistsError."""
    os.link(partial, path)
    os.unlink(partial)


def s3_client(retry: Retry):
    """A boto3 client of the standard AWS variables, AWS_ENDPOINT_URL included; one per process and store."""
    config = botocore.config.Config(
        # A few quick tries of its own, for the parts of an upload; beyond these the store asks again.
        retries={"mode": "standard", "total_max_attempts": 3},
        connect_timeout=min(10.0, retry.stall_s),
        read_timeout=retry.stall_s,
        max_pool_connections=64,
        # Checksums that older S3 servers do not know are sent and asked for only where the API demands them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", config=config)


class S3Store:
    """A bucket and a prefix. Every error names the URL and what to mend."""

    def __init__(self, url: str, retry: Retry):
        self.url = url.rstrip("/")
        self.traffic = Traffic()
        self._retry = retry
        self._bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise InputError(f"{url}: no bucket named; expected s3://bucket/prefix")
        self._prefix = f"{prefix}/" if prefix else ""

    # A client holds sockets and credentials: neither travels to another process.
    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "retry": self._retry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    @cached_property
    def _client(self):
        try:
            client = s3_client(self._retry)
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise InputError(f"{self.url}: {error}; set AWS_REGION and AWS_ENDPOINT_URL") from error
        client.meta.events.register("before-send.s3", self._count_retry)
        return client

    def _count_retry(self, request: Any, **_: Any) -> None:
        """boto3's own retries count, too; it writes into each request which attempt it is."""
        if b"attempt=1" not in request.headers.get("amz-sdk-request", b"attempt=1"):
            self.traffic.add(retries=1)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        if end is not None and end <= start:
            return b""
        received, etag, tries = bytearray(), None, _Tries(self._retry, self.traffic)
        while True:
            before = expected = len(received)
            try:
                with self._explained(key):
                    response = self._open(key, start + before, end, etag)
                    etag, expected = response["ETag"], before + response["ContentLength"]
                    for chunk in response["Body"].iter_chunks(1 << 20):
                        received += chunk
                return self._counted(received)
            except StorageUnavailable as error:
                if before < expected == len(received):
                    return self._counted(received)  # cut behind its last byte
                tries.pause(error, progress=len(received) > before)

    def _open(self, key: str, start: int, end: int | None, etag: str | None) -> dict[str, Any]:
        """One ranged GET; after the first, only of the same version of the object."""
        wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        if etag:
            wanted["IfMatch"] = etag
        return self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **wanted)

    def _counted(self, received: bytearray) -> bytes:
        self.traffic.add(read_bytes=len(received))
        return bytes(received)

    def put(self, key: str, data: bytes) -> None:
        self._call(key, lambda: self._client.upload_fileobj(BytesIO(data), self._bucket, self._prefix + key))

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._call(
                key,
                lambda: self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*"
                ),
            )
        except DamagedError:  # there is one; perhaps ours, of an attempt whose answer was lost
            return self.get(key) == data
        return True

    def list(self, prefix: str = "") -> list[str]:
        def found() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

        return sorted(key.removeprefix(self._prefix) for key in self._call(prefix, found))

    def delete(self, key: str) -> None:
        self._call(key, lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key))

    def _call(self, key: str, request: Callable[[], _T]) -> _T:
        """A request that may be made twice without harm, made until it is answered."""
        tries = _Tries(self._retry, self.traffic)
        while True:
            try:
                with self._explained(key):
                    return request()
            except StorageUnavailable as error:
                tries.pause(error)

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Turns the errors of boto3 and of connections into ours; those that may pass into StorageUnavailable."""
        place = join(self.url, key)
        try:
            yield
        except botocore.exceptions.ClientError as error:
            raise _explain(error, place) from error
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
            raise InputError(f"{place}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        except (botocore.exceptions.CredentialRetrievalError, botocore.exceptions.MetadataRetrievalError) as error:
            raise StorageUnavailable(f"{place}: no credentials from their provider now: {error}") from error
        except botocore.exceptions.EndpointConnectionError as error:
            raise StorageUnavailable(f"{place}: {error}; is AWS_ENDPOINT_URL right?") from error
        except botocore.exceptions.ParamValidationError as error:
            raise InputError(f"{place}: {' '.join(str(error).split())}") from error
        except _BROKEN as error:
            raise StorageUnavailable(f"{place}: broken off: {error}") from error


class _Tries:
    """The pauses between the tries of one request, and their limit."""

    def __init__(self, retry: Retry, traffic: Traffic) -> None:
        self._retry, self._traffic = retry, traffic
        self._since, self._in_a_row, self._told = time.monotonic(), 0, False

    def pause(self, error: StorageUnavailable, progress: bool = False) -> None:
        """Sleeps before the next try. Raises StorageUnavailable when the limit is reached without progress."""
        now = time.monotonic()
        if progress:
            self._since, self._in_a_row = now, 0
        left = max(0.0, self._since + self._retry.limit_s - now)
        if not left and self._in_a_row:  # one more try in any case: the first may have been silent for the whole time
            raise StorageUnavailable(f"{error} (given up after {self._retry.limit_s:.0f} s)") from error
        self._in_a_row += 1
        if self._in_a_row == 4 and not self._told:
            _log.warning("%s; trying again for %.0f s", error, left)
            self._told = True
        self._traffic.add(retries=1, resumed_reads=int(progress))
        time.sleep(min(left, random.uniform(0, min(MAX_PAUSE_S, 0.1 * 2**self._in_a_row))))


def _explain(error: botocore.exceptions.ClientError, place: str) -> Exception:
    answer = error.response.get("Error", {})
    code, status = str(answer.get("Code")), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status == 501:
        return InputError(f"{place}: the server cannot do this ({code}); a store needs PUT with If-None-Match")
    if status >= 500 or status == 429 or code in _TRANSIENT:
        return StorageUnavailable(f"{place}: {code} {answer.get('Message', '')}".rstrip())
    if code in ("412", "PreconditionFailed"):
        return DamagedError(f"{place}: was replaced while it was read")
    if code == "NoSuchBucket":
        return InputError(f"{place}: no such bucket; create it or mend the URL (AWS_ENDPOINT_URL names the server)")
    if code in _MISSING:
        return NotFound(f"{place}: no such object")
    if code in ("416", "InvalidRange"):
        return DamagedError(f"{place}: is shorter than the range asked for")
    if code in _REFUSED:
        return InputError(
            f"{place}: refused ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    return InputError(f"{place}: refused ({code} {answer.get('Message', '')})")
