"""How good the generator is now: PSNR and SSIM over the validation split, and a picture to look at."""

import torch
from torch import Tensor, nn

from cluster.sync import Rank, Sync
from deblur.data.dataset import Dataset
from deblur.data.loader import BadSamples, pairs_of
from deblur.evaluation.quality import psnr, ssim
from deblur.models.pixels import from_uint8, to_uint8
from deblur.training.run import Run


@torch.no_grad()
def restore(generator: nn.Module, blurred: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] of uint8 [B, 3, H, W], in evaluation mode."""
    bare = generator.module if isinstance(generator, nn.parallel.DistributedDataParallel) else generator
    bare.eval()
    restored = to_uint8(bare(from_uint8(blurred)))
    bare.train()
    return restored


def validate(
    generator: nn.Module, dataset: Dataset, rank: Rank, sync: Sync, threads: int, bad: BadSamples
) -> dict[str, float]:
    """PSNR and SSIM over the whole validation split, each image on one rank, full frames.

    {} without the split, or where no picture of it decodes.
    """
    split = dataset.index.splits.get("validation")
    if split is None:
        return {}
    # Plain BatchNorm on CPUs has statistics of its own on each rank; those that a checkpoint holds are judged.
    sync.broadcast_tensors(list(generator.buffers()))
    sums = torch.zeros(5, dtype=torch.float64, device=rank.device)
    mine = range(rank.rank, split.num_samples, rank.num_ranks)
    for pair in pairs_of(dataset, split, mine, threads, bad):
        blurred, sharp = (torch.from_numpy(side).permute(2, 0, 1)[None].to(rank.device) for side in pair)
        restored = restore(generator, blurred)
        scores = [f(picture, sharp)[0] for picture in (restored, blurred) for f in (psnr, ssim)]
        sums += torch.stack([*(s.double() for s in scores), torch.ones_like(sums[0])])
    means = sync.sum(sums)
    if not means[4]:
        return {}
    names = ("validation_psnr", "validation_ssim", "validation_blurred_psnr", "validation_blurred_ssim")
    return dict(zip(names, (means[:4] / means[4]).tolist(), strict=True))


def write_sample(
    generator: nn.Module, dataset: Dataset, run: Run, rank: Rank, images_seen: int, bad: BadSamples
) -> None:
    """The first validation picture (or training picture, where there is no such split) as it is restored now."""
    split = dataset.index.splits.get("validation") or dataset.index.splits["train"]
    pair = next(pairs_of(dataset, split, range(split.num_samples), 1, bad), None)
    if pair is None:
        return
    blurred, sharp = pair
    restored = restore(generator, torch.from_numpy(blurred).permute(2, 0, 1)[None].to(rank.device))
    run.write_sample(images_seen, blurred, restored[0].permute(1, 2, 0).cpu().numpy(), sharp)
