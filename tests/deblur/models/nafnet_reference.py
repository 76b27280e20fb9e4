"""NAFNet (arXiv:2204.04676) read into numpy, from its equations and figures; pictures are [C, H, W] in [0, 1]."""

from collections.abc import Mapping

import numpy as np

Array = np.ndarray
Weights = Mapping[str, Array]


def layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    """Over the channels of each pixel."""
    centred = x - x.mean(axis=0)
    return centred / np.sqrt((centred**2).mean(axis=0) + 1e-6) * scale[:, None, None] + shift[:, None, None]


def simple_gate(x: Array) -> Array:
    """Equation 4: half of the channels times the other half."""
    half = len(x) // 2
    return x[:half] * x[half:]


def channel_attention(x: Array, weights: Weights) -> Array:
    """Equation 6: X * W pool(X)."""
    attention = weights["sca.1.weight"][:, :, 0, 0] @ x.mean(axis=(1, 2)) + weights["sca.1.bias"]
    return x * attention[:, None, None]


def pointwise(x: Array, weights: Weights, name: str) -> Array:
    """1x1 convolution, with a bias if it has one."""
    bias = weights.get(f"{name}.bias", np.zeros(1))
    return np.einsum("oi,ihw->ohw", weights[f"{name}.weight"][:, :, 0, 0], x) + bias[:, None, None]


def windows(x: Array, side: int, step: int) -> Array:
    """[C, H', W', side, side]."""
    return np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))[:, ::step, ::step]


def block(x: Array, weights: Weights) -> Array:
    """Figure 3c."""
    y = pointwise(layer_norm(x, weights["norm1.weight"], weights["norm1.bias"]), weights, "conv1")
    y = windows(np.pad(y, ((0, 0), (1, 1), (1, 1))), 3, 1)
    y = np.einsum("cij,chwij->chw", weights["conv2.weight"][:, 0], y) + weights["conv2.bias"][:, None, None]
    x = x + weights["beta"][0] * pointwise(channel_attention(simple_gate(y), weights), weights, "conv3")
    y = pointwise(layer_norm(x, weights["norm2.weight"], weights["norm2.bias"]), weights, "conv4")
    return x + weights["gamma"][0] * pointwise(simple_gate(y), weights, "conv5")


def convolution(x: Array, weights: Weights, name: str, padding: int, step: int) -> Array:
    """k x k, zeros outside."""
    kernel = weights[f"{name}.weight"]
    y = windows(np.pad(x, ((0, 0), (padding, padding), (padding, padding))), kernel.shape[-1], step)
    return np.einsum("ocij,chwij->ohw", kernel, y) + weights[f"{name}.bias"][:, None, None]


def shuffle(x: Array) -> Array:
    """[4C, H, W] -> [C, 2H, 2W]: pixel shuffle (arXiv:1609.05158)."""
    channels, height, width = len(x) // 4, *x.shape[1:]
    return x.reshape(channels, 2, 2, height, width).transpose(0, 3, 1, 4, 2).reshape(channels, 2 * height, 2 * width)


def network(picture: Array, weights: Weights, levels: int) -> Array:
    """The whole network on a picture of any size, padded with zeros at its end."""
    height, width = picture.shape[1:]
    extra = [(0, 0), (0, -height % 2**levels), (0, -width % 2**levels)]
    padded = np.pad(picture, extra)

    def blocks(x: Array, name: str) -> Array:
        position = 0
        while f"{name}.{position}.beta" in weights:
            prefix = f"{name}.{position}."
            x = block(x, {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)})
            position += 1
        return x

    x, skips = convolution(padded, weights, "intro", 1, 1), []
    for level in range(levels):
        skips.append(blocks(x, f"encoders.{level}"))
        x = convolution(skips[-1], weights, f"downs.{level}", 0, 2)
    x = blocks(x, "middle_blks")
    for level in range(levels):
        x = blocks(shuffle(pointwise(x, weights, f"ups.{level}.0")) + skips.pop(), f"decoders.{level}")
    return (padded + convolution(x, weights, "ending", 1, 1))[:, :height, :width]
