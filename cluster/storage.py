"""Objects by URL: a bucket with a prefix (s3://bucket/prefix) or a folder.

The protocol is what a run needs and no more: get, put, list, delete. Both stores keep one law
(tests/cluster/test_storage.py): a put is seen whole or not at all, and a get returns the bytes of one version.
"""

import contextlib
import os
import random
import tempfile
import time
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Protocol

import boto3
import botocore.config
import botocore.exceptions
import urllib3.exceptions

from cluster.errors import DamagedError, InputError, NotFound, StorageUnavailable

READ_TRIES = 6
S3_CALL_TRIES = 8
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_REFUSED = {"400", "401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
# What a body that is cut or stalls raises while it is read: outside boto3's own retries (boto/boto3#4111).
_BROKEN_BODY = (
    urllib3.exceptions.HTTPError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    ConnectionError,
    TimeoutError,
)


class Store(Protocol):
    """Objects under one URL; keys are relative and use '/'."""

    url: str

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes [start, end) of an object (end None: to its end). Raises NotFound."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Writes an object whole; readers see the old one or the new one."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with the prefix, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        ...


def open_store(url: str | Path) -> Store:
    """The store of a URL. Nothing is contacted until the first call."""
    url = str(url)
    if url.startswith("s3://"):
        return S3Store(url)
    if "://" in url:
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
        self._root = Path(self.url)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        try:
            with open(self._path(key), "rb") as file:
                file.seek(start)
                return file.read() if end is None else file.read(end - start)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{join(self.url, key)}: no such file") from None
        except PermissionError:
            raise InputError(f"{join(self.url, key)}: not readable by this user") from None

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, data)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error

    def list(self, prefix: str = "") -> list[str]:
        # Only the folder that the prefix names is walked, not the whole store.
        start = self._root / prefix.rpartition("/")[0]
        found = (p.relative_to(self._root).as_posix() for p in start.rglob("*") if p.is_file())
        return sorted(key for key in found if key.startswith(prefix) and not key.endswith(_PARTIAL))

    def delete(self, key: str) -> None:
        path = self._path(key)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # an empty folder is no object: S3 would not show it either
            path.parent.rmdir()

    def _path(self, key: str) -> Path:
        return self._root / key


_PARTIAL = ".partial"
_UMASK = os.umask(0o022)  # can only be read by setting it
os.umask(_UMASK)
_FILE_MODE = 0o666 & ~_UMASK


def _write_whole(path: Path, data: bytes) -> None:
    """Writes beside the path, makes the bytes durable, then renames: no crash leaves half a file under the name."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, _FILE_MODE)  # mkstemp's is for this user alone
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def s3_client():
    """A boto3 client of the standard AWS variables, AWS_ENDPOINT_URL included; one per process and store."""
    config = botocore.config.Config(
        retries={"mode": "standard", "total_max_attempts": S3_CALL_TRIES},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=64,
        # Checksums that older S3 servers do not know are sent and asked for only where the API demands them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", config=config)


class S3Store:
    """A bucket and a prefix. Every error names the URL and what to mend."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise InputError(f"{url}: no bucket named; expected s3://bucket/prefix")
        self._prefix = f"{prefix}/" if prefix else ""

    def __getstate__(self) -> dict:
        # A client holds sockets and credentials: neither travels to another process.
        return {name: value for name, value in self.__dict__.items() if name != "_client"}

    @cached_property
    def _client(self):
        try:
            return s3_client()
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise InputError(f"{self.url}: {error}; set AWS_REGION and AWS_ENDPOINT_URL") from error

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        if end is not None and end <= start:
            return b""
        received, etag = bytearray(), None
        for attempt in range(READ_TRIES):
            if attempt:
                time.sleep(random.uniform(0, min(10, 0.2 * 2**attempt)))
            try:
                response = self._open(key, start + len(received), end, etag)
                etag = response["ETag"]
                for chunk in response["Body"].iter_chunks(1 << 20):
                    received += chunk
                return bytes(received)
            except _BROKEN_BODY as error:
                broken = error
        raise StorageUnavailable(f"{join(self.url, key)}: still broken off after {READ_TRIES} tries: {broken}")

    def _open(self, key: str, start: int, end: int | None, etag: str | None) -> dict:
        """One ranged GET; after the first, only of the same version of the object."""
        wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        if etag:
            wanted["IfMatch"] = etag
        with self._explained(key):
            return self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **wanted)

    def put(self, key: str, data: bytes) -> None:
        with self._explained(key):
            self._client.upload_fileobj(BytesIO(data), self._bucket, self._prefix + key)

    def list(self, prefix: str = "") -> list[str]:
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            found = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return sorted(key.removeprefix(self._prefix) for key in found)

    def delete(self, key: str) -> None:
        with self._explained(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    @contextlib.contextmanager
    def _explained(self, key: str):
        """Turns boto's errors into ours."""
        place = join(self.url, key)
        try:
            yield
        except botocore.exceptions.ClientError as error:
            raise _explain(error, place) from error
        except boto3.exceptions.S3UploadFailedError as error:
            cause = error.__context__
            known = isinstance(cause, botocore.exceptions.ClientError)
            raise (_explain(cause, place) if known else StorageUnavailable(f"{place}: {error}")) from error
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
            raise InputError(f"{place}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        except botocore.exceptions.EndpointConnectionError as error:
            raise StorageUnavailable(f"{place}: {error}; is AWS_ENDPOINT_URL right?") from error
        except botocore.exceptions.ParamValidationError as error:
            raise InputError(f"{place}: {' '.join(str(error).split())}") from error


def _explain(error: botocore.exceptions.ClientError, place: str) -> Exception:
    answer = error.response.get("Error", {})
    code = str(answer.get("Code"))
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
    return StorageUnavailable(f"{place}: {code} {answer.get('Message', '')}".rstrip())
