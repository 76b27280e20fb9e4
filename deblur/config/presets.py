"""The recipes that come with the package, by the names that --recipe takes."""

import dataclasses
from collections.abc import Callable

from deblur.config.recipes import AdamRecipe, CriticRecipe, DataRecipe, GeneratorRecipe, LossRecipe, Recipe


def blog() -> Recipe:
    """The Keras article 'GAN on Keras: an app that removes blur'.

    Its critic takes one step on sharp and one on restored pictures; here both are one step. Its pictures are resized
    to 256x256, which distorts the blur; here they are cropped.
    """
    return Recipe(
        name="blog",
        generator=GeneratorRecipe(norm="batch", output="mean"),
        critic=CriticRecipe(architecture="dense", norm="batch"),
        loss=LossRecipe(objective="wasserstein", features="vgg16-block3_conv3", penalty_weight=0.0),
        adam=AdamRecipe(beta1=0.9, lr_decay_start=1.0),
        data=DataRecipe(epochs=50, flip=False),
    )


def paper() -> Recipe:
    """DeblurGAN (arXiv:1711.07064, section 5): the defaults above.

    Batches of 16, where the paper has 1 (`--batch-size 1` reproduces it, on one rank). The paper's code draws one
    interpolation per batch and takes the penalty's norm over channels; here both follow arXiv:1704.00028.
    """
    return Recipe()


def demo() -> Recipe:
    """Minutes on two cores from scratch, without downloads: small networks, random features, and a pixel loss.

    Random features of VGG's first layer respond to edges only; most of the gain comes from the pixel loss. In so few
    updates no normalisation beats InstanceNorm, which removes the contrast from the generator's view.
    """
    return Recipe(
        name="demo",
        generator=GeneratorRecipe(filters=16, blocks=4, norm="none", dropout=0.0),
        critic=CriticRecipe(filters=16, layers=2),
        loss=LossRecipe(
            critic_updates=1,
            content_weight=1.0,
            features="vgg16-block1_conv1",
            feature_weights="random",
            pixel_weight=10.0,
            adversarial_weight=0.002,
        ),
        adam=AdamRecipe(generator_lr=7e-4, critic_lr=5e-4, beta1=0.9, lr_decay_start=0.3),
        data=DataRecipe(batch_size=4, crop=96, rotate=True, images=10_000),
    )


def fidelity() -> Recipe:
    """A fast U-Net that comes as near to the sharp picture as it can: L1 on pixels and Fourier coefficients.

    The frequency loss and its weight are MIMO-UNet's (arXiv:2108.05054), AdamW, the cosine and the clipping NAFNet's
    (arXiv:2204.04676). No critic and no VGG: nothing is downloaded.
    """
    return Recipe(
        name="fidelity",
        generator=GeneratorRecipe(
            architecture="fast-unet", filters=24, encoder_blocks=(2, 2), middle_blocks=4, decoder_blocks=(2, 2)
        ),
        critic=CriticRecipe(filters=32),
        loss=LossRecipe(content_weight=0.0, pixel_weight=1.0, frequency_weight=0.1, adversarial_weight=0.0),
        adam=AdamRecipe(
            generator_lr=1e-3,
            beta1=0.9,
            weight_decay=1e-4,
            gradient_clip=1.0,
            warmup_images=2_000,
            lr_decay="cosine",
            lr_decay_start=0.0,
            ema_halflife_images=5_000,
        ),
        data=DataRecipe(batch_size=8, crop=128, rotate=True, images=1_000_000),
    )


def shake() -> Recipe:
    """For camera shake: a fast U-Net that gets its picture deconvolved, too. The model inside the package has it.

    Crops are large, because a kernel shows the better the larger a picture is (docs/embedded-model.md). Formulas do
    most of the work, so that few crops are enough.
    """
    recipe = fidelity()
    return dataclasses.replace(
        recipe,
        name="shake",
        generator=dataclasses.replace(recipe.generator, architecture="deconvolution-unet", filters=32),
        loss=dataclasses.replace(recipe.loss, frequency_weight=0.0),
        adam=dataclasses.replace(recipe.adam, generator_lr=4e-4, warmup_images=200, ema_halflife_images=300),
        data=dataclasses.replace(recipe.data, batch_size=4, crop=320, images=50_000),
    )


def looks() -> Recipe:
    """`fidelity`, whose last fifth adds VGG features and a critic: crisper pictures, at some cost of PSNR.

    Weights and objective are DeblurGAN-v2's (arXiv:1908.03826), with L1 for its squared error.
    """
    recipe = fidelity()
    return dataclasses.replace(
        recipe,
        name="looks",
        loss=dataclasses.replace(
            recipe.loss,
            objective="relativistic-least-squares",
            critic_updates=1,
            content_weight=0.006,
            features="vgg16-conv3_3",
            adversarial_weight=0.01,
            adversarial_from=800_000,
        ),
    )


def fine_tune() -> Recipe:
    """Minutes on two cores: adapts the model inside the package to other pictures, with a small critic.

    For `--init-from embedded`, or a run of `shake`, `fidelity` or `looks`: it has no time to start from nothing.
    """
    recipe = shake()
    return dataclasses.replace(
        recipe,
        name="fine-tune",
        critic=CriticRecipe(filters=16, layers=2),
        loss=dataclasses.replace(
            recipe.loss, objective="relativistic-least-squares", critic_updates=1, adversarial_weight=0.0005
        ),
        adam=dataclasses.replace(recipe.adam, generator_lr=1e-4, warmup_images=100, ema_halflife_images=100),
        data=dataclasses.replace(recipe.data, crop=256, images=500),  # the sample photographs are cut to that
    )


PRESETS: dict[str, Callable[[], Recipe]] = {
    "blog": blog,
    "paper": paper,
    "fidelity": fidelity,
    "shake": shake,
    "looks": looks,
    "fine-tune": fine_tune,
    "demo": demo,
}
