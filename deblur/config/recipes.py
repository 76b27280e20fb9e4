"""Recipes: all hyperparameters of a run, validated when built. Presets are in presets.py.

The result of a run depends on its recipe, its data (identified by a digest) and rounding, and on nothing else: nodes,
ports and folders are not part of it. Saved with every checkpoint, and compared when a run is resumed.
"""

import dataclasses
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cluster.errors import InputError

try:
    import tyro
except ModuleNotFoundError:  # tyro is only needed for the command line
    _FLAT = None
else:
    _FLAT = tyro.conf.arg(name="")  # --batch-size, not --data.batch-size


def _formerly(flag: str) -> object:
    """Keeps the name that a flag had before version 0.2 as an alias."""
    return None if _FLAT is None else tyro.conf.arg(aliases=[flag])


# New names of fields in recipes of version 0.1.
RENAMED = {"generator_rate": "generator_lr", "critic_rate": "critic_lr", "decay_from": "lr_decay_start"}
Architecture = Literal["resnet", "unet", "fast-unet", "deconvolution-unet", "nafnet", "maxim"]
Objective = Literal["wasserstein", "wgan-gp", "least-squares", "relativistic-least-squares", "vanilla"]
PixelLoss = Literal["l1", "charbonnier"]
FeatureName = Literal["vgg16-block3_conv3", "vgg16-conv3_3", "vgg19-conv3_3", "vgg16-block1_conv1"]
# More than these can only be a typo, or a hostile file.
MAX_CRITIC_UPDATES = 64  # per generator step
MAX_FILTERS = 4096
MAX_BLOCKS = 1000
MAX_LEVELS = 10
LARGEST = 1e300


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    architecture: Architecture = "resnet"
    """DeblurGAN's and the article's ResNet, pix2pix' U-Net, fast U-Net, one that also gets its picture deconvolved,
    NAFNet, or MAXIM-3S (no other settings)."""
    filters: int = 64
    """Filters of the first layer; deeper layers have multiples of it."""
    blocks: int = 9
    """Residual blocks (resnet only)."""
    encoder_blocks: tuple[int, ...] = (1, 1, 1, 28)
    """Blocks per level, finest first (fast-unet, deconvolution-unet, nafnet)."""
    middle_blocks: int = 1
    """Blocks of the coarsest level (fast-unet, deconvolution-unet, nafnet)."""
    decoder_blocks: tuple[int, ...] = (1, 1, 1, 1)
    """Blocks per level, coarsest first; as many levels as the encoder (fast-unet, deconvolution-unet, nafnet)."""
    norm: Literal["instance", "batch", "none"] = "instance"
    """Normalisation after each convolution (resnet, unet); none learns fastest in small networks."""
    dropout: float = 0.5
    """Fraction of activations dropped in training (resnet, unet)."""
    upsampling: Literal["transposed", "resize"] = "transposed"
    """Transposed convolution as in the sources, or resize and convolve without checkerboard (resnet, unet)."""
    output: Literal["clamp", "mean"] = "clamp"
    """clamp(tanh + input, -1, 1) of the paper, or (tanh + input) / 2 of the article (resnet, unet)."""

    def __post_init__(self) -> None:
        _within("generator.filters", self.filters, 1, MAX_FILTERS)
        _within("generator.blocks", self.blocks, 1, MAX_BLOCKS)
        _within("generator.middle_blocks", self.middle_blocks, 0, MAX_BLOCKS)
        for name in ("encoder_blocks", "decoder_blocks"):
            _within(f"the number of levels in generator.{name}", len(getattr(self, name)), 1, MAX_LEVELS)
            for blocks in getattr(self, name):
                _within(f"generator.{name}", blocks, 0, MAX_BLOCKS)
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise InputError(
                f"generator.encoder_blocks {self.encoder_blocks} and generator.decoder_blocks {self.decoder_blocks} "
                "must have as many levels as each other"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"generator.dropout is {self.dropout}; expected a value in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class CriticRecipe:
    architecture: Literal["patch", "dense"] = "patch"
    """PatchGAN, or the article's critic with two dense layers."""
    filters: int = 64
    """Filters of the first layer."""
    layers: int = 3
    """Downsamplings of the PatchGAN; 3 sees 70x70 pixels."""
    norm: Literal["instance", "batch", "none"] = "instance"
    """Normalisation after each convolution except the first."""

    def __post_init__(self) -> None:
        _within("critic.filters", self.filters, 1, MAX_FILTERS)
        _within("critic.layers", self.layers, 1, MAX_LEVELS)


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    objective: Objective = "wgan-gp"
    """Adversarial objective."""
    critic_updates: int = 5
    """Critic steps per update, all on the same batch and the same restored pictures."""
    content_weight: float = 100.0
    """Weight of the distance between VGG features."""
    features: FeatureName = "vgg19-conv3_3"
    """VGG layer whose activations are compared."""
    feature_weights: Literal["pretrained", "random"] = "pretrained"
    """ImageNet weights (see --vgg-weights), or fixed random ones that need no download."""
    pixel_weight: float = 0.0
    """Weight of the pixel loss; in neither source."""
    pixel_loss: PixelLoss = "l1"
    """Mean absolute error, or Charbonnier's smooth form of it."""
    frequency_weight: float = 0.0
    """Weight of the mean absolute error of Fourier coefficients (MIMO-UNet has 0.1)."""
    adversarial_weight: float = 1.0
    """Weight of the critic's score in the generator's loss; 0 trains without a critic."""
    adversarial_from: int = 0
    """Images seen before critic and content loss take part; until then they are neither trained nor run."""
    penalty_weight: float = 10.0
    """Weight of the gradient penalty (wgan-gp only)."""

    def __post_init__(self) -> None:
        _within("critic_updates", self.critic_updates, 1, MAX_CRITIC_UPDATES)
        weights = ("content_weight", "pixel_weight", "frequency_weight", "adversarial_weight", "penalty_weight")
        for name in (*weights, "adversarial_from"):
            _at_least(name, getattr(self, name), 0)
        if self.content_weight == self.pixel_weight == self.frequency_weight == 0:
            raise InputError(
                "content_weight, pixel_weight and frequency_weight are all 0: no loss compares with the sharp "
                "picture; raise one"
            )
        if self.adversarial_from and self.pixel_weight == self.frequency_weight == 0:
            raise InputError(
                f"adversarial_from is {self.adversarial_from}, but pixel_weight and frequency_weight are 0: no loss is "
                "left until then; raise one"
            )


@dataclass(frozen=True, kw_only=True)
class AdamRecipe:
    generator_lr: Annotated[float, _formerly("--generator-rate")] = 1e-4
    """Learning rate of the generator."""
    critic_lr: Annotated[float, _formerly("--critic-rate")] = 1e-4
    """Learning rate of the critic."""
    beta1: float = 0.5
    """Adam's decay rate of the first moment."""
    beta2: float = 0.999
    """Adam's decay rate of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the generator (AdamW); 0 is plain Adam."""
    gradient_clip: float = 0.0
    """Maximum norm of the generator's gradient, which is scaled down to it; 0 for no limit."""
    warmup_images: int = 0
    """Images over which both learning rates rise linearly from 0."""
    lr_decay: Literal["linear", "cosine"] = "linear"
    """How both learning rates fall to 0 at the end of the run."""
    lr_decay_start: Annotated[float, _formerly("--decay-from")] = 0.5
    """Fraction of the run after which they fall; 1 keeps them constant."""
    ema_halflife_images: int = 0
    """Half-life of the moving average of the generator's weights, which is then validated, exported and served; 0 for
    none."""

    def __post_init__(self) -> None:
        for name in ("generator_lr", "critic_lr"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a value in (0, 1)")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a value in [0, 1)")
        for name in ("weight_decay", "gradient_clip", "warmup_images", "ema_halflife_images"):
            _at_least(name, getattr(self, name), 0)
        if not 0 <= self.lr_decay_start <= 1:
            raise InputError(f"lr_decay_start is {self.lr_decay_start}; expected a fraction of the run in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    batch_size: int = 16
    """Images per update, summed over all ranks."""
    crop: int = 256
    """Side in pixels of the square crop from each pair."""
    flip: bool = True
    """Flip half of the crops horizontally."""
    rotate: bool = False
    """Rotate crops by random multiples of 90 degrees."""
    epochs: int = 300
    """Length of the run in epochs."""
    images: int | None = None
    """Length of the run in images instead, rounded up to whole updates."""

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        _at_least("epochs", self.epochs, 1)
        _at_least("crop", self.crop, 16)
        if self.images is not None:
            _at_least("images", self.images, 1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str = "paper"
    """Prefix of the default run name."""
    seed: int = 0
    """Seed of all random draws."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of convolutions; auto is bfloat16 on hardware that supports it natively."""
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
                "objective vanilla with --critic.architecture dense: needs unbounded scores, but the dense critic ends "
                "in a sigmoid; choose --objective wasserstein or --critic.architecture patch"
            )
        smallest = 32 if self.critic.architecture == "dense" else 3 * 2**self.critic.layers
        if self.data.crop < smallest:
            raise InputError(f"--crop {self.data.crop} is too small for the critic; choose {smallest} or more")


def to_json(recipe: Recipe) -> str:
    """JSON text of a recipe; equal recipes give equal text."""
    return json.dumps(dataclasses.asdict(recipe), indent=2, sort_keys=True)


def from_json(text: str | bytes, place: str) -> Recipe:
    """The recipe from `to_json`'s text, or from the `recipe` field of a search's best.json.

    Raises InputError naming `place`, where the text is from, and the field.
    """
    try:
        values = json.loads(text)
        recipe: Recipe = _build(Recipe, values.get("recipe", values) if isinstance(values, dict) else values, place)
        return recipe
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place}: not a recipe ({error})") from error


def difference(old: Recipe, new: Recipe) -> list[str]:
    """One line for each field that differs: 'data.batch_size: 16 -> 8'."""
    before, after = flat(dataclasses.asdict(old)), flat(dataclasses.asdict(new))
    return [f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]


def _build(kind: type, values: Any, place: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{place}: {kind.__name__} expected a JSON object, not {values!r}")
    hints = get_type_hints(kind)
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{place}: {kind.__name__} has no field {unknown[0]!r}; it has {', '.join(hints)}")
    nested = {n: _build(hints[n], v, place) if dataclasses.is_dataclass(hints[n]) else v for n, v in values.items()}
    nested = {n: tuple(v) if isinstance(v, list) else v for n, v in nested.items()}
    for name, value in nested.items():
        if not _has_type(value, hints[name]):
            raise InputError(f"{place}: {name} is {value!r}; {_expectation(hints[name])}")
    return kind(**nested)


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is what a field's type says; a whole number may stand for a float."""
    if isinstance(hint, types.UnionType):
        return any(_has_type(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_has_type(one, get_args(hint)[0]) for one in value)
    if hint is float:
        return type(value) in (int, float) and -LARGEST < value < LARGEST
    return type(value) is hint


def _expectation(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"choose one of {', '.join(get_args(hint))}"
    return f"expected {getattr(hint, '__name__', hint)}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"loss": {"objective": x}} as {"loss.objective": x}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def by_flag(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe by the names of their flags: {"generator.blocks": 9, "critic_lr": 1e-4}."""
    return {_flag(path): value for path, value in flat(dataclasses.asdict(recipe)).items()}


def with_flags(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of fields, named by their flags. Raises InputError if they are invalid together."""
    changed = dataclasses.asdict(recipe)
    paths = {_flag(path): path for path in flat(changed)}
    for name, value in values.items():
        group, _, leaf = paths[name].rpartition(".")
        (changed[group] if group else changed)[leaf] = value
    built: Recipe = _build(Recipe, changed, f"recipe {recipe.name}")
    return built


def _flag(path: str) -> str:
    """The flag of "loss.objective" is "objective"; only networks' flags are prefixed."""
    return path if path.startswith(("generator.", "critic.")) else path.rpartition(".")[2]


def _within(name: str, value: int, smallest: int, largest: int) -> None:
    _at_least(name, value, smallest)
    if value > largest:
        raise InputError(f"{name} is {value}; it must be at most {largest}")


def _at_least(name: str, value: float, smallest: float) -> None:
    if not value >= smallest:
        raise InputError(f"{name} is {value}; it must be at least {smallest}")
