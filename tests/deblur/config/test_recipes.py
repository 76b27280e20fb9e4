"""Recipes: the presets' values, refusals, and the round trip through JSON."""

import json
from dataclasses import replace

import pytest

from cluster.errors import InputError
from deblur.config import presets, recipes
from deblur.config.recipes import AdamRecipe, CriticRecipe, DataRecipe, GeneratorRecipe, LossRecipe, Recipe
from deblur.models.build import build_critic, build_generator
from deblur.models.critic import DenseCritic, PatchCritic
from deblur.models.generator import ResNetGenerator, UNetGenerator
from deblur.models.nafnet import NAFNet


def test_paper_is_the_papers() -> None:
    recipe = presets.paper()
    assert recipe.generator == GeneratorRecipe(
        architecture="resnet",
        filters=64,
        blocks=9,
        norm="instance",
        dropout=0.5,
        upsampling="transposed",
        output="clamp",
    )
    assert recipe.critic == CriticRecipe(architecture="patch", filters=64, layers=3, norm="instance")
    loss = recipe.loss
    assert (loss.objective, loss.penalty_weight, loss.critic_updates) == ("wgan-gp", 10, 5)
    assert (loss.features, loss.content_weight, loss.feature_weights) == ("vgg19-conv3_3", 100, "pretrained")
    assert recipe.adam == AdamRecipe(generator_lr=1e-4, critic_lr=1e-4, beta1=0.5, beta2=0.999, lr_decay_start=0.5)
    assert (recipe.data.batch_size, recipe.data.crop, recipe.data.epochs) == (16, 256, 300)


def test_blog_is_the_articles() -> None:
    recipe = presets.blog()
    assert (recipe.generator.norm, recipe.generator.output, recipe.generator.dropout) == ("batch", "mean", 0.5)
    assert (recipe.critic.architecture, recipe.critic.norm) == ("dense", "batch")
    loss = recipe.loss
    assert (loss.objective, loss.features, loss.content_weight) == ("wasserstein", "vgg16-block3_conv3", 100)
    assert recipe.adam == AdamRecipe(generator_lr=1e-4, critic_lr=1e-4, beta1=0.9, beta2=0.999, lr_decay_start=1.0)
    assert (recipe.data.batch_size, recipe.data.crop, recipe.data.epochs) == (16, 256, 50)


def test_demo_uses_every_loss() -> None:
    loss = presets.demo().loss
    assert loss.objective == "wgan-gp"
    assert min(loss.content_weight, loss.adversarial_weight, loss.penalty_weight) > 0


@pytest.mark.parametrize("name", presets.PRESETS)
def test_json_round_trip(name: str) -> None:
    recipe = presets.PRESETS[name]()
    assert recipes.from_json(recipes.to_json(recipe), "file") == recipe


def test_a_recipe_builds_its_networks() -> None:
    small = {"filters": 2, "dropout": 0.0}
    assert isinstance(build_generator(Recipe(generator=GeneratorRecipe(**small))), ResNetGenerator)
    unet = Recipe(generator=GeneratorRecipe(architecture="unet", **small))
    assert isinstance(build_generator(unet), UNetGenerator)
    nafnet = Recipe(generator=GeneratorRecipe(architecture="nafnet", filters=1))
    assert isinstance(build_generator(nafnet), NAFNet)
    assert isinstance(build_critic(Recipe(critic=CriticRecipe(filters=2))), PatchCritic)
    assert isinstance(build_critic(presets.blog()), DenseCritic)


