"""One full-size painter: the eager loop, the engine's ways to run the UNet, each batch, and one whole image."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import torch

from captory_bench.gpu.clock import release, seconds_of, wait_for
from captory_bench.gpu.eager import EagerLoop
from captory_bench.gpu.jobs import paint, task
from captory_bench.gpu.models import Model, build_unet, build_vae, count_flops, open_unet, open_vae
from captory_bench.gpu.setup import Setup
from captory_bench.gpu.variants import GRAPHS, VARIANTS, Variant, attention, options_of, prepared
from captory_engine.engines.batching import BatchRule
from captory_engine.engines.denoiser import Denoiser
from captory_engine.scheduler import Profile
from captory_engine.sessions.torch import DTYPES, TorchSession

LONGEST = 50  # steps; also of the tasks that are timed
EXTRAPOLATED = (20, LONGEST)
# Relative to the mean absolute value: what is more is another result, not rounding.
MAX_DIFFERENCE = 0.1
CHECKED_STEPS = 3
MAX_VAE_BATCH = 4
SECONDS_A_BATCH = 15.0


class Painting:
    """The measurements of one model, which share one UNet and one autoencoder of random weights."""

    def __init__(self, setup: Setup, model: Model) -> None:
        self.record: dict[str, Any] = {
            "size_px": model.size_px,
            "skipped": [],
            "variants": [],
            "eager": {},
            "engine": {},
        }
        self._setup = setup
        self._model = model
        dtype = DTYPES[setup.dtype]
        self._flops, self._vae_flops = count_flops(model)
        self._unet = build_unet(model, setup.device, dtype)
        self._vae = open_vae(model, build_vae(model, setup.device, dtype), self._options(GRAPHS))
        self._reference = self._eager_latents()
        self._vae_times: dict[int, float] = {}
        self._took_s: dict[Variant, float] = {}

    def run(self, variants: tuple[Variant, ...] = VARIANTS) -> Variant | None:
        """Measure everything that fits the budget; returns the fastest variant whose results are right, if any is."""
        self.record["flops"] = self._count()
        for batch in self._setup.scale.batches:
            self._eager(batch)
        best = self._choose(variants)
        if best is not None:
            self.record["variant"] = best.name
            self._engine(best)
        return best

    def _count(self) -> dict[str, Any]:
        tflop, published = self._flops / 1e12, self._model.published_tflop
        agrees = not published or abs(tflop / published - 1) < 0.01
        return {
            "unet_row_tflop": tflop,
            "published_tflop": published,
            "ok": agrees,
            "vae_image_tflop": self._vae_flops / 1e12,
        }

    def _options(self, variant: Variant) -> Any:
        """Buckets are the batches that are measured, with and without guidance."""
        buckets = {rows * batch for batch in self._setup.scale.batches for rows in (1, 2)}
        return options_of(variant, self._setup, tuple(sorted(buckets | {MAX_VAE_BATCH})))

    def _eager(self, batch: int) -> None:
        """Diffusers' own loop at one batch; the autoencoder's time is taken to be the engine's, which favours it."""
        if not self._allowed(f"eager, batch {batch}"):
            return
        loop = EagerLoop(self._model, self._unet, [task(self._model, seed, LONGEST) for seed in range(batch)])
        seconds = seconds_of(loop.next_step, self._setup.device, calls=self._setup.scale.calls, passes=self._passes)
        self.record["eager"][batch] = self._figures(batch, seconds)
        self._setup.say(f"{self._model.name}: eager, batch {batch}: {median(seconds) * 1000:.1f} ms a step")

    @property
    def _passes(self) -> int:
        return min(self._setup.scale.passes, (LONGEST - 1) // self._setup.scale.calls)

    def _choose(self, variants: tuple[Variant, ...]) -> Variant | None:
        """Time every variant that the budget allows at one batch. One whose latents differ is out of the race."""
        times = {}
        for variant in variants:
            if not self._allowed(variant.name, variant.needs_s):
                continue
            entry = self._try(variant)
            self.record["variants"].append(entry)
            if entry["ok"] and not variant.fp8:
                times[variant] = entry["step_s"]
        return min(times, key=lambda variant: times[variant], default=None)

    def _try(self, variant: Variant) -> dict[str, Any]:
        batch, started = self._setup.scale.tuned_batch, time.perf_counter()
        try:
            with attention(variant.attention):
                session = self._open(variant)
                difference = self._difference(session)
                seconds = self._steps(session, batch)
        except Exception as error:  # a variant that this device or torch cannot run is a line of the record
            return {"name": variant.name, "ok": False, "error": f"{type(error).__name__}: {error}"[:300]}
        finally:
            self._sweep()
        took_s, step_s = time.perf_counter() - started, median(seconds)
        self._took_s[variant] = took_s
        self._setup.say(f"{self._model.name}: {variant.name}, batch {batch}: {step_s * 1000:.1f} ms a step")
        ok = difference <= MAX_DIFFERENCE
        return {
            "name": variant.name,
            "batch": batch,
            "ok": ok,
            "difference": difference,
            "step_s": step_s,
            "took_s": took_s,
        }

    def _engine(self, variant: Variant) -> None:
        """Every batch with the chosen variant, and one whole image."""
        with attention(variant.attention):
            session = self._open(variant)
            tuned_first = sorted(self._setup.scale.batches, key=lambda batch: batch != self._setup.scale.tuned_batch)
            for batch in tuned_first:
                # a compiler meets new shapes here, as it did where the variant was tried
                if self._allowed(f"engine, batch {batch}", max(SECONDS_A_BATCH, self._took_s[variant])):
                    seconds = self._steps(session, batch)
                    self.record["engine"][batch] = self._figures(batch, seconds) | self._beside_eager(batch, seconds)
            if self._allowed("one whole image"):
                self.record["full_image"] = self._whole_image(session)
            session.close()
        self._sweep()

    def _steps(self, session: TorchSession, batch: int) -> list[float]:
        """Seconds a step of the engine's denoiser at one batch, all rows guided; one value a pass."""
        engine = Denoiser(session, Profile(2 * batch), BatchRule())
        tasks = [task(self._model, seed, LONGEST) for seed in range(batch)]
        calls = self._setup.scale.calls
        return seconds_of(lambda: engine.run(tasks), self._setup.device, calls=calls, passes=self._passes)

    def _vae_seconds(self, batch: int) -> float:
        """Seconds an image of decoding; measured once for every size of batch."""
        rows = min(batch, MAX_VAE_BATCH)
        if rows not in self._vae_times:
            latents = {"latent_sample": self._vae.arrays.zeros((rows, *self._model.shape), np.float32)}
            values = seconds_of(lambda: self._vae.run(latents), self._setup.device, calls=3, passes=3)
            self._vae_times[rows] = median(values) / rows
        return self._vae_times[rows]

    def _figures(self, batch: int, step_s: list[float]) -> dict[str, Any]:
        """Images/s at the extrapolated step counts, and the rates, from seconds a step with guidance."""
        vae_s = self._vae_seconds(batch)
        seconds = {steps: [steps * one / batch + vae_s for one in step_s] for steps in EXTRAPOLATED}
        work = {steps: 2 * steps * self._flops + self._vae_flops for steps in EXTRAPOLATED}
        return {
            "step_s": step_s,
            "vae_s_per_image": vae_s,
            "images_per_s": {steps: 1 / median(values) for steps, values in seconds.items()},
            "unet_tflop_per_s": 2 * batch * self._flops / median(step_s) / 1e12,
            "share_of_matrix_rate": {
                steps: [work[steps] / one / self._setup.rate for one in values] for steps, values in seconds.items()
            },
        }

    def _beside_eager(self, batch: int, step_s: list[float]) -> dict[str, Any]:
        eager = self.record["eager"].get(batch)
        return {"step_over_eager": median(eager["step_s"]) / median(step_s)} if eager else {}

    def _eager_latents(self) -> Any:
        return EagerLoop(self._model, self._unet, self._checked()).run()

    def _checked(self) -> list[Any]:
        return [task(self._model, seed, CHECKED_STEPS) for seed in range(self._setup.scale.tuned_batch)]

    def _difference(self, session: TorchSession) -> float:
        """Mean absolute difference of a few images' latents from the eager loop's, over those' mean absolute value."""
        found = np.stack(
            paint(Denoiser(session, Profile(2 * self._setup.scale.tuned_batch), BatchRule()), self._checked())
        )
        return float(np.abs(found - self._reference).mean() / np.abs(self._reference).mean())

    def _whole_image(self, session: TorchSession) -> dict[str, Any]:
        """One image from noise to pixels, timed, with what can be said of it."""
        engine, steps = Denoiser(session, Profile(2), BatchRule()), self._setup.scale.image_steps
        paint(engine, [task(self._model, 0, 1)])
        wait_for(self._setup.device)
        started = time.perf_counter()
        latents = np.stack(paint(engine, [task(self._model, 0, steps)]))
        image = self._vae.run({"latent_sample": latents})["sample"]
        seconds = time.perf_counter() - started
        right = image.shape == (1, 3, self._model.size_px, self._model.size_px)
        finite, flat = bool(np.isfinite(image).all()), float(image.std()) == 0.0
        return {
            "ok": right and finite and not flat,
            "steps": steps,
            "seconds": seconds,
            "extrapolated_s": self._extrapolated_s(steps),
            "std": float(image.std()),
        }

    def _extrapolated_s(self, steps: int) -> float | None:
        """What the timed steps promise for one image alone."""
        single = self.record["engine"].get(1)
        return steps * median(single["step_s"]) + single["vae_s_per_image"] if single else None

    def _open(self, variant: Variant) -> TorchSession:
        return open_unet(self._model, prepared(self._unet, variant), self._options(variant))

    def _allowed(self, what: str, needs_s: float = SECONDS_A_BATCH) -> bool:
        if self._setup.budget.allows(needs_s):
            return True
        self.record["skipped"].append(f"{what}: less than {needs_s:.0f} s of the budget were left")
        return False

    def _sweep(self) -> None:
        torch.compiler.reset()
        release(self._setup.device)
