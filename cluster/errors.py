"""The errors of this system. None of these is retryable: restarting the workers cannot fix them (`FINAL`).

Exception
├── InputError            the user's input cannot be used
│   └── NotFound          the object or file does not exist
├── DamagedError          bytes differ from their index or manifest, also when read a second time
├── StorageUnavailable    storage failed in spite of retries; a later run may succeed
├── RanksFailed           workers failed repeatedly without progress
└── Diverged              losses or gradients are no longer finite
"""

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """The user's input cannot be used; the message names the value, where it came from, and the fix."""


class NotFound(InputError):
    """No object or file has that name."""


class DamagedError(Exception):
    """Bytes differ from what the index or the manifest says."""


class StorageUnavailable(Exception):
    """Storage failed until the retry limit was reached."""


class RanksFailed(Exception):
    """Workers were restarted several times and failed without progress."""


class Diverged(Exception):
    """Gradients of several updates in a row were not finite."""


FINAL = (InputError, DamagedError, StorageUnavailable, RanksFailed, Diverged)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns the errors above, whose messages need no traceback, into one line on stderr and exit code 2.

    An interrupt (Ctrl-C) ends with exit code 130, as in a shell.
    """
    try:
        yield
    except FINAL as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
