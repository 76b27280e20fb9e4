"""LPIPS: how far apart two pictures look, by the features of a network (Zhang et al. 2018, arXiv:1801.03924).

The network is torchmetrics', with the authors' linear heads, which it brings along; the backbone's ImageNet weights are
torchvision's. Those who need no LPIPS need no torchmetrics.
"""

import torch
from torch import Tensor, nn

from cluster.errors import InputError
from deblur.models.pixels import from_uint8
from deblur.models.weights import read_weights, refuse_other_tensors, torchvision_weights

# AlexNet, not VGG16: it is the authors' choice for measuring (VGG16 is theirs for training), so published values are
# mostly of it; and our generators are trained against VGG's features, which would make VGG16 a judge in its own cause.
BACKBONE = "alexnet"
SMALLEST = 31  # pixels a side: what AlexNet's two poolings leave something of
_MEND = (
    f"--lpips-weights takes the state dict of torchvision's {BACKBONE}, as .safetensors or from "
    "torch.save(net.state_dict())"
)


def definition(source: str | None) -> str:
    """What `lpips` measures with the weights of that source, for those who read the numbers."""
    weights = "torchvision's ImageNet weights" if source is None else f"the weights of {source}"
    return (
        f"LPIPS (arXiv:1801.03924) of full frames: {BACKBONE} with {weights}, linear heads of version 0.1, "
        "RGB in [-1, 1], mean of the pictures' values"
    )


def load_lpips(source: str | None, device: torch.device | str = "cpu") -> nn.Module:
    """The network that `lpips` asks, with torchvision's weights, or those of a state dict at `source` (file or s3://).

    Only features.* of the state dict count. Raises InputError naming the weights, or torchmetrics, and the mend.
    """
    network = _untrained()
    state = _download() if source is None else read_weights(source, _MEND)
    # slice3.6.weight there is features.6.weight at torchvision; these tensors are the network's own memory.
    own = {f"features.{name.partition('.')[2]}": tensor for name, tensor in network.net.state_dict().items()}
    found = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    refuse_other_tensors(own, found, source or f"torchvision's {BACKBONE}", _MEND)
    for name, tensor in own.items():
        tensor.copy_(found[name])
    return network.to(device)


@torch.inference_mode()
def lpips(network: nn.Module, restored: Tensor, sharp: Tensor) -> Tensor:
    """Perceptual distance: squared differences of unit features, weighed, mean over space, sum over layers (eq. 1).

    network          of `load_lpips`, on the pictures' device
    restored, sharp  [B, 3, H, W]  uint8 RGB, H and W at least 31 (ValueError otherwise)
    returns          [B]           float32, at least 0; 0 where the two are equal
    """
    height, width = sharp.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"pictures of {width}x{height} are smaller than LPIPS can judge: {SMALLEST}x{SMALLEST}")
    return network(from_uint8(restored), from_uint8(sharp)).flatten()


def _untrained() -> nn.Module:
    """torchmetrics' network with its linear heads and a random backbone."""
    try:
        # Its public classes always fetch torchvision's weights; the network beneath them can be made without.
        from torchmetrics.functional.image.lpips import _NoTrainLpips
    except ImportError as error:
        raise InputError(f"--lpips needs torchmetrics ({error}); pip install -e '.[lpips]'") from error
    return _NoTrainLpips(net="alex", pnet_rand=True)


def _download() -> dict[str, Tensor]:
    """torchvision's ImageNet weights, from its cache or its server."""
    from torchvision.models import AlexNet_Weights  # not at the top: it takes a second

    hint = "give --lpips-weights FILE or s3:// URL of a state dict with torchvision's names, or leave out --lpips"
    return torchvision_weights(AlexNet_Weights.IMAGENET1K_V1, hint)
