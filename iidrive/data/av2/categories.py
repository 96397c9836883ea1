"""The categories of Argoverse 2's cuboids, and the nuScenes categories that they are read as."""

from __future__ import annotations

EGO = "EGO_VEHICLE"
"""Some copies hold the car itself as a cuboid."""

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
"""Argoverse 2 category → nuScenes category. nuScenes has the rider in the bicycle's box; here rider and bicycle may each have one."""

WITHOUT_COUNTERPART: tuple[str, ...] = ("MOBILE_PEDESTRIAN_CROSSING_SIGN", "RAILED_VEHICLE", "SIGN", "STOP_SIGN")
"""Categories that nuScenes does not have; their cuboids are left out, and a source says how many."""
