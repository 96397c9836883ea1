"""The token cache: bit-packed code indices of every keyframe, with the ego poses they were made with. One file per scene.

    DIR/manifest.json                tokenizer and data that the cache was made with
    DIR/scenes/<name>.safetensors    T keyframes of m bytes:
        codes         uint8 (T, m)         indices of all levels, intra first, as a bit stream
        global_T_ego  float64 (T, 4, 4)    the inter levels of keyframe i were encoded with inv(global_T_ego[i]) @ global_T_ego[j]
        sha256        uint8 (T, 32)        checksum of the keyframe's token, pose and codes, the scene's name and the manifest
        metadata      scene name, copy of the manifest, sample tokens

Latents are rebuilt from codes alone, because a latent is a sum of linear functions of codes. The poses record how the inter codes were
made.

Files are written atomically, so a reader never sees an incomplete file. Several processes may build one cache at the same time; the bytes
of a scene's file do not depend on the writer. Only the rows that are asked for are read, and each is checked. Nothing is cached in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, UInt8
from safetensors.numpy import save

from iidrive.core.errors import ConfigError, DataError, LineageError
from iidrive.core.lineage import Lineage, matched
from iidrive.core.scene import Scene
from iidrive.core.untrusted.json_text import parse_json
from iidrive.data.source import Source
from iidrive.runtime import atomic

Array = np.ndarray
FORMAT = 2
MAX_BITS = 16
POSE_BYTES = 16 * 8
DIGEST_BYTES = hashlib.sha256().digest_size


def pack(codes: Int[Array, "T n"], bits: int) -> UInt8[Array, "T m"]:
    """Pack indices below 2**bits into one bit stream per row, most significant bit first."""
    planes = (codes[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(len(codes), -1).astype(np.uint8), axis=1)


@dataclass(frozen=True)
class Unpacker:
    """The inverse of `pack` for `count` indices of `bits` bits (at most `MAX_BITS`) per row.

    An index spans at most three bytes. So a word of two or three bytes is built at every byte, and the indices are shifted out of these
    words. The positions of the indices are computed once.
    """

    bits: int
    count: int

    def __call__(self, packed: UInt8[Array, "T m"]) -> Int[Array, "T n"]:
        """Unpack to int16, or to int32 for more than 9 bits."""
        reach, dtype = (2, np.uint16) if self.bits <= 9 else (3, np.uint32)
        words = packed.astype(dtype)
        for i in range(1, reach):
            words <<= 8
            words[:, :-i] |= packed[:, i:]
        start, shift = self._places
        codes = words.take(start, axis=1)
        codes >>= shift
        codes &= dtype((1 << self.bits) - 1)
        return codes.view(f"i{codes.itemsize}")

    @cached_property
    def _places(self) -> tuple[Array, Array]:
        """For each index of a row: the byte where it starts, and how far the word at that byte must be shifted right, bits."""
        first = np.arange(0, self.count * self.bits, self.bits)
        word_bits, dtype = (16, np.uint16) if self.bits <= 9 else (24, np.uint32)
        return first >> 3, (word_bits - self.bits - (first & 7)).astype(dtype)


@dataclass(frozen=True)
class TokensManifest:
    """Manifest of a token cache: fingerprint of the tokenizer, codes per frame, bits per code, and identity of the data."""

    tokenizer: str
    codes_per_frame: int
    bits: int
    data: dict[str, Any]
    format: int = FORMAT

    @property
    def code_bytes(self) -> int:
        """Size of one keyframe's packed codes, bytes."""
        return -(-self.codes_per_frame * self.bits // 8)


@dataclass(frozen=True)
class Rows:
    """Stored data of T consecutive keyframes of a scene: sample tokens, ego poses, packed codes of m bytes."""

    tokens: tuple[str, ...]
    global_T_ego: Float64[Array, "T 4 4"]
    packed: UInt8[Array, "T m"]

    def digests(self, scene: str, manifest: dict[str, Any]) -> UInt8[Array, "T 32"]:
        """SHA-256 of each row together with the scene's name and the manifest."""
        about = hashlib.sha256(json.dumps([scene, manifest], sort_keys=True).encode())
        found = []
        for token, pose, codes in zip(self.tokens, self.global_T_ego, self.packed, strict=True):
            row = about.copy()
            for part in (token.encode(), pose, codes):
                row.update(part)
            found.append(row.digest())
        return np.frombuffer(b"".join(found), np.uint8).reshape(-1, DIGEST_BYTES)


class TokenCache:
    """Reader of a token cache. `cache(scene, indices)` returns codes (n, codes_per_frame), int16 or int32.

    Raises:
        DataError: if the folder has no readable manifest of this format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        try:
            self.manifest = TokensManifest(**parse_json(path.read_bytes(), "manifest.json"))
            numbers = (self.manifest.codes_per_frame, self.manifest.bits, self.manifest.format)
            if not all(type(number) is int for number in numbers):
                raise TypeError(f"found {numbers} for codes per frame, bits and format")
        except FileNotFoundError:
            raise DataError(f"{path}: no token cache here. Write one with `iidrive tokens`.") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
        except (TypeError, DataError) as error:
            raise DataError(f"{path}: not a token cache's manifest ({error}). Write it again with `iidrive tokens`.") from None
        if self.manifest.format != FORMAT:
            raise DataError(
                f"{path}: format {self.manifest.format}, but this iidrive reads format {FORMAT}. Write the cache again with `iidrive tokens`."
            )
        self._unpack = Unpacker(self.manifest.bits, self.manifest.codes_per_frame)

    @property
    def lineage(self) -> Lineage:
        """Lineage of these tokens."""
        return Lineage("tokenizer", self.manifest.tokenizer).child("tokens", str(self.folder))

    def require(self, given: Lineage, allow: bool = False) -> tuple[str, ...]:
        """Check that the tokens were made by the tokenizer in `given`; see `lineage.matched` for `allow`, the result and errors."""
        advice = (
            f"write the tokens again with this tokenizer (`iidrive tokens TOKENIZER OUT`) into another folder, or delete {self.folder}."
        )
        return matched(self.lineage, "tokenizer", given, advice, allow)

    @property
    def frame_bytes(self) -> int:
        """Size of one keyframe's packed codes, pose and checksum, bytes."""
        return self.manifest.code_bytes + POSE_BYTES + DIGEST_BYTES

    def path(self, scene: str) -> Path:
        """File of one scene."""
        return self.folder / "scenes" / f"{scene}.safetensors"

    def __call__(self, scene: str, indices: Int[Array, "n"]) -> Int[Array, "n m"]:
        """Codes of some keyframes of a scene. Raises as `read` does."""
        first, stop = int(indices.min()), int(indices.max()) + 1
        packed = self.read(scene, first, stop).packed
        if not np.array_equal(indices, np.arange(first, stop)):
            packed = packed[indices - first]
        return self._unpack(packed)

    def read(self, scene: str, first: int = 0, stop: int | None = None) -> Rows:
        """Read keyframes `first` to `stop` (exclusive; None for all) of a scene and verify their checksums.

        Raises:
            DataError: if the scene has no tokens or not these keyframes, or if its file is damaged.
            LineageError: if the file belongs to another cache (another tokenizer or other data).
        """
        path = self.path(scene)
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                about, header, begin = _header(file, size)
                tokens = about["tokens"]
                here = slice(first, len(tokens) if stop is None else stop)
                if not 0 <= first <= here.stop <= len(tokens):
                    raise DataError(
                        f"{path}: holds keyframes 0..{len(tokens) - 1}, but {first}..{here.stop - 1} are needed. "
                        "These tokens were made from other data: run `iidrive tokens` with the data in use."
                    )
                poses, packed, digests = (
                    _rows(file, begin, size, header[key], len(tokens), shape, kind, here)
                    for key, shape, kind in (
                        ("global_T_ego", [4, 4], "F64"),
                        ("codes", [self.manifest.code_bytes], "U8"),
                        ("sha256", [DIGEST_BYTES], "U8"),
                    )
                )
            rows = Rows(tuple(tokens[here]), poses, packed)
            wrong = (rows.digests(about["scene"], about["manifest"]) != digests).any(1)
            if wrong.any():
                raise ValueError(f"keyframe {rows.tokens[int(np.argmax(wrong))]} does not match its checksum")
        except FileNotFoundError:
            raise DataError(
                f"{path}: no tokens of scene {scene}. Write them with `iidrive tokens`, or wait until it has finished."
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: damaged ({error}). Write it again with `iidrive tokens`.") from None
        if about["scene"] != scene:
            raise DataError(f"{path}: holds the tokens of scene {about['scene']}. Write it again with `iidrive tokens`.")
        if about["manifest"] != vars(self.manifest):
            raise LineageError(
                f"{path}: written for another cache ({about['manifest']}), but this one is {vars(self.manifest)}. "
                "The file does not belong here: delete the folder, or run `iidrive tokens` with another folder."
            )
        return rows


def build(
    source: Source,
    names: Iterable[str],
    encode: Callable[[Scene], Int[Array, "T n"]],
    folder: str | Path,
    fingerprint: str,
    codebook: int,
    codes_per_frame: int,
    progress: Callable[[str], None] = lambda name: None,
    warn: Callable[[str], None] = warnings.warn,
) -> TokenCache:
    """Tokenize scenes and write a token cache. Scenes that are already in the cache are skipped.

    Files that are damaged or have other keyframes than the source are reported to `warn` and written again. Temporary files of killed
    builds are removed.

    Args:
        source: the data.
        names: scenes to tokenize.
        encode: scene → codes (T, codes_per_frame).
        folder: folder of the cache.
        fingerprint: fingerprint of the tokenizer.
        codebook: number of codes in the codebook.
        codes_per_frame: codes per keyframe.
        progress: called with each scene's name when it is done.
        warn: called with each warning.

    Raises:
        LineageError: if the folder holds tokens of another tokenizer or of other data.
        ConfigError: if the codebook has more than 65536 codes.
        DataError: if `encode` does not give `codes_per_frame` indices below `codebook` for every keyframe.
    """
    folder = Path(folder)
    (folder / "scenes").mkdir(parents=True, exist_ok=True)
    for left in (*folder.glob(".manifest.json.*.tmp"), *folder.glob("scenes/.*.safetensors.*.tmp")):
        left.unlink(missing_ok=True)
    bits = max(1, (codebook - 1).bit_length())
    if bits > MAX_BITS:
        raise ConfigError(f"a token cache supports codebooks of up to {2**MAX_BITS} codes; this tokenizer's has {codebook}.")
    data = json.loads(json.dumps({**source.identity(), "occupancy": source.occupancy_source}))
    cache = _opened(folder, TokensManifest(fingerprint, codes_per_frame, bits, data), warn)
    for name in names:
        scene = source.scene(name)
        tokens = tuple(k.token for k in scene.keyframes)
        poses = np.stack([k.global_T_ego.matrix for k in scene.keyframes])
        if not _kept(cache, name, tokens, poses, warn):
            codes = np.asarray(encode(scene))
            low, high = codes.min(initial=0), codes.max(initial=0)
            if codes.shape != (len(scene), codes_per_frame) or low < 0 or high >= codebook:
                raise DataError(
                    f"scene {name}: {len(scene)} keyframes need ({len(scene)}, {codes_per_frame}) code indices below {codebook}; "
                    f"found {codes.shape}, {low}..{high}."
                )
            atomic.write(cache.path(name), _file(name, Rows(tokens, poses, pack(codes, bits)), vars(cache.manifest)))
        progress(name)
    return cache


def _opened(folder: Path, wanted: TokensManifest, warn: Callable[[str], None]) -> TokenCache:
    """Open the cache in `folder`. Writes the manifest if there is no readable one; raises LineageError if there is a different one."""
    path = folder / "manifest.json"
    try:
        cache = TokenCache(folder)
    except DataError as error:
        if path.exists():
            warn(str(error))
        atomic.write(path, json.dumps(vars(wanted), indent=2).encode())
        cache = TokenCache(folder)
    cache.require(Lineage("tokenizer", wanted.tokenizer))
    if cache.manifest != wanted:
        raise LineageError(f"{folder}: these tokens were made from other data ({cache.manifest.data}). Delete the folder or name another.")
    return cache


def _kept(cache: TokenCache, name: str, tokens: tuple[str, ...], poses: Array, warn: Callable[[str], None]) -> bool:
    """Whether a scene's file exists, is undamaged and holds these keyframes."""
    if not cache.path(name).exists():
        return False
    try:
        rows = cache.read(name)
    except DataError as error:
        warn(str(error))
        return False
    if rows.tokens != tokens or not np.allclose(rows.global_T_ego, poses, rtol=0, atol=1e-9):
        warn(f"{cache.path(name)}: its sample tokens or ego poses differ from those of scene {name} in the data. It is written again.")
        return False
    return True


def _header(file: FileIO, whole: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Header of a scene's file of `whole` bytes: its metadata, its array descriptions, and the offset of the arrays, bytes.

    Parsed here rather than by safetensors because this takes half the time.
    """
    size = int.from_bytes(file.read(8), "little")
    if size > whole:
        raise ValueError("its header is truncated")
    header = json.loads(file.read(size))
    about = json.loads(header["__metadata__"]["about"])
    if not all(isinstance(token, str) for token in about["tokens"]):
        raise ValueError("its sample tokens are not text")
    return about, header, 8 + size


def _rows(file: FileIO, begin: int, whole: int, stored: dict[str, Any], count: int, shape: list[int], kind: str, here: slice) -> Array:
    """Read the rows `here` of one array of a scene's file. Raises ValueError unless it has `count` rows of this shape and dtype."""
    dtype = np.dtype({"F64": "<f8", "U8": "u1"}[kind])
    row, (first, end) = math.prod(shape) * dtype.itemsize, stored["data_offsets"]
    fits = (stored["dtype"], stored["shape"], end - first) == (kind, [count, *shape], count * row)
    if not fits or not 0 <= first <= end <= whole - begin:
        raise ValueError(f"expected {count} rows of {kind} {shape}, found {stored}")
    rows = np.empty((here.stop - here.start, *shape), dtype)
    file.seek(begin + first + here.start * row)
    if file.readinto(rows.data) != rows.nbytes:
        raise ValueError("it is truncated")
    return rows


def _file(scene: str, rows: Rows, manifest: dict[str, Any]) -> bytes:
    """Bytes of a scene's file. The metadata have a single key, because the order of several is not fixed and would change the bytes."""
    about = json.dumps({"scene": scene, "manifest": manifest, "tokens": rows.tokens})
    arrays = {"codes": rows.packed, "global_T_ego": rows.global_T_ego, "sha256": rows.digests(scene, manifest)}
    return save(arrays, metadata={"about": about})
