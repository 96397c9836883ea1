"""The tokenizer under recipe `published` against stored outputs of the published code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ii_model import Fixture, Inside, gradient_norms, off, worst_ratio
from torch import Tensor

from iidrive.core.errors import CheckpointError, ConfigError
from iidrive.models.history import Stream, advance
from iidrive.models.iiworld import keys as iiworld_keys
from iidrive.models.losses import distance_weight, focal, lovasz
from iidrive.models.quantise import Quantised, ResidualQuantiser
from iidrive.models.states import require_fit
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline import recipes

CONFIG = recipes.published().tokenizer
LEVELS = ("s0", "s1", "s2", "t0", "t1", "t2", "t3")


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Fixture:
    return Fixture(shared)


@pytest.fixture(scope="module")
def published(fixture: Fixture) -> dict[str, Tensor]:
    """Rule-made weights under published names."""
    return fixture.state(fixture.json("tokenizer_state.json")["entries"])


@pytest.fixture(scope="module")
def tokenizer(published: dict[str, Tensor]) -> Tokenizer:
    made = Tokenizer(CONFIG)
    made.load_state_dict(iiworld_keys.tokenizer_from_published(published))
    return made.eval()


@dataclass(frozen=True)
class Run:
    """Nine frames streamed through the tokenizer: encoder maps, aligned pasts, quantised frames, and the stream after the last."""

    occupancy: Tensor
    maps: list[Tensor]
    pasts: list[Tensor]
    quantised: list[Quantised]
    after: Stream


@pytest.fixture(scope="module")
def run(fixture: Fixture, tokenizer: Tokenizer) -> Run:
    occupancy = torch.from_numpy(fixture.rules.scene())
    prev_T_now = torch.from_numpy(fixture.rules.poses()["prev"].astype(np.float32))
    eye, everywhere = torch.eye(4)[None], torch.ones(1, 4, 1, 50, 50)
    maps, pasts, quantised, stream = [], [], [], None
    with torch.no_grad():
        for k, frame in enumerate(occupancy):
            maps.append(tokenizer.encode(frame[None]))
            past, stream = advance(tokenizer.cells, stream, maps[-1], prev_T_now[k : k + 1], eye, 4, stale_mirror=True)
            pasts.append(past)
            quantised.append(tokenizer.quantiser(maps[-1], past, everywhere))
    assert stream is not None
    return Run(occupancy, maps, pasts, quantised, stream)


@pytest.mark.slow
def test_every_published_name_is_ours_and_back(fixture: Fixture, published: dict[str, Tensor]) -> None:
    entries = fixture.json("tokenizer_state.json")["entries"]
    own = Tokenizer(CONFIG).state_dict()
    ours = iiworld_keys.tokenizer_from_published(published)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in own.items()}
    back = iiworld_keys.tokenizer_to_published(ours)
    assert set(back) == {name for name, _, _ in entries}
    assert all(back[k].data_ptr() == published[k].data_ptr() for k in published)


@pytest.mark.slow
def test_names_that_do_not_fit_are_listed(published: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"unexpected \(1\): encoder.left"):
        iiworld_keys.tokenizer_from_published({**published, "encoder.left": torch.zeros(1)})
    broken = {**published, "encoder.conv_in.bias": torch.zeros(3)}
    del broken["vq.quant_conv.bias"]
    wanted = iiworld_keys.tokenizer_to_published(iiworld_keys.tokenizer_from_published(published))
    with pytest.raises(
        CheckpointError, match=r"missing \(1\): vq.quant_conv.bias; of another shape \(1\): encoder.conv_in.bias \(3,\) for \(64,\)"
    ):
        require_fit(broken, wanted, "file.pth")


@pytest.mark.slow
def test_encoder_maps(fixture: Fixture, run: Run) -> None:
    stored = fixture.arrays("tokenizer_f32.npz")
    maps = torch.cat(run.maps)
    assert off(maps[:2], stored["z"]) < 1e-4
    assert off(maps[:, ::8, 2::5, 2::5], stored["z_strided"]) < 1e-4


@pytest.mark.slow
def test_encoder_and_decoder_from_the_inside(fixture: Fixture, run: Run, tokenizer: Tokenizer) -> None:
    """Every stored map between input and output of frame 0."""
    stored, inside = fixture.arrays("tokenizer_f32.npz"), Inside()
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    inside.input("enc_conv_in", encoder.levels[0])
    inside.output("enc_down0", encoder.levels[0].blocks[-1])
    inside.output("enc_downsample0", encoder.levels[0].resample)
    inside.output("enc_down1", encoder.levels[1].blocks[-1])
    inside.output("enc_down2", encoder.levels[2].attentions[-1])
    inside.output("enc_mid", encoder.middle)
    inside.output("dec_conv_in", decoder.conv_in)
    inside.output("dec_mid", decoder.middle)
    inside.output("dec_up2", decoder.levels[0].resample)
    inside.output("dec_up1", decoder.levels[1].resample)
    inside.output("dec_up0", decoder.levels[2].blocks[-1])
    inside.output("dec_conv_out", decoder.out)
    with torch.no_grad():
        tokenizer.encode(run.occupancy[:1])
        tokenizer.decode(run.quantised[0].latent)
    inside.remove()
    names = {name.removeprefix("mid_") for name in stored if name.startswith("mid_")}
    assert names == set(inside.first)
    for name in sorted(names):
        value = inside.first[name][0]
        step = value.shape[1] // 10
        assert off(value[::8, ::step, ::step], stored[f"mid_{name}"]) < 1e-4, name


@pytest.mark.slow
def test_history(fixture: Fixture, run: Run) -> None:
    stored = fixture.arrays("tokenizer_f32.npz")
    assert off(torch.cat(run.pasts)[:, :, ::16, ::5, ::5], stored["sampled_bev_strided"]) < 1e-4
    after = run.after.maps[0, :, ::16, ::5, ::5].transpose(-1, -2)
    assert off(after, stored["history_bev_after_strided"]) < 1e-4


@pytest.mark.slow
def test_every_code(fixture: Fixture, run: Run) -> None:
    stored = fixture.arrays("tokenizer_f32.npz")
    wanted = np.concatenate([stored[f"idx_{level}"] for level in LEVELS], 1)
    assert np.array_equal(torch.cat([q.codes for q in run.quantised]).numpy(), wanted)


@pytest.mark.slow
def test_latents_and_codebook_loss(fixture: Fixture, run: Run) -> None:
    stored = fixture.arrays("tokenizer_f32.npz")
    latents = torch.cat([q.latent for q in run.quantised])
    assert off(latents[:, ::4, ::3, ::3], stored["z_sampled_strided"]) < 5e-5
    assert off(latents[5], stored["z_sampled_f16"]) < 4e-3
    np.testing.assert_allclose([q.loss.item() for q in run.quantised], stored["eval_embed_loss"], rtol=1e-5)


@pytest.mark.slow
def test_codes_alone_rebuild_the_published_latent(fixture: Fixture, run: Run, tokenizer: Tokenizer) -> None:
    with torch.no_grad():
        rebuilt = tokenizer.latent_of(torch.cat([q.codes for q in run.quantised]))
    assert off(rebuilt[:, ::4, ::3, ::3], fixture.arrays("tokenizer_f32.npz")["z_sampled_strided"]) < 5e-5


@pytest.mark.slow
def test_a_clip_of_five_frames_is_the_whole_stream(fixture: Fixture, run: Run, tokenizer: Tokenizer) -> None:
    """Four slots forget what lies further back, so a window gives what streaming the scene from its start gives."""
    poses = torch.from_numpy(fixture.rules.poses()["E"])
    for k in (0, 2, 8):
        seen = torch.arange(k - 4, k + 1).clamp(min=0)
        now_T_frame = (torch.linalg.inv(poses[k]) @ poses[seen]).float()[None]
        past, _ = tokenizer.align(torch.cat([run.maps[i] for i in seen])[None], now_T_frame)
        assert off(past, run.pasts[k].numpy()) < 1e-4


@pytest.mark.slow
def test_logits_and_labels(fixture: Fixture, run: Run, tokenizer: Tokenizer) -> None:
    stored = fixture.arrays("tokenizer_f32.npz")
    wrong = 0
    for k in range(6):
        with torch.no_grad():
            logits = tokenizer.decode(run.quantised[k].latent)
        assert off(logits[0, ::10, ::20, ::4], stored["logits_strided"][k]) < 5e-5
        wide = logits.double()
        np.testing.assert_allclose([wide.mean(), wide.std(), wide.norm()], stored["logits_stats"][k], rtol=1e-5, atol=1e-6)
        wrong += int((logits[0].argmax(-1).numpy() != stored["semantics"][k]).sum())
    assert wrong <= 10, "of 3.84 million; the published float32 and float64 runs differ in 5 of 5.76 million"


@pytest.mark.slow
def test_train_losses(fixture: Fixture, run: Run, tokenizer: Tokenizer) -> None:
    wanted = fixture.arrays("tokenizer_f32.npz")["train_losses"]
    everywhere = torch.ones(1, 4, 1, 50, 50)
    for k in range(3):
        with torch.no_grad():
            total, parts = tokenizer.train().frame_loss(run.occupancy[k : k + 1], run.pasts[k], everywhere)
        tokenizer.eval()
        found = [parts["focal"] + parts["lovasz"], parts["focal"], parts["lovasz"], parts["embed"]]
        np.testing.assert_allclose([float(v) for v in found], wanted[k], rtol=1e-5)
        assert float(total) == pytest.approx(wanted[k][0] + wanted[k][3], rel=1e-5)


@pytest.mark.slow
def test_gradient_norms(fixture: Fixture, run: Run, tokenizer: Tokenizer) -> None:
    tokenizer.train().zero_grad()
    tokenizer.frame_loss(run.occupancy[1:2], run.pasts[1], torch.ones(1, 4, 1, 50, 50))[0].backward()
    found = gradient_norms(tokenizer, iiworld_keys.tokenizer_to_published)
    tokenizer.eval().zero_grad()
    wanted = fixture.json("tokenizer_grad_norms.json")["frame1_f64"]
    assert set(found) == set(wanted)
    ratio, name = worst_ratio(found, wanted)
    assert ratio < 1e-4, name


@pytest.mark.slow
def test_warp_with_mirrored_frames(fixture: Fixture) -> None:
    """`stale_mirror` gives the published history; without it, every warped map lies elsewhere as soon as a mirror changes."""
    stored, cells = fixture.arrays("warp_flips.npz"), CONFIG.cells()
    plain, over_x, over_y = torch.eye(4), torch.diag(torch.tensor([-1.0, 1, 1, 1])), torch.diag(torch.tensor([1.0, -1, 1, 1]))
    mirrors = [(plain, over_x), (over_x, over_x), (over_y, plain), (plain, over_y)]
    starts = [(True, True), (False, False), (False, True), (False, False)]
    prev_T_now = torch.from_numpy(fixture.rules.poses()["prev"].astype(np.float32))
    streams: dict[bool, Stream | None] = {True: None, False: None}
    for k in range(4):
        now = torch.from_numpy(np.random.default_rng(100 + k).standard_normal((2, 128, 50, 50)).astype(np.float32))
        wanted = stored[f"sampled_bev_{k}"]
        for stale in (True, False):
            past, streams[stale] = advance(
                cells,
                streams[stale],
                now,
                prev_T_now[k].expand(2, 4, 4),
                torch.stack(mirrors[k]),
                4,
                torch.tensor(starts[k]),
                stale,
            )
            difference = (past[:, :, ::32, ::3, ::3] - torch.from_numpy(wanted)).abs().flatten(1).amax(1)
            if stale:
                assert difference.max() < 1e-4
            elif k == 2:
                assert difference[0] > 1, "sequence goes on, its mirror changed at frame 1"
                assert difference[1] < 1e-4, "sequence starts here"


@pytest.mark.slow
def test_voxel_losses(fixture: Fixture) -> None:
    stored = fixture.arrays("losses_fixed.npz")
    numbers = 1.5 * np.random.default_rng(5).standard_normal((200, 200, 16, 18), dtype=np.float32)
    truth = torch.from_numpy(fixture.rules.scene(1)[0])
    weight = distance_weight((200, 200), torch.device("cpu"))[:, :, None]
    for case in ("plain", "ignore255"):
        labels = truth.clone()
        if case == "ignore255":
            labels[:40] = 255
        logits = torch.from_numpy(numbers).requires_grad_()
        parts = [CONFIG.voxel_weight * focal(logits, labels, weight), CONFIG.lovasz_weight * lovasz(logits, labels)]
        total = torch.stack(parts).sum()
        total.backward()
        assert logits.grad is not None
        found = [*(p.item() for p in parts), total.item(), float(logits.grad.double().norm())]
        np.testing.assert_allclose(found, stored[case], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"inter": "change"}, {"project_past": True}])
def test_quantiser_options_change_the_inter_codes(run: Run, tokenizer: Tokenizer, change: dict[str, object]) -> None:
    """What an inter level quantises: the difference from the present or the past itself, in the codes' space or as the encoder gave it."""
    other = Tokenizer(replace(CONFIG, quantiser=replace(CONFIG.quantiser, **change))).eval()  # pyright: ignore[reportArgumentType]
    other.load_state_dict(tokenizer.state_dict())
    with torch.no_grad():
        codes = other.quantiser(run.maps[2], run.pasts[2], torch.ones(1, 4, 1, 50, 50)).codes
    intra = sum(tokenizer.quantiser.level_cells[:3])
    assert torch.equal(codes[:, :intra], run.quantised[2].codes[:, :intra])
    assert not torch.equal(codes, run.quantised[2].codes)


