"""LPIPS: perceptual distance of pictures by the features of a network (Zhang et al. 2018, arXiv:1801.03924).

The network and the authors' linear heads are torchmetrics', imported only if LPIPS is used; the backbone's ImageNet
weights are torchvision's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cluster.errors import InputError
from deblur.models.pixels import from_uint8
from deblur.models.weights import read_weights, refuse_other_tensors, torchvision_weights

# AlexNet, not VGG16: the authors recommend it for evaluation, most published values use it, and our generators are
# trained on VGG features, so that VGG16 would be biased.
BACKBONE = "alexnet"
SMALLEST = 31  # pixels per side: AlexNet's two poolings leave nothing of less
_HINT = (
    f"--lpips-weights takes the state dict of torchvision's {BACKBONE}, as .safetensors or from "
    "torch.save(net.state_dict())"
)


def definition(source: str | None) -> str:
    """How `lpips` is defined with the weights of a source, to be printed with the numbers."""
    weights = "torchvision's ImageNet weights" if source is None else f"the weights of {source}"
    return (
        f"LPIPS (arXiv:1801.03924) of full frames: {BACKBONE} with {weights}, linear heads of version 0.1, "
        "RGB in [-1, 1], mean over pictures"
    )


def load_lpips(source: str | None, device: torch.device | str = "cpu") -> nn.Module:
    """The network of `lpips`, with torchvision's weights or those of a state dict at `source` (file or s3:// URL).

    Only features.* of the state dict are used. Raises InputError naming the weights, or torchmetrics, and the fix.
    """
    network: Any = _untrained()
    state = _download() if source is None else read_weights(source, _HINT)
    # Its slice3.6.weight is torchvision's features.6.weight; these tensors share the network's memory.
    own = {f"features.{name.partition('.')[2]}": tensor for name, tensor in network.net.state_dict().items()}
    found = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    refuse_other_tensors(own, found, source or f"torchvision's {BACKBONE}", _HINT)
    for name, tensor in own.items():
        tensor.copy_(found[name])
    loaded: nn.Module = network.to(device)
    return loaded


@torch.inference_mode()
def lpips(network: nn.Module, restored: Tensor, sharp: Tensor) -> Tensor:
    """Weighted squared differences of normalised features, mean over space, sum over layers (eq. 1).

    network          from `load_lpips`, on the pictures' device
    restored, sharp  [B, 3, H, W]  uint8 RGB, H and W at least 31 (ValueError otherwise)
    returns          [B]           float32, at least 0; 0 for equal pictures
    """
    height, width = sharp.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"pictures of {width}x{height} are smaller than the minimum for LPIPS, {SMALLEST}x{SMALLEST}")
    distance: Tensor = network(from_uint8(restored), from_uint8(sharp))
    return distance.flatten()


def _untrained() -> nn.Module:
    """torchmetrics' network with its linear heads and a random backbone."""
    try:
        # The public classes always download torchvision's weights; this one can be built without.
        from torchmetrics.functional.image.lpips import _NoTrainLpips
    except ImportError as error:
        raise InputError(f"--lpips needs torchmetrics ({error}); pip install -e '.[lpips]'") from error
    return _NoTrainLpips(net="alex", pnet_rand=True)


def _download() -> dict[str, Tensor]:
    """torchvision's ImageNet weights, from its cache or its server."""
    from torchvision.models import AlexNet_Weights  # not at the top: importing torchvision takes a second

    hint = "give --lpips-weights FILE or s3:// URL of a state dict with torchvision's names, or remove --lpips"
    return torchvision_weights(AlexNet_Weights.IMAGENET1K_V1, hint)
