"""Estimates the blur kernel of a picture from nothing else, as Pan et al. do: no weights, any device, in batches.

From coarse to fine, in turns: the sharp picture with the fewest edges that explains the blurred one (a prior on the
number of gradients, Xu et al. 2013, doi:10.1109/CVPR.2013.147, as in Pan et al. 2014, doi:10.1109/CVPR.2014.371), and
the kernel between the gradients of both by least squares, with a choice of strong edges after Cho and Lee 2009
(doi:10.1145/1618452.1618491). Written from the papers, with numbers near those of Pan et al., chosen on photographs of
the training set under random shake.

All convolutions are circular: pictures are continued to periodic ones first.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL_SIDE = 45  # pixels: the longest blur that is found
_SCALE = math.sqrt(0.5)  # from one level to the next
_COARSEST_SIDE = 5  # pixels of a kernel
_ROUNDS = 5  # per level
_EDGE_WEIGHT = 8e-3  # of the number of gradients, for pictures in [0, 1], at first
_DECAY = 1.1  # of the weight and of the threshold of strong edges, per round
_SPLITTING_MOST = 1e3  # of the weight beta that couples gradients and their copy (Xu et al., algorithm 1)
_RIDGE = 8.0  # of a kernel's squared weights, relative to the squared error of all gradients
_CONJUGATE_GRADIENTS = 20
_EDGES = 20  # gradients of each direction that the choice keeps at least, per pixel of the kernel's side
_NOISE_SHARE = 0.05  # of a kernel's largest weight: less is noise
_PART_SHARE = 0.05  # of a kernel's weight: less, unconnected with the rest, is noise
_NOTHING = 1e-8  # weight of a kernel of which nothing is left


@torch.no_grad()
def estimate_kernels(grey: Tensor, side: int = KERNEL_SIDE) -> Tensor:
    """The kernel by which each picture was blurred, if one kernel blurred all of it.

    grey  [B, H, W]        float32 in [0, 1], at least `side` pixels high and wide
    side       odd, in pixels
    returns    [B, side, side]  at least 0, sum 1, centre of mass in the middle to half a pixel; a picture without
                                edges has the kernel of no blur
    """
    kernel = threshold = None
    edge_weight = _EDGE_WEIGHT
    for scale, size in _levels(side):
        kernel = _first_kernels(grey, size) if kernel is None else _resized(kernel, size)
        level = _Level(grey, scale, size)
        if threshold is None:
            threshold = level.first_threshold(size)
        for _ in range(_ROUNDS):
            edges = level.sharp_gradients(kernel, edge_weight)
            edges *= _at_least(threshold.square(), edges)
            kernel = _without_noise(level.kernel_between(edges, size))
            threshold, edge_weight = threshold / _DECAY, edge_weight / _DECAY
        kernel = _centred(kernel)
    assert kernel is not None
    return kernel


def _levels(side: int) -> list[tuple[float, int]]:
    """(scale, side of the kernel) of each level, coarse to fine; sides are odd."""
    count = 1 + max(0, math.floor(math.log(_COARSEST_SIDE / side) / math.log(_SCALE)))
    scales = [_SCALE**nth for nth in reversed(range(count))]
    return [(scale, math.ceil(side * scale) // 2 * 2 + 1) for scale in scales]


class _Level:
    """Blurred pictures at one scale, periodic, with what all rounds need of them."""

    def __init__(self, grey: Tensor, scale: float, size: int) -> None:
        height, width = (round(length * scale) for length in grey.shape[1:])
        self.pixels = height * width
        if scale < 1:
            grey = F.interpolate(grey[:, None], size=(height, width), mode="bicubic", antialias=True)[:, 0]
        self.blurred = periodic(grey, margin=size)
        self.spectrum = torch.fft.rfft2(self.blurred)
        self.inside = torch.zeros_like(self.blurred[0])
        self.inside[: height - 1, : width - 1] = 1
        self.gradients = gradients(self.blurred) * self.inside
        self.gradient_spectrum = torch.fft.rfft2(self.gradients)

    def first_threshold(self, size: int) -> Tensor:
        """[B, 1, 1, 1]: each of four directions has at least `_EDGES` * `size` gradients that are as strong.

        Fewer in small pictures; 0 where a direction has not even those.
        """
        across, down = self.gradients.unbind(1)
        strength = torch.hypot(across, down).flatten(1)
        direction = (torch.atan2(down, across).remainder(math.pi) * (4 / math.pi)).long().clamp(0, 3).flatten(1)
        wanted = min(_EDGES * size, self.pixels // 8)
        weakest = [(strength * (direction == nth)).topk(wanted).values[:, -1] for nth in range(4)]
        return torch.stack(weakest).amin(0)[:, None, None, None]

    def sharp_gradients(self, kernel: Tensor, edge_weight: float) -> Tensor:
        """[B, 2, h, w]: gradients of the sharp picture that has few of them and the kernel explains.

        Half-quadratic splitting: gradients below a threshold that falls are 0, then the picture is solved for.
        """
        height, width = self.blurred.shape[1:]
        transfer = transfer_function(kernel, height, width)
        data, power = transfer.conj() * self.spectrum, transfer.abs().square()
        smoothness = gradient_power(height, width, device=kernel.device)
        sharp, beta = self.blurred, 2 * edge_weight
        while beta < _SPLITTING_MOST:
            edges = gradients(sharp)
            edges *= _at_least(edge_weight / beta, edges)
            target = data + beta * torch.fft.rfft2(_divergence(edges))
            sharp = torch.fft.irfft2(target / (power + beta * smoothness), s=(height, width))
            beta *= 2
        return gradients(sharp.clamp(0, 1)) * self.inside

    def kernel_between(self, edges: Tensor, size: int) -> Tensor:
        """[B, size, size]: the kernel that makes the blurred picture's gradients of these, by least squares.

        Only sums of products of pixels at most a kernel apart take part: they are found once, in spectra of the whole.
        """
        spectrum = torch.fft.rfft2(edges)
        side = _fast_length(2 * size - 1)
        power = _lags(spectrum.abs().square().sum(1), edges.shape[2:], size - 1)
        products = torch.fft.rfft2(_around_origin(power, side, side))

        def normal(kernel: Tensor) -> Tensor:
            convolved = torch.fft.irfft2(torch.fft.rfft2(kernel, s=(side, side)) * products, s=(side, side))
            return convolved[:, :size, :size] + _RIDGE * kernel

        target = _lags((spectrum.conj() * self.gradient_spectrum).sum(1), edges.shape[2:], size // 2)
        return _conjugate_gradients(normal, target)


def _at_least(square: float | Tensor, edges: Tensor) -> Tensor:
    """[B, 1, h, w]: 1 where the square of a gradient, [B, 2, h, w], is at least this, else 0."""
    across, down = edges.split(1, dim=1)
    return torch.addcmul(across.square(), down, down).ge(square).to(edges.dtype)


def _lags(spectrum: Tensor, shape: Sequence[int], most: int) -> Tensor:
    """[B, 2 most + 1, 2 most + 1]: the middle of the transform of a spectrum, whose origin is its middle."""
    rows, columns = (torch.arange(-most, most + 1, device=spectrum.device) % length for length in shape)
    return torch.fft.irfft2(spectrum, s=tuple(shape))[:, rows[:, None], columns]


def _conjugate_gradients(normal: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Solves normal(x) = target for each of a batch, [B, h, w]."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2), keepdim=True)

    solution, residual, direction = torch.zeros_like(target), target, target
    error = dot(residual, residual)
    for _ in range(_CONJUGATE_GRADIENTS):
        image = normal(direction)
        step = error / dot(direction, image).clamp(min=1e-20)
        solution, residual = solution + step * direction, residual - step * image
        error, before = dot(residual, residual), error
        direction = residual + error / before.clamp(min=1e-20) * direction
    return solution


# ---- kernels, [B, k, k]


def _first_kernels(grey: Tensor, size: int) -> Tensor:
    kernel = grey.new_zeros(len(grey), size, size)
    kernel[:, size // 2, size // 2 : size // 2 + 2] = 0.5
    return kernel


def _normalised(kernel: Tensor) -> Tensor:
    """At least 0 and of sum 1; the kernel of no blur where nothing is left."""
    kernel = kernel.clamp(min=0)
    total, still = kernel.sum((1, 2), keepdim=True), torch.zeros_like(kernel)
    still[:, kernel.shape[1] // 2, kernel.shape[2] // 2] = 1
    return torch.where(total > _NOTHING, kernel / total.clamp(min=_NOTHING), still)


def _resized(kernel: Tensor, size: int) -> Tensor:
    return _normalised(F.interpolate(kernel[:, None], size=(size, size), mode="bicubic")[:, 0])


def _without_noise(kernel: Tensor) -> Tensor:
    """Without small weights, and without connected parts (8 neighbours) that have a small share of the weight."""
    kernel = _normalised(kernel * (kernel > _NOISE_SHARE * kernel.amax((1, 2), keepdim=True)))
    part = _parts(kernel > 0)
    weights = torch.zeros_like(kernel).flatten(1).scatter_add_(1, part, kernel.flatten(1))
    return _normalised(kernel * (weights.gather(1, part).view_as(kernel) >= _PART_SHARE))


def _parts(present: Tensor) -> Tensor:
    """[B, k * k] int64: equal numbers for connected pixels of masks, [B, k, k]; pixels outside have none of theirs.

    In each round every part joins the neighbour of the largest number, so that at most half of them are left.
    """
    size = present.shape[1]
    own = torch.arange(size * size, device=present.device).expand(len(present), -1)
    part, mask = own, present.flatten(1)
    for _ in range(size.bit_length() + 2):  # enough for half of all pixels in a row; most need three
        numbers = torch.where(mask, part, -1).view_as(present)
        largest = F.max_pool2d(numbers[:, None].float(), 3, stride=1, padding=1).long().flatten(1)
        joined = own.scatter_reduce(1, part, torch.where(mask, largest, part), "amax")
        for _ in range(size.bit_length()):  # parts that joined one after the other get the number of the last
            joined = joined.gather(1, joined)
        part = joined.gather(1, part)
    return part


def _centred(kernel: Tensor) -> Tensor:
    """Shifted by whole pixels so that the centre of mass is in the middle; without what leaves the square."""
    size = kernel.shape[1]
    place = torch.arange(size, device=kernel.device)
    for axis in (1, 2):
        centre = (kernel.sum(3 - axis) * (place - size // 2)).sum(1).round().long()
        source = place + centre[:, None]  # [B, size]
        inside = (source >= 0) & (source < size)
        source, inside = (t[:, :, None] if axis == 1 else t[:, None, :] for t in (source.clamp(0, size - 1), inside))
        kernel = kernel.gather(axis, source.expand_as(kernel)) * inside
    return _normalised(kernel)


# ---- periodic pictures, [..., H, W]


def periodic(pictures: Tensor, margin: int) -> Tensor:
    """Continued by at least `margin` pixels right and below that lead back to the other border, [B, h, w]."""
    for _ in range(2):
        length = pictures.shape[-1]
        added = _fast_length(length + margin) - length
        share = torch.arange(1, added + 1, dtype=pictures.dtype, device=pictures.device) / (added + 1)
        pictures = torch.cat([pictures, torch.lerp(pictures[..., -1:], pictures[..., :1], share)], dim=-1).mT
    return pictures.contiguous()


def _fast_length(length: int) -> int:
    """The next multiple of 16 without prime factors above 5: its transforms take half the time of others with MKL."""
    rest = length = -(-length // 16) * 16
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    return length if rest == 1 else _fast_length(length + 1)


def gradients(pictures: Tensor) -> Tensor:
    """[B, 2, h, w] of [B, h, w]: differences to the right and to the lower neighbour."""
    across, down = torch.empty_like(pictures), torch.empty_like(pictures)
    # Slices instead of torch.roll, which copies: this is half of the time on CPUs.
    torch.sub(pictures[..., 1:], pictures[..., :-1], out=across[..., :-1])
    torch.sub(pictures[..., 0], pictures[..., -1], out=across[..., -1])
    torch.sub(pictures[..., 1:, :], pictures[..., :-1, :], out=down[..., :-1, :])
    torch.sub(pictures[..., 0, :], pictures[..., -1, :], out=down[..., -1, :])
    return torch.stack([across, down], dim=1)


def _divergence(field: Tensor) -> Tensor:
    """[B, h, w] of [B, 2, h, w]: the adjoint of `gradients`."""
    across, down = field.unbind(1)
    result = -across - down
    result[..., 1:] += across[..., :-1]
    result[..., 0] += across[..., -1]
    result[..., 1:, :] += down[..., :-1, :]
    result[..., 0, :] += down[..., -1, :]
    return result


def gradient_power(height: int, width: int, *, device: torch.device) -> Tensor:
    """[height, width // 2 + 1]: |transfer function|^2 of both gradients, summed."""
    down, across = (
        2 - 2 * torch.cos(2 * math.pi * torch.arange(count, device=device) / length)
        for count, length in ((height, height), (width // 2 + 1, width))
    )
    return down[:, None] + across


def transfer_function(kernel: Tensor, height: int, width: int) -> Tensor:
    """[B, height, width // 2 + 1]: the spectrum of kernels [B, k, k] whose middle is at the origin."""
    return torch.fft.rfft2(_around_origin(kernel, height, width))


def _around_origin(kernel: Tensor, height: int, width: int) -> Tensor:
    """[B, height, width]: zeros, and the kernel with its middle at the origin, circularly."""
    size = kernel.shape[1]
    wide = F.pad(kernel, (0, width - size, 0, height - size))
    return torch.roll(wide, (-(size // 2), -(size // 2)), (1, 2))
