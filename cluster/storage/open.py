"""The store of a URL: a folder, or a bucket with a prefix (s3://bucket/prefix)."""

import re
from pathlib import Path

from cluster.errors import InputError
from cluster.storage.base import Retry, Store
from cluster.storage.folder import FolderStore


def open_store(url: str | Path, retry: Retry | None = None) -> Store:
    """The store of a URL; makes no request. Raises InputError for other schemes."""
    url = str(url)
    if url.startswith("s3://"):
        from cluster.storage.s3 import S3Store  # boto3 may not be installed; folders do not need it

        return S3Store(url, retry or Retry())
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):  # above all pipe: and the like: a URL must never run a command
        raise InputError(f"{url}: unsupported scheme; expected a folder or s3://bucket/prefix")
    return FolderStore(url)


def read_url(url: str) -> bytes:
    """The bytes of one file or object named by its full URL. Raises NotFound."""
    parent, _, name = str(url).rstrip("/").rpartition("/")
    return open_store(parent or ("/" if str(url).startswith("/") else ".")).get(name)
