"""What iidrive keeps on disk because it can make it again."""

from __future__ import annotations

from iidrive.cli.options import Switch
from iidrive.data.town.cache import SceneCache, Size


def cache(clear: Switch = "off") -> None:
    """Show, and with `--clear on` remove, the synthetic towns that are kept so that they are made only once.

    They lie in `towns` below $IIDRIVE_CACHE, else below `iidrive` in $XDG_CACHE_HOME or ~/.cache. At most $IIDRIVE_CACHE_BYTES (2 GB) are
    kept; scenes that were used longest ago go first.

    Args:
        clear: remove all of them; they are made again when they are needed.
    """
    kept = SceneCache()
    print(f"folder  {kept.folder}")
    print(f"scenes  {_said(kept.size())}, at most {kept.limit / 1e6:,.1f} MB")
    if clear == "on":
        print(f"removed {_said(kept.clear())}")


def _said(size: Size) -> str:
    return f"{size.scenes:,} in {size.bytes / 1e6:,.1f} MB"
