"""What generators and critics share: the choice of normalisation, and the first weights; and two layers of torch's
that are slow on CPUs.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["instance", "batch", "none"]


def normalise(norm: Norm, channels: int) -> nn.Module:
    """The layer that normalises [B, channels, H, W]; InstanceNorm has neither weights nor memory, as in DeblurGAN."""
    layers = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d, "none": nn.Identity}
    return layers[norm](channels)


def has_batch_norm(network: nn.Module) -> bool:
    """Whether what it says of an image depends on the others in the batch."""
    return any(isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) for module in network.modules())


class Dropout(nn.Dropout):
    """torch's, with a mask that is drawn four times as fast on a CPU; there it was a fifteenth of an update."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        kept = torch.rand(x.shape) >= self.p
        return x * (kept / (1 - self.p)).to(x.dtype)


class ReflectionPad2d(nn.ReflectionPad2d):
    """torch's, in the dtype that comes in: autocast on a CPU would copy to float32 and back."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.pad(x, self.padding, mode="reflect")


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
