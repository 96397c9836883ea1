"""The token cache: code indices of every keyframe, packed to the bits they need, one file a scene, with the tokenizer's fingerprint.

    DIR/manifest.json                what wrote it and from what
    DIR/scenes/<name>.safetensors    `codes` uint8 (T, bytes a frame), sample tokens in the metadata

Files are written under a temporary name and renamed, so a reader never meets half of one; a build that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iidrive.data.source import Source
from iidrive.errors import DataError, LineageError
from iidrive.lineage import Lineage, matched
from iidrive.scene import Scene

Array = np.ndarray
FORMAT = 1


def pack(codes: Int[Array, "T n"], bits: int) -> UInt8[Array, "T m"]:
    """Indices below 2**bits as a bit stream per row, most significant bit first."""
    planes = (codes[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(len(codes), -1).astype(np.uint8), axis=1)


def unpack(packed: UInt8[Array, "T m"], bits: int, count: int) -> Int[Array, "T n"]:
    """The inverse of `pack`, for up to 16 bits: an index lies within the three bytes that start where it does."""
    first = np.arange(count) * bits
    byte, shift = first // 8, (24 - bits - first % 8).astype(np.int32)
    stream = np.pad(packed, ((0, 0), (0, 2))).astype(np.int32)
    three = stream[:, byte] << 16 | stream[:, byte + 1] << 8 | stream[:, byte + 2]
    return three >> shift & np.int32((1 << bits) - 1)


@dataclass(frozen=True)
class TokensManifest:
    """What a cache holds: the tokenizer's fingerprint, codes a frame, bits a code, and the identity of the data."""

    tokenizer: str
    codes_per_frame: int
    bits: int
    data: dict[str, Any]
    format: int = FORMAT


class TokenCache:
    """Read access; `codes(scene, indices)` gives (n, codes_per_frame) int32."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        try:
            self.manifest = TokensManifest(**json.loads(path.read_text()))
        except FileNotFoundError:
            raise DataError(f"{path}: no token cache here. Write one with `iidrive tokens`.") from None
        except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a token cache's manifest ({error}). Write the cache anew with `iidrive tokens`.") from None
        if self.manifest.format != FORMAT:
            raise DataError(f"{path}: format {self.manifest.format}, this iidrive reads format {FORMAT}. Write the cache anew.")
        self.kept: dict[str, Array] = {}

    @property
    def lineage(self) -> Lineage:
        """The chain of these tokens."""
        return Lineage("tokenizer", self.manifest.tokenizer).child("tokens", str(self.folder))

    def require(self, given: Lineage, allow: bool = False) -> tuple[str, ...]:
        """Refuse tokens of another tokenizer than the one in `given`'s chain, or with `allow` return the mark (see lineage.matched)."""
        advice = (
            f"write the tokens anew with `iidrive tokens TOKENIZER OUT` and this tokenizer, into another folder, or delete {self.folder}."
        )
        return matched(self.lineage, "tokenizer", given, advice, allow)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one keyframe's packed codes."""
        return -(-self.manifest.codes_per_frame * self.manifest.bits // 8)

    def path(self, scene: str) -> Path:
        """File of one scene."""
        return self.folder / "scenes" / f"{scene}.safetensors"

    def __call__(self, scene: str, indices: Array) -> Array:
        if scene not in self.kept:
            path = self.path(scene)
            try:
                with safe_open(path, framework="numpy") as file:
                    writer = json.loads((file.metadata() or {}).get("about", "{}")).get("tokenizer")
                    codes = file.get_tensor("codes")
            except FileNotFoundError:
                raise DataError(f"{path}: no tokens of scene {scene}. Write them with `iidrive tokens`.") from None
            except SafetensorError as error:
                raise DataError(f"{path}: damaged ({error}). Delete it and run `iidrive tokens` again.") from None
            if writer != self.manifest.tokenizer:
                raise LineageError(
                    f"{path}: tokens of tokenizer {writer} in a cache of tokenizer {self.manifest.tokenizer}. Delete the file and run "
                    "`iidrive tokens` again."
                )
            self.kept[scene] = codes
        return unpack(self.kept[scene][indices], self.manifest.bits, self.manifest.codes_per_frame)


def build(
    source: Source,
    names: Iterable[str],
    encode: Callable[[Scene], Array],
    folder: str | Path,
    fingerprint: str,
    codebook: int,
    codes_per_frame: int,
    progress: Callable[[str], None] = lambda name: None,
) -> TokenCache:
    """Tokenize scenes with `encode` (scene → codes (T, n)) into `folder`; scenes already there are kept.

    Raises:
        LineageError: if the folder holds tokens of another tokenizer.
    """
    folder = Path(folder)
    (folder / "scenes").mkdir(parents=True, exist_ok=True)
    bits = max(1, (codebook - 1).bit_length())
    data = json.loads(json.dumps({**source.identity(), "occupancy": source.occupancy_source}))
    manifest = TokensManifest(fingerprint, codes_per_frame, bits, data)
    if (folder / "manifest.json").exists():
        there = TokenCache(folder)
        there.require(Lineage("tokenizer", fingerprint))
        if there.manifest.data != manifest.data:
            raise LineageError(f"{folder}: these tokens are of other data ({there.manifest.data}). Delete the folder or name another one.")
    write_atomically(folder / "manifest.json", json.dumps(vars(manifest), indent=2).encode())
    cache = TokenCache(folder)
    for name in names:
        if not cache.path(name).exists():
            scene = source.scene(name)
            codes = encode(scene)
            # One key only: the order of several in the file's header is not fixed, and the same tokens are to give the same bytes.
            about = json.dumps({"tokenizer": fingerprint, "tokens": [k.token for k in scene.keyframes]})
            write_atomically(cache.path(name), save({"codes": pack(codes, bits)}, metadata={"about": about}))
        progress(name)
    return cache


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name beside the target, then rename: the target is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
