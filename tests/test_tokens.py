"""The token cache: bit packing, file format, identity of the tokenizer, damaged files, killed builds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scene import circle_scene

from iidrive.cli.main import main
from iidrive.core.errors import ConfigError, DataError, LineageError
from iidrive.core.lineage import Lineage
from iidrive.data.tokens import TokenCache, Unpacker, build, pack
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline import recipes

TOWN = Town(TownConfig(train_scenes=2, keyframes=9))
NAMES = TOWN.scene_names("train")


def encode(scene) -> np.ndarray:
    return np.random.default_rng(len(scene.name)).integers(0, 512, (len(scene), 37))


def write(folder: Path, names=NAMES, **changes) -> tuple[TokenCache, list[str]]:
    """A small cache, and the warnings of `build`."""
    warned: list[str] = []
    options = {"source": TOWN, "encode": encode, "fingerprint": "aa", "codebook": 512, "codes_per_frame": 37} | changes
    return build(names=names, folder=folder, warn=warned.append, **options), warned


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 16), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packing_round_trip(bits: int, rows: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, count))
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-count * bits // 8))
    np.testing.assert_array_equal(Unpacker(bits, count)(packed), codes)


@pytest.mark.slow
def test_a_full_size_frame_stays_below_fifteen_and_a_half_kilobytes(tmp_path: Path) -> None:
    count = 144 + 625 + 5 * 2500
    codes = np.random.default_rng(0).integers(0, 512, (len(TOWN.scene(NAMES[0])), count))
    cache, _ = write(tmp_path, NAMES[:1], encode=lambda scene: codes, codes_per_frame=count)
    assert cache.frame_bytes == 14928 + 128 + 32
    assert cache.path(NAMES[0]).stat().st_size / len(codes) < 15_500
    np.testing.assert_array_equal(cache(NAMES[0], np.arange(len(codes))), codes)


def test_build_read_and_continue(tmp_path: Path) -> None:
    write(tmp_path, NAMES[:1])
    first = (tmp_path / "scenes" / f"{NAMES[0]}.safetensors").stat().st_mtime_ns
    cache, warned = write(tmp_path)
    assert (tmp_path / "scenes" / f"{NAMES[0]}.safetensors").stat().st_mtime_ns == first
    assert warned == []
    scene = TOWN.scene(NAMES[1])
    np.testing.assert_array_equal(cache(NAMES[1], np.array([3, 0, 0])), encode(scene)[[3, 0, 0]])
    rows = cache.read(NAMES[1], 2, 5)
    assert rows.tokens == tuple(k.token for k in scene.keyframes[2:5])
    np.testing.assert_array_equal(rows.global_T_ego[0], scene.keyframes[2].global_T_ego.matrix)
    with pytest.raises(DataError, match=r"holds keyframes 0..8, but 4..9 are needed"):
        cache(NAMES[1], np.array([4, 9]))


def test_the_same_tokens_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_a_cache_rebuilds_latents_and_holds_the_poses_of_its_codes(tmp_path: Path) -> None:
    """Codes read back give the latent bit for bit, and tokenizing with the stored poses gives the codes again."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(recipes.tiny().tokenizer).eval()
    scene = circle_scene(7)
    rng = np.random.default_rng(0)
    occupancy = torch.from_numpy(rng.integers(0, 18, (7, *tokenizer.config.grid.shape), dtype=np.uint8))

    def tokenize(poses: np.ndarray) -> torch.Tensor:
        return tokenizer.tokenize_scene(occupancy, torch.from_numpy(poses))

    codes = tokenize(np.stack([k.global_T_ego.matrix for k in scene.keyframes]))

    class Circles:
        occupancy_source = "labels"

        def identity(self):
            return {}

        def scene(self, name):
            return scene

    cells = sum(tokenizer.quantiser.level_cells)
    cache, _ = write(tmp_path, [scene.name], source=Circles(), encode=lambda s: codes.numpy(), codebook=32, codes_per_frame=cells)
    read = torch.from_numpy(cache(scene.name, np.arange(7)))
    assert torch.equal(tokenizer.latent_of(read), tokenizer.latent_of(codes))
    assert torch.equal(tokenize(cache.read(scene.name).global_T_ego), codes)
    assert not torch.equal(tokenize(np.tile(np.eye(4), (7, 1, 1))), codes)


def test_another_tokenizers_tokens_are_refused(tmp_path: Path) -> None:
    cache, _ = write(tmp_path / "a", NAMES[:1])
    with pytest.raises(LineageError, match=r"written by tokenizer aa.*in use is bb"):
        cache.require(Lineage("tokenizer", "bb"))
    with pytest.raises(LineageError, match="tokenizer aa"):
        write(tmp_path / "a", fingerprint="bb")
    with pytest.raises(LineageError, match="made from other data"):
        write(tmp_path / "a", source=Town(TownConfig(train_scenes=3, keyframes=9)))
    other, _ = write(tmp_path / "b", NAMES[:1], fingerprint="bb")
    shutil.copy(cache.path(NAMES[0]), other.path(NAMES[0]))
    with pytest.raises(LineageError, match=rf"{NAMES[0]}.safetensors: written for another cache .*'aa'"):
        other(NAMES[0], np.array([0]))


def test_missing_scenes_and_keyframes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no token cache here"):
        TokenCache(tmp_path)
    cache, _ = write(tmp_path)
    with pytest.raises(DataError, match="no tokens of scene nowhere"):
        cache("nowhere", np.array([0]))
    shutil.copy(cache.path(NAMES[0]), cache.path(NAMES[1]))
    with pytest.raises(DataError, match=f"{NAMES[1]}.safetensors: holds the tokens of scene {NAMES[0]}"):
        cache(NAMES[1], np.array([0]))


