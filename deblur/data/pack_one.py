"""Packing of one pair: decoded, cut into squares, encoded."""

import numpy as np

from cluster.errors import InputError
from deblur.data import pictures
from deblur.data.shards import PackedSample
from deblur.data.sources import Source


def pack_one(source: Source, cut: tuple[int, int] | None) -> list[PackedSample]:
    """The samples of one pair. Raises InputError naming both pictures if they differ in size."""
    blurred, sharp = source.read()
    if blurred.pixels.shape != sharp.pixels.shape:
        sizes = [f"{p.name} is {p.pixels.shape[1]}x{p.pixels.shape[0]}" for p in (blurred, sharp)]
        raise InputError(f"{' but '.join(sizes)}; the pictures of a pair must have the same size")
    height, width = sharp.pixels.shape[:2]
    if cut is None or (height <= cut[0] and width <= cut[0]):
        pngs = [picture.png or pictures.encode_png(picture.pixels) for picture in (blurred, sharp)]
        return [_packed(source, source.key, pngs, (height, width))]
    squares = []
    for top in starts(height, *cut):
        for left in starts(width, *cut):
            inside = np.s_[top : top + cut[0], left : left + cut[0]]
            pngs = [pictures.encode_png(picture.pixels[inside]) for picture in (blurred, sharp)]
            size = (min(cut[0], height), min(cut[0], width))
            squares.append(_packed(source, f"{source.key}-r{top:05d}-c{left:05d}", pngs, size))
    return squares


def starts(length: int, cut: int, step: int) -> list[int]:
    """Offsets of pieces of length `cut` that cover [0, length); the last one ends at the border."""
    last = max(0, length - cut)
    return [*range(0, last, step), last]


def _packed(source: Source, key: str, pngs: list[bytes], size: tuple[int, int]) -> PackedSample:
    return PackedSample(key=key, blurred_png=pngs[0], sharp_png=pngs[1], meta={"scene": source.scene}, size=size)
