"""The search space: how ranges are written, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cluster.errors import InputError
from deblur.config import presets, recipes
from deblur.config.recipes import CriticRecipe, LossRecipe, Objective, by_flag, with_flags
from deblur.search.config import TuneSettings
from deblur.search.space import PARAMETERS, contains, describe, read_points, space_of
from deblur.search.study import Study

PAPER = presets.paper()
TUPLES = [name for name, value in by_flag(PAPER).items() if isinstance(value, tuple)]


def test_the_default_space_of_the_paper() -> None:
    space = space_of(PAPER, [])
    assert {name: describe(distribution) for name, distribution in space.items()} == {
        "adversarial_weight": "0.1:10",
        "content_weight": "10:1000",
        "critic_lr": "1e-05:0.001",
        "critic_updates": "1:8",
        "generator_lr": "1e-05:0.001",
        "objective": ",".join(get_args(Objective)),
        "penalty_weight": "1:100",
    }


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_presets_default_space_contains_the_preset_and_only_valid_recipes(name: str) -> None:
    recipe = presets.PRESETS[name]()
    space = space_of(recipe, [])
    assert contains(space, {name: by_flag(recipe)[name] for name in space})
    study = Study(TuneSettings(recipe=recipe), space)
    for number in range(50):
        with_flags(recipe, study.start(number))


def test_what_a_recipe_switches_off_is_not_searched() -> None:
    space = space_of(presets.blog(), [])
    assert "penalty_weight" not in space
    assert {"wgan-gp", "vanilla"}.isdisjoint(space["objective"].choices)
    assert set(space_of(presets.fidelity(), [])) == {"generator_lr"}


def test_given_flags_fix_and_items_narrow_add_and_fix() -> None:
    items = ["generator-lr=1e-4:2e-4", "batch_size=8,16", "critic_updates=3", "generator.dropout=0:0.5", "flip=true"]
    space = space_of(PAPER, items, fixed=["content_weight", "seed"])
    assert "content_weight" not in space
    assert space["generator_lr"] == FloatDistribution(1e-4, 2e-4, log=True)
    assert space["batch_size"] == CategoricalDistribution((8, 16))
    assert space["critic_updates"] == CategoricalDistribution((3,))
    assert space["generator.dropout"] == FloatDistribution(0, 0.5)
    assert space["flip"] == CategoricalDistribution((True,))
    assert space_of(PAPER, ["critic_updates=2:3"])["critic_updates"] == IntDistribution(2, 3)


def test_names_of_version_0_1_still_work(tmp_path: Path) -> None:
    items = ["generator_rate=1e-4:2e-4", "decay-from=0.2,0.5"]
    assert space_of(PAPER, items) == space_of(PAPER, ["generator_lr=1e-4:2e-4", "lr_decay_start=0.2,0.5"])
    assert "critic_lr" not in space_of(PAPER, [], fixed=["critic_rate"])
    (tmp_path / "points.json").write_text('[{"critic_rate": 0.1}]')
    assert read_points(str(tmp_path / "points.json")) == [{"critic_lr": 0.1}]


def test_a_file_is_read_like_flags(tmp_path: Path) -> None:
    (tmp_path / "space.json").write_text('{"critic_updates": "1:3", "content_weight": 50, "objective": "wgan-gp"}')
    flags = ["critic_updates=1:3", "content_weight=50", "objective=wgan-gp"]
    assert space_of(PAPER, [str(tmp_path / "space.json")]) == space_of(PAPER, flags)


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ("critic_updates=5:2", ["--space critic_updates=5:2"]),
        ("critic_update=1:2", ["critic_update;", "critic_updates?"]),
        ("generator_rates=1:2", ["generator_rates;", "generator_lr?"]),
        ("content_weight=0:3", ["--space content_weight=0:3", "low=0"]),
        ("objective=a:b", ["--space objective=a:b", "'a:b'"]),
        ("objective=hinge", ["objective", "'hinge'", "wasserstein, wgan-gp, least-squares, "]),
        ("critic_updates=1.5:3", ["critic_updates", "'1.5'", "integer"]),
        ("content_weight=", ["content_weight", "''", "number"]),
        ("flip=yes", ["flip", "'yes'", "true or false"]),
        ("critic_updates=1:100", ["--space critic_updates=1:100", "64"]),
        ("batch_size=0,4", ["--space batch_size=0,4", "at least 1"]),
        ("images=10:20", ["images", "--images"]),
        *((f"{name}=1,2", [f"--{name.replace('_', '-')}"]) for name in TUPLES),
        ("critic_updates", ["--space critic_updates", "NAME=LOW:HIGH"]),
    ],
)
def test_an_invalid_item_is_refused_by_its_name_and_value(item: str, named: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        space_of(PAPER, [item])
    assert [text for text in named if text not in str(caught.value)] == []


def test_choices_that_are_invalid_with_the_recipe_are_refused() -> None:
    recipe = replace(PAPER, critic=CriticRecipe(norm="batch"), loss=LossRecipe(objective="wasserstein"))
    with pytest.raises(InputError, match=r"--space objective=wgan-gp,wasserstein: critic\.norm"):
        space_of(recipe, ["objective=wgan-gp,wasserstein"])


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '[{"flip": 2}]'])
def test_a_malformed_points_file_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "points.json").write_text(text)
    with pytest.raises(InputError, match=r"points\.json|flip is '2'"):
        read_points(str(tmp_path / "points.json"))


def test_points_are_read_like_flags(tmp_path: Path) -> None:
    (tmp_path / "points.json").write_text(json.dumps([{"generator-lr": 0.1, "critic_updates": 2}, {}]))
    assert read_points(str(tmp_path / "points.json")) == [{"generator_lr": 0.1, "critic_updates": 2}, {}]


def test_every_parameter_is_a_field_of_the_recipe_and_changes_alone() -> None:
    for name in PARAMETERS:
        assert with_flags(PAPER, {name: by_flag(PAPER)[name]}) == PAPER
    changed = with_flags(PAPER, {"critic_updates": 2, "generator.blocks": 3, "seed": 7, "batch_size": 1})
    assert recipes.difference(PAPER, changed) == [
        "seed: 0 -> 7",
        "generator.blocks: 9 -> 3",
        "loss.critic_updates: 5 -> 2",
        "data.batch_size: 16 -> 1",
    ]
