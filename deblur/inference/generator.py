"""Generators that were trained: from a run or a file, checked, on a device."""

import json

import safetensors
import safetensors.torch
import torch
from torch import nn

from cluster.errors import InputError
from cluster.storage import open_store, read_url
from cluster.storage.checkpoints import Checkpoints
from deblur.config import recipes
from deblur.models.build import build_generator
from deblur.models.weights import refuse_other_tensors


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
    """The generator of a run or a file, in eval mode. Raises InputError as `read_model` and `build_model`."""
    return build_model(read_model(url), url, device)


def read_model(url: str) -> bytes:
    """The generator.safetensors of a run's newest checkpoint that is whole, or that file itself.

    Raises InputError naming the place.
    """
    if url.endswith(".safetensors"):
        return read_url(url)
    found = Checkpoints(open_store(url)).newest_part("generator.safetensors")
    if found is None:
        raise InputError(
            f"{url}: holds no checkpoint that is whole; --model takes a run that has one, or a generator.safetensors"
        )
    return found


def build_model(data: bytes, url: str, device: torch.device) -> nn.Module:
    """The generator of a file's bytes, in eval mode; `url` is where they come from.

    The file says itself which recipe it is of. Nothing in it is executed. Raises InputError naming the place, and the
    first tensor that is not what the recipe makes.
    """
    generator = build_generator(recipes.from_json(_recipe_text(data, url), url))
    try:
        weights = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"{url}: not a whole safetensors file ({error}); copy it again") from error
    refuse_other_tensors(generator.state_dict(), weights, url, "the recipe in it makes another one; copy it again")
    generator.load_state_dict(weights)
    return generator.to(device).eval()


def _recipe_text(data: bytes, place: str) -> str:
    """The recipe among a safetensors file's metadata: a length in 8 bytes, a JSON header, the tensors."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return header["__metadata__"]["recipe"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{place}: no generator with its recipe; take a generator.safetensors of a run") from error
