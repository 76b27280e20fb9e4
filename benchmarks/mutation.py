"""Seeded changes to valid input, as bytes and as JSON."""

import copy
import json
import random
from typing import Any

_NUMBERS = (0, 1, -1, 255, 65535, 2**31 - 1, 2**32, 2**63, 10**400, 0.5, float("inf"), float("nan"))
_VALUES = (None, True, "", "\0", "../..", "é" * 300, [], {}, [[[]]], "1", *_NUMBERS)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Between one and four changes: bits, numbers, parts cut out, repeated, moved or replaced."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed) + 1)
        length = min(draw.choice((1, 2, 4, 8, 100, len(changed))), len(changed) - at)
        match draw.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case 3:
                changed[at : at + length] = draw.randbytes(length)
            case 4:
                changed[at : at + length] = draw.choice((b"\0", b"\xff")) * length
            case 5:
                number = draw.choice((0, 1, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1))
                order: Any = draw.choice(("big", "little"))
                changed[at : at + 4] = number.to_bytes(4, order)
            case _:
                del changed[at:]
    return bytes(changed)


def mutated_json(data: bytes, draw: random.Random) -> bytes:
    """Half of the time as bytes; otherwise one to three values, anywhere inside, are replaced, removed or added."""
    if draw.random() < 0.5:
        return mutated(data, draw)
    content = json.loads(data)
    for _ in range(draw.randint(1, 3)):
        holders = [holder for holder in _inside(content) if holder]
        if not holders:
            break
        holder = draw.choice(holders)
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        match draw.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder["invented"] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(draw.choice(_VALUES))
    return json.dumps(content).encode()


def _inside(content: Any) -> list[Any]:
    """All dicts and lists in a JSON document, the document included."""
    if not isinstance(content, dict | list):
        return []
    parts = content.values() if isinstance(content, dict) else content
    return [content, *(holder for part in parts for holder in _inside(part))]
