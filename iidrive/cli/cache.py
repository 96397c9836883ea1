"""The command `cache`: synthetic towns kept on disk."""

from __future__ import annotations

from iidrive.cli.options import Switch
from iidrive.data.town.cache import SceneCache, Size


def cache(clear: Switch = "off") -> None:
    """Show the cache of synthetic towns, or remove it with `--clear on`.

    The cache is the folder `towns` in $IIDRIVE_CACHE, else in `iidrive` in $XDG_CACHE_HOME or ~/.cache. It holds at most $IIDRIVE_CACHE_BYTES
    (2 GB); the least recently used scenes are removed first.

    Args:
        clear: remove all scenes; they are generated again when needed.
    """
    kept = SceneCache()
    print(f"folder  {kept.folder}")
    print(f"scenes  {_said(kept.size())}, at most {kept.limit / 1e6:,.1f} MB")
    if clear == "on":
        print(f"removed {_said(kept.clear())}")


def _said(size: Size) -> str:
    return f"{size.scenes:,} in {size.bytes / 1e6:,.1f} MB"
