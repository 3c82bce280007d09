"""The painter's denoiser as a step engine: one UNet batch a step, every row at its own place of its own plan.

Latents and text states stay in slots where the session computes. A step brings slots and scalars there, and only
rows that have ended come back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captory_engine.device import Need, Task
from captory_engine.diffusion.noise import gaussian_noise
from captory_engine.diffusion.samplers import Plan
from captory_engine.diffusion.step import advance, guide, per_row
from captory_engine.engines.batching import BatchRule, padded
from captory_engine.engines.slots import Slots
from captory_engine.errors import BadOutput
from captory_engine.scheduler import Profile
from captory_engine.sessions.arrays import arrays_of
from captory_engine.sessions.base import Session

Array = NDArray[Any]
TEXT = "encoder_hidden_states"  # the condition that every text-to-image network has


@dataclass(slots=True)
class DenoiseTask(Task):
    """One image: unit noise to latents. Conditions are one row of each further input of the network, by name.

    `negative` is what the unconditional row gets; it is needed where guided. The result is [C, H, W], float32, in the
    autoencoder's frame.
    """

    plan: Plan
    seed: int
    shape: tuple[int, int, int]
    conditions: Mapping[str, Array]
    negative: Mapping[str, Array]
    guidance_scale: float
    exact: bool = False
    step: int = 0
    slot: int | None = None

    @property
    def guided(self) -> bool:
        """Whether the next step needs the unconditional row."""
        return bool(self.plan.guided[self.step])


class Denoiser:
    """Step engine over the graph (sample, timestep, conditions…) -> out_sample, one timestep an item."""

    name = "denoise"

    def __init__(self, session: Session, profile: Profile, rule: BatchRule) -> None:
        self.profile = profile
        self._session = session
        self._arrays = arrays_of(session)
        self._rule = rule
        self._capacity = profile.max_slots
        self._slots: dict[tuple[int, ...], Slots] = {}
        self._opening = Lock()

    def need(self, task: DenoiseTask) -> Need:
        """One row, two where guidance applies."""
        return Need((task.shape, task.exact), 2 if task.guided else 1)

    def run(self, tasks: Sequence[DenoiseTask]) -> int:
        """One step of every task. Raises `OutOfMemory` when slots or batch do not fit where the session computes."""
        with self._arrays.guard():
            return self._step(tasks)

    def _step(self, tasks: Sequence[DenoiseTask]) -> int:
        slots = self._table(tasks[0])
        for task in tasks:
            self._enter(task, slots)
        taken = self._arrays.from_host(np.array([task.slot for task in tasks]))
        coefficients = self._arrays.from_host(np.stack([task.plan.coefficients[task.step] for task in tasks]))
        x = slots["x"][taken]
        sample = x * per_row(coefficients[:, 0], x)
        output, computed = self._predict(tasks, sample, slots)
        x, denoised = advance(x, output, slots["denoised"][taken], coefficients)
        seen = self._look(tasks, x)  # before anything is written or counted: a device's errors show here
        slots["x"][taken], slots["denoised"][taken] = x, denoised
        for task in tasks:
            task.step += 1
        for task, latents in seen:
            _end(task, latents)
        return computed

    def retire(self, task: DenoiseTask) -> None:
        """Free the task's slot."""
        if task.slot is not None:
            self._slots[task.shape].give(task.slot)
            task.slot = None

    def _table(self, task: DenoiseTask) -> Slots:
        with self._opening:
            if task.shape not in self._slots:
                tables = {name: ((2, *array.shape), array.dtype) for name, array in task.conditions.items()}
                tables |= {name: (task.shape, np.dtype(np.float32)) for name in ("x", "denoised")}
                self._slots[task.shape] = Slots(tables, self._capacity, self._arrays)
            return self._slots[task.shape]

    def _enter(self, task: DenoiseTask, slots: Slots) -> None:
        if task.slot is None:
            noise = self._arrays.from_host(gaussian_noise(task.seed, task.shape) * task.plan.start_scale)
            pairs = {name: np.stack([array, task.negative[name]]) for name, array in task.conditions.items()}
            conditions = {name: self._arrays.from_host(pair) for name, pair in pairs.items()}
            task.slot = slots.take(x=noise, **conditions)

    def _predict(self, tasks: Sequence[DenoiseTask], sample: Any, slots: Slots) -> tuple[Any, int]:
        """The network's guided output for every task, [B, C, H, W], and the rows computed.

        The batch holds every task's row, then the unconditional rows of the guided ones.
        """
        here = self._arrays.from_host
        guided = [row for row, task in enumerate(tasks) if task.guided]
        order = np.array([*range(len(tasks)), *guided])
        taken = np.array([task.slot for task in tasks])[order]
        unconditional = (np.arange(len(order)) >= len(tasks)).astype(np.int64)
        timesteps = np.array([task.plan.timesteps[task.step] for task in tasks], np.float32)
        inputs = {
            "sample": sample[here(order)],
            "timestep": here(timesteps[order]),
            **{name: slots[name][here(taken), here(unconditional)] for name in tasks[0].conditions},
        }
        outputs, computed = padded(self._session, inputs, self._rule.rows(exact=tasks[0].exact))
        output = outputs["out_sample"][: len(tasks)]
        if guided:
            rows = here(np.array(guided))
            scales = here(np.array([tasks[row].guidance_scale for row in guided], np.float32))
            output[rows] = guide(output[rows], outputs["out_sample"][len(tasks) :], scales)
        return output, computed

    def _look(self, tasks: Sequence[DenoiseTask], x: Any) -> list[tuple[DenoiseTask, Array]]:
        """Tasks with their latents after this step, on the host.

        On the host every row is looked at, and a bad one ends at once. Elsewhere only rows that end come back: one
        that is not finite stays so to its end.
        """
        if self._arrays.on_host:
            return list(zip(tasks, self._arrays.to_host(x), strict=True))
        ending = [row for row, task in enumerate(tasks) if task.step + 1 == task.plan.num_steps]
        if not ending:
            return []
        latents = self._arrays.to_host(x[self._arrays.from_host(np.array(ending))])
        return [(tasks[row], one) for row, one in zip(ending, latents, strict=True)]


def _end(task: DenoiseTask, latents: Array) -> None:
    if not np.isfinite(latents).all():
        task.error = BadOutput("NON_FINITE", "the denoiser gave NaN or Inf")
    elif task.step == task.plan.num_steps:
        task.result = latents * task.plan.final_scale
