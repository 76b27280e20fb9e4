"""How good the generator is now: PSNR and SSIM over the validation split, and a picture to look at."""

import numpy as np
import torch
from torch import Tensor, nn

from cluster.sync import Rank, Sync
from deblur.data.dataset import Dataset
from deblur.data.loader import BadSamples, pairs_of
from deblur.evaluation.quality import psnr, ssim
from deblur.models.pixels import from_uint8, to_uint8
from deblur.training.run import Run

NAMES = ("validation_psnr", "validation_ssim", "validation_blurred_psnr", "validation_blurred_ssim")


class Validator:
    """Validates on the ranks together; `threads` decode pictures."""

    def __init__(self, dataset: Dataset, rank: Rank, sync: Sync, threads: int) -> None:
        self._dataset, self._rank, self._sync, self._threads = dataset, rank, sync, threads
        self._bad = BadSamples(1, 0)

    def scores(self, generator: nn.Module) -> dict[str, float]:
        """Mean PSNR (dB) and SSIM of full frames over the validation split, restored and blurred; by `NAMES`.

        Pairs without any blur are left out: their PSNR is infinite. Each picture is restored by one rank; all ranks
        must call it. {} without the split, or if no picture decodes.
        """
        split = self._dataset.index.splits.get("validation")
        if split is None:
            return {}
        # BatchNorm on CPUs has statistics of its own on each rank; a checkpoint holds those of rank 0.
        self._sync.broadcast_tensors(list(generator.buffers()))
        sums = torch.zeros(len(NAMES) + 1, dtype=torch.float64, device=self._rank.device)
        mine = range(self._rank.rank, split.num_samples, self._rank.num_ranks)
        for pair in pairs_of(self._dataset, split, mine, self._threads, self._bad):
            if np.array_equal(*pair):
                continue
            blurred, sharp = (torch.from_numpy(side).permute(2, 0, 1)[None].to(self._rank.device) for side in pair)
            restored = _restore(generator, blurred)
            scores = [f(picture, sharp)[0] for picture in (restored, blurred) for f in (psnr, ssim)]
            sums += torch.stack([*(s.double() for s in scores), torch.ones_like(sums[0])])
        *totals, count = self._sync.sum(sums).tolist()
        return {name: total / count for name, total in zip(NAMES, totals, strict=True)} if count else {}

    def write_sample(self, generator: nn.Module, run: Run, images_seen: int) -> None:
        """Writes the first validation picture (without that split: training picture) as it is restored now."""
        if not run.writes:
            return
        splits = self._dataset.index.splits
        split = splits.get("validation") or splits["train"]
        for blurred, sharp in pairs_of(self._dataset, split, range(split.num_samples), 1, self._bad):
            restored = _restore(generator, torch.from_numpy(blurred).permute(2, 0, 1)[None].to(self._rank.device))
            run.write_sample(images_seen, blurred, restored[0].permute(1, 2, 0).cpu().numpy(), sharp)
            return


@torch.no_grad()
def _restore(generator: nn.Module, blurred: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] of uint8 [B, 3, H, W], in evaluation mode."""
    generator.eval()
    restored = to_uint8(generator(from_uint8(blurred)))
    generator.train()
    return restored
