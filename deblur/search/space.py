"""What a search varies: ranges of fields of the recipe, and random draws from them.

A range is written LOW:HIGH, choices A,B,C, and one value fixes the field. Weights and learning rates are drawn evenly
in their logarithm, other numbers evenly.
"""

import difflib
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import reduce
from typing import Any, get_args, get_type_hints

from cluster.errors import InputError
from cluster.storage import read_url
from deblur.config import randomness
from deblur.config.recipes import Recipe

Value = float | int | str | bool
Values = Mapping[str, Value]

VARIED = (
    "content_weight",
    "adversarial_weight",
    "penalty_weight",
    "critic_updates",
    "generator_lr",
    "critic_lr",
    "objective",
)
CRITIC_UPDATES = (1, 8)  # where nothing else is said
FACTOR = 10  # likewise: weights and rates are drawn between a tenth of the recipe's and ten times that
_SAME_IN_ALL = ("name", "images", "epochs")  # a trial's name is its own, the budget the search's
_DIGITS = 4


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    whole: bool
    logarithmic: bool

    def at(self, share: float) -> float | int:
        """The number at a share in [0, 1) of the range."""
        if self.whole:
            return int(self.low + math.floor(share * (self.high - self.low + 1)))
        if self.logarithmic:
            return _short(self.low * (self.high / self.low) ** share)
        return _short(self.low + share * (self.high - self.low))

    def holds(self, value: Value) -> bool:
        """Whether a value lies in it."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def corners(self) -> Sequence[Value]:
        """Values that stand for all of them in a check."""
        low, high = (int(end) if self.whole else end for end in (self.low, self.high))
        return (low, high)

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}"


@dataclass(frozen=True)
class Choices:
    """A few values."""

    values: tuple[Value, ...]

    def at(self, share: float) -> Value:
        """The value at a share in [0, 1) of them."""
        return self.values[int(share * len(self.values))]

    def holds(self, value: Value) -> bool:
        """Whether a value is one of them."""
        return value in self.values

    def corners(self) -> Sequence[Value]:
        """Values that stand for all of them in a check."""
        return self.values

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


Space = Mapping[str, Range | Choices]


def _short(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


# ---- the recipe's fields by the names of their flags


def _fields() -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """The flag of each field of a recipe, where in the recipe it is, and its type."""
    for name, kind in get_type_hints(Recipe).items():
        if is_dataclass(kind):
            prefix = f"{name}." if name in ("generator", "critic") else ""
            yield from ((prefix + leaf, (name, leaf), inner) for leaf, inner in get_type_hints(kind).items())
        else:
            yield name, (name,), kind


_PATHS = {flag: path for flag, path, _ in _fields()}
PARAMETERS: Mapping[str, Any] = {flag: kind for flag, _, kind in _fields() if flag not in _SAME_IN_ALL}
"""What can be varied: the type of each field of a recipe by the name of its flag."""


def value_of(recipe: Recipe, name: str) -> Value:
    """The value of a field of a recipe."""
    return reduce(getattr, _PATHS[name], recipe)


def applied(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with other values. Raises InputError where they do not go together."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        *group, leaf = _PATHS[name]
        (changes.setdefault(group[0], {}) if group else changes)[leaf] = value
    # Built once with all of them: some go together that do not go with the old values.
    groups = {name: replace(getattr(recipe, name), **c) for name, c in changes.items() if isinstance(c, dict)}
    return replace(recipe, **changes | groups)


# ---- the space


def default_space(recipe: Recipe) -> dict[str, Range | Choices]:
    """What is varied where nothing is said: around the recipe's own values; what is 0 there stays 0."""
    space: dict[str, Range | Choices] = {}
    for name in VARIED:
        value = value_of(recipe, name)
        if name == "objective":
            possible = tuple(choice for choice in get_args(PARAMETERS[name]) if _fits(recipe, {name: choice}))
            space[name] = Choices(possible)
        elif name == "critic_updates":
            space[name] = Range(*CRITIC_UPDATES, whole=True, logarithmic=False)
        elif isinstance(value, int | float) and value > 0:
            space[name] = Range(_short(value / FACTOR), _short(value * FACTOR), whole=False, logarithmic=True)
    return space


def _fits(recipe: Recipe, values: Values) -> bool:
    try:
        applied(recipe, values)
    except InputError:
        return False
    return True


