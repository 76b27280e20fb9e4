"""Critics: pictures to scores; higher means sharper.

Pictures are RGB [B, 3, H, W] in [-1, 1].
"""

from torch import Tensor, nn

from cluster.errors import InputError
from deblur.models.convolution import PenalisedConv2d
from deblur.models.layers import Norm, initialise, normalise


class PatchCritic(nn.Module):
    """PatchGAN (arXiv:1611.07004, section 6.1.2): one score for every patch, 70x70 pixels with 3 layers.

    Padding is 1 as in pix2pix; DeblurGAN's code has 2, which also scores patches that are mostly border. No sigmoid.
    2,764,737 parameters with 64 filters, 3 layers and InstanceNorm.
    """

    def __init__(self, *, filters: int = 64, layers: int = 3, norm: Norm) -> None:
        super().__init__()
        widths = [filters * min(2**level, 8) for level in range(layers + 1)]
        stages: list[nn.Module] = [PenalisedConv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            stages += [PenalisedConv2d(widths[level - 1], widths[level], 4, stride, 1)]
            stages += [normalise(norm, widths[level]), nn.LeakyReLU(0.2, True)]
        self.stages = nn.Sequential(*stages, PenalisedConv2d(widths[-1], 1, 4, 1, 1))
        # Leaves 2x2 values for the last norm, and one score.
        self.smallest = 3 * 2**layers
        initialise(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 1, H // 2**layers - 2, W // 2**layers - 2], unbounded."""
        height, width = pictures.shape[-2:]
        if min(height, width) < self.smallest:
            raise InputError(
                f"the critic got pictures of {height}x{width} but needs at least {self.smallest}x{self.smallest}: "
                "raise --crop or lower --critic.layers"
            )
        scores: Tensor = self.stages(pictures)
        return scores


class DenseCritic(nn.Module):
    """The critic of the article 'GAN on Keras: an app that removes blur': one score in (0, 1) per picture.

    Convolutions to a one-channel map, then two dense layers, so the picture size is fixed. As in the article's code
    the second convolution has as many filters as the first. BatchNorm has torch's epsilon and momentum.
    """

    def __init__(self, *, filters: int = 64, norm: Norm = "batch", crop: int) -> None:
        super().__init__()
        if crop < 32:
            raise InputError(f"data.crop is {crop}; the dense critic halves it four times and needs at least 32")
        f, side = filters, crop // 16
        self.crop = crop
        self.stages = nn.Sequential(  # equal to Keras' "same" padding if the crop is a multiple of 16
            PenalisedConv2d(3, f, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
            *_halving(f, f, norm),
            *_halving(f, 2 * f, norm),
            *_halving(2 * f, 4 * f, norm),
            nn.ZeroPad2d((1, 2, 1, 2)),  # Keras' "same" for 4x4 without stride
            PenalisedConv2d(4 * f, 8 * f, 4),
            normalise(norm, 8 * f),
            nn.LeakyReLU(0.2, True),
            nn.ZeroPad2d((1, 2, 1, 2)),
            PenalisedConv2d(8 * f, 1, 4),
        )
        self.judge = nn.Sequential(
            nn.Flatten(), nn.Linear(side * side, 1024), nn.Tanh(), nn.Linear(1024, 1), nn.Sigmoid()
        )
        initialise(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, crop, crop] in [-1, 1] -> [B, 1] in (0, 1)."""
        if pictures.shape[-2:] != (self.crop, self.crop):
            height, width = pictures.shape[-2:]
            raise InputError(
                f"the dense critic was built for {self.crop}x{self.crop} pixels and got {height}x{width}: "
                "set --crop to the pictures' size, or choose --critic.architecture patch"
            )
        scores: Tensor = self.judge(self.stages(pictures))
        return scores


def _halving(channels: int, out: int, norm: Norm) -> list[nn.Module]:
    """[B, channels, H, W] -> [B, out, H // 2, W // 2]"""
    return [PenalisedConv2d(channels, out, 4, 2, 1), normalise(norm, out), nn.LeakyReLU(0.2, True)]
