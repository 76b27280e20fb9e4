"""Loads trained generators: the one inside the package, those of runs, and those of files."""

import importlib.resources
import re
from hashlib import sha256

import safetensors
import safetensors.torch
import torch
from torch import nn

from cluster.errors import InputError
from cluster.storage import absolute, open_store, read_url
from cluster.storage.checkpoints import Checkpoints
from deblur.config import recipes
from deblur.config.recipes import Recipe
from deblur.models.build import build_generator
from deblur.models.names import EMBEDDED
from deblur.models.weights import refuse_other_tensors, split_header

_CHECKPOINT = re.compile(r"(?:^|/)checkpoints/(\d{12})/?$")
_CONSTANT = 0.01  # standard deviation of values in [-1, 1], about one level of 255
_EMBEDDED_FILE = "embedded.safetensors"


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU if available. Raises InputError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not available ({reason}); choose auto, cpu or cuda") from error


def load_model(url: str, device: torch.device) -> nn.Module:
    """The generator of a run or a file, in eval mode. Raises InputError like `read_model` and `build_model`."""
    return build_model(read_model(url), url, device)


def read_model(url: str) -> bytes:
    """The generator.safetensors of the package (EMBEDDED), of a run, of a checkpoint's folder, or of a file or URL.

    A run's is that of its best checkpoint by validation, of its newest without one. Raises InputError naming the URL.
    """
    if url == EMBEDDED:
        return importlib.resources.files(__package__).joinpath(_EMBEDDED_FILE).read_bytes()
    if url.endswith(".safetensors"):
        return read_url(url)
    name = "generator.safetensors"
    if chosen := _CHECKPOINT.search(url):
        checkpoints = Checkpoints(open_store(url[: chosen.start()] or "."))
        checkpoint = next((one for one in checkpoints.list() if one.images_seen == int(chosen[1])), None)
        if checkpoint is None:
            raise InputError(f"{url}: no valid checkpoint; choose another of its run")
        return checkpoints.load_part(checkpoint, name)
    found = Checkpoints(open_store(url)).best_part(name)
    if found is None:
        raise InputError(f"{url}: no valid checkpoint; --model needs a run that has one, or a generator.safetensors")
    return found


def absolute_model(url: str) -> str:
    """The address of a model for processes in other folders."""
    return url if url == EMBEDDED else absolute(url)


def build_model(data: bytes, url: str, device: torch.device) -> nn.Module:
    """The generator of a safetensors file's bytes, in eval mode. Nothing in the file is executed.

    The recipe is in the file's metadata. Raises InputError naming `url`, where the bytes are from, and the first tensor
    that does not match the recipe or is not finite; also for a network that restores nothing but a flat picture.
    """
    recipe = read_recipe(data, url)
    with torch.device("meta"):  # without memory, until the file turns out to have that many numbers
        expected = build_generator(recipe).state_dict()
    try:
        weights = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"{url}: damaged safetensors file ({error}); copy it again") from error
    header, tensors = split_header(data)
    if header["__metadata__"].get("sha256", digest := sha256(tensors).hexdigest()) != digest:
        raise InputError(f"{url}: damaged: its tensors do not have the SHA-256 in its header; copy it again")
    refuse_other_tensors(expected, weights, url, "its recipe describes another one; copy it again")
    if bad := next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None):
        raise InputError(f"{url}: {bad} has numbers that are not finite; take an earlier checkpoint, or copy it again")
    generator = build_generator(recipe)
    generator.load_state_dict(weights)
    generator = generator.to(device).eval()
    with torch.inference_mode():
        noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        if not generator(noise.to(device)).clamp(-1, 1).std() > _CONSTANT:
            raise InputError(f"{url}: makes the same flat picture of every picture; take an earlier checkpoint")
    return generator


def read_recipe(data: bytes, url: str) -> Recipe:
    """The recipe in a generator.safetensors' metadata; raises InputError naming `url`."""
    try:
        text: str = split_header(data)[0]["__metadata__"]["recipe"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{url}: not a generator with its recipe; use the generator.safetensors of a run") from error
    return recipes.from_json(text, url)
