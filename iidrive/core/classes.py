"""Label tables: the 18 Occ3D occupancy classes, the 23 nuScenes categories, and the maps between them."""

from __future__ import annotations

import numpy as np

from iidrive.core.errors import DataError, unknown

OCC_CLASSES: tuple[str, ...] = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
    "free",
)
"""Occ3D-nuScenes order; index 17 is free."""

FREE = 17
IGNORE = 255
"""Label of unknown voxels. They are left out of every loss and metric."""

OCC = {name: index for index, name in enumerate(OCC_CLASSES)}

MOVABLE: np.ndarray = np.array(
    [
        name in ("bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "trailer", "truck")
        for name in (*OCC_CLASSES, *[""] * (256 - len(OCC_CLASSES)))
    ]
)
"""`MOVABLE[label]` is true for the 8 road-user classes; defined for every uint8 label."""

OCC_COLOURS: np.ndarray = np.array(
    [
        (0, 0, 0),
        (112, 128, 144),
        (220, 20, 60),
        (255, 127, 80),
        (255, 158, 0),
        (233, 150, 70),
        (255, 61, 99),
        (0, 0, 230),
        (47, 79, 79),
        (255, 140, 0),
        (255, 99, 71),
        (0, 207, 191),
        (175, 0, 75),
        (75, 0, 75),
        (112, 180, 60),
        (222, 184, 135),
        (0, 175, 0),
        (255, 255, 255),
    ],
    dtype=np.uint8,
)
"""RGB of each occupancy class, close to nuScenes' own colours."""

CATEGORY_TO_OCC: dict[str, str] = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.wheelchair": "others",
    "human.pedestrian.stroller": "others",
    "human.pedestrian.personal_mobility": "others",
    "human.pedestrian.police_officer": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "animal": "others",
    "vehicle.car": "car",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.truck": "truck",
    "vehicle.construction": "construction_vehicle",
    "vehicle.emergency.ambulance": "others",
    "vehicle.emergency.police": "others",
    "vehicle.trailer": "trailer",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.pushable_pullable": "others",
    "movable_object.debris": "others",
    "static_object.bicycle_rack": "others",
}
"""nuScenes category name → Occ3D class name (the lidarseg-16 mapping)."""

CATEGORIES: tuple[str, ...] = tuple(CATEGORY_TO_OCC)
"""The 23 nuScenes categories; `Boxes.label` indexes this tuple."""

CATEGORY_INDEX = {name: index for index, name in enumerate(CATEGORIES)}

OCC_OF_CATEGORY: np.ndarray = np.array([OCC[name] for name in CATEGORY_TO_OCC.values()], dtype=np.uint8)
"""`OCC_OF_CATEGORY[box.label]` is the occupancy class of a box."""


def category_index(name: str, where: str) -> int:
    """Index of a nuScenes category.

    Raises:
        DataError: naming `where`, for a category that nuScenes does not have.
    """
    if name not in CATEGORY_INDEX:
        raise DataError(f"{where}: {unknown('category', name, CATEGORIES)}")
    return CATEGORY_INDEX[name]
