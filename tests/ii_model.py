"""Stored outputs of the published II model for generated weights and inputs, and loading of our modules with the same weights."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Fixture:
    """Stored outputs, and the rules that generate their weights and inputs."""

    def __init__(self, shared: Path) -> None:
        self.folder = shared / "fixtures" / "ii-model"
        spec = importlib.util.spec_from_file_location("ii_model_rules", self.folder / "rules.py")
        assert spec is not None
        assert spec.loader is not None
        self.rules: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.rules)

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def arrays(self, name: str) -> Any:
        return np.load(self.folder / name)

    def state(self, entries: Iterable[tuple[str, list[int], str]]) -> dict[str, Tensor]:
        """Rule-made weights under published names."""
        return {k: torch.from_numpy(np.asarray(self.rules.weight(k, tuple(shape), dtype))) for k, shape, dtype in entries}


class Inside:
    """What modules were given, or gave, at their first call."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}
        self.hooks: list[RemovableHandle] = []

    def input(self, name: str, module: nn.Module) -> None:
        """Keep the first argument."""
        self.hooks.append(module.register_forward_pre_hook(lambda _, given: self._keep(name, given[0])))

    def output(self, name: str, module: nn.Module, part: int | None = None) -> None:
        """Keep what it returns, or one part of that."""
        self.hooks.append(module.register_forward_hook(lambda _, given, made: self._keep(name, made if part is None else made[part])))

    def remove(self) -> None:
        """Leave the modules as they were."""
        for hook in self.hooks:
            hook.remove()

    def _keep(self, name: str, value: Tensor) -> None:
        self.first.setdefault(name, value)


def off(found: Tensor, wanted: Any) -> float:
    """The largest absolute difference."""
    return float((found.detach().double() - torch.as_tensor(np.asarray(wanted, np.float64))).abs().max())


def worst_ratio(found: dict[str, float], wanted: dict[str, float], ignore_below: float = 1e-6) -> tuple[float, str]:
    """The largest relative difference of two tables of norms, and its name."""
    return max((abs(found[k] - v) / v, k) for k, v in wanted.items() if v > ignore_below)


def gradient_norms(module: nn.Module, to_published: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, float]:
    """L2 norms of gradients under published names."""
    grads = {k: v.grad for k, v in module.named_parameters() if v.grad is not None}
    return {k: float(v.double().norm()) for k, v in to_published(grads).items()}
