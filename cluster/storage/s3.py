"""An S3 bucket as a store.

Failed requests are retried with exponential backoff and jitter until `Retry.limit_s` have passed without a byte. A read
whose connection is lost or stalls resumes at the byte it reached, in the same version of the object.
"""

import base64
import contextlib
import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from io import BytesIO
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.exceptions
import urllib3.exceptions

from cluster.errors import DamagedError, InputError, NotFound, StorageUnavailable
from cluster.storage.base import Retry, Traffic, join

MAX_PAUSE_S = 10.0
# Bytes per read of a body, lost if the connection is lost meanwhile: smaller steps after the first failure.
STEP, SMALL_STEP = 8 << 20, 1 << 20
MAX_KEYS_PER_DELETE = 1000  # of one DeleteObjects request
_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_MISSING = {"404", "NoSuchKey", "NotFound"}
_REFUSED = {"400", "401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
# Retryable codes with a status below 500, or none (in a DeleteObjects response); the last: concurrent writers.
_TRANSIENT = {"SlowDown", "RequestTimeout", "IncompleteBody", "BadDigest", "InternalError", "ServiceUnavailable"}
_TRANSIENT |= {"ConditionalRequestConflict"}
# Lost or stalled connections. While a body is read they are outside boto3's own retries (boto/boto3#4111).
_CONNECTION_LOST = (
    urllib3.exceptions.HTTPError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    ConnectionError,
    TimeoutError,
)


def s3_client(retry: Retry) -> Any:
    """A boto3 client from the standard AWS environment variables, AWS_ENDPOINT_URL included."""
    config = botocore.config.Config(
        # A few quick retries of boto3's own, for the parts of an upload; the rest are S3Store's.
        retries={"mode": "standard", "total_max_attempts": 3},
        connect_timeout=min(10.0, retry.stall_s),
        read_timeout=retry.stall_s,
        max_pool_connections=64,
        # Older S3 servers do not know these checksums: only where the API requires them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client = boto3.session.Session().client("s3", config=config)
    client.meta.events.register("before-call.s3.DeleteObjects", _add_content_md5)
    return client


def _add_content_md5(params: dict[str, Any], **_: Any) -> None:
    """Older S3 servers require it for DeleteObjects; boto3 sends only a CRC."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


class S3Store:
    """A bucket and a prefix. Errors name the URL and the fix."""

    def __init__(self, url: str, retry: Retry):
        self.url = url.rstrip("/")
        self.traffic = Traffic()
        self._retry = retry
        self._bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise InputError(f"{url}: no bucket in the URL; expected s3://bucket/prefix")
        self._prefix = f"{prefix}/" if prefix else ""

    # Without the client: sockets and credentials must not be sent to another process.
    def __reduce__(self) -> tuple[type["S3Store"], tuple[str, Retry]]:
        return S3Store, (self.url, self._retry)

    @cached_property
    def _client(self) -> Any:
        try:
            client = s3_client(self._retry)
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise InputError(f"{self.url}: {error}; set AWS_REGION and AWS_ENDPOINT_URL") from error
        client.meta.events.register("before-send.s3", self._count_retry)
        return client

    def _count_retry(self, request: Any, **_: Any) -> None:
        """Counts boto3's own retries: a header of each request has the number of its attempt."""
        if b"attempt=1" not in request.headers.get("amz-sdk-request", b"attempt=1"):
            self.traffic.add(retries=1)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        if end is not None and end <= start:
            return b""
        parts: list[bytes] = []
        received, etag, backoff = 0, None, _Backoff(self._retry, self.traffic)
        while True:
            before = expected = received
            try:
                with self._translate_errors(key):
                    response = self._open(key, start + before, end, etag)
                    etag, expected = response["ETag"], before + response["ContentLength"]
                    for chunk in response["Body"].iter_chunks(SMALL_STEP if backoff.retries else STEP):
                        parts.append(chunk)
                        received += len(chunk)
                return self._counted(parts)
            except StorageUnavailable as error:
                if before < expected == received:
                    return self._counted(parts)  # the connection was lost after the last byte
                backoff.wait(error, progress=received > before)

    def _open(self, key: str, start: int, end: int | None, etag: str | None) -> dict[str, Any]:
        """One ranged GET; with an ETag, of that version of the object only."""
        request = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        if etag:
            request["IfMatch"] = etag
        response: dict[str, Any] = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **request)
        return response

    def _counted(self, parts: list[bytes]) -> bytes:
        data = b"".join(parts)
        self.traffic.add(read_bytes=len(data))
        return data

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
        except DamagedError:  # it exists; perhaps this is our own, from an attempt whose response was lost
            return self.get(key) == data
        return True

    def list(self, prefix: str = "") -> list[str]:
        def found() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

        return sorted(key.removeprefix(self._prefix) for key in self._call(prefix, found))

    def delete(self, *keys: str) -> None:
        for start in range(0, len(keys), MAX_KEYS_PER_DELETE):
            batch = keys[start : start + MAX_KEYS_PER_DELETE]
            self._call(batch[0], partial(self._delete, batch))

    def _delete(self, keys: Sequence[str]) -> None:
        if len(keys) == 1:
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + keys[0])
            return
        objects = [{"Key": self._prefix + key} for key in keys]
        response = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
        for error in response.get("Errors", ()):
            raise botocore.exceptions.ClientError({"Error": error}, "DeleteObjects")

    def _call(self, key: str, request: Callable[[], _T]) -> _T:
        """Makes an idempotent request, with retries."""
        backoff = _Backoff(self._retry, self.traffic)
        while True:
            try:
                with self._translate_errors(key):
                    return request()
            except StorageUnavailable as error:
                backoff.wait(error)

    @contextlib.contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        """Turns errors of boto3 and of connections into this system's; retryable ones into StorageUnavailable."""
        place = join(self.url, key)
        try:
            yield
        except botocore.exceptions.ClientError as error:
            raise _translate(error, place) from error
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
            raise InputError(f"{place}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        except (botocore.exceptions.CredentialRetrievalError, botocore.exceptions.MetadataRetrievalError) as error:
            raise StorageUnavailable(f"{place}: the credentials provider failed: {error}") from error
        except botocore.exceptions.EndpointConnectionError as error:
            raise StorageUnavailable(f"{place}: {error}; is AWS_ENDPOINT_URL right?") from error
        except botocore.exceptions.ParamValidationError as error:
            raise InputError(f"{place}: {' '.join(str(error).split())}") from error
        except _CONNECTION_LOST as error:
            raise StorageUnavailable(f"{place}: connection lost: {error}") from error


class _Backoff:
    """The pauses between the attempts of one request, and their limit."""

    def __init__(self, retry: Retry, traffic: Traffic) -> None:
        self._retry, self._traffic = retry, traffic
        self._since, self._in_a_row, self._warned = time.monotonic(), 0, False
        self.retries = 0

    def wait(self, error: StorageUnavailable, progress: bool = False) -> None:
        """Sleeps before the next attempt. Raises StorageUnavailable if the limit has passed without progress."""
        now = time.monotonic()
        if progress:
            self._since, self._in_a_row = now, 0
        left = max(0.0, self._since + self._retry.limit_s - now)
        if not left and self._in_a_row:  # at least one retry: the first attempt may have stalled for the whole time
            raise StorageUnavailable(f"{error} (retried for {self._retry.limit_s:.0f} s)") from error
        self._in_a_row += 1
        self.retries += 1
        if self._in_a_row == 4 and not self._warned:
            _log.warning("%s; retrying for %.0f s", error, left)
            self._warned = True
        self._traffic.add(retries=1, resumed_reads=int(progress))
        time.sleep(min(left, random.uniform(0, min(MAX_PAUSE_S, 0.1 * 2**self._in_a_row))))  # noqa: S311


def _translate(error: botocore.exceptions.ClientError, place: str) -> Exception:
    details = error.response.get("Error", {})
    code, status = str(details.get("Code")), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status == 501:
        return InputError(f"{place}: not implemented by the server ({code}); use one that has PUT with If-None-Match")
    if status >= 500 or status == 429 or code in _TRANSIENT:
        return StorageUnavailable(f"{place}: {code} {details.get('Message', '')}".rstrip())
    if code in ("412", "PreconditionFailed"):
        return DamagedError(f"{place}: replaced by another writer during the request")
    if code == "NoSuchBucket":
        return InputError(f"{place}: no such bucket; create it, or check the URL and AWS_ENDPOINT_URL")
    if code in _MISSING:
        return NotFound(f"{place}: no such object")
    if code in ("416", "InvalidRange"):
        return DamagedError(f"{place}: shorter than the requested range")
    if code in _REFUSED:
        return InputError(
            f"{place}: access denied ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    return InputError(f"{place}: request rejected ({code} {details.get('Message', '')})")
