"""State dicts: from files, buckets and torchvision, without running code from them; compared tensor by tensor."""

from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from cluster.errors import InputError
from cluster.storage import read_url


def torchvision_weights(wanted: Any, hint: str) -> dict[str, Tensor]:
    """The state dict of one of torchvision's weights (a WeightsEnum), from its cache or its server.

    `hint` ends the message where it cannot be had (InputError).
    """
    try:
        return wanted.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # the network, the cache's folder or its file: the mend is the same
        network = type(wanted).__name__.removesuffix("_Weights").lower()
        reason = f"torchvision's {network} weights could not be had: {error}"
        raise InputError(f"{wanted.url}: {reason}; {hint}") from error


def read_weights(source: str, hint: str) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in one of torch.save; nothing in it is executed.

    source  a file or s3:// URL
    mend    ends the message where it holds no state dict (InputError)
    """
    data = read_url(source)
    try:
        if source.endswith(".safetensors"):
            import safetensors.torch  # not at the top: random weights, as on a bare machine, need it not

            return safetensors.torch.load(data)
        state: Any = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise a dozen kinds
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{source}: holds no tensors that can be read without running code from it ({reason}); {hint}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{source}: holds {type(state).__name__}, not a dict of names and tensors; {hint}")
    return state


def refuse_other_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], place: str, hint: str) -> None:
    """Raises InputError naming the first tensor that is missing, of another shape, or not the network's."""
    for name in [*expected, *sorted(found)]:
        wanted, came = (str(list(side[name].shape)) if name in side else "absent" for side in (expected, found))
        if wanted != came:
            raise InputError(f"{place}: weights of another network: tensor {name} is {came}, expected {wanted}; {hint}")
