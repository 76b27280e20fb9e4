"""The search space: Optuna distributions of fields of the recipe, from what the user writes.

LOW:HIGH is a range, A,B,C are choices, one value fixes the field. Weights and learning rates are drawn log-uniformly,
other numbers uniformly.
"""

import contextlib
import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from cluster.errors import InputError
from cluster.storage import read_url
from deblur.config.recipes import RENAMED, Objective, Recipe, by_flag, with_flags

Values = Mapping[str, float | int | str | bool]
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = Mapping[str, Distribution]

SCALED = ("content_weight", "adversarial_weight", "penalty_weight", "generator_lr", "critic_lr")
FACTOR = 10  # by default these are drawn between a tenth of the recipe's value and ten times that
CRITIC_UPDATES = "1:8"  # by default
_COMMON = ("name", "images", "epochs")  # a trial has a name of its own, and all have the same budget
_EXPECTED = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
PARAMETERS = {n: type(v) for n, v in by_flag(Recipe()).items() if n not in _COMMON and type(v) in _EXPECTED}
"""The fields of a recipe that can be searched, by their flags, and the type of each."""


def space_of(recipe: Recipe, items: Sequence[str], fixed: Iterable[str] = ()) -> Space:
    """The default space of a recipe without the `fixed` fields, changed by `items`.

    An item is NAME=LOW:HIGH, NAME=A,B, NAME=VALUE, or a .json file with {NAME: the rest}. Raises InputError naming it.
    """
    fixed, space = {RENAMED.get(name, name) for name in fixed}, {}
    default = {name: text for name, text in _default_space(recipe).items() if name not in fixed}
    for name, text in sorted((default | dict(_split(items))).items()):
        try:
            space[name] = _distribution(name, text)
            for value in extremes(space[name]):
                with_flags(recipe, {name: value})
        except ValueError as error:  # of Optuna or of the recipe
            raise InputError(f"--space {name}={text}: {error}") from error
    return space


def _default_space(recipe: Recipe) -> dict[str, str]:
    """The space around the recipe's own values, as the user would write it; what is 0 there is not searched."""
    values = by_flag(recipe)
    space = {name: f"{values[name] / FACTOR:.4g}:{values[name] * FACTOR:.4g}" for name in SCALED if values[name]}
    if not recipe.loss.adversarial_weight:
        return {name: text for name, text in space.items() if name not in ("penalty_weight", "critic_lr")}
    objectives = []
    for objective in get_args(Objective):
        with contextlib.suppress(InputError):  # some objectives do not go with every critic
            with_flags(recipe, {"objective": objective})
            objectives.append(objective)
    return space | {"critic_updates": CRITIC_UPDATES, "objective": ",".join(objectives)}


def extremes(distribution: Distribution) -> Sequence[Any]:
    """The choices, or both ends of the range: if these are valid, so is the rest."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return (distribution.low, distribution.high)


def describe(distribution: Distribution) -> str:
    """The distribution as the user writes it: "1:8" or "a,b"."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(str, distribution.choices))
    return f"{distribution.low:g}:{distribution.high:g}"


def contains(space: Space, values: Values) -> bool:
    """Whether values lie in the space and name all of its parameters."""
    try:
        create_trial(value=0.0, params=dict(values), distributions=dict(space))
    except ValueError:
        return False
    return True


def read_points(place: str) -> list[Values]:
    """Reads configurations to try first: a JSON list of {name: value}; the recipe has the values that are not named."""
    points = _read_json(place, lambda content: [dict(point) for point in content], '[{"critic_updates": 3}]')
    return [{_name(name): _value(_name(name), str(value)) for name, value in point.items()} for point in points]


def _split(items: Sequence[str]) -> Iterator[tuple[str, str]]:
    for item in items:
        name, equals, text = item.partition("=")
        if equals:
            yield _name(name), text
        elif item.endswith(".json"):
            content = _read_json(item, dict, '{"critic_updates": "1:5"}')
            yield from ((_name(name), str(text)) for name, text in content.items())
        else:
            raise InputError(f"--space {item}: expected NAME=LOW:HIGH, NAME=A,B, NAME=VALUE or a .json file")


def _read_json(place: str, convert: Callable[[Any], Any], example: str) -> Any:
    text = read_url(place)
    try:
        return convert(json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"{place}: expected JSON such as {example} ({error})") from error


def _name(text: str) -> str:
    """A parameter by its flag, with dashes or underscores, or by the name it had in version 0.1."""
    name = text.strip().lstrip("-").replace("-", "_")
    name = RENAMED.get(name, name)
    if name in PARAMETERS:
        return name
    if name in by_flag(Recipe()):
        raise InputError(f"{name} cannot be searched; set it for all trials with --{name.replace('_', '-')}")
    near = difflib.get_close_matches(name, PARAMETERS, 1, cutoff=0.0)
    raise InputError(f"unknown parameter {text}; did you mean {near[0]}?")


def _distribution(name: str, text: str) -> Distribution:
    kind, (low, colon, high) = PARAMETERS[name], text.partition(":")
    if not colon or kind not in (int, float):
        return CategoricalDistribution([_value(name, item) for item in text.split(",")])
    ends, log = (_value(name, low), _value(name, high)), name.endswith(("_weight", "_lr"))
    return IntDistribution(*ends) if kind is int else FloatDistribution(*ends, log=log)


def _value(name: str, text: str) -> Any:
    kind, text = PARAMETERS[name], text.strip()
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise InputError(f"{name} is {text!r}; expected {_EXPECTED[kind]}") from error
