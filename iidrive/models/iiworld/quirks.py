"""Peculiarities (quirks) of the published world model that are probably mistakes. `WorldConfig.quirks` lists those to reproduce.

They apply to the rollout in map axes (`motion="map"`, see `iiworld/rollout.py`). Without a quirk, that rollout uses the corrected
behaviour, which each description names last.
"""

from __future__ import annotations

from typing import Literal

Quirk = Literal[
    "true-motion",
    "future-commands",
    "copied-memory",
    "ones-rotation",
    "swapped-rotation",
    "roll-for-yaw",
    "batch-speed",
    "rate-first",
    "stale-pose",
    "trajectory-mean-twice",
    "rotation-everywhere",
]

QUIRKS: dict[Quirk, str] = {
    "true-motion": "the decoder is told the true next ego pose (published task `generate`), not the predicted one (`high-level-control`)",
    "future-commands": "step k > 0 follows the recorded command of future frame k - 1, not the command given now",
    "copied-memory": "the memory starts as copies of the present latent, not as the past latents",
    "ones-rotation": "the motion history of a sequence's start holds rotations (1, 1, 1, 1), not the identity (1, 0, 0, 0)",
    "swapped-rotation": "poses are chained as r * q although r is learned as conj(q_k) * q_next, so that q * r would be right",
    "roll-for-yaw": "predicted velocities take the roll for the heading, not the yaw",
    "batch-speed": "one predicted speed for all: the distance over the first two samples of the batch and all three axes, not each one's own",
    "rate-first": "predicted velocities enter the motion history as (yaw rate, vx, vy), not as (vx, vy, yaw rate) like the recorded ones",
    "stale-pose": "a roll-out's first predicted velocity is measured from where the previous sample's roll-out ended, not from the present pose",
    "trajectory-mean-twice": "the trajectory loss is divided by the batch size twice, not once",
    "rotation-everywhere": "the rotation loss counts frames after a scene's end, not only those that exist",
}
"""Quirk → description."""
