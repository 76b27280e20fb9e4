"""Reads back small JSON files, with the types that they were written with."""

import json
from typing import TypeVar

from cluster.errors import DamagedError

_T = TypeVar("_T")


def read_record(kind: type[_T], data: bytes, place: str) -> _T:
    """The dataclass of a JSON object. Text is not taken for a number, nor a fraction for a whole one.

    NaN and Infinity, which Python writes although JSON has none, count as null.
    Raises DamagedError naming `place`, where the data are from, and the field.
    """
    from pydantic import TypeAdapter, ValidationError  # here, because the training loop runs without it

    try:
        plain = json.dumps(json.loads(data, parse_constant=lambda _: None), allow_nan=False)
        return TypeAdapter(kind).validate_json(plain, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or kind.__name__
        raise DamagedError(f"{place}: {field} is {first['input']!r}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{place}: not JSON of {kind.__name__} ({error})") from error
