"""Argoverse 2 categories and the nuScenes categories that they are mapped to."""

from __future__ import annotations

EGO = "EGO_VEHICLE"
"""Category of the ego vehicle, which some copies annotate as a cuboid."""

CATEGORY: dict[str, str] = {
    "ANIMAL": "animal",
    "ARTICULATED_BUS": "vehicle.bus.bendy",
    "BICYCLE": "vehicle.bicycle",
    "BICYCLIST": "vehicle.bicycle",
    "BOLLARD": "movable_object.barrier",
    "BOX_TRUCK": "vehicle.truck",
    "BUS": "vehicle.bus.rigid",
    "CONSTRUCTION_BARREL": "movable_object.barrier",
    "CONSTRUCTION_CONE": "movable_object.trafficcone",
    "DOG": "animal",
    "LARGE_VEHICLE": "vehicle.truck",
    "MESSAGE_BOARD_TRAILER": "vehicle.trailer",
    "MOTORCYCLE": "vehicle.motorcycle",
    "MOTORCYCLIST": "vehicle.motorcycle",
    "OFFICIAL_SIGNALER": "human.pedestrian.adult",
    "PEDESTRIAN": "human.pedestrian.adult",
    "REGULAR_VEHICLE": "vehicle.car",
    "SCHOOL_BUS": "vehicle.bus.rigid",
    "STROLLER": "human.pedestrian.stroller",
    "TRAFFIC_LIGHT_TRAILER": "vehicle.trailer",
    "TRUCK": "vehicle.truck",
    "TRUCK_CAB": "vehicle.truck",
    "VEHICULAR_TRAILER": "vehicle.trailer",
    "WHEELCHAIR": "human.pedestrian.wheelchair",
    "WHEELED_DEVICE": "human.pedestrian.personal_mobility",
    "WHEELED_RIDER": "human.pedestrian.personal_mobility",
}
"""Argoverse 2 category → nuScenes category. In nuScenes one box holds bicycle and rider; here they may have separate boxes."""

WITHOUT_COUNTERPART: tuple[str, ...] = ("MOBILE_PEDESTRIAN_CROSSING_SIGN", "RAILED_VEHICLE", "SIGN", "STOP_SIGN")
"""Categories that nuScenes does not have. Their cuboids are left out; `AV2.missing` reports how many."""
