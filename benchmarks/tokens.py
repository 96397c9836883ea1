"""Random access to clips of 10 keyframes: the token cache compared with the published layout, alternating in one run, at full size.

Published layout: one uncompressed npz per keyframe with its latent, float32 (128, 50, 50). Before timing, the same latents are rebuilt from the
cache's codes and compared in 20 clips. Codes and codebook are random: neither layout compresses, so time and size do not depend on the values.

    python benchmarks/tokens.py [--scenes 10] [--windows 200]
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli

from iidrive.core.scene import Scene
from iidrive.data.tokens import TokenCache, build
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.quantise import QuantiserConfig, ResidualQuantiser

Array = np.ndarray
SIZE = (50, 50)
WINDOW = 10


def main(scenes: int = 10, windows: int = 200, seed: int = 0) -> None:
    """Write both layouts into a temporary folder, read clips, print a table.

    Args:
        scenes: scenes of 40 keyframes; each takes 51 MB in the published layout.
        windows: clips read of each kind, from each layout.
        seed: seed of the codes, the codebook and the choice of clips.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    town = Town(TownConfig(train_scenes=scenes, keyframes=40))
    names = town.scene_names("train")
    quantiser = ResidualQuantiser(QuantiserConfig(codebook_start="uniform"), SIZE).eval().requires_grad_(False)
    codes, cells = quantiser.config.codes, sum(quantiser.level_cells)

    def encode(scene: Scene) -> Array:
        return rng.integers(0, codes, (len(scene), cells))

    with tempfile.TemporaryDirectory() as folder:
        cache = build(town, names, encode, Path(folder) / "cache", "none", codes, cells)
        published = Path(folder) / "published"
        write_published(cache, quantiser, names, published)
        os.sync()

        def frames(name: str, window: Array) -> list[Path]:
            return [published / name / f"{i:03d}.npz" for i in window]

        def latents(name: str, window: Array) -> Array:
            return np.stack([np.load(path)["arr_0"] for path in frames(name, window)])

        def codes_only(name: str, window: Array) -> Array:
            return cache(name, window)

        def rebuilt(name: str, window: Array) -> Array:
            return quantiser.latent_of(torch.from_numpy(codes_only(name, window))).numpy()

        picked = [(names[int(rng.integers(scenes))], np.arange(WINDOW) + rng.integers(40 - WINDOW + 1)) for _ in range(windows)]
        for name, window in picked[:20]:
            np.testing.assert_allclose(rebuilt(name, window), latents(name, window), rtol=0, atol=1e-6)

        print(
            f"{scenes} scenes of 40 keyframes, {windows} clips of {WINDOW}; {os.cpu_count()} CPU cores, {torch.get_num_threads()} torch threads\n"
        )
        print("| | published / cache | 10th..90th percentile |\n|---|---|---|")
        size = frames(names[0], np.arange(1))[0].stat().st_size, sum(cache.path(n).stat().st_size for n in names) / (40 * scenes)
        print(f"| bytes per keyframe: {size[0]:,} / {size[1]:,.0f} | {size[0] / size[1]:.1f} | |")
        for page_cache in ("warm", "dropped"):
            for what, read in (("codes", codes_only), ("latents", rebuilt)):
                ratio = []
                for name, window in picked:
                    files = [*frames(name, window), cache.path(name), cache.folder / "manifest.json"]
                    (drop if page_cache == "dropped" else warm)(files)
                    ways = [latents, read] if rng.random() < 0.5 else [read, latents]
                    spent = {way: seconds(way, name, window) for way in ways}
                    ratio.append(spent[latents] / spent[read])
                low, middle, high = np.percentile(ratio, [10, 50, 90])
                print(
                    f"| time per clip, page cache {page_cache}: published latents / {what} from the cache | {middle:.2f} | {low:.2f}..{high:.2f} |"
                )


def write_published(cache: TokenCache, quantiser: ResidualQuantiser, names: tuple[str, ...], folder: Path) -> None:
    """Write the latents of a cache in the published layout: FOLDER/SCENE/KEYFRAME.npz."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(len(cache.read(name).tokens)):
            latent = quantiser.latent_of(torch.from_numpy(cache(name, np.array([i]))))
            np.savez(folder / name / f"{i:03d}.npz", latent[0].numpy())


def seconds(read: Callable[[str, Array], Array], name: str, window: Array) -> float:
    """Wall time of reading one clip."""
    began = time.perf_counter()
    read(name, window)
    return time.perf_counter() - began


def warm(files: list[Path]) -> None:
    """Read files into the page cache."""
    for file in files:
        file.read_bytes()


def drop(files: list[Path]) -> None:
    """Ask the system to drop files from the page cache. Directory entries and the disk's own cache are not dropped."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    auto_cli(main)
