"""The loss terms of critic and generator, per image: plain functions of scores, features and pictures.

A higher score means sharper. Every function returns [B], unweighted; weights and means over the batch are the caller's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deblur.config.recipes import Objective, PixelLoss


def content_distance(restored_features: Tensor, sharp_features: Tensor) -> Tensor:
    """Mean squared difference of features (arXiv:1711.07064, section 3.1; over channels too, as its code).

    restored_features, sharp_features  [B, C, h, w]
    returns                            [B]
    """
    return _per_image((restored_features - sharp_features).square())


def pixel_distance(restored: Tensor, sharp: Tensor, kind: PixelLoss) -> Tensor:
    """Mean absolute error, or Charbonnier's sqrt(error^2 + 1e-6) (arXiv:1710.01992, eq. 2; 1e-3 as MPRNet).

    restored, sharp  [B, 3, H, W]  RGB in [-1, 1]
    returns          [B]
    """
    error = restored - sharp
    return _per_image(error.abs() if kind == "l1" else (error.square() + 1e-6).sqrt())


def frequency_distance(restored: Tensor, sharp: Tensor) -> Tensor:
    """Mean absolute difference of the real and imaginary parts of Fourier coefficients (MIMO-UNet, arXiv:2108.05054).

    restored, sharp  [B, 3, H, W]  RGB in [-1, 1], float32 or float64
    returns          [B]
    """
    return _per_image(torch.view_as_real(torch.fft.fft2(restored - sharp)).abs())


def critic_terms(objective: Objective, sharp_scores: Tensor, restored_scores: Tensor) -> Tensor:
    """What the critic minimises, without penalty.

    sharp_scores, restored_scores  [B, ...]  each patch is judged by itself, then patches are averaged
    returns                        [B]

    wasserstein, wgan-gp  arXiv:1701.07875, eq. 3; the article's mean(label x score), -1 for sharp and +1 for restored
    least-squares         arXiv:1611.04076, eq. 9: sharp is 1, restored is 0
    vanilla               arXiv:1406.2661, eq. 1; scores are logits of "sharp"
    relativistic-least-squares
                          arXiv:1908.03826, eq. 2: sharp scores 1 above, restored 1 below the other's mean; means are
                          over the patches of one image, as in batches of 1, so that no image depends on its batch
    """
    terms: dict[Objective, Callable[[Tensor, Tensor], Tensor]] = {
        "wasserstein": lambda sharp, restored: restored - sharp,
        "wgan-gp": lambda sharp, restored: restored - sharp,
        "least-squares": lambda sharp, restored: 0.5 * ((sharp - 1).square() + restored.square()),
        "relativistic-least-squares": lambda sharp, restored: (
            (sharp - _mean(restored) - 1).square() + (restored - _mean(sharp) + 1).square()
        ),
        "vanilla": lambda sharp, restored: F.softplus(-sharp) + F.softplus(restored),
    }
    return _per_image(terms[objective](sharp_scores, restored_scores))


def generator_term(objective: Objective, sharp_scores: Tensor, restored_scores: Tensor) -> Tensor:
    """What the generator minimises of the critic's judgement; sources as in `critic_terms`.

    sharp_scores, restored_scores  [B, ...]  only the relativistic objective uses the sharp ones
    returns                        [B]

    vanilla is the form that does not saturate: -log D instead of log(1 - D) (arXiv:1406.2661, section 3).
    """
    terms: dict[Objective, Callable[[Tensor, Tensor], Tensor]] = {
        "wasserstein": lambda _, restored: -restored,
        "wgan-gp": lambda _, restored: -restored,
        "least-squares": lambda _, restored: 0.5 * (restored - 1).square(),
        "relativistic-least-squares": lambda sharp, restored: (
            (sharp - _mean(restored) + 1).square() + (restored - _mean(sharp) - 1).square()
        ),
        "vanilla": lambda _, restored: F.softplus(-restored),
    }
    return _per_image(terms[objective](sharp_scores, restored_scores))


def gradient_penalty(critic: Callable[[Tensor], Tensor], sharp: Tensor, restored: Tensor, mix: Tensor) -> Tensor:
    """Squared distance of the critic's gradient norm from 1, unweighted (arXiv:1704.00028, eq. 3).

    sharp, restored  [B, 3, H, W]  RGB in [-1, 1], float32 or float64; no gradient goes back to them
    mix              [B, 1, 1, 1]  in [0, 1], one draw per image
    returns          [B]           0 where the norm over (3, H, W) equals 1
    """
    between = mix * sharp.detach() + (1 - mix) * restored.detach()
    between.requires_grad_()
    # The critic of eq. 3 is one number per image. That is the mean over patches, because the mean is what the objective
    # maximises; a sum would hold the mean's slope to 1 / patches and change with the crop.
    scores = _per_image(critic(between))
    # An image's score depends on that image alone (no BatchNorm), so the sum's gradient holds each image's own.
    (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    return (torch.linalg.vector_norm(gradient, dim=(1, 2, 3)) - 1).square()


def _mean(scores: Tensor) -> Tensor:
    """[B, ...] -> the mean of each image, of a shape that broadcasts."""
    return scores.mean(dim=tuple(range(1, scores.ndim)), keepdim=True)


def _per_image(values: Tensor) -> Tensor:
    """[B, ...] -> [B], the mean over all but B."""
    return values.reshape(len(values), -1).mean(dim=1)
