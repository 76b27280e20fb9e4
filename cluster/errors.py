"""The errors of this system. None of these is mended by starting the ranks again: `FINAL` ends a run at once.

Exception
├── InputError            what the user gave cannot be used
│   └── NotFound          the object or file does not exist
├── DamagedError          bytes are not what their index or manifest says; read once more before it is raised
├── StorageUnavailable    storage did not answer in spite of retries; a later start may succeed
├── RanksFailed           ranks failed again and again without coming further
└── Diverged              the numbers of the training are no longer finite
"""

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """What the user gave cannot be used; the message names the value, the place and the mend."""


class NotFound(InputError):
    """No object or file of that name."""


class DamagedError(Exception):
    """Bytes differ from what the index or the manifest says of them."""


class StorageUnavailable(Exception):
    """Storage failed for longer than the retries last."""


class RanksFailed(Exception):
    """Ranks were started again and failed, several times without progress."""


class Diverged(Exception):
    """Several updates in a row had gradients that were not finite."""


FINAL = (InputError, DamagedError, StorageUnavailable, RanksFailed, Diverged)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a command with one line on stderr, and exit code 2, for errors that say all by themselves."""
    try:
        yield
    except FINAL as error:
        sys.exit(_failed(error))


def _failed(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
