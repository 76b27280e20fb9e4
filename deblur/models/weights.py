"""Loads state dicts from files, buckets and torchvision without executing code from them, and validates them."""

import json
from hashlib import sha256
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from cluster.errors import InputError
from cluster.storage import read_url
from deblur.config import recipes
from deblur.config.recipes import Recipe


def torchvision_weights(weights: Any, hint: str) -> dict[str, Tensor]:
    """The state dict of one of torchvision's weights (a WeightsEnum), from its cache or its server.

    Raises InputError, whose message ends with `hint`.
    """
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
        return state
    except Exception as error:  # the network, the cache's folder or its file: the fix is the same
        network = type(weights).__name__.removesuffix("_Weights").lower()
        reason = f"cannot load torchvision's {network} weights: {error}"
        raise InputError(f"{weights.url}: {reason}; {hint}") from error


def read_weights(source: str, hint: str, nested: str = "") -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch.save file; nothing in it is executed.

    source  a file or s3:// URL
    hint    ends the message of the InputError for a file without a state dict
    nested  a name under which the file may have the state dict, as BasicSR's have
    """
    import safetensors.torch  # here: benchmarks of random weights run where only torch is installed

    data = read_url(source)
    try:
        if source.endswith(".safetensors"):
            return safetensors.torch.load(data)
        state: Any = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise a dozen kinds
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{source}: cannot load tensors without running code from the file ({reason}); {hint}"
        ) from error
    if nested and isinstance(state, dict):
        state = state.get(nested, state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{source}: expected a dict of names and tensors, found {type(state).__name__}; {hint}")
    return state


def refuse_other_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], place: str, hint: str) -> None:
    """Raises InputError naming the first tensor that is missing, unexpected, or has another shape."""
    for name in [*expected, *sorted(found)]:
        wanted, got = (str(list(side[name].shape)) if name in side else "absent" for side in (expected, found))
        if wanted != got:
            raise InputError(f"{place}: weights of another network: tensor {name} is {got}, expected {wanted}; {hint}")


def encode_generator(weights: dict[str, Tensor], recipe: Recipe) -> bytes:
    """A generator.safetensors: the weights, with their recipe and the SHA-256 of their bytes in the metadata."""
    import safetensors.torch  # as above

    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    header, tensors = split_header(safetensors.torch.save(contiguous))
    # Not written by safetensors, whose order of several entries is random: equal weights should be equal bytes.
    metadata = {"recipe": recipes.to_json(recipe), "sha256": sha256(tensors).hexdigest()}
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + tensors


def split_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes of the tensors of a safetensors file: header size in 8 bytes, JSON header, tensors.

    Raises ValueError for other data.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    return header, data[end:]
