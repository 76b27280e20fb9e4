"""Checkpoints of a run: parts first, a small manifest last. Without a manifest there is no checkpoint.

    checkpoints/{images_seen:012d}/PART ...      in any order
    checkpoints/{images_seen:012d}/manifest.json a Checkpoint as JSON, with sha256 and bytes of every part

Only this module writes, lists, verifies and deletes them. Uploads run in a background thread, one at a time; the store
retries failed requests, and what it raises in the end is raised by the next `save` or `wait`.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TypeVar

from cluster.errors import DamagedError, NotFound
from cluster.storage.base import Store, join
from cluster.storage.records import read_record

MANIFEST = "manifest.json"
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Part:
    """Of a checkpoint: an object that the manifest vouches for."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """The manifest of a committed checkpoint. `score` is None if none was measured; `committed_at` is Unix time."""

    images_seen: int
    score: float | None
    files: Mapping[str, Part]
    committed_at: float = 0.0

    @property
    def folder(self) -> str:
        """The prefix of its keys."""
        return _folder(self.images_seen)

    @property
    def size_bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for part in self.files.values())


@dataclass
class Uploads:
    """Counters of this process's uploads, and the newest checkpoint's size and time."""

    committed: int = 0
    failures: int = 0
    """Failed uploads, and damaged checkpoints found at resume."""
    seconds: float = 0.0
    """What the last upload took."""
    size_bytes: int = 0
    committed_at: float = 0.0
    """Unix time; 0 before the first."""

    def set_newest(self, checkpoint: Checkpoint) -> None:
        """Takes size and time of the newest checkpoint."""
        self.size_bytes, self.committed_at = checkpoint.size_bytes, checkpoint.committed_at


class Checkpoints:
    """The checkpoints of the run in a store. Retention keeps the `keep` newest and the one with the best score.

    `may_commit` is called before anything is changed and before each manifest is written; it raises if this
    process may no longer write to the run. The writer is the only one, so it lists the store once, at `resume` or the
    first save, and then remembers what it committed.
    """

    def __init__(self, store: Store, keep: int = 2, may_commit: Callable[[], None] = lambda: None) -> None:
        self._store, self._keep, self._may_commit = store, keep, may_commit
        self.uploads = Uploads()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._upload: Future[None] | None = None
        self._committed: dict[int, Checkpoint] | None = None
        """By images_seen; None until the store was listed."""
        self._uncommitted: set[str] = set()
        """Keys that belong to no checkpoint, because an upload failed or the checkpoint is damaged."""

    def save(self, images_seen: int, parts: Mapping[str, bytes], score: float | None = None) -> None:
        """Starts an upload and returns. Raises what the previous upload raised."""
        self.wait()
        self._upload = self._thread.submit(self._save, images_seen, parts, score)

    @property
    def uploading(self) -> bool:
        """Whether an upload is running."""
        return self._upload is not None and not self._upload.done()

    def wait(self) -> None:
        """Waits for the running upload. Raises what it raised."""
        if self._upload is not None:
            upload, self._upload = self._upload, None
            upload.result()

    def list(self) -> list[Checkpoint]:
        """The committed checkpoints, oldest first, without those whose manifest cannot be read."""
        return [*self._read_manifests(self._store.list("checkpoints/"))]

    def url(self, checkpoint: Checkpoint) -> str:
        """The URL of a checkpoint's folder."""
        return join(self._store.url, checkpoint.folder)

    def newest(self) -> tuple[Checkpoint, dict[str, bytes]] | None:
        """The newest checkpoint that verifies, with its parts; damaged ones are logged and skipped."""
        return self._newest(self.list(), lambda checkpoint: (checkpoint, self.load(checkpoint)))

    def resume(self) -> tuple[Checkpoint, dict[str, bytes]] | None:
        """`newest` for the writer of the run: also deletes the manifests of newer, damaged checkpoints.

        Otherwise retention would count these among the newest forever.
        """
        committed = self._list_for_writing()
        found = self._newest(committed.values(), lambda checkpoint: (checkpoint, self.load(checkpoint)))
        self._may_commit()
        damaged = [c for c in committed.values() if found is None or c.images_seen > found[0].images_seen]
        if damaged:
            self._store.delete(*(f"{checkpoint.folder}/{MANIFEST}" for checkpoint in damaged))
        for checkpoint in damaged:
            del committed[checkpoint.images_seen]
            self._uncommitted |= {f"{checkpoint.folder}/{name}" for name in checkpoint.files}
        self.uploads.failures += len(damaged)
        if found:
            self.uploads.set_newest(found[0])
        return found

    def newest_part(self, name: str) -> bytes | None:
        """One part of the newest checkpoint in which this part verifies."""
        return self._newest(self.list(), lambda checkpoint: self.load_part(checkpoint, name))

    def best_part(self, name: str) -> bytes | None:
        """One part of the checkpoint with the best score, or of the newest if none has one, in which it verifies."""
        lowest = float("-inf")
        best_last = sorted(self.list(), key=lambda c: (lowest if c.score is None else c.score, c.images_seen))
        return self._newest(best_last, lambda checkpoint: self.load_part(checkpoint, name))

    def _newest(self, checkpoints: Iterable[Checkpoint], load: Callable[[Checkpoint], _T]) -> _T | None:
        for checkpoint in reversed([*checkpoints]):
            try:
                return load(checkpoint)
            except (DamagedError, NotFound) as error:
                _log.warning("damaged checkpoint, falling back to the previous one: %s", error)
        return None

    def load(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        """All parts of a checkpoint. Raises DamagedError or NotFound naming the part."""
        return {name: self.load_part(checkpoint, name) for name in checkpoint.files}

    def load_part(self, checkpoint: Checkpoint, name: str) -> bytes:
        """One verified part. Raises DamagedError or NotFound naming it."""
        key = f"{checkpoint.folder}/{name}"
        data = self._store.get(key)
        if hashlib.sha256(data).hexdigest() != checkpoint.files[name].sha256:
            raise DamagedError(f"{join(self._store.url, key)}: sha256 differs from the manifest's")
        return data

    def _save(self, images_seen: int, parts: Mapping[str, bytes], score: float | None) -> None:
        start = time.monotonic()
        try:
            self._may_commit()
            committed = self._list_for_writing() if self._committed is None else self._committed
            checkpoint = self._upload_and_commit(committed, images_seen, parts, score)
            self.uploads.set_newest(checkpoint)
            self.uploads.committed += 1
            self.uploads.seconds = time.monotonic() - start
            self._retain(committed, checkpoint)
        except Exception:
            self.uploads.failures += 1
            raise

    def _upload_and_commit(
        self, committed: dict[int, Checkpoint], images_seen: int, parts: Mapping[str, bytes], score: float | None
    ) -> Checkpoint:
        folder = _folder(images_seen)
        manifest = f"{folder}/{MANIFEST}"
        # An old manifest must not vouch for bytes that are being replaced.
        if committed.pop(images_seen, None) or manifest in self._uncommitted:
            self._store.delete(manifest)
        keys = {f"{folder}/{name}" for name in parts} | {manifest}
        self._uncommitted |= keys
        for name, data in parts.items():
            self._store.put(f"{folder}/{name}", data)
        files = {name: Part(hashlib.sha256(data).hexdigest(), len(data)) for name, data in parts.items()}
        score = score if score is not None and math.isfinite(score) else None
        checkpoint = Checkpoint(images_seen, score, files, committed_at=time.time())
        self._may_commit()
        self._store.put(manifest, json.dumps(asdict(checkpoint), indent=2).encode())
        self._uncommitted -= keys
        committed[images_seen] = checkpoint
        return checkpoint

    def _retain(self, committed: dict[int, Checkpoint], newest: Checkpoint) -> None:
        """Deletes all but the newest few and the best, and what failed uploads before `newest` left, in one request.

        Manifests go first, so that what is half deleted is no checkpoint. S3 promises no order within a request: if the
        server itself fails in the middle, a manifest may outlive its parts until the next save deletes it.
        """
        scored = [c for c in committed.values() if c.score is not None]
        best = max(scored, key=lambda c: (c.score or 0.0, c.images_seen), default=None)
        retired = [committed[n] for n in sorted(committed)[: -self._keep] if committed[n] is not best]
        keys = [f"{c.folder}/{name}" for c in retired for name in (MANIFEST, *c.files)]
        keys += [key for key in self._uncommitted if key < newest.folder]
        if keys:
            self._store.delete(*sorted(keys, key=lambda key: not key.endswith(MANIFEST)))
        for checkpoint in retired:
            del committed[checkpoint.images_seen]
        self._uncommitted.difference_update(keys)

    def _list_for_writing(self) -> dict[int, Checkpoint]:
        keys = self._store.list("checkpoints/")
        self._committed = {checkpoint.images_seen: checkpoint for checkpoint in self._read_manifests(keys)}
        folders = {checkpoint.folder for checkpoint in self._committed.values()}
        self._uncommitted = {key for key in keys if key.rpartition("/")[0] not in folders}
        return self._committed

    def _read_manifests(self, keys: Iterable[str]) -> Iterator[Checkpoint]:
        manifests = sorted(key for key in keys if key.endswith(f"/{MANIFEST}"))
        return (found for key in manifests if (found := self._read_manifest(key)))

    def _read_manifest(self, key: str) -> Checkpoint | None:
        place = join(self._store.url, key)
        try:
            checkpoint = read_record(Checkpoint, self._store.get(key), place)
            if key != f"{checkpoint.folder}/{MANIFEST}":
                raise DamagedError(f"{place}: is of {checkpoint.images_seen} images by its content")
            return checkpoint
        except (NotFound, DamagedError) as error:
            _log.warning("damaged manifest, skipping its checkpoint: %s", error)
            return None


def _folder(images_seen: int) -> str:
    # Fixed width: names sort in the order of training.
    return f"checkpoints/{images_seen:012d}"