@pytest.mark.slow
def test_every_flipped_bit_and_missing_byte_is_detected(tmp_path: Path) -> None:
    """One bit of every byte of a file, and every fifth length."""
    cache, _ = write(tmp_path, NAMES[:1])
    path = cache.path(NAMES[0])
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        for damaged in (bytes(flipped), content[:place]) if place % 5 == 0 else (bytes(flipped),):
            path.unlink()
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=f"{NAMES[0]}.safetensors: "):
                cache.read(NAMES[0])


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign", "renamed"])
def test_damaged_scenes_are_named_and_written_again(tmp_path: Path, damage: str) -> None:
    cache, _ = write(tmp_path)
    whole = everything(tmp_path)
    path = cache.path(NAMES[0])
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-10] ^= 4
    other = cache.path(NAMES[1]).read_bytes()
    path.write_bytes({"cut": content[:-20], "flip": bytes(flipped), "empty": b"", "foreign": b"PK" * 400, "renamed": other}[damage])
    with pytest.raises(DataError, match=f"{NAMES[0]}.safetensors: .*Write it again with `iidrive tokens`"):
        cache(NAMES[0], np.array([8]))
    _, warned = write(tmp_path)
    assert len(warned) == 1
    assert f"{NAMES[0]}.safetensors" in warned[0]
    assert everything(tmp_path) == whole


def reheaded(content: bytes, change) -> bytes:
    """A scene's file with another header."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    told = change(header)
    new = (told if isinstance(told, str) else json.dumps(header)).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + size :]


def tokens_said(header, tokens: object) -> None:
    about = json.loads(header["__metadata__"]["about"])
    header["__metadata__"]["about"] = json.dumps({**about, "tokens": tokens})


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["codes"].update(data_offsets=[-1000, 0]),
        lambda h: h["codes"].update(data_offsets=[2**62, 2**62 + 1]),
        lambda h: h["sha256"].update(data_offsets=[2**70, 2**70 + 9 * 32]),
        lambda h: h["codes"].update(data_offsets=["0", "9"]),
        lambda h: h["codes"].update(dtype="F64"),
        lambda h: h["codes"].update(shape=[9]),
        lambda h: h.update(codes=None),
        lambda h: tokens_said(h, [1] * 9),
        lambda h: tokens_said(h, None),
        lambda h: "[" * 100_000,
        lambda h: "{}",
    ],
)
def test_invalid_headers_are_named(tmp_path: Path, change) -> None:
    cache, _ = write(tmp_path, NAMES[:1])
    whole, path = everything(tmp_path), cache.path(NAMES[0])
    path.write_bytes(reheaded(path.read_bytes(), change))
    with pytest.raises(DataError, match=f"{NAMES[0]}.safetensors: damaged"):
        cache.read(NAMES[0])
    _, warned = write(tmp_path, NAMES[:1])
    assert len(warned) == 1
    assert everything(tmp_path) == whole


def test_a_path_that_is_not_a_file_is_named(tmp_path: Path) -> None:
    cache, _ = write(tmp_path, NAMES[:1])
    path = cache.path(NAMES[0])
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=rf"{NAMES[0]}.safetensors: cannot be read \(Is a directory\)"):
        cache.read(NAMES[0])


def test_tokens_of_other_keyframes_are_written_again(tmp_path: Path) -> None:
    """The sample tokens of a scene changed but the identity of the data did not."""

    class Renamed(Town):
        def scene(self, name):
            scene = super().scene(name)
            return replace(scene, keyframes=tuple(replace(k, token="new-" + k.token) for k in scene.keyframes))

    write(tmp_path)
    cache, warned = write(tmp_path, NAMES[:1], source=Renamed(TOWN.config))
    assert len(warned) == 1
    assert "its sample tokens or ego poses differ" in warned[0]
    assert cache.read(NAMES[0]).tokens[0].startswith("new-")


def test_a_damaged_manifest_is_named_and_written_again(tmp_path: Path) -> None:
    write(tmp_path)
    whole = everything(tmp_path)
    manifest = tmp_path / "manifest.json"
    for content in (
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"[" * 100_000,
        whole["manifest.json"].replace(b'"bits": 9', b'"bits": "9"'),
        whole["manifest.json"].replace(b'"format": 2', b'"format": 1'),
    ):
        manifest.write_bytes(content)
        with pytest.raises(DataError, match=r"manifest.json: (not a token cache's manifest|format 1)"):
            TokenCache(tmp_path)
        _, warned = write(tmp_path)
        assert len(warned) == 1
        assert everything(tmp_path) == whole


def test_the_output_of_the_tokenizer_is_checked(tmp_path: Path) -> None:
    for codes in (np.zeros((9, 36), int), np.zeros((8, 37), int), np.full((9, 37), 512), np.full((9, 37), -1), np.zeros((0, 37), int)):
        with pytest.raises(DataError, match=r"9 keyframes need \(9, 37\) code indices below 512"):
            write(tmp_path, NAMES[:1], encode=lambda scene, codes=codes: codes)
    with pytest.raises(ConfigError, match="up to 65536"):
        write(tmp_path, codebook=2**16 + 1)


@pytest.mark.parametrize("shard", ["4/4", "1", "a/b", "-1/4", "1/4/2"])
def test_invalid_shards_are_refused(shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tokens", "tokenizer", str(tmp_path), f"--shard={shard}"])
    assert "expected K/N with 0 <= K < N" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_builds_give_the_same_bytes(tmp_path: Path) -> None:
    """See killed_builds.py: kill -9 at every chosen and many random moments, and several builds of one cache at once."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(here.parent), str(here))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(here / "killed_builds.py"), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
