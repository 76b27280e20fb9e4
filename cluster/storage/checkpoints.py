"""Checkpoints of a run: parts first, a small manifest last; without a manifest there is no checkpoint.

    checkpoints/{images_seen:012d}/PART ...      in any order
    checkpoints/{images_seen:012d}/manifest.json a Checkpoint as JSON, with sha256 and bytes of every part

This module is the only one that writes, finds, verifies and removes them. Uploads run in a thread of their own beside
training, one at a time; the store tries again what fails, and what it cannot do is raised at the next save or wait.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TypeVar

from cluster.errors import DamagedError, NotFound
from cluster.storage.base import Store, join

MANIFEST = "manifest.json"
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its manifest, and where its parts lie. `score` is None where nothing was measured.

    `committed_at` is Unix time.
    """

    images_seen: int
    score: float | None
    files: Mapping[str, Mapping[str, str | int]]
    committed_at: float = 0.0

    @property
    def size_bytes(self) -> int:
        """Of all parts."""
        return sum(int(file["bytes"]) for file in self.files.values())


@dataclass
class Uploads:
    """What became of checkpoints in this process, and of the newest."""

    committed: int = 0
    failures: int = 0
    """Uploads that were given up, and damaged ones that were found at the start."""
    seconds: float = 0.0
    size_bytes: int = 0
    committed_at: float = 0.0
    """In Unix time; 0 before the first."""

    def newest_is(self, checkpoint: Checkpoint) -> None:
        """Takes over what is known of the newest."""
        self.size_bytes, self.committed_at = checkpoint.size_bytes, checkpoint.committed_at


class Checkpoints:
    """Those of the run that lies in a store. `keep` newest and the one of the best score survive each save.

    `may_commit` is called before anything is changed and before each manifest, and raises where the run is no longer
    the caller's to write.
    """

    def __init__(self, store: Store, keep: int = 2, may_commit: Callable[[], None] = lambda: None) -> None:
        self._store, self._keep, self._may_commit = store, keep, may_commit
        self.uploads = Uploads()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._upload: Future[None] | None = None

    def save(self, images_seen: int, parts: Mapping[str, bytes], score: float | None = None) -> None:
        """Starts an upload and returns. Raises what the upload before it raised."""
        self.wait()
        self._upload = self._thread.submit(self._counted, images_seen, parts, score)

    @property
    def uploading(self) -> bool:
        """Whether an upload is under way."""
        return self._upload is not None and not self._upload.done()

    def wait(self) -> None:
        """Returns when nothing is being uploaded. Raises what the last upload raised."""
        if self._upload is not None:
            upload, self._upload = self._upload, None
            upload.result()

    def list(self) -> list[Checkpoint]:
        """The committed ones, oldest first. One whose manifest cannot be read counts as damaged, and is left out."""
        keys = [key for key in self._store.list("checkpoints/") if key.endswith(f"/{MANIFEST}")]
        return [found for key in sorted(keys) if (found := self._read_manifest(key))]

    def url(self, checkpoint: Checkpoint) -> str:
        """Where a checkpoint lies."""
        return join(self._store.url, _folder(checkpoint.images_seen))

    def newest(self) -> tuple[Checkpoint, dict[str, bytes]] | None:
        """The newest that verifies, with its parts; damaged ones are named in the log and passed over."""
        return self._newest(lambda checkpoint: (checkpoint, self.load(checkpoint)))

    def resume(self) -> Checkpoint | None:
        """The newest that verifies. Damaged ones lose their manifest, or they would count among the newest for ever.

        For the writer of the run alone.
        """
        found = self.newest()
        self._may_commit()
        for checkpoint in self.list():
            if found is None or checkpoint.images_seen > found[0].images_seen:
                self._store.delete(f"{_folder(checkpoint.images_seen)}/{MANIFEST}")
                self.uploads.failures += 1
        if found:
            self.uploads.newest_is(found[0])
        return found and found[0]

    def newest_part(self, name: str) -> bytes | None:
        """One part of the newest checkpoint of which it verifies."""
        return self._newest(lambda checkpoint: self.load_part(checkpoint, name))

    def _newest(self, load: Callable[[Checkpoint], _T]) -> _T | None:
        for checkpoint in reversed(self.list()):
            try:
                return load(checkpoint)
            except (DamagedError, NotFound) as error:
                _log.warning("checkpoint refused, the one before is used: %s", error)
        return None

    def load(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        """All parts of a checkpoint. Raises DamagedError or NotFound naming the part."""
        return {name: self.load_part(checkpoint, name) for name in checkpoint.files}

    def load_part(self, checkpoint: Checkpoint, name: str) -> bytes:
        """One verified part. Raises DamagedError or NotFound naming it."""
        key = f"{_folder(checkpoint.images_seen)}/{name}"
        data = self._store.get(key)
        if hashlib.sha256(data).hexdigest() != checkpoint.files[name]["sha256"]:
            raise DamagedError(f"{join(self._store.url, key)}: its bytes are not those that were saved")
        return data

    def _counted(self, images_seen: int, parts: Mapping[str, bytes], score: float | None) -> None:
        try:
            self._commit(images_seen, parts, score)
        except Exception:
            self.uploads.failures += 1
            raise

    def _commit(self, images_seen: int, parts: Mapping[str, bytes], score: float | None) -> None:
        folder, start = _folder(images_seen), time.monotonic()
        self._may_commit()
        # A manifest that is there already must not vouch for bytes that are being replaced.
        self._store.delete(f"{folder}/{MANIFEST}")
        for name, data in parts.items():
            self._store.put(f"{folder}/{name}", data)
        files = {n: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)} for n, d in parts.items()}
        checkpoint = Checkpoint(images_seen, score, files, committed_at=time.time())
        self._may_commit()
        self._store.put(f"{folder}/{MANIFEST}", json.dumps(asdict(checkpoint), indent=2).encode())
        self.uploads.newest_is(checkpoint)
        self.uploads.committed += 1
        self.uploads.seconds = time.monotonic() - start
        self._remove_unfinished(folder)
        self._retain()

    def _retain(self) -> None:
        """Removes all but the newest few and the best; manifest first, so that what is half removed is none."""
        found = self.list()
        scored = [c for c in found if c.score is not None]
        best = max(scored, key=lambda c: (c.score, c.images_seen), default=None)
        for old in found[: -self._keep]:
            if old is not best:
                for name in (MANIFEST, *old.files):
                    self._store.delete(f"{_folder(old.images_seen)}/{name}")

    def _remove_unfinished(self, newest: str) -> None:
        """Parts without a readable manifest in folders before the newest: what a killed upload left."""
        keys = self._store.list("checkpoints/")
        finished = {_folder(checkpoint.images_seen) for checkpoint in self.list()}
        for key in keys:
            if (folder := key.rpartition("/")[0]) < newest and folder not in finished:
                self._store.delete(key)

    def _read_manifest(self, key: str) -> Checkpoint | None:
        try:
            return Checkpoint(**json.loads(self._store.get(key)))
        except (NotFound, ValueError, TypeError) as error:
            _log.warning("%s: unreadable manifest passed over: %s", join(self._store.url, key), error)
            return None


def _folder(images_seen: int) -> str:
    # Fixed width: the order of names is the order of training.
    return f"checkpoints/{images_seen:012d}"
