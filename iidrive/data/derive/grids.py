"""Derived occupancy of one keyframe, and which of its voxels are known.

- Occupied: voxels with static points, voxels with points of a box (moved along with it), the whole box if it has very few points, and the map's
  surfaces at ground height.
- Free: voxels that a ray passed. Without sweeps, the space up to `FREE_ABOVE_M` above map surfaces, where a road user would have been annotated.
- Unknown: all other voxels, such as behind a wall, inside a car, or beyond the last point.

A point at most `GROUND_M` above the ground is ground: driveable on the map's drivable areas and crossings, sidewalk on its walkways, else
other_flat. Any other point outside boxes is `others`, because boxes and maps do not distinguish buildings, trees and poles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Bool, Float, Int, UInt8

from iidrive.core import geometry
from iidrive.core.classes import FREE, IGNORE, OCC, OCC_OF_CATEGORY
from iidrive.core.scene import Boxes, GridSpec, OccGrid, Scene, VectorMap
from iidrive.data.derive.objects import BoxesOverTime, carried
from iidrive.data.derive.surroundings import Surroundings
from iidrive.data.derive.sweeps import Ground
from iidrive.data.town.visibility import FLAT, visible
from iidrive.data.voxelise import GROUND_LAYERS, GROUND_Z_M, polygon_mask, voxelise

Array = np.ndarray

GROUND_M = 0.3
FEW_POINTS = 5
"""A box whose track has fewer points than this over the whole scene is filled."""
FREE_ABOVE_M = 2.0

_BEYOND_M = 12.0
"""Boxes whose centre is farther than this outside a grid cannot reach into it."""
_NOTHING = np.zeros((0, 3))

GROUND_CLASS = np.isin(np.arange(256), [OCC[name] for name in FLAT])
"""`GROUND_CLASS[label]`: whether a label is a ground class."""


@dataclass(frozen=True)
class Derived:
    """Occupancy of a keyframe, uint8 (X,Y,Z), 17 where it is free or unknown, as Occ3D writes it.

    `known`: voxels determined by a point, a ray, a box or the map. `seen`: known voxels that are visible from the lidar's position at the keyframe.
    """

    semantics: UInt8[Array, "X Y Z"]
    known: Bool[Array, "X Y Z"]
    seen: Bool[Array, "X Y Z"]

    def grid(self, spec: GridSpec) -> OccGrid:
        """As a grid in which unknown voxels are 255."""
        return OccGrid(np.where(self.known, self.semantics, np.uint8(IGNORE)), spec, "derived", self.seen)


@dataclass(frozen=True)
class SceneOccupancy:
    """The data from which the grids of a scene are made. `around` is None without sweeps; `point_class` are the classes of its static points."""

    scene: Scene
    over_time: BoxesOverTime
    around: Surroundings | None
    ground: Ground | None
    point_class: UInt8[Array, "n"]

    @staticmethod
    def of(scene: Scene, around: Surroundings | None, over_time: BoxesOverTime, ground: Ground | None = None) -> SceneOccupancy:
        """Classify the static points by the map and the ground. Without ground heights of the dataset, those of the sweeps are used."""
        ground = ground or (around.ground if around else None)
        classes = _classes(around.static_m, scene.map, around.spec, ground) if around and ground else np.zeros(0, np.uint8)
        return SceneOccupancy(scene, over_time, around, ground, classes)

    def keyframe(self, index: int, spec: GridSpec) -> Derived:
        """Occupancy of one keyframe on a grid in its ego frame."""
        keyframe = self.scene.keyframes[index]
        pose = keyframe.global_T_ego.matrix
        ego_T_global = geometry.invert(pose)
        boxes = self.over_time.boxes[index].moved(ego_T_global, "ego")
        boxes = boxes.select((np.abs(boxes.centre_m[:, :2]) < np.abs((spec.lower_m[:2], spec.upper_m[:2])).max(0) + _BEYOND_M).all(1))
        semantics, known = np.full(spec.shape, FREE, np.uint8), np.zeros(spec.shape, bool)
        layer, surface = self._surfaces(pose, spec)
        if self.around is None:
            on = np.nonzero(surface != FREE)
            semantics[(*on, layer[on])], known[(*on, layer[on])] = surface[on], True
            above = np.arange(spec.shape[2]) - layer[..., None]
            known |= (surface != FREE)[..., None] & (above > 0) & (above * spec.voxel_m <= FREE_ABOVE_M)
            painted = _filled(boxes, spec, self.ground is None)
            semantics, known = np.where(painted != FREE, painted, semantics), known | (painted != FREE)
        else:
            known |= self.around.was_passed(_centres(spec) @ pose[:3, :3].T + pose[:3, 3]).reshape(spec.shape)
            near = np.flatnonzero((np.abs(self.around.static_m[:, :2] - pose[:2, 3]) < _reach(spec)).all(1))
            place, held = _voxels(geometry.apply(ego_T_global, self.around.static_m[near]), spec)
            _vote(semantics, known, place, self.point_class[near[held]])
            on = np.nonzero((surface != FREE) & ~GROUND_CLASS[semantics].any(2))  # the map is used where no ground was measured
            semantics[(*on, layer[on])] = np.minimum(semantics[(*on, layer[on])], surface[on])
            known[(*on, layer[on])] = True
            # The inside of a box is unknown, even if rays passed there at other times.
            known &= (_filled(boxes, spec, False) == FREE) | (semantics != FREE)
            self._paint_boxes(semantics, known, boxes, spec)
        seen = visible(semantics, spec, keyframe.ego_T_lidar.translation_m, known)
        return Derived(semantics, known, seen)

    def _paint_boxes(self, semantics: UInt8[Array, "X Y Z"], known: Bool[Array, "X Y Z"], boxes: Boxes, spec: GridSpec) -> None:
        """Paint boxes with few points whole, then the points of the others, in place. Where boxes overlap, the smaller one wins."""
        assert self.around is not None
        points = [self.around.object_m.get(track, _NOTHING) for track in boxes.track]
        few = np.array([len(held) < FEW_POINTS for held in points], bool)
        whole = _filled(boxes.select(few), spec, False)
        semantics[whole != FREE], known[whole != FREE] = whole[whole != FREE], True
        for b in np.argsort(-boxes.size_m.prod(1), kind="stable"):
            if not few[b]:
                own = tuple(_voxels(carried(points[b], boxes, int(b)), spec)[0].T)
                semantics[own], known[own] = OCC_OF_CATEGORY[boxes.label[b]], True

    def _surfaces(self, pose: Float[Array, "4 4"], spec: GridSpec) -> tuple[Int[Array, "X Y"], UInt8[Array, "X Y"]]:
        """Ground layer of every column, and its class on the map; 17 if the map has none there or the ground is unknown."""
        x, y = np.meshgrid(spec.centres(0), spec.centres(1), indexing="ij")
        flat = np.stack([x, y, np.full_like(x, GROUND_Z_M)], -1).reshape(-1, 3)
        on_map = flat @ pose[:3, :3].T + pose[:3, 3]
        if self.ground is None:
            z_m = np.full(len(flat), GROUND_Z_M)
        else:
            on_map[:, 2] = self.ground(on_map[:, :2])
            z_m = geometry.apply(geometry.invert(pose), on_map)[:, 2]
        surface = _painted(self.scene.map, pose[:2, :2] * spec.voxel_m, pose[:2, :3] @ _corner(spec) + pose[:2, 3], spec.shape[:2])
        height = np.nan_to_num((z_m - 0.01 - spec.lower_m[2]) / spec.voxel_m, nan=-1.0).reshape(spec.shape[:2])
        layer = np.floor(height).astype(np.int64)
        surface[(layer < 0) | (layer >= spec.shape[2])] = FREE
        return layer.clip(0, spec.shape[2] - 1), surface


def _filled(boxes: Boxes, spec: GridSpec, reach_ground: bool) -> UInt8[Array, "X Y Z"]:
    """Boxes in the ego frame, filled."""
    return voxelise(boxes, VectorMap(), np.eye(4), spec, reach_ground=reach_ground).semantics


def _reach(spec: GridSpec) -> float:
    """Distance of a grid's corner from the ego in bird's-eye view, with a margin for pitch and roll, metres."""
    return float(np.hypot(*np.abs((spec.lower_m[:2], spec.upper_m[:2])).max(0))) + 1.0


def _corner(spec: GridSpec) -> Float[Array, "3"]:
    return np.array([spec.lower_m[0], spec.lower_m[1], GROUND_Z_M])


def _centres(spec: GridSpec) -> Float[Array, "n 3"]:
    return np.stack(np.meshgrid(*(spec.centres(axis) for axis in range(3)), indexing="ij"), -1).reshape(-1, 3)


def _voxels(points_m: Float[Array, "n 3"], spec: GridSpec) -> tuple[Int[Array, "m 3"], Int[Array, "m"]]:
    """Voxel indices of the points inside the grid, and the rows of these points."""
    at = np.floor((points_m - np.array(spec.lower_m)) / spec.voxel_m).astype(np.int64)
    held = np.flatnonzero(((at >= 0) & (at < np.array(spec.shape))).all(1))
    return at[held], held


def _vote(semantics: UInt8[Array, "X Y Z"], known: Bool[Array, "X Y Z"], place: Int[Array, "m 3"], label: UInt8[Array, "m"]) -> None:
    """Set voxels to the most frequent class of their points, in place; ties go to the lower class."""
    flat = np.ravel_multi_index(tuple(place.T), semantics.shape)
    pairs, count = np.unique(flat * FREE + label, return_counts=True)
    order = np.lexsort((-pairs % FREE, count))  # numpy keeps the last of several writes: most points, then the lower class
    semantics.reshape(-1)[pairs[order] // FREE] = (pairs[order] % FREE).astype(np.uint8)
    known.reshape(-1)[pairs // FREE] = True


def _painted(vector_map: VectorMap, linear: Float[Array, "2 2"], origin: Float[Array, "2"], shape: tuple[int, int]) -> UInt8[Array, "X Y"]:
    """The map's surfaces rasterised in bird's-eye view, on cells whose edges are the columns of `linear`; 17 without a surface."""
    out = np.full(shape, FREE, np.uint8)
    cells_per_m = np.linalg.inv(linear)
    for layer, occ_class in GROUND_LAYERS:
        found: shapely.Geometry | None = vector_map.layers.get(layer)
        if found is not None:
            out[polygon_mask(found, cells_per_m, origin, shape)] = OCC[occ_class]
    return out


def _classes(points_m: Float[Array, "n 3"], vector_map: VectorMap, spec: GridSpec, ground: Ground) -> UInt8[Array, "n"]:
    """Classes of static points."""
    fine = spec.voxel_m / 2
    shape = (2 * spec.shape[0], 2 * spec.shape[1])
    surface = _painted(vector_map, np.eye(2) * fine, np.array(spec.lower_m[:2]), shape)
    cell = np.floor((points_m[:, :2] - np.array(spec.lower_m[:2])) / fine).astype(np.int64).clip(0, np.array(shape) - 1)
    on = surface[cell[:, 0], cell[:, 1]]
    is_ground = points_m[:, 2] - ground(points_m[:, :2]) <= GROUND_M  # false where the ground is unknown
    return np.where(is_ground, np.where(on == FREE, np.uint8(OCC["other_flat"]), on), np.uint8(OCC["others"]))
