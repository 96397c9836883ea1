"""Oracle forecast: a copy of the simulation is run for three seconds while the ego follows a plan and the others react to it.

Shapes: S future steps, X, Y cells.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from iidrive.core import geometry
from iidrive.core.classes import OCC_OF_CATEGORY
from iidrive.core.scene import FUTURE_STEPS, GridSpec
from iidrive.data.box_tracks import BoxTracks, flow_labels
from iidrive.data.town.live import LiveScene
from iidrive.data.town.traffic import EgoState
from iidrive.scoring.driving.tracking import CarState
from iidrive.simulation.driven import STEPS_PER_KEYFRAME, DrivenScene

Array = np.ndarray


def true_occupancy(scene: DrivenScene, states: list[CarState], spec: GridSpec) -> Bool[Array, "S X Y"]:
    """Cells that other road users will occupy at every step while the ego follows `states` (0.1 s apart, three seconds).

    The cells are in the ego frame of the current keyframe.
    """
    return branched_occupancy(scene.live, states, scene.keyframes[-1].global_T_ego.matrix, spec, scene.agents == "reactive")[1:]


def branched_occupancy(
    live: LiveScene, states: list[CarState], global_T_ego: Float[Array, "4 4"], spec: GridSpec, reactive: bool = True
) -> Bool[Array, "H X Y"]:
    """Cells that other road users occupy now and at every step of a copy of a simulation.

    Args:
        live: the simulation; it is not changed.
        states: states of the ego, 0.1 s apart, three seconds; N = 1.
        global_T_ego: the ego's pose now. The cells are in this frame.
        spec: grid of the cells.
        reactive: whether the others react to the ego; else they do what they would do if the town's own driver drove on.
    """
    branch, casts = live.copy(), [live.cast()]
    for k, state in enumerate(states, start=1):
        ego = EgoState(state.xy_m[0], float(state.yaw_rad[0]), float(state.speed_mps[0]))
        branch.step(ego if reactive else None)
        if k % STEPS_PER_KEYFRAME == 0:
            casts.append(branch.cast())
    assert len(casts) == 1 + FUTURE_STEPS
    ego_T_global = geometry.invert(global_T_ego)
    centre = np.concatenate([cast.centre for cast in casts])
    yaw = np.concatenate([cast.yaw for cast in casts])
    ego = geometry.apply(ego_T_global, np.concatenate([centre, np.zeros((*centre.shape[:2], 1))], -1))
    turned = yaw + geometry.heading(ego_T_global)
    boxes = BoxTracks(ego, turned, np.ones(yaw.shape, bool), casts[0].size[:, :2], OCC_OF_CATEGORY[casts[0].label])
    return flow_labels(boxes, spec).taken