def test_the_difference_names_every_field_that_differs() -> None:
    changed = replace(presets.paper(), seed=3, data=DataRecipe(batch_size=1))
    assert recipes.difference(presets.paper(), changed) == ["seed: 0 -> 3", "data.batch_size: 16 -> 1"]
    assert recipes.difference(presets.paper(), presets.paper()) == []


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(presets.paper(), critic=CriticRecipe(norm="batch")), r"BatchNorm mixes images.*--critic.norm"),
        (lambda: replace(presets.blog(), loss=LossRecipe(objective="vanilla")), r"ends in a sigmoid"),
        (lambda: replace(presets.paper(), data=DataRecipe(crop=16)), r"--crop 16 is too small.*24"),
        (lambda: LossRecipe(content_weight=0), r"content_weight, pixel_weight and frequency_weight"),
        (lambda: LossRecipe(adversarial_from=5), r"adversarial_from is 5"),
        (lambda: AdamRecipe(gradient_clip=-1), r"gradient_clip is -1"),
        (lambda: AdamRecipe(ema_halflife_images=-1), r"ema_halflife_images is -1"),
        (lambda: GeneratorRecipe(encoder_blocks=()), r"generator.encoder_blocks"),
        (lambda: GeneratorRecipe(encoder_blocks=(1,) * 11), r"generator.encoder_blocks is 11"),
        (lambda: GeneratorRecipe(decoder_blocks=(1, 1, 1, 10_000)), r"generator.decoder_blocks is 10000"),
        (lambda: GeneratorRecipe(filters=10**9), r"generator.filters is 1000000000"),
        (lambda: CriticRecipe(layers=2**32), r"critic.layers is 4294967296"),
        (lambda: GeneratorRecipe(encoder_blocks=(2,)), r"generator.encoder_blocks \(2,\)"),
        (lambda: LossRecipe(critic_updates=0), r"critic_updates is 0"),
        (lambda: LossRecipe(penalty_weight=-1), r"penalty_weight is -1"),
        (lambda: LossRecipe(content_weight=float("nan")), r"content_weight is nan"),
        (lambda: AdamRecipe(beta1=1.0), r"beta1 is 1.0"),
        (lambda: AdamRecipe(generator_lr=0.0), r"generator_lr is 0.0"),
        (lambda: AdamRecipe(lr_decay_start=1.5), r"lr_decay_start is 1.5"),
        (lambda: DataRecipe(batch_size=0), r"batch_size is 0"),
        (lambda: DataRecipe(images=0), r"images is 0"),
        (lambda: GeneratorRecipe(dropout=1.0), r"dropout is 1.0"),
    ],
)
def test_invalid_recipes_are_refused_by_field(build: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, r"f\.json: Recipe has no field 'sed'; it has name, seed"),
        ({"data": {"batchsize": 1}}, r"f\.json: DataRecipe has no field 'batchsize'"),
        ({"loss": {"objective": "hinge"}}, r"f\.json: objective is 'hinge'; choose one of wasserstein"),
        ({"data": 3}, r"f\.json: DataRecipe.*3"),
        ({"data": {"crop": "large"}}, r"f\.json: crop is 'large'; expected int"),
        ({"data": {"flip": 1}}, r"f\.json: flip is 1; expected bool"),
        ({"data": {"batch_size": True}}, r"f\.json: batch_size is True; expected int"),
        ({"data": {"epochs": 2.5}}, r"f\.json: epochs is 2\.5; expected int"),
        ({"data": {"images": "9"}}, r"f\.json: images is '9'; expected int \| None"),
        ({"adam": {"beta1": float("inf")}}, r"f\.json: beta1 is inf; expected float"),
        ({"adam": {"beta1": 10**400}}, r"f\.json: beta1 is 1000"),
        ({"name": None}, r"f\.json: name is None; expected str"),
        ({"generator": {"encoder_blocks": [1, "2"]}}, r"f\.json: encoder_blocks is \(1, '2'\); expected tuple"),
    ],
)
def test_an_invalid_file_is_refused_with_its_place(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipes.from_json(json.dumps(change), "f.json")


def test_invalid_json_is_refused_with_its_place() -> None:
    with pytest.raises(InputError, match=r"f\.json: not a recipe"):
        recipes.from_json("{", "f.json")
