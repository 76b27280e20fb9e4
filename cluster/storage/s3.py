"""A bucket as a store.

An object store that fails is asked again, with random pauses that grow, until `Retry.limit_s` have passed without a
byte; a body that is cut or stalls continues from the byte it reached, of the same version of the object.
"""

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from io import BytesIO
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.exceptions
import urllib3.exceptions

from cluster.errors import DamagedError, InputError, NotFound, StorageUnavailable
from cluster.storage.base import Retry, Traffic, join

MAX_PAUSE_S = 10.0
# What is taken from a body at once, and lost when it is cut meanwhile; after the first cut less is risked.
STEP, SMALL_STEP = 8 << 20, 1 << 20
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
        parts: list[bytes] = []
        received, etag, tries = 0, None, _Tries(self._retry, self.traffic)
        while True:
            before = expected = received
            try:
                with self._explained(key):
                    response = self._open(key, start + before, end, etag)
                    etag, expected = response["ETag"], before + response["ContentLength"]
                    for chunk in response["Body"].iter_chunks(SMALL_STEP if tries.made else STEP):
                        parts.append(chunk)
                        received += len(chunk)
                return self._counted(parts)
            except StorageUnavailable as error:
                if before < expected == received:
                    return self._counted(parts)  # cut behind its last byte
                tries.pause(error, progress=received > before)

    def _open(self, key: str, start: int, end: int | None, etag: str | None) -> dict[str, Any]:
        """One ranged GET; after the first, only of the same version of the object."""
        wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        if etag:
            wanted["IfMatch"] = etag
        return self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **wanted)

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
        self.made = 0

    def pause(self, error: StorageUnavailable, progress: bool = False) -> None:
        """Sleeps before the next try. Raises StorageUnavailable when the limit is reached without progress."""
        now = time.monotonic()
        if progress:
            self._since, self._in_a_row = now, 0
        left = max(0.0, self._since + self._retry.limit_s - now)
        if not left and self._in_a_row:  # one more try in any case: the first may have been silent for the whole time
            raise StorageUnavailable(f"{error} (given up after {self._retry.limit_s:.0f} s)") from error
        self._in_a_row += 1
        self.made += 1
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
