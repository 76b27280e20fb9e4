"""Perceptual features: the first layers of VGG networks, frozen, with ImageNet or fixed random weights."""

import hashlib
import logging
import re
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cluster.errors import InputError
from deblur.config.recipes import FeatureName
from deblur.models.weights import read_weights, torchvision_weights

# The network, and the length of the prefix of torchvision's `features`.
_TRUNKS: dict[FeatureName, tuple[str, int]] = {
    # The article: the output of a Keras layer includes its activation, so ReLU (15) is part of it.
    "vgg16-block3_conv3": ("vgg16", 16),
    # DeblurGAN's code stops at index 14 (models/losses.py, conv_3_3_layer): conv3_3 without its ReLU.
    "vgg19-conv3_3": ("vgg19", 15),
    # In its place where VGG19's weights cannot be had.
    "vgg16-conv3_3": ("vgg16", 15),
    # The demo: the earliest features, after the ReLU.
    "vgg16-block1_conv1": ("vgg16", 2),
}
# Filters of each convolution, 0 for a pooling. VGG16 and VGG19 are identical up to conv3_3.
_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256)
# torchvision's, for RGB in [0, 1].
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
_RANDOM_SEED = 0


class Features(nn.Module):
    """Pictures to activations. Frozen and always in eval mode; gradients flow to the pictures.

    Weights are uninitialised: `load_features` sets them. Names are torchvision's: features.0.weight, ...
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: FeatureName) -> None:
        super().__init__()
        self.features = _trunk(_TRUNKS[name][1])
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_IMAGENET_DEVIATION).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        """RGB [B, 3, H, W] in [-1, 1] -> [B, C, h, w]: 256 channels at H // 4, or 64 at H for block1_conv1."""
        activations: Tensor = self.features(((pictures + 1) / 2 - self.mean) / self.deviation)
        return activations

    def train(self, mode: bool = True) -> "Features":
        """Stays in eval mode: the loss network is not trained."""
        return super().train(False)


def load_features(name: FeatureName, weights: Literal["pretrained", "random"], source: str | None) -> Features:
    """Features with weights: torchvision's, those of a state dict at `source` (file or s3:// URL), or random ones.

    Does not use torch's global generator. Raises InputError naming the weights and the fix.
    """
    features = Features(name)
    if weights == "random":
        _randomise(features)
        logging.getLogger(__name__).warning(
            "random VGG: %s has fixed random weights, so the content loss is not perceptual", name
        )
        return features
    network = _TRUNKS[name][0]
    place = source or f"torchvision's {network}"
    state = _download(network) if source is None else read_weights(source, _HINT)
    _refuse_other_network(state, place, network)
    _fill(features, state, place, network)
    return features


def digest(features: Features) -> str:
    """sha256 (hex) of every tensor's name, shape and little-endian float32 bytes, to identify a run's weights."""
    result = hashlib.sha256()
    for name, tensor in sorted(features.state_dict().items()):
        result.update(f"{name} {list(tensor.shape)}\n".encode())
        result.update(tensor.float().cpu().contiguous().numpy().astype("<f4").tobytes())
    return result.hexdigest()


def _trunk(length: int) -> nn.Sequential:
    """torchvision's `features[:length]` of VGG16 and VGG19 (arXiv:1409.1556, table 1, D and E), length at most 16."""
    layers: list[nn.Module] = []
    channels = 3
    for width in _WIDTHS:
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        # skip_init: initial weights would be drawn from the run's generator.
        skip_init: Any = nn.utils.skip_init
        layers += [skip_init(nn.Conv2d, channels, width, 3, padding=1), nn.ReLU(True)]
        channels = width
    return nn.Sequential(*layers[:length])


def _randomise(features: Features) -> None:
    """Fixed He-normal weights (arXiv:1502.01852, eq. 10), which preserve the scale of activations; biases are 0."""
    generator = torch.Generator().manual_seed(_RANDOM_SEED)
    for name, parameter in features.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)


def _download(network: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights, from its cache or its server."""
    # Not at the top: importing torchvision takes a second.
    from torchvision.models import VGG16_Weights, VGG19_Weights

    weights = {"vgg16": VGG16_Weights.IMAGENET1K_V1, "vgg19": VGG19_Weights.IMAGENET1K_V1}[network]
    hint = "give --vgg-weights FILE or s3:// URL of a state dict with torchvision's names"
    return torchvision_weights(weights, f"{hint}, or choose --feature-weights random")


_HINT = (
    "--vgg-weights takes a state dict with torchvision's names, as .safetensors or from torch.save(net.state_dict())"
)


def _refuse_other_network(state: dict[str, Tensor], place: str, expected: str) -> None:
    """Distinguishes VGG16 from VGG19 by the layers after the trunk; accepts a file that ends with the trunk."""
    layers = {int(match[1]) for match in (re.fullmatch(r"features\.(\d+)\.weight", str(key)) for key in state) if match}
    if not any(layer > 14 for layer in layers):
        return
    found = "vgg19" if 16 in layers else "vgg16"  # VGG16 has a pooling at 16, VGG19 its conv3_4
    if found != expected:
        raise InputError(f"{place}: holds {found} (by its layers after conv3_3), expected {expected}; {_HINT}")


def _fill(features: Features, state: dict[str, Tensor], place: str, network: str) -> None:
    """Copies the trunk's tensors and ignores all others."""
    own = features.state_dict()
    for name, tensor in own.items():
        shape = list(tensor.shape)
        if name not in state:
            raise InputError(f"{place}: has no {name}; expected {network}'s, of shape {shape}; {_HINT}")
        if list(state[name].shape) != shape:
            found = list(state[name].shape)
            raise InputError(f"{place}: {name} has shape {found}; expected {network}'s {shape}; {_HINT}")
    features.load_state_dict({name: state[name] for name in own})
