"""Videos from frames: GIF with Pillow, MP4 with PyAV (extra `video`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from iidrive.core.errors import ConfigError
from iidrive.runtime import atomic

Array = np.ndarray
SUFFIXES = (".gif", ".mp4")


def write_video(frames: Iterable[UInt8[Array, "H W 3"]], path: Path | str, per_second: int) -> Path:
    """Write frames of equal, even size atomically, `per_second` frames per second; create the folder. Returns the path.

    Raises:
        ConfigError: if the suffix is not .gif or .mp4, if there are no frames, or for .mp4 without PyAV.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: the name of a video must end in {' or '.join(SUFFIXES)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(path) as temporary:
        count = (_gif if path.suffix == ".gif" else _mp4)(frames, temporary, per_second)
        if not count:
            raise ConfigError(f"{path}: the video would have no frames.")
    return path


def _gif(frames: Iterable[UInt8[Array, "H W 3"]], path: Path, per_second: int) -> int:
    # One palette for all frames: colours do not flicker, and unchanged regions are not stored again.
    pictures: list[Image.Image] = []
    for frame in frames:
        whole = Image.fromarray(frame)
        pictures.append(whole.quantize(128) if not pictures else whole.quantize(palette=pictures[0], dither=Image.Dither.NONE))
    if pictures:
        pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / per_second), loop=0)
    return len(pictures)


def _mp4(frames: Iterable[UInt8[Array, "H W 3"]], path: Path, per_second: int) -> int:
    try:
        import av
    except ImportError as error:
        raise ConfigError("writing .mp4 needs PyAV: pip install 'iidrive[video]'. Or write a .gif.") from error
    count = 0
    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=per_second)
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        if stream is not None:
            container.mux(stream.encode())
    return count
