"""Visibility of voxels from a sensor, by ray casting. Only objects on the ground block rays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8

from iidrive.core.classes import FREE, IGNORE, OCC
from iidrive.core.scene import GridSpec

Array = np.ndarray

FLAT = ("driveable_surface", "other_flat", "sidewalk", "terrain")
"""Ground classes. They do not block rays: real ground is seen from above, but a voxel layer is so thick that it would hide voxels."""

_ONE = 1 << 16
"""Fixed-point positions: units per voxel."""
_THIN_OUT = 4


def visible(
    semantics: UInt8[Array, "x y z"], spec: GridSpec, sensor_m: Float[Array, "3"], of: Bool[Array, "x y z"] | None = None
) -> Bool[Array, "x y z"]:
    """Mask of the voxels that are visible from a sensor at `sensor_m` (grid's frame, metres). Voxels outside `of` are not tested, and false.

    A voxel is visible if the line from its centre to the sensor, sampled twice per voxel along its longest axis, meets no occupied voxel.
    An occupied voxel is also visible if one of its three neighbours towards the sensor is free and visible, so that a wall along the line
    of sight does not hide itself. Unknown voxels and ground do not block.
    """
    stands = np.ones(256, bool)
    stands[[FREE, IGNORE, *(OCC[name] for name in FLAT)]] = False
    blocks = stands[semantics]
    sensor = (np.asarray(sensor_m, np.float64) - np.array(spec.lower_m)) / spec.voxel_m
    # Pad the grid with free voxels until it contains the sensor, so that no line leaves it.
    before = np.maximum(-np.floor(sensor).astype(int), 0)
    after = np.maximum(np.floor(sensor).astype(int) + 1 - np.array(spec.shape), 0)
    wide = np.pad(blocks, list(zip(before.tolist(), after.tolist(), strict=True)))
    some = np.ones(spec.shape, bool) if of is None else of
    hidden = _hidden(wide, spec.shape, before, sensor + before, some)
    seen = some & ~hidden.reshape(spec.shape)
    return seen | (some & blocks & _beside(seen & ~blocks, sensor))


def _hidden(
    blocks: Bool[Array, "x y z"], shape: tuple[int, int, int], first: Array, sensor: Array, of: Bool[Array, "x y z"]
) -> Bool[Array, "n"]:
    """Mask of the voxels of the inner grid (of `shape`, starting at `first`) whose line to the sensor is blocked, tested only where `of`. All in
    voxel units."""
    axes = [(np.arange(n, dtype=np.float32) + np.float32(f + 0.5)) for n, f in zip(shape, first, strict=True)]
    centre = [np.broadcast_to(a.reshape([-1 if k == i else 1 for k in range(3)]), shape).ravel() for i, a in enumerate(axes)]
    way = [np.float32(s) - c for s, c in zip(sensor, centre, strict=True)]
    longest = np.maximum(np.maximum(np.abs(way[0]), np.abs(way[1])), np.abs(way[2]))
    half = np.maximum(longest * 2, 1e-3)
    steps = np.maximum(np.ceil(half).astype(np.int32) - 2, 0)  # from one voxel away up to the sensor
    move = [np.rint(w / half * _ONE).astype(np.int32) for w in way]
    place = [np.rint(c * _ONE).astype(np.int32) + 2 * m for c, m in zip(centre, move, strict=True)]
    stride = [blocks.shape[1] * blocks.shape[2], blocks.shape[2], 1]
    flat = blocks.ravel()
    hidden = np.zeros(len(steps), bool)
    who = np.flatnonzero((steps > 0) & of.ravel())
    place, move, left = [p[who] for p in place], [m[who] for m in move], steps[who]
    found = np.zeros(len(who), bool)
    for step in range(int(left.max(initial=0))):
        if step % _THIN_OUT == 0:
            hidden[who[found]] = True
            go = np.flatnonzero(~found & (left > step))
            who, left, found = who[go], left[go], found[go]
            place, move = [p[go] for p in place], [m[go] for m in move]
        # Lines that have reached the sensor since the last thinning continue beyond it and may leave the grid; their hits are ignored.
        at = (place[0] >> 16) * stride[0]
        at += (place[1] >> 16) * stride[1]
        at += place[2] >> 16
        found |= flat.take(at, mode="clip") & (left > step)
        for p, m in zip(place, move, strict=True):
            p += m
    hidden[who[found]] = True
    return hidden


def _beside(free: Bool[Array, "x y z"], sensor: Array) -> Bool[Array, "x y z"]:
    """Mask of the voxels that have a marked neighbour towards the sensor along at least one axis."""
    out = np.zeros(free.shape, bool)
    for axis in range(3):
        n = free.shape[axis]
        split = int(np.clip(np.floor(sensor[axis]), 0, n - 1))
        for own, other in ((slice(split + 1, n), slice(split, n - 1)), (slice(0, split), slice(1, split + 1))):
            here, there = [slice(None)] * 3, [slice(None)] * 3
            here[axis], there[axis] = own, other
            out[tuple(here)] |= free[tuple(there)]
    return out
