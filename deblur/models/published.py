"""Published weights as generators with a recipe: python -m deblur.import_weights."""

from collections.abc import Callable

from torch import Tensor

from cluster.errors import InputError
from cluster.storage import absolute, open_store
from deblur.config.recipes import GeneratorRecipe, Recipe
from deblur.models.maxim_package import read_maxim
from deblur.models.names import Network
from deblur.models.pytorch_weights import read_deblurgan, read_nafnet
from deblur.models.weights import encode_generator

_MAXIM = Recipe(name="maxim", generator=GeneratorRecipe(architecture="maxim"))
_READERS: dict[Network, Callable[[str], tuple[dict[str, Tensor], Recipe]]] = {
    "maxim": lambda source: (read_maxim(source), _MAXIM),
    "nafnet": read_nafnet,
    "deblurgan": read_deblurgan,
}
"""What reads each network's published weights and their recipe, raising InputError."""


def import_weights(network: Network, source: str, out: str) -> str:
    """Writes published weights as a generator.safetensors; returns a line that describes it.

    source  what was published, see the network's reader
    out     a file or s3:// URL that ends in .safetensors

    Raises InputError if the source is something else.
    """
    if not out.endswith(".safetensors"):
        raise InputError(f"--out {out}: must end in .safetensors, as --model of the other commands expects")
    weights, recipe = _READERS[network](source)
    folder, _, name = absolute(out).rpartition("/")
    open_store(folder).put(name, encode_generator(weights, recipe))
    return f"{out}: {network} with {sum(tensor.numel() for tensor in weights.values()):,} parameters, from {source}"
