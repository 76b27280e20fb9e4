"""What is learned and how: frozen settings, checked when built, and the three presets.

A recipe says all that the result depends on but the data (known by its digest) and rounding. Where the run takes place
(nodes, ports, folders) is no part of it. Saved with every checkpoint and compared when a run goes on.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from cluster.errors import InputError

try:
    import tyro
except ModuleNotFoundError:  # a bare machine with torch: recipes without a command line
    _FLAT = None
else:
    _FLAT = tyro.conf.arg(name="")  # --batch-size, not --data.batch-size


def _formerly(flag: str) -> object:
    """An option that had another name until version 0.2, which still works."""
    return None if _FLAT is None else tyro.conf.arg(aliases=[flag])


# Fields by the names that recipes of version 0.1 have for them.
RENAMED = {"generator_rate": "generator_lr", "critic_rate": "critic_lr", "decay_from": "lr_decay_start"}
Objective = Literal["wasserstein", "wgan-gp", "least-squares", "vanilla"]
FeatureName = Literal["vgg16-block3_conv3", "vgg19-conv3_3", "vgg16-block1_conv1"]
MAX_CRITIC_UPDATES = 64  # a critic that steps more often than this per generator step is a typing error


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    architecture: Literal["resnet", "unet"] = "resnet"
    """ResNet of DeblurGAN and of the article, or the U-Net of pix2pix."""
    filters: int = 64
    """Filters of the first layer; deeper ones have multiples of it."""
    blocks: int = 9
    """Residual blocks (ResNet alone)."""
    norm: Literal["instance", "batch", "none"] = "instance"
    """Normalisation after each convolution; none is no source's, but learns fastest in small networks."""
    dropout: float = 0.5
    """Share of activations dropped in training; 0 for none."""
    upsampling: Literal["transposed", "resize"] = "transposed"
    """Transposed convolution as in the sources, or resize and convolve (no checkerboard)."""
    output: Literal["clamp", "mean"] = "clamp"
    """clamp(tanh + input, -1, 1) of the paper, or (tanh + input) / 2 of the article."""

    def __post_init__(self) -> None:
        _at_least("generator.filters", self.filters, 1)
        _at_least("generator.blocks", self.blocks, 1)
        if not 0 <= self.dropout < 1:
            raise InputError(f"generator.dropout is {self.dropout}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class CriticRecipe:
    architecture: Literal["patch", "dense"] = "patch"
    """PatchGAN, or the article's critic with two dense layers."""
    filters: int = 64
    """Filters of the first layer."""
    layers: int = 3
    """Downsamplings of the PatchGAN; 3 sees 70x70 pixels."""
    norm: Literal["instance", "batch", "none"] = "instance"
    """Normalisation after each convolution but the first."""

    def __post_init__(self) -> None:
        _at_least("critic.filters", self.filters, 1)
        _at_least("critic.layers", self.layers, 1)


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    objective: Objective = "wgan-gp"
    """What the critic and the generator play for."""
    critic_updates: int = 5
    """Critic steps per update, all on the update's one batch and one restoration."""
    content_weight: float = 100.0
    """Weight of the distance between VGG features."""
    features: FeatureName = "vgg19-conv3_3"
    """Layer whose activations are compared."""
    feature_weights: Literal["pretrained", "random"] = "pretrained"
    """ImageNet weights (see --vgg-weights), or fixed random ones for work without them."""
    pixel_weight: float = 0.0
    """Weight of the mean absolute difference of pixels; neither source has it."""
    adversarial_weight: float = 1.0
    """Weight of the critic's judgement in the generator's loss."""
    penalty_weight: float = 10.0
    """Weight of the gradient penalty (wgan-gp alone)."""

    def __post_init__(self) -> None:
        _at_least("critic_updates", self.critic_updates, 1)
        if self.critic_updates > MAX_CRITIC_UPDATES:
            raise InputError(f"critic_updates is {self.critic_updates}; at most {MAX_CRITIC_UPDATES} make sense")
        for name in ("content_weight", "pixel_weight", "adversarial_weight", "penalty_weight"):
            _at_least(name, getattr(self, name), 0)
        if self.content_weight == self.pixel_weight == 0:
            raise InputError("content_weight and pixel_weight are both 0: nothing ties restored pictures to sharp ones")


@dataclass(frozen=True, kw_only=True)
class AdamRecipe:
    generator_lr: Annotated[float, _formerly("--generator-rate")] = 1e-4
    """Learning rate of the generator."""
    critic_lr: Annotated[float, _formerly("--critic-rate")] = 1e-4
    """Learning rate of the critic."""
    beta1: float = 0.5
    """Decay of the mean of gradients."""
    beta2: float = 0.999
    """Decay of the mean of squared gradients."""
    lr_decay_start: Annotated[float, _formerly("--decay-from")] = 0.5
    """Share of the run after which both rates fall linearly to 0; 1 keeps them constant."""

    def __post_init__(self) -> None:
        for name in ("generator_lr", "critic_lr"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be in (0, 1)")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not 0 <= self.lr_decay_start <= 1:
            raise InputError(f"lr_decay_start is {self.lr_decay_start}; it is a share of the run, in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    batch_size: int = 16
    """Images per update, over all ranks together."""
    crop: int = 256
    """Side in pixels of the square that is cut from each pair."""
    flip: bool = True
    """Mirror half of the crops left to right."""
    rotate: bool = False
    """Turn crops by a random multiple of 90 degrees."""
    epochs: int = 300
    """Length of the run in passes over the training split."""
    images: int | None = None
    """Length of the run in images instead (rounded up to whole updates)."""

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        _at_least("epochs", self.epochs, 1)
        _at_least("crop", self.crop, 16)
        if self.images is not None:
            _at_least("images", self.images, 1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str = "paper"
    """What a run of this recipe is called unless --run says otherwise."""
    seed: int = 0
    """Root of every random draw."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of convolutions; auto is bfloat16 where the hardware multiplies it natively."""
    generator: GeneratorRecipe = field(default_factory=GeneratorRecipe)
    critic: CriticRecipe = field(default_factory=CriticRecipe)
    loss: Annotated[LossRecipe, _FLAT] = field(default_factory=LossRecipe)
    adam: Annotated[AdamRecipe, _FLAT] = field(default_factory=AdamRecipe)
    data: Annotated[DataRecipe, _FLAT] = field(default_factory=DataRecipe)

    def __post_init__(self) -> None:
        _at_least("seed", self.seed, 0)
        if self.loss.objective == "wgan-gp" and self.critic.norm == "batch":
            raise InputError(
                "critic.norm batch with objective wgan-gp: the penalty is defined per image and BatchNorm mixes images "
                "(arXiv:1704.00028, section 4); choose --critic.norm instance"
            )
        if self.critic.architecture == "dense" and self.loss.objective == "vanilla":
            raise InputError(
                "objective vanilla with --critic.architecture dense: it takes unbounded scores, and the dense critic "
                "ends in a sigmoid; choose --objective wasserstein or --critic.architecture patch"
            )
        smallest = 32 if self.critic.architecture == "dense" else 3 * 2**self.critic.layers
        if self.data.crop < smallest:
            raise InputError(f"--crop {self.data.crop} is too small for the critic, which needs {smallest} or more")


def blog() -> Recipe:
    """The Keras article 'GAN on Keras: an app that removes blur'.

    Its critic sees the pictures of a batch in one step for sharp and one for restored ones; here both are one step.
    Its pictures are squashed to 256x256; here they are cropped, which keeps the blur's shape.
    """
    return Recipe(
        name="blog",
        generator=GeneratorRecipe(norm="batch", output="mean"),
        critic=CriticRecipe(architecture="dense", norm="batch"),
        loss=LossRecipe(objective="wasserstein", features="vgg16-block3_conv3", penalty_weight=0.0),
        adam=AdamRecipe(beta1=0.9, lr_decay_start=1.0),
        data=DataRecipe(epochs=50, flip=False),
    )


def paper() -> Recipe:
    """DeblurGAN (arXiv:1711.07064, section 5): the defaults above.

    The batch is 16 where the paper has 1 (`--batch-size 1` is the paper to the letter, on one rank). Its code draws one
    mix per batch and takes the penalty's norm over channels; here both follow arXiv:1704.00028.
    """
    return Recipe()


def demo() -> Recipe:
    """Minutes on two cores, without downloads: small networks, small crops, random features, and a pixel term.

    Random features of VGG's first layer see edges but know no pictures; the pixel term carries most of the gain. In
    so few updates no normalisation beats InstanceNorm, which hides from the generator how much contrast there is.
    """
    return Recipe(
        name="demo",
        generator=GeneratorRecipe(filters=16, blocks=4, norm="none", dropout=0.0),
        critic=CriticRecipe(filters=16, layers=2),
        loss=LossRecipe(
            critic_updates=1,
            content_weight=1.0,
            features="vgg16-block1_conv1",
            feature_weights="random",
            pixel_weight=10.0,
            adversarial_weight=0.002,
        ),
        adam=AdamRecipe(generator_lr=7e-4, critic_lr=5e-4, beta1=0.9, lr_decay_start=0.3),
        data=DataRecipe(batch_size=4, crop=96, rotate=True, images=10_000),
    )


PRESETS: dict[str, Callable[[], Recipe]] = {"blog": blog, "paper": paper, "demo": demo}


def to_json(recipe: Recipe) -> str:
    """A recipe as JSON text; equal recipes give equal text."""
    return json.dumps(dataclasses.asdict(recipe), indent=2, sort_keys=True)


def from_json(text: str | bytes, place: str) -> Recipe:
    """The recipe that `to_json` wrote, or that stands as `recipe` in what a search found best.

    Raises InputError naming the place and the field.
    """
    try:
        values = json.loads(text)
        return _build(Recipe, values.get("recipe", values) if isinstance(values, dict) else values, place)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place}: not a recipe: {error}") from error


def difference(old: Recipe, new: Recipe) -> list[str]:
    """One line for each field that differs: 'data.batch_size: 16 -> 8'."""
    before, after = flat(dataclasses.asdict(old)), flat(dataclasses.asdict(new))
    return [f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]


def _build(kind: type, values: Any, place: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{place}: {kind.__name__} must be a JSON object, not {values!r}")
    hints = get_type_hints(kind)
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{place}: {kind.__name__} has no field {unknown[0]!r}; it has {', '.join(hints)}")
    nested = {n: _build(hints[n], v, place) if dataclasses.is_dataclass(hints[n]) else v for n, v in values.items()}
    for name, value in nested.items():
        choices = getattr(hints[name], "__args__", ())
        if choices and all(isinstance(c, str) for c in choices) and value not in choices:
            raise InputError(f"{place}: {name} is {value!r}; choose one of {', '.join(choices)}")
    return kind(**nested)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"loss": {"objective": x}} as {"loss.objective": x}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _at_least(name: str, value: float, smallest: float) -> None:
    if not value >= smallest:
        raise InputError(f"{name} is {value}; it must be at least {smallest}")


FeatureName = Literal["vgg16-block3_conv3", "vgg19-conv3_3", "vgg16-block1_conv1"]
