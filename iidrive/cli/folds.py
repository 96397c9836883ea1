"""The command `folds`: training and test scenes for cross-validation."""

from __future__ import annotations

from pathlib import Path

from iidrive.cli.options import DataOptions
from iidrive.data.scene_lists import folds as divided
from iidrive.pipeline import recipes
from iidrive.pipeline.recipes import Recipe
from iidrive.runtime import atomic


def folds(
    count: int = 5,
    out: str = "folds",
    where: DataOptions = DataOptions(),  # noqa: B008
    recipe: Recipe = recipes.small(),  # noqa: B008
) -> None:
    """Divide the scenes of a split into folds for cross-validation: every scene is in the test set of one fold.

    Writes OUT/K-train.txt and OUT/K-test.txt, one scene name per line, for use with --split.

    Args:
        count: number of folds.
        out: folder to write.
        where: scenes to divide; default: the usual test split (`--split all`: every scene).
        recipe: the towns (seed, number of scenes).
    """
    source, split = where.open(recipe, "test")
    names = source.scene_names(split)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for k, parts in enumerate(divided(names, count)):
        for part, scenes in zip(("train", "test"), parts, strict=True):
            atomic.write(folder / f"{k}-{part}.txt", "".join(f"{name}\n" for name in scenes))
    print(
        f"{len(names)} scenes of {source.name} {split} in {count} folds: {folder}/K-train.txt and {folder}/K-test.txt, K = 0 to {count - 1}"
    )
