"""Scalars and sample pictures of a run for TensorBoard, in {run}/tensorboard: `tensorboard --logdir runs`.

The same numbers as metrics.jsonl. Only where runs are in a folder: event files are appended to, which object stores
cannot. A failure is logged once and ends the record, never the run.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage.base import Store
from cluster.storage.folder import FolderStore

FOLDER = "tensorboard"
_FLUSH_S = 10
_log = logging.getLogger(__name__)


class TensorBoard:
    """Writes event files from a number of images on; what earlier starts wrote of later images is hidden."""

    def __init__(self, store: Store, images_seen: int) -> None:
        self._writer: Any = None
        if not isinstance(store, FolderStore):
            return
        try:
            from tensorboardX import SummaryWriter  # Ray Tune depends on it; a bare machine has neither

            self._writer = SummaryWriter(
                str(Path(store.url, FOLDER)),
                purge_step=images_seen + 1,
                flush_secs=_FLUSH_S,
                filename_suffix=f".{images_seen:012d}",  # the rest of a name is only as fine as a second
            )
        except (ImportError, OSError) as error:
            _log.warning("no events for TensorBoard: %s", error)

    def add_report(self, report: Mapping[str, Any]) -> None:
        """The numbers of a report, as scalars at its `images_seen`."""
        step = report["images_seen"]
        numbers = {name: value for name, value in report.items() if isinstance(value, int | float)}
        self._attempt(lambda writer: [writer.add_scalar(name, value, step) for name, value in numbers.items()])

    def add_sample(self, images_seen: int, strip: np.ndarray) -> None:
        """A picture, uint8 [H, W, 3]."""
        self._attempt(lambda writer: writer.add_image("sample", strip, images_seen, dataformats="HWC"))

    def close(self) -> None:
        """Writes what is left."""
        self._attempt(lambda writer: writer.close())

    def _attempt(self, action: Callable[[Any], object]) -> None:
        if self._writer is None:
            return
        try:
            action(self._writer)
        except Exception as error:  # training does not depend on it
            _log.warning("no more events for TensorBoard: %s", error)
            self._writer = None