def space_of(recipe: Recipe, said: Sequence[str], fixed: Iterable[str] = ()) -> Space:
    """The default space of a recipe, changed by what was said.

    That is NAME=LOW:HIGH, NAME=A,B, NAME=VALUE, or the name of a .json file of such.

    `fixed` fields are not varied. Raises InputError naming the field.
    """
    space = {name: range_ for name, range_ in default_space(recipe).items() if name not in set(fixed)}
    for name, text in _said(said):
        space[name] = _read(name, text)
    for name, range_ in space.items():
        for value in range_.corners():
            try:
                applied(recipe, {name: value})
            except InputError as error:
                raise InputError(f"--space {name}={range_}: {error}") from error
    return dict(sorted(space.items()))


def read_points(place: str | None) -> list[dict[str, Value]]:
    """Configurations that are tried before any is drawn: a JSON list of {name: value}, the rest as in the recipe."""
    if place is None:
        return []
    content = _json(place)
    if not isinstance(content, list) or not all(isinstance(point, dict) for point in content):
        raise InputError(f'{place}: not a JSON list of objects such as {{"critic_updates": 3}}')
    return [{_known(name): _value(_known(name), str(value)) for name, value in point.items()} for point in content]


def drawn(space: Space, seed: int, number: int) -> dict[str, Value]:
    """The configuration of a trial: drawn by (seed, number, name), so that no range changes the draws of others."""
    return {
        name: range_.at(randomness.trial(seed, number, zlib.crc32(name.encode()))) for name, range_ in space.items()
    }


def own_values(recipe: Recipe, space: Space) -> dict[str, Value]:
    """What a recipe itself has where a search varies it."""
    return {name: value_of(recipe, name) for name in space}


def holds(space: Space, values: Values) -> bool:
    """Whether a configuration lies in the space."""
    return set(values) == set(space) and all(space[name].holds(value) for name, value in values.items())


def _said(said: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in said:
        name, equals, range_ = text.partition("=")
        if equals:
            yield _known(name), range_
        elif text.endswith(".json"):
            content = _json(text)
            if not isinstance(content, dict):
                raise InputError(f'{text}: not a JSON object such as {{"critic_updates": "1:5"}}')
            for name, range_ in content.items():
                yield _known(name), str(range_)
        else:
            raise InputError(f"--space {text}: write NAME=LOW:HIGH, NAME=A,B, NAME=VALUE, or name a .json file")


def _json(place: str) -> Any:
    try:
        return json.loads(read_url(place))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place}: not JSON ({error})") from error


def _known(name: str) -> str:
    """A parameter as its flag spells it or with underscores. Raises InputError with the nearest."""
    wanted = name.strip().lstrip("-").replace("-", "_")
    if wanted in PARAMETERS:
        return wanted
    if wanted in _SAME_IN_ALL:
        raise InputError(f"{wanted} is the same in all trials and cannot be varied; set it by its own flag")
    near = difflib.get_close_matches(wanted, PARAMETERS, 1, cutoff=0.0)
    raise InputError(f"{name}: there is no such parameter; did you mean {near[0]}?")


def _read(name: str, text: str) -> Range | Choices:
    low, colon, high = text.partition(":")
    if not colon:
        return Choices(tuple(_value(name, item) for item in text.split(",")))
    kind = PARAMETERS[name]
    if kind not in (int, float):
        raise InputError(f"--space {name}={text}: {name} is no number; write the choices, with commas between them")
    ends = [float(_value(name, end)) for end in (low, high)]
    logarithmic = name.endswith(("_weight", "_lr"))
    if ends[0] > ends[1]:
        raise InputError(f"--space {name}={text}: the range is empty; write the smaller number first")
    if logarithmic and ends[0] <= 0:
        raise InputError(f"--space {name}={text}: it is drawn evenly in its logarithm and must begin above 0")
    return Range(*ends, whole=kind is int, logarithmic=logarithmic)


def _value(name: str, text: str) -> Value:
    kind, text = PARAMETERS[name], text.strip()
    choices = get_args(kind)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if choices and text not in choices:
            raise KeyError(text)
        return text if choices or kind is str else kind(text)
    except (ValueError, KeyError) as error:
        expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, ", ".join(choices))
        raise InputError(f"{name}: {text!r} is not what it takes: {expected}") from error
