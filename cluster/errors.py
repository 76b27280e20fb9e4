"""The errors of this system, and whether trying again can help.

Exception
├── InputError            what the user gave cannot be used; never retried
│   └── NotFound          the object or file does not exist
├── DamagedError          bytes are not what their index or manifest says; retried once at most
└── StorageUnavailable    storage did not answer in spite of retries; a later start may succeed
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


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends a command with one line on stderr, and exit code 2, for errors that a user can mend."""
    try:
        yield
    except (InputError, DamagedError, StorageUnavailable) as error:
        sys.exit(_failed(error))


def _failed(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
