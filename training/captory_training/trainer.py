"""The one training loop shared by every part of the embedded family.

It is resumable: killed at any time, the same command goes on with the batches it would have seen. Step `n` sees the
items and the random numbers that `(seed, n)` name, so a resumed run equals an uninterrupted one. A checkpoint is one
safetensors file (weights, EMA, optimiser state; the step and the seed as JSON in its header), replaced atomically.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Plan:
    """What a training run is: when it ends, how fast it learns, what it keeps."""

    seed: int = 0
    batch_size: int = 64
    learning_rate: float = 1e-3
    final_lr_share: float = 0.02  # of the learning rate, where the cosine ends
    warmup_steps: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    max_steps: int | None = None
    max_minutes: float | None = None  # over all invocations together
    checkpoint_minutes: float = 3.0
    log_steps: int = 20
    probe_minutes: float = 10.0

    def __post_init__(self) -> None:
        """Refuse a plan that would never end."""
        if self.max_steps is None and self.max_minutes is None:
            raise ValueError("a plan needs max_steps or max_minutes")


class Draw(NamedTuple):
    """The chance of one step: which items, and a generator for everything else (noise, timesteps, captions)."""

    step: int
    indices: np.ndarray  # [B] int64, items of the data set
    generator: torch.Generator


class Progress(NamedTuple):
    """How far a run is: optimiser steps done and seconds of training spent, over all invocations."""

    step: int = 0
    elapsed_s: float = 0.0


Loss = Callable[[Draw], tuple[torch.Tensor, dict[str, float]]]
Probe = Callable[[torch.nn.Module, Progress], dict[str, float]]


def draw(seed: int, step: int, batch_size: int, num_items: int) -> Draw:
    """Return what step `step` sees: shuffled epochs without replacement, as a pure function of its arguments."""
    per_epoch = max(1, num_items // batch_size)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(num_items)
    indices = order[place * batch_size : (place + 1) * batch_size]
    (generator_seed,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return Draw(step, indices, torch.Generator().manual_seed(int(generator_seed >> np.uint64(1))))


def learning_rate_share(plan: Plan, progress: Progress) -> float:
    """Return the share of the learning rate in force: linear warm-up, then a cosine over steps or minutes."""
    by_steps = progress.step / plan.max_steps if plan.max_steps else 0.0
    by_time = progress.elapsed_s / (60 * plan.max_minutes) if plan.max_minutes else 0.0
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, max(by_steps, by_time)))
    warmup = min(1.0, (progress.step + 1) / max(1, plan.warmup_steps))
    return warmup * (plan.final_lr_share + (1 - plan.final_lr_share) * cosine)


class Trainer:
    """Trains `module` by `loss` over `num_items` items; everything that a run leaves behind lies in `folder`."""

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Loss,
        num_items: int,
        plan: Plan,
        folder: Path,
        *,
        lr_scale: Callable[[str], float] = lambda name: 1.0,
        probe: Probe | None = None,
    ) -> None:
        """Take up the checkpoint in `folder` when there is one; `lr_scale` maps a parameter's name to its factor."""
        self.module, self.loss, self.num_items, self.plan, self.folder = module, loss, num_items, plan, folder
        self.probe = probe
        self.progress = Progress()
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            [{"params": [p], "lr_scale": lr_scale(name)} for name, p in self.parameters.items()],
            lr=plan.learning_rate,
            betas=plan.betas,
            weight_decay=plan.weight_decay,
            fused=True,
        )
        self.ema = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._rows: list[dict[str, float]] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).exists():
            self._load()

    def run(self) -> dict[str, torch.Tensor]:
        """Train to the end of the plan and return the EMA weights by name."""
        self.module.train()
        clock = _Clock(self.progress.elapsed_s)
        saved_s = probed_s = clock.elapsed_s
        with tqdm(total=self.plan.max_steps, initial=self.progress.step, desc=self.folder.name, mininterval=5) as bar:
            while not self._done():
                metrics = self.step()
                self.progress = Progress(self.progress.step + 1, clock.elapsed_s)
                self._log(metrics)
                bar.update()
                if clock.elapsed_s - saved_s > 60 * self.plan.checkpoint_minutes:
                    saved_s = clock.elapsed_s
                    self.save()
                if self.probe and clock.elapsed_s - probed_s > 60 * self.plan.probe_minutes:
                    probed_s = clock.elapsed_s
                    self._probe()
        self.save()
        return self.ema

    def step(self) -> dict[str, float]:
        """Do one optimiser step and return its numbers."""
        self._set_learning_rate()
        loss, metrics = self.loss(draw(self.plan.seed, self.progress.step, self.plan.batch_size, self.num_items))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.plan.max_grad_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        self._update_ema()
        return {"loss": loss.item(), "grad_norm": norm.item(), **metrics}

    def save(self) -> None:
        """Replace the checkpoint: written whole beside the old one, then renamed over it."""
        tensors = {f"weights/{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"ema/{name}": value for name, value in self.ema.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
        state = {**self.progress._asdict(), "plan": asdict(self.plan)}
        temporary = self.folder / f"{CHECKPOINT}.tmp"
        contiguous = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
        save_file(contiguous, temporary, metadata={"state": json.dumps(state)})
        os.replace(temporary, self.folder / CHECKPOINT)
        self._write_curve()

    def _load(self) -> None:
        with safe_open(self.folder / CHECKPOINT, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if state["plan"]["seed"] != self.plan.seed or state["plan"]["batch_size"] != self.plan.batch_size:
            raise ValueError(f"{self.folder} holds a run with another seed or batch size: name another folder")
        self.progress = Progress(state["step"], state["elapsed_s"])
        self.module.load_state_dict(_under(tensors, "weights/"))
        self.ema = _under(tensors, "ema/")
        for name, parameter in self.parameters.items():
            if moments := _under(tensors, f"optimizer/{name}/"):
                self.optimizer.state[parameter] = moments
        self._rows = [row for row in _read_csv(self.folder / "loss.csv") if row["step"] <= self.progress.step]

    def _done(self) -> bool:
        plan, progress = self.plan, self.progress
        late = plan.max_minutes is not None and progress.elapsed_s >= 60 * plan.max_minutes
        return late or (plan.max_steps is not None and progress.step >= plan.max_steps)

    def _set_learning_rate(self) -> None:
        rate = self.plan.learning_rate * learning_rate_share(self.plan, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.plan.ema_decay, (1 + self.progress.step) / (10 + self.progress.step))
        now = self.module.state_dict()
        floats = [name for name, value in now.items() if value.is_floating_point()]
        for name in floats:
            self.ema[name].lerp_(now[name], 1 - decay)
        for name in now.keys() - set(floats):
            self.ema[name].copy_(now[name])

    def _log(self, metrics: dict[str, float]) -> None:
        if self.progress.step % self.plan.log_steps == 0:
            self._rows.append({"step": self.progress.step, "elapsed_s": round(self.progress.elapsed_s, 1), **metrics})

    def _probe(self) -> None:
        assert self.probe is not None
        kept = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.ema)
        self.module.eval()
        with torch.no_grad():
            row = {**self.progress._asdict(), **self.probe(self.module, self.progress)}
        self.module.load_state_dict(kept)
        self.module.train()
        _write_csv(self.folder / "probe.csv", [*_read_csv(self.folder / "probe.csv"), row])

    def _write_curve(self) -> None:
        _write_csv(self.folder / "loss.csv", self._rows)
        draw_curve(self._rows, self.folder / "loss.png")


class _Clock:
    """Seconds of training over all invocations."""

    def __init__(self, before_s: float) -> None:
        self._zero = time.monotonic() - before_s

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._zero


def load_ema(folder: Path) -> dict[str, torch.Tensor]:
    """Return the EMA weights of the checkpoint in `folder`, by name."""
    with safe_open(folder / CHECKPOINT, framework="pt") as file:
        return _under({name: file.get_tensor(name) for name in file.keys()}, "ema/")  # noqa: SIM118 (not a mapping)


def draw_curve(rows: list[dict[str, float]], path: Path) -> None:
    """Draw the loss, smoothed, over steps as a PNG."""
    if not rows:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps, losses = [row["step"] for row in rows], np.array([row["loss"] for row in rows])
    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(steps, losses, alpha=0.25)
    axes.plot(steps[window - 1 :], smooth)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=100, bbox_inches="tight")
    pyplot.close(figure)
    os.replace(temporary, path)


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _read_csv(path: Path) -> list[dict[str, float]]:
    return list(_csv_rows(path)) if path.exists() else []


def _csv_rows(path: Path) -> Iterator[dict[str, float]]:
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            yield {name: float(value) for name, value in row.items() if value}


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)
