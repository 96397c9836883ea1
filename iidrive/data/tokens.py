"""The token cache: code indices of every keyframe, packed to the bits they need, with the ego poses they were made with. One file a scene.

    DIR/manifest.json                what wrote it and from what
    DIR/scenes/<name>.safetensors    T keyframes of m bytes:
        codes         uint8 (T, m)         indices of all levels, intra first, as a bit stream
        global_T_ego  float64 (T, 4, 4)    keyframe i's inter levels saw keyframe j through inv(global_T_ego[i]) @ global_T_ego[j]
        sha256        uint8 (T, 32)        of the keyframe's token, pose and codes, the scene's name and the manifest
        metadata      the scene's name, the manifest again, sample tokens

Codes alone rebuild latents: a latent is a sum of linear functions of codes. Poses are there to say what the inter codes mean.

A file is written under a temporary name and renamed: whoever reads meets a whole one or none, whatever is killed and whenever. Any number
of processes may build one cache, and two that write the same scene write the same bytes. Every keyframe is checked as it is read, and only
the rows asked for are read; nothing stays in memory between two reads.
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
    """Indices below 2**bits as a bit stream per row, most significant bit first."""
    planes = (codes[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(len(codes), -1).astype(np.uint8), axis=1)


@dataclass(frozen=True)
class Unpacker:
    """The inverse of `pack`, for up to `MAX_BITS` bits and `count` indices a row. Where each index lies is computed once.

    An index starts in some byte and ends at most two bytes on: a word of so many bytes is made for every byte, and words are picked.
    """

    bits: int
    count: int

    def __call__(self, packed: UInt8[Array, "T m"]) -> Int[Array, "T n"]:
        """Indices, as int16 or int32: whatever holds them."""
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
        """Of every index of a row: the byte in which it starts, and the bits behind it in the word that starts there."""
        first = np.arange(0, self.count * self.bits, self.bits)
        word_bits, dtype = (16, np.uint16) if self.bits <= 9 else (24, np.uint32)
        return first >> 3, (word_bits - self.bits - (first & 7)).astype(dtype)


@dataclass(frozen=True)
class TokensManifest:
    """What a cache holds: the tokenizer's fingerprint, codes a frame, bits a code, and the identity of the data."""

    tokenizer: str
    codes_per_frame: int
    bits: int
    data: dict[str, Any]
    format: int = FORMAT

    @property
    def code_bytes(self) -> int:
        """Bytes of one keyframe's packed codes."""
        return -(-self.codes_per_frame * self.bits // 8)


@dataclass(frozen=True)
class Rows:
    """Consecutive keyframes of one scene as they are stored: sample tokens, ego poses, packed codes."""

    tokens: tuple[str, ...]
    global_T_ego: Float64[Array, "T 4 4"]
    packed: UInt8[Array, "T m"]

    def digests(self, scene: str, manifest: dict[str, Any]) -> UInt8[Array, "T 32"]:
        """Checksum of every row, of the scene's name and of the manifest it was written under."""
        about = hashlib.sha256(json.dumps([scene, manifest], sort_keys=True).encode())
        found = []
        for token, pose, codes in zip(self.tokens, self.global_T_ego, self.packed, strict=True):
            row = about.copy()
            for part in (token.encode(), pose, codes):
                row.update(part)
            found.append(row.digest())
        return np.frombuffer(b"".join(found), np.uint8).reshape(-1, DIGEST_BYTES)


class TokenCache:
    """Read access; `cache(scene, indices)` gives codes (n, codes_per_frame), int16 or int32."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        try:
            self.manifest = TokensManifest(**parse_json(path.read_bytes(), "manifest.json"))
            numbers = (self.manifest.codes_per_frame, self.manifest.bits, self.manifest.format)
            if not all(type(number) is int for number in numbers):
                raise TypeError(f"found {numbers} for the codes of a frame, bits and format")
        except FileNotFoundError:
            raise DataError(f"{path}: no token cache here. Write one with `iidrive tokens`.") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
        except (TypeError, DataError) as error:
            raise DataError(f"{path}: not a token cache's manifest ({error}). `iidrive tokens` writes it anew.") from None
        if self.manifest.format != FORMAT:
            raise DataError(
                f"{path}: format {self.manifest.format}, this iidrive reads format {FORMAT}. `iidrive tokens` writes the cache anew."
            )
        self._unpack = Unpacker(self.manifest.bits, self.manifest.codes_per_frame)

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
        """Bytes of one keyframe: packed codes, pose and checksum."""
        return self.manifest.code_bytes + POSE_BYTES + DIGEST_BYTES

    def path(self, scene: str) -> Path:
        """File of one scene."""
        return self.folder / "scenes" / f"{scene}.safetensors"

    def __call__(self, scene: str, indices: Int[Array, "n"]) -> Int[Array, "n m"]:
        """Codes of some keyframes of a scene. Raises what `read` raises."""
        first, stop = int(indices.min()), int(indices.max()) + 1
        packed = self.read(scene, first, stop).packed
        if not np.array_equal(indices, np.arange(first, stop)):
            packed = packed[indices - first]
        return self._unpack(packed)

    def read(self, scene: str, first: int = 0, stop: int | None = None) -> Rows:
        """Keyframes `first` to `stop` (excluded; None: to the end) of a scene, each checked against its checksum.

        Raises:
            DataError: if the scene has no tokens, or not these keyframes, or its file is damaged.
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
                        f"{path}: has keyframes 0..{len(tokens) - 1}, asked for {first}..{here.stop - 1}. "
                        "These tokens are of other data: run `iidrive tokens` with the data in use."
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
            raise DataError(f"{path}: no tokens of scene {scene}. Write them with `iidrive tokens`, or wait if it is at work.") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: damaged ({error}). `iidrive tokens` writes it anew.") from None
        if about["scene"] != scene:
            raise DataError(f"{path}: holds the tokens of scene {about['scene']}. `iidrive tokens` writes it anew.")
        if about["manifest"] != vars(self.manifest):
            raise LineageError(
                f"{path}: written for another cache ({about['manifest']}), but this one is {vars(self.manifest)}. "
                "One of the two does not belong here: delete the folder, or run `iidrive tokens` into another one."
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
    """Tokenize scenes with `encode` (scene → codes) into `folder`. A scene whose tokens are there and whole is kept.

    Files that are damaged, or of other keyframes than the source's, are named to `warn` and written anew; what killed builds left is removed.

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
        raise ConfigError(f"a token cache packs up to {2**MAX_BITS} codes; this tokenizer's codebook has {codebook}.")
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
    """The cache of a folder, with the manifest wanted: written if there is none that can be read, refused if there is another."""
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
        raise LineageError(f"{folder}: these tokens are of other data ({cache.manifest.data}). Delete the folder or name another one.")
    return cache


def _kept(cache: TokenCache, name: str, tokens: tuple[str, ...], poses: Array, warn: Callable[[str], None]) -> bool:
    """Whether a scene's file is there, whole, and of these keyframes."""
    if not cache.path(name).exists():
        return False
    try:
        rows = cache.read(name)
    except DataError as error:
        warn(str(error))
        return False
    if rows.tokens != tokens or not np.allclose(rows.global_T_ego, poses, rtol=0, atol=1e-9):
        warn(f"{cache.path(name)}: other sample tokens or ego poses than scene {name} has in the data. Its tokens are written anew.")
        return False
    return True


def _header(file: FileIO, whole: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What a scene's file of `whole` bytes says of itself and its arrays, and where they begin: safetensors read by hand, in half of the time."""
    size = int.from_bytes(file.read(8), "little")
    if size > whole:
        raise ValueError("its header is cut off")
    header = json.loads(file.read(size))
    about = json.loads(header["__metadata__"]["about"])
    if not all(isinstance(token, str) for token in about["tokens"]):
        raise ValueError("its sample tokens are no names")
    return about, header, 8 + size


def _rows(file: FileIO, begin: int, whole: int, stored: dict[str, Any], count: int, shape: list[int], kind: str, here: slice) -> Array:
    """Some rows of one array of a scene's file. Raises ValueError unless it holds `count` rows of this shape and kind."""
    dtype = np.dtype({"F64": "<f8", "U8": "u1"}[kind])
    row, (first, end) = math.prod(shape) * dtype.itemsize, stored["data_offsets"]
    fits = (stored["dtype"], stored["shape"], end - first) == (kind, [count, *shape], count * row)
    if not fits or not 0 <= first <= end <= whole - begin:
        raise ValueError(f"an array is {stored}, expected {count} rows of {kind} {shape}")
    rows = np.empty((here.stop - here.start, *shape), dtype)
    file.seek(begin + first + here.start * row)
    if file.readinto(rows.data) != rows.nbytes:
        raise ValueError("it is cut off")
    return rows


def _file(scene: str, rows: Rows, manifest: dict[str, Any]) -> bytes:
    """A scene's file. Its metadata have one key only: several have no fixed order, and the same tokens are to give the same bytes."""
    about = json.dumps({"scene": scene, "manifest": manifest, "tokens": rows.tokens})
    arrays = {"codes": rows.packed, "global_T_ego": rows.global_T_ego, "sha256": rows.digests(scene, manifest)}
    return save(arrays, metadata={"about": about})
