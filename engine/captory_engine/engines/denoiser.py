"""The painter's denoiser as a step engine: one UNet batch a step, every row at its own place of its own plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captory_engine.device import Need, Task
from captory_engine.diffusion.noise import gaussian_noise
from captory_engine.diffusion.samplers import Plan
from captory_engine.diffusion.step import advance, guide
from captory_engine.engines.batching import BatchRule, padded
from captory_engine.engines.slots import Slots
from captory_engine.errors import BadOutput
from captory_engine.scheduler import Profile
from captory_engine.sessions.base import Session

Array = NDArray[Any]


@dataclass(slots=True)
class DenoiseTask(Task):
    """One image: unit noise to latents. `text` and `negative_text` are [T, D]; the latter is needed where guided.

    The result is [C, H, W], float32, in the autoencoder's frame.
    """

    plan: Plan
    seed: int
    shape: tuple[int, int, int]
    text: Array
    negative_text: Array
    guidance_scale: float
    exact: bool = False
    step: int = 0
    slot: int | None = None

    @property
    def guided(self) -> bool:
        """Whether the next step needs the unconditional row."""
        return bool(self.plan.guided[self.step])


class Denoiser:
    """Step engine over the graph (sample, timestep, encoder_hidden_states) -> out_sample, one timestep an item."""

    name = "denoise"

    def __init__(self, session: Session, profile: Profile, rule: BatchRule) -> None:
        self.profile = profile
        self._session = session
        self._rule = rule
        self._slots: dict[tuple[int, ...], Slots] = {}

    def need(self, task: DenoiseTask) -> Need:
        """One row, two where guidance applies."""
        return Need((task.shape, task.exact), 2 if task.guided else 1)

    def run(self, tasks: Sequence[DenoiseTask]) -> int:
        """One step of every task."""
        slots = self._table(tasks[0])
        for task in tasks:
            self._enter(task, slots)
        taken = np.array([task.slot for task in tasks])
        coefficients = np.stack([task.plan.coefficients[task.step] for task in tasks])
        x = slots["x"][taken]
        output, computed = self._predict(tasks, x, coefficients)
        slots["x"][taken], slots["denoised"][taken] = advance(x, output, slots["denoised"][taken], coefficients)
        for task in tasks:
            self._advance(task, slots)
        return computed

    def retire(self, task: DenoiseTask) -> None:
        """Free the task's slot."""
        if task.slot is not None:
            self._slots[task.shape].give(task.slot)
            task.slot = None

    def _table(self, task: DenoiseTask) -> Slots:
        if task.shape not in self._slots:
            shapes: dict[str, tuple[int, ...]] = {"x": task.shape, "denoised": task.shape}
            shapes |= {"text": task.text.shape, "negative_text": task.text.shape}
            self._slots[task.shape] = Slots({name: (shape, np.float32) for name, shape in shapes.items()})
        return self._slots[task.shape]

    def _enter(self, task: DenoiseTask, slots: Slots) -> None:
        if task.slot is None:
            task.slot = slots.take()
            slots["x"][task.slot] = gaussian_noise(task.seed, task.shape) * task.plan.start_scale
            slots["text"][task.slot], slots["negative_text"][task.slot] = task.text, task.negative_text

    def _predict(self, tasks: Sequence[DenoiseTask], x: Array, coefficients: Array) -> tuple[Array, int]:
        """The network's guided output for every task, [B, C, H, W], and the rows computed."""
        slots = self._table(tasks[0])
        guided = [row for row, task in enumerate(tasks) if task.guided]
        taken = np.array([task.slot for task in tasks])
        timesteps = np.array([task.plan.timesteps[task.step] for task in tasks], np.float32)
        sample = x * coefficients[:, 0].reshape(-1, 1, 1, 1)
        output, computed = padded(
            self._session,
            {
                "sample": np.concatenate([sample, sample[guided]]),
                "timestep": np.concatenate([timesteps, timesteps[guided]]),
                "encoder_hidden_states": np.concatenate([slots["text"][taken], slots["negative_text"][taken[guided]]]),
            },
            self._rule.rows(exact=tasks[0].exact),
        )
        conditional, unconditional = np.split(output["out_sample"], [len(tasks)])
        if guided:
            scales = np.array([tasks[index].guidance_scale for index in guided], np.float32)
            conditional[guided] = guide(conditional[guided], unconditional, scales)
        return conditional, computed

    def _advance(self, task: DenoiseTask, slots: Slots) -> None:
        task.step += 1
        x = slots["x"][task.slot]
        if not np.isfinite(x).all():
            task.error = BadOutput("NON_FINITE", "the denoiser gave NaN or Inf")
        elif task.step == task.plan.num_steps:
            task.result = x * task.plan.final_scale
