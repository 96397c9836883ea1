"""Model inputs in closed loop, in the same form as in open loop: ego motion, command, and tokens of the observed occupancy.

Shapes: B scenes, T = 6 keyframes (the last is the current one), n codes per keyframe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from iidrive.core import geometry
from iidrive.core.batch import Inputs
from iidrive.data.town.config import scene_seed
from iidrive.data.town.record import EGO_T_LIDAR
from iidrive.models.tokenizer import Tokenizer
from iidrive.runtime.run_folder import device
from iidrive.simulation.driven import PAST, DrivenScene
from iidrive.simulation.perception import Perception

Array = np.ndarray


class Observer:
    """Makes model inputs of simulated scenes. Without a tokenizer they have ego motion and command only, and no occupancy is generated.

    Every keyframe is encoded once, together with the earlier keyframes that the tokenizer uses.
    """

    def __init__(self, tokenizer: Tokenizer | None, perception: Perception | None = None) -> None:
        """`perception`: errors of the occupancy; default: none."""
        self.tokenizer, self.perception = tokenizer, perception or Perception()
        self._maps: dict[str, list[torch.Tensor]] = {}
        self._codes: dict[str, list[torch.Tensor]] = {}

    @torch.no_grad()
    def observe(self, scenes: Sequence[DrivenScene]) -> Inputs:
        """Inputs of the scenes at their current keyframes."""
        if self.tokenizer is not None:
            while new := [s for s in scenes if len(self._codes.setdefault(s.name, [])) < len(s.keyframes)]:
                self._encode(self.tokenizer, new)
        seen = [scene.keyframes[-1 - PAST :] for scene in scenes]
        poses = np.stack([[moment.global_T_ego.matrix for moment in one] for one in seen])
        times = np.array([[moment.time_s for moment in one] for one in seen])
        now_T_global = geometry.invert(poses[:, -1])
        codes = [torch.stack(self._codes[s.name][-1 - PAST :]) for s in scenes] if self.tokenizer is not None else None
        return Inputs(
            tuple(f"{s.name}@{t[-1]:.1f}" for s, t in zip(scenes, times, strict=True)),
            torch.from_numpy((now_T_global[:, None] @ poses).astype(np.float32)),
            torch.ones(len(scenes), 1 + PAST, dtype=torch.bool),
            torch.from_numpy((times[:, -1:] - times).astype(np.float32)),
            torch.tensor([scene.command.index for scene in scenes]),
            torch.from_numpy(np.broadcast_to(EGO_T_LIDAR.matrix.astype(np.float32), (len(scenes), 4, 4)).copy()),
            codes=None if codes is None else torch.stack(codes),
            global_T_now=torch.from_numpy(poses[:, -1]),
        ).to(device())

    def _encode(self, tokenizer: Tokenizer, scenes: Sequence[DrivenScene]) -> None:
        """Encode each scene's earliest keyframe that has no codes yet."""
        grids, seen, back = [], [], []
        for scene in scenes:
            number = len(self._codes[scene.name])
            moment = scene.keyframes[number]
            seed = (*scene_seed(scene.town.config, scene.name), 6, number)
            boxes = self.perception.boxes(moment.boxes, moment.global_T_ego.translation_m[:2], seed)
            grid = scene.town.seen_at(scene.name, moment.global_T_ego, EGO_T_LIDAR, boxes, tokenizer.config.grid)
            grids.append(torch.from_numpy(self.perception.occupancy(grid.semantics, seed)))
            rows = (number - np.arange(tokenizer.config.quantiser.history, -1, -1)).clip(min=0)
            seen.append(rows)
            back.append([scene.keyframes[row].global_T_ego.matrix for row in rows])
        maps = tokenizer.encode(torch.stack(grids).to(device()))
        for scene, encoded in zip(scenes, maps, strict=True):
            self._maps.setdefault(scene.name, []).append(encoded)
        poses = np.array(back)
        now_T_frame = torch.from_numpy(geometry.invert(poses[:, -1])[:, None] @ poses).to(maps)
        around = torch.stack([torch.stack([self._maps[s.name][row] for row in rows]) for s, rows in zip(scenes, seen, strict=True)])
        codes = tokenizer.quantiser(maps, *tokenizer.align(around, now_T_frame)).codes
        for scene, made in zip(scenes, codes, strict=True):
            self._codes[scene.name].append(made)
