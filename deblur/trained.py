"""Generators that were trained: from a run or a file, checked, on a device."""

import json

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cluster.checkpoints import Checkpoints
from cluster.errors import InputError
from cluster.storage import open_store, read_url
from deblur import recipe as recipes
from deblur.recipe import build_generator


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one. Raises InputError where there is none of that name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: cannot be used here ({reason}); choose auto, cpu or cuda") from error


def load_model(url: str, device: torch.device) -> nn.Module:
    """The generator of a run's newest checkpoint that is whole, or of one generator.safetensors, in eval mode.

    The file says itself which recipe it is of. Nothing in it is executed. Raises InputError naming the place, and the
    first tensor that is not what the recipe makes.
    """
    data = read_url(url) if url.endswith(".safetensors") else _newest_generator(url)
    generator = build_generator(recipes.from_json(_recipe_text(data, url), url))
    try:
        weights = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"{url}: not a whole safetensors file ({error}); copy it again") from error
    _check_tensors(generator.state_dict(), weights, url)
    generator.load_state_dict(weights)
    return generator.to(device).eval()


def _newest_generator(url: str) -> bytes:
    found = Checkpoints(open_store(url)).newest_part("generator.safetensors")
    if found is None:
        raise InputError(
            f"{url}: holds no checkpoint that is whole; --model takes a run that has one, or a generator.safetensors"
        )
    return found


def _recipe_text(data: bytes, place: str) -> str:
    """The recipe among a safetensors file's metadata: a length in 8 bytes, a JSON header, the tensors."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return header["__metadata__"]["recipe"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{place}: no generator with its recipe; take a generator.safetensors of a run") from error


def _check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], place: str) -> None:
    for name in [*expected, *sorted(found)]:
        wanted, came = (str(list(side[name].shape)) if name in side else "absent" for side in (expected, found))
        if wanted != came:
            raise InputError(f"{place}: another network than its recipe's: tensor {name} is {came}, expected {wanted}")