def test_inter_levels_move_the_codebook_by_default() -> None:
    """With `inter_loss` a code that only an inter level uses is moved; the published loss leaves it alone."""
    tiny = recipes.tiny().tokenizer.quantiser
    moved = []
    for inter_loss in (True, False):
        config = replace(tiny, inter="past", project_past=False, inter_loss=inter_loss, codebook_start="uniform")
        quantiser = ResidualQuantiser(config, (16, 16))
        with torch.no_grad():
            for still in (*quantiser.before.parameters(), quantiser.codebook[0]):
                still.zero_()
        past = torch.randn(1, tiny.history, tiny.width, 16, 16, generator=torch.Generator().manual_seed(0))
        quantised = quantiser(torch.zeros(1, tiny.width, 16, 16), past, torch.ones(1, tiny.history, 1, 16, 16))
        quantised.loss.backward()
        assert not quantised.codes[:, : sum(quantiser.level_cells[:3])].any(), "a map of zeros is code 0"
        assert quantiser.codebook.grad is not None
        moved.append(bool(quantiser.codebook.grad[1:].any()))
    assert moved == [True, False]


def test_cells_lie_on_their_corner_or_centre() -> None:
    """Cell i is centred on voxel 4i: x = 1.6 i - 39.8 m; the published warp takes it to lie at 1.6 i - 40 m, 1 m below the ground."""
    corner, centre = CONFIG.cells(), replace(CONFIG, cell_points="centre").cells()
    assert (corner.first_m, corner.height_m) == ((-40.0, -40.0), -1.0)
    assert centre.first_m == pytest.approx((-39.8, -39.8))
    assert centre.height_m == 0.0


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="warp=stream"):
        replace(CONFIG, warp="once")
    with pytest.raises(ConfigError, match="centred on the ego"):
        replace(CONFIG, grid=replace(CONFIG.grid, lower_m=(-30.0, -40.0, -1.0)))
