"""The token cache: packing, identity of the tokenizer, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iidrive.data.tokens import TokenCache, build, pack, unpack
from iidrive.data.town import Town, TownConfig
from iidrive.errors import DataError, LineageError
from iidrive.lineage import Lineage

TOWN = Town(TownConfig(train_scenes=2, keyframes=9))


def encode(scene) -> np.ndarray:
    return np.random.default_rng(len(scene.name)).integers(0, 512, (len(scene), 37))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packing_round_trip(bits: int, rows: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, count))
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, count), codes)


def test_a_full_size_frame_stays_below_fifteen_and_a_half_kilobytes() -> None:
    assert pack(np.zeros((1, 144 + 625 + 5 * 2500), int), 9).nbytes == 14928


def test_build_read_and_go_on(tmp_path: Path) -> None:
    names = TOWN.scene_names("train")
    build(TOWN, names[:1], encode, tmp_path, "aa", 512, 37)
    first = (tmp_path / "scenes" / f"{names[0]}.safetensors").read_bytes()
    cache = build(TOWN, names, encode, tmp_path, "aa", 512, 37)
    assert (tmp_path / "scenes" / f"{names[0]}.safetensors").read_bytes() == first
    np.testing.assert_array_equal(cache(names[1], np.array([3, 0])), encode(TOWN.scene(names[1]))[[3, 0]])
    assert not list(tmp_path.rglob("*.tmp"))
    assert cache.frame_bytes == -(-37 * 9 // 8)


def test_another_tokenizers_tokens_are_refused(tmp_path: Path) -> None:
    build(TOWN, TOWN.scene_names("train")[:1], encode, tmp_path, "aa", 512, 37)
    with pytest.raises(LineageError, match=r"written by tokenizer aa.*in use is bb"):
        TokenCache(tmp_path).require(Lineage("tokenizer", "bb"))
    with pytest.raises(LineageError, match="tokenizer aa"):
        build(TOWN, TOWN.scene_names("train"), encode, tmp_path, "bb", 512, 37)


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no token cache here"):
        TokenCache(tmp_path)
    name = TOWN.scene_names("train")[0]
    cache = build(TOWN, [name], encode, tmp_path, "aa", 512, 37)
    with pytest.raises(DataError, match="no tokens of scene nowhere"):
        cache("nowhere", np.array([0]))
    file = tmp_path / "scenes" / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{name}.safetensors: damaged"):
        TokenCache(tmp_path)(name, np.array([0]))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="manifest"):
        TokenCache(tmp_path)
