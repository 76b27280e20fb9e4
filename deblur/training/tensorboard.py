"""Scalars and sample pictures of a run for TensorBoard, in {run}/tensorboard: `tensorboard --logdir runs`.

The same numbers as metrics.jsonl. Only where runs are in a folder: event files are appended to, which object stores
cannot. A failure is logged once and ends the record, never the run; so events are written here and now, not by
tensorboardX's thread, behind which a run waits for ever once the thread has failed.
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage.base import Store
from cluster.storage.folder import FolderStore

FOLDER = "tensorboard"
_log = logging.getLogger(__name__)


class TensorBoard:
    """Writes event files from a number of images on; what earlier starts wrote of later images is hidden."""

    def __init__(self, store: Store, images_seen: int) -> None:
        self._writer: Any = None
        if isinstance(store, FolderStore):
            self._attempt(lambda: self._open(Path(store.url, FOLDER), images_seen))

    def _open(self, folder: Path, images_seen: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # Ray Tune has it; a bare machine has neither
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # The rest of a name is only as fine as a second.
        self._writer = EventsWriter(str(folder / "events"), f".{images_seen:012d}")
        self._write(images_seen + 1, session_log=SessionLog(status=SessionLog.START))

    def add_report(self, report: Mapping[str, Any]) -> None:
        """The numbers of a report, as scalars at its `images_seen`."""
        numbers = {name: value for name, value in report.items() if isinstance(value, int | float)}
        if self._writer is not None:
            self._attempt(lambda: self._add_scalars(report["images_seen"], numbers))

    def add_sample(self, images_seen: int, strip: np.ndarray) -> None:
        """A picture, uint8 [H, W, 3]."""
        if self._writer is not None:
            self._attempt(lambda: self._add_image(images_seen, strip))

    def close(self) -> None:
        """Closes the file. Nothing can be added afterwards."""
        if self._writer is not None:
            self._attempt(self._writer.close)
        self._writer = None

    def _add_scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in numbers.items():
            self._write(step, summary=scalar(name, value))

    def _add_image(self, step: int, strip: np.ndarray) -> None:
        from tensorboardX.summary import image

        self._write(step, summary=image("sample", strip, dataformats="HWC"))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # training does not depend on it
            _log.warning("no more events for TensorBoard: %s", error)
            self._writer = None
