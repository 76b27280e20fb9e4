"""What generators and critics share: the choice of normalisation, and the first weights."""

from typing import Literal

from torch import nn

Norm = Literal["instance", "batch", "none"]


def normalise(norm: Norm, channels: int) -> nn.Module:
    """The layer that normalises [B, channels, H, W]; InstanceNorm has neither weights nor memory, as in DeblurGAN."""
    layers = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d, "none": nn.Identity}
    return layers[norm](channels)


def initialise(network: nn.Module, *, he: bool = False) -> None:
    """Draws first weights from torch's global generator, as DeblurGAN does; biases are 0.

    `he` is for generators in which no layer normalises: nothing else sets the scale of activations (arXiv:1502.01852).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if he:
                nn.init.kaiming_normal_(module.weight)
            else:
                nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        elif isinstance(module, nn.Linear):  # DeblurGAN has none; Keras, and so the article, draws them like this
            nn.init.xavier_uniform_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
