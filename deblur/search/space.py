"""The search space: Optuna distributions of fields of the recipe, from what the user writes.

LOW:HIGH is a range, A,B,C are choices, one value fixes the field. Weights and learning rates are drawn log-uniformly,
other numbers uniformly.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import reduce
from typing import Any, get_args, get_type_hints

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from cluster.errors import InputError
from cluster.storage import read_url
from deblur.config.recipes import RENAMED, Recipe

Value = float | int | str | bool
Values = Mapping[str, Value]
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = Mapping[str, Distribution]

SCALED = ("content_weight", "adversarial_weight", "penalty_weight", "generator_lr", "critic_lr")
FACTOR = 10  # by default these are drawn between a tenth of the recipe's value and ten times that
CRITIC_UPDATES = IntDistribution(1, 8)  # by default
_COMMON = ("name", "images", "epochs")  # a trial has a name of its own, and all have the same budget


def _fields() -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """The flag of each field of a recipe, its path in the recipe, and its type."""
    for name, kind in get_type_hints(Recipe).items():
        if is_dataclass(kind):
            prefix = f"{name}." if name in ("generator", "critic") else ""
            yield from ((prefix + leaf, (name, leaf), inner) for leaf, inner in get_type_hints(kind).items())
        else:
            yield name, (name,), kind


_PATHS = {flag: path for flag, path, _ in _fields()}
PARAMETERS: Mapping[str, Any] = {flag: kind for flag, _, kind in _fields() if flag not in _COMMON}
"""The fields of a recipe that can be searched, by their flags, and the type of each."""


def value_of(recipe: Recipe, name: str) -> Value:
    """The value of a field of a recipe."""
    value: Value = reduce(getattr, _PATHS[name], recipe)  # type: ignore[assignment]
    return value


def applied(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with other values. Raises InputError if they are invalid together."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        *group, leaf = _PATHS[name]
        (changes.setdefault(group[0], {}) if group else changes)[leaf] = value
    # Built once with all of them, because some are valid only together.
    groups = {name: replace(getattr(recipe, name), **c) for name, c in changes.items() if isinstance(c, dict)}
    return replace(recipe, **changes | groups)


def default_space(recipe: Recipe) -> dict[str, Distribution]:
    """The space around the recipe's own values; what is 0 there is not searched."""
    objectives = [name for name in get_args(PARAMETERS["objective"]) if not _error(recipe, {"objective": name})]
    space: dict[str, Distribution] = {
        "critic_updates": CRITIC_UPDATES,
        "objective": CategoricalDistribution(objectives),
    }
    for name in SCALED:
        if value := float(value_of(recipe, name)):
            low, high = (float(f"{end:.4g}") for end in (value / FACTOR, value * FACTOR))
            space[name] = FloatDistribution(low, high, log=True)
    return space


def _error(recipe: Recipe, values: Values) -> InputError | None:
    try:
        applied(recipe, values)
    except InputError as error:
        return error
    return None


def space_of(recipe: Recipe, items: Sequence[str], fixed: Iterable[str] = ()) -> Space:
    """The default space of a recipe without the `fixed` fields, changed by `items`.

    An item is NAME=LOW:HIGH, NAME=A,B, NAME=VALUE, or a .json file with {NAME: the rest}. Raises InputError naming it.
    """
    fixed = {RENAMED.get(name, name) for name in fixed}
    space = {name: distribution for name, distribution in default_space(recipe).items() if name not in fixed}
    space |= {name: _distribution(name, text) for name, text in _split(items)}
    for name, distribution in space.items():
        for value in extremes(distribution):
            if error := _error(recipe, {name: value}):
                raise InputError(f"--space {name}={describe(distribution)}: {error}") from error
    return dict(sorted(space.items()))


def extremes(distribution: Distribution) -> Sequence[Any]:
    """The choices, or both ends of the range: if these are valid, so is the rest."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return (distribution.low, distribution.high)


def describe(distribution: Distribution) -> str:
    """The distribution as the user writes it: "1:8" or "a,b"."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(str, distribution.choices))
    return ":".join(f"{end:g}" for end in extremes(distribution))


def contains(space: Space, values: Values) -> bool:
    """Whether values lie in the space and name all of its parameters."""
    try:
        create_trial(value=0.0, params=dict(values), distributions=dict(space))
    except ValueError:
        return False
    return True


def read_points(place: str | None) -> list[dict[str, Value]]:
    """Reads configurations to try first: a JSON list of {name: value}; the recipe has the values that are not named."""
    if place is None:
        return []
    content = _json(place)
    if not isinstance(content, list) or not all(isinstance(point, dict) for point in content):
        raise InputError(f'{place}: expected a JSON list of objects such as {{"critic_updates": 3}}')
    return [{_name(name): _value(_name(name), str(value)) for name, value in point.items()} for point in content]


def _split(items: Sequence[str]) -> Iterator[tuple[str, str]]:
    for item in items:
        name, equals, text = item.partition("=")
        if equals:
            yield _name(name), text
        elif item.endswith(".json"):
            content = _json(item)
            if not isinstance(content, dict):
                raise InputError(f'{item}: expected a JSON object such as {{"critic_updates": "1:5"}}')
            yield from ((_name(name), str(text)) for name, text in content.items())
        else:
            raise InputError(f"--space {item}: expected NAME=LOW:HIGH, NAME=A,B, NAME=VALUE or a .json file")


def _json(place: str) -> Any:
    try:
        return json.loads(read_url(place))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{place}: invalid JSON ({error})") from error


def _name(text: str) -> str:
    """A parameter by its flag, with dashes or underscores, or by the name it had in version 0.1."""
    name = text.strip().lstrip("-").replace("-", "_")
    name = RENAMED.get(name, name)
    if name in PARAMETERS:
        return name
    if name in _COMMON:
        raise InputError(f"{name} is the same in all trials and cannot be searched; set it with --{name}")
    near = difflib.get_close_matches(name, PARAMETERS, 1, cutoff=0.0)
    raise InputError(f"unknown parameter {text}; did you mean {near[0]}?")


def _distribution(name: str, text: str) -> Distribution:
    low, colon, high = text.partition(":")
    if not colon:
        return CategoricalDistribution([_value(name, item) for item in text.split(",")])
    kind, where = PARAMETERS[name], f"--space {name}={text}"
    if kind not in (int, float):
        raise InputError(f"{where}: {name} is not a number; write its choices, separated by commas")
    ends, log = (kind(_value(name, low)), kind(_value(name, high))), name.endswith(("_weight", "_lr"))
    if ends[0] > ends[1]:
        raise InputError(f"{where}: the range is empty; write the smaller number first")
    if log and ends[0] <= 0:
        raise InputError(f"{where}: {name} is drawn log-uniformly, so the range must start above 0")
    return IntDistribution(*ends) if kind is int else FloatDistribution(*ends, log=log)


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
        expected = {int: "an integer", float: "a number", bool: "true or false"}.get(kind, ", ".join(choices))
        raise InputError(f"{name} is {text!r}; expected {expected}") from error
