"""Learning rates as a function of images_seen, so that no batch size or node count moves them."""

from deblur.config.recipes import AdamRecipe


def learning_rates(adam: AdamRecipe, images_seen: int, total_images: int) -> tuple[float, float]:
    """Those of the generator and the critic for the update that starts at images_seen."""
    return (
        lr_at(adam.generator_lr, images_seen, total_images, adam.lr_decay_start),
        lr_at(adam.critic_lr, images_seen, total_images, adam.lr_decay_start),
    )


def lr_at(base: float, images_seen: int, total_images: int, lr_decay_start: float) -> float:
    """Constant until the share `lr_decay_start` of a run, then linear to 0 at its end (arXiv:1711.07064, section 5)."""
    start = lr_decay_start * total_images
    if images_seen <= start:
        return base
    return base * max(0.0, (total_images - images_seen) / (total_images - start))
