"""What a search varies: how ranges are said, what is refused, and how configurations are drawn."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from deblur.config import recipes
from deblur.config.recipes import CriticRecipe, LossRecipe
from deblur.search.space import (
    PARAMETERS,
    Choices,
    Range,
    applied,
    default_space,
    drawn,
    holds,
    own_values,
    read_points,
    space_of,
    value_of,
)

PAPER = recipes.paper()


# ---- what is said


def test_the_default_varies_what_the_sources_never_explain() -> None:
    space = space_of(PAPER, [])
    assert {name: str(range_) for name, range_ in space.items()} == {
        "adversarial_weight": "0.1:10",
        "content_weight": "10:1000",
        "critic_lr": "1e-05:0.001",
        "critic_updates": "1:8",
        "generator_lr": "1e-05:0.001",
        "objective": "wasserstein,wgan-gp,least-squares,vanilla",
        "penalty_weight": "1:100",
    }


@pytest.mark.parametrize("name", recipes.PRESETS)
def test_every_presets_default_space_holds_the_preset_and_only_recipes_that_can_be_built(name: str) -> None:
    recipe = recipes.PRESETS[name]()
    space = space_of(recipe, [])
    assert holds(space, own_values(recipe, space))
    for number in range(50):
        applied(recipe, drawn(space, 0, number))


def test_what_a_recipe_has_switched_off_stays_off() -> None:
    assert "penalty_weight" not in default_space(recipes.blog())
    assert default_space(recipes.blog())["objective"] == Choices(("wasserstein", "least-squares"))


def test_a_flag_of_the_recipe_fixes_and_words_narrow_add_and_fix() -> None:
    said = ["generator-lr=1e-4:2e-4", "batch_size=8,16", "critic_updates=3", "generator.dropout=0:0.5", "flip=true"]
    space = space_of(PAPER, said, fixed=["content_weight", "seed"])
    assert "content_weight" not in space
    assert space["generator_lr"] == Range(1e-4, 2e-4, whole=False, logarithmic=True)
    assert space["batch_size"] == Choices((8, 16))
    assert space["critic_updates"] == Choices((3,))
    assert space["generator.dropout"] == Range(0, 0.5, whole=False, logarithmic=False)
    assert space["flip"] == Choices((True,))


def test_a_file_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "space.json").write_text('{"critic_updates": "1:3", "content_weight": 50, "objective": "wgan-gp"}')
    said = ["critic_updates=1:3", "content_weight=50", "objective=wgan-gp"]
    assert space_of(PAPER, [str(tmp_path / "space.json")]) == space_of(PAPER, said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("critic_updates=5:2", r"--space critic_updates=5:2: the range is empty; write the smaller number first"),
        ("critic_update=1:2", r"critic_update: there is no such parameter; did you mean critic_updates\?"),
        ("generator_rates=1:2", r"did you mean generator_lr\?"),
        ("content_weight=0:3", r"drawn evenly in its logarithm and must begin above 0"),
        ("objective=a:b", r"objective is no number; write the choices"),
        ("objective=hinge", r"objective: 'hinge' is not what it takes: wasserstein, wgan-gp, least-squares, vanilla"),
        ("critic_updates=1.5:3", r"critic_updates: '1.5' is not what it takes: a whole number"),
        ("content_weight=", r"content_weight: '' is not what it takes: a number"),
        ("flip=yes", r"flip: 'yes' is not what it takes: true or false"),
        ("critic_updates=1:100", r"--space critic_updates=1:100: critic_updates is 100; .*64"),
        ("batch_size=0,4", r"--space batch_size=0,4: batch_size is 0; it must be at least 1"),
        ("images=10:20", r"images is the same in all trials and cannot be varied; set it by its own flag"),
        ("critic_updates", r"--space critic_updates: write NAME=LOW:HIGH, NAME=A,B, NAME=VALUE, or name a .json file"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_mend(said: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        space_of(PAPER, [said])


def test_choices_that_do_not_go_with_the_recipe_are_refused() -> None:
    recipe = replace(PAPER, critic=CriticRecipe(norm="batch"), loss=LossRecipe(objective="wasserstein"))
    with pytest.raises(InputError, match=r"--space objective=wgan-gp,wasserstein: critic\.norm batch with objective"):
        space_of(recipe, ["objective=wgan-gp,wasserstein"])


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}'])
def test_points_that_are_none_are_refused_with_their_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "points.json").write_text(text)
    with pytest.raises(InputError, match=r"points\.json: not "):
        read_points(str(tmp_path / "points.json"))


def test_points_are_read_as_flags_are(tmp_path: Path) -> None:
    (tmp_path / "points.json").write_text(json.dumps([{"generator-lr": 0.1, "critic_updates": 2}, {}]))
    assert read_points(str(tmp_path / "points.json")) == [{"generator_lr": 0.1, "critic_updates": 2}, {}]


def test_every_parameter_is_found_in_the_recipe_and_changed_alone() -> None:
    for name in PARAMETERS:
        old = value_of(PAPER, name)
        assert applied(PAPER, {name: old}) == PAPER
    changed = applied(PAPER, {"critic_updates": 2, "generator.blocks": 3, "seed": 7, "batch_size": 1})
    assert recipes.difference(PAPER, changed) == [
        "seed: 0 -> 7",
        "generator.blocks: 9 -> 3",
        "loss.critic_updates: 5 -> 2",
        "data.batch_size: 16 -> 1",
    ]


# ---- what is drawn

ranges = st.one_of(
    st.builds(
        lambda low, width: Range(low, low + width, whole=True, logarithmic=False), st.integers(0, 50), st.integers(0, 9)
    ),
    st.builds(
        lambda low, factor: Range(low, low * factor, whole=False, logarithmic=True),
        st.sampled_from([1e-5, 0.02, 1.0, 300.0]),
        st.sampled_from([1.0, 2.0, 100.0]),
    ),
    st.builds(Choices, st.sampled_from([("a",), ("a", "b", "c"), (1, 2)])),
)


@given(st.dictionaries(st.sampled_from("abcdef"), ranges, min_size=1), st.integers(0, 99), st.integers(0, 999))
def test_a_draw_lies_in_the_space_and_depends_on_seed_and_number_alone(space: dict, seed: int, number: int) -> None:
    values = drawn(space, seed, number)
    assert holds(space, values)
    assert drawn(dict(reversed(space.items())), seed, number) == values
    for name, range_ in space.items():
        assert drawn({name: range_}, seed, number)[name] == values[name], "no parameter changes another's draw"


def test_another_seed_and_another_number_are_other_draws() -> None:
    space = space_of(PAPER, [])
    found = [json.dumps(drawn(space, seed, number)) for seed in range(5) for number in range(20)]
    assert len(set(found)) == 100


def test_draws_are_even_in_what_they_are_said_to_be_even_in() -> None:
    space = {
        "rate": Range(1e-5, 1e-2, whole=False, logarithmic=True),
        "share": Range(0, 0.5, whole=False, logarithmic=False),
        "count": Range(1, 5, whole=True, logarithmic=False),
        "choice": Choices(("a", "b", "c")),
    }
    draws = [drawn(space, 0, number) for number in range(2000)]
    rate, share = ([draw[name] for draw in draws] for name in ("rate", "share"))
    assert scipy.stats.kstest(rate, scipy.stats.loguniform(1e-5, 1e-2).cdf).pvalue > 0.01
    assert scipy.stats.kstest(share, scipy.stats.uniform(0, 0.5).cdf).pvalue > 0.01
    for name in ("count", "choice"):
        counts = np.unique([draw[name] for draw in draws], return_counts=True)[1]
        assert scipy.stats.chisquare(counts).pvalue > 0.01
