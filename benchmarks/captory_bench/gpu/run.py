"""The whole run: what a GPU reaches, section by section within one budget, with a record that is always current."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from captory_bench.gpu import mixed, picto
from captory_bench.gpu.clock import Budget, release
from captory_bench.gpu.painting import Painting
from captory_bench.gpu.rates import matrix_rate
from captory_bench.gpu.report import to_text
from captory_bench.gpu.setup import FULL_SCALE, TINY_SCALE, Scale, Setup
from captory_bench.gpu.variants import GRAPHS, PLAIN, VARIANTS, Variant
from captory_bench.measuring.machine import describe_machine
from captory_bench.measuring.targets import at_least
from captory_engine.sessions.options import available_cpus
from captory_engine.sessions.torch import DTYPES

# Shares of the budget; what a section leaves goes to those after it.
WEIGHTS = {"sdxl": 8.0, "sd15": 3.0, "mixed": 2.0, "picto": 2.0, "sd21": 3.0}
TUNED = "sdxl"  # on it every variant is tried, on the others the one that won
SHARE_TARGET, MIXED_TARGET = 0.5, 1.8
TARGET_STEPS = 20


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for. `out`: the JSON file, beside which the table is written; None: nothing is kept."""

    tiny: bool
    device: str
    dtype: str
    budget_s: float
    out: Path | None
    only: frozenset[str]
    say: Callable[[str], None]


class Run:
    """The sections and their record."""

    def __init__(self, order: Order) -> None:
        scale: Scale = TINY_SCALE if order.tiny else FULL_SCALE
        budget = Budget(order.budget_s)
        self._order = order
        self._started = time.monotonic()
        num_threads = 1 if order.tiny else available_cpus()
        torch.set_num_threads(num_threads)
        self._setup = Setup(torch.device(order.device), order.dtype, scale, budget, 1.0, num_threads, order.say)
        self._best: Variant | None = None
        self.record: dict[str, Any] = {
            "is_gpu": order.device.startswith("cuda") and not order.tiny,
            "machine": _machine(self._setup.device),
            "dtype": order.dtype,
            "budget_s": order.budget_s,
            "models": {},
            "not_run": {},
        }

    def run(self) -> dict[str, Any]:
        """Every section that was asked for and fits; one that fails is a line of the record."""
        rate = matrix_rate(self._setup.device, DTYPES[self._order.dtype], self._setup.scale.matrix_sizes)
        self.record["matrix_rate"] = rate
        self._setup = replace(self._setup, rate=rate["best"])
        self._order.say(f"matrix rate: {rate['best'] / 1e12:.3g} TFLOP/s")
        waiting = [name for name in WEIGHTS if not self._order.only or name in self._order.only]
        while waiting:
            share = WEIGHTS[waiting[0]] / sum(WEIGHTS[name] for name in waiting)
            self._section(waiting.pop(0), share)
            self.save()
        return self.record

    def save(self) -> None:
        """Conclude from what is there and write it, where it is to be kept."""
        self._conclude()
        out = self._order.out
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
            out.with_suffix(".txt").write_text(to_text(self.record), encoding="utf-8")

    def stop(self) -> None:
        """Keep what there is: the time is up."""
        self.record["not_run"]["the rest"] = "the budget ended the run"
        self.save()
        print(to_text(self.record), end="", flush=True)

    def _section(self, name: str, share: float) -> None:
        setup = replace(self._setup, budget=Budget(self._setup.budget.left_s * share))
        if not setup.budget.allows(1.0):
            self.record["not_run"][name] = "the budget was spent"
            return
        try:
            self._measure(name, setup)
        except Exception as error:  # the other sections' figures stand
            self.record["not_run"][name] = f"{type(error).__name__}: {error}"[:300]
        release(setup.device)

    def _measure(self, name: str, setup: Setup) -> None:
        models = {model.name: model for model in setup.scale.models}
        if name == "mixed":
            # batches of many sizes: compiling for each of them would take minutes
            variant = GRAPHS if self._best is None or self._best.compile_mode else self._best
            self.record["mixed"] = mixed.compare(setup, models["sd15"], variant)
        elif name == "picto":
            self.record["picto"] = picto.compare(setup)
        else:
            painting = Painting(setup, models[name])
            self.record["models"][name] = painting.record
            best = painting.run(self._variants(name))
            self._best = best if name == TUNED else self._best

    def _variants(self, name: str) -> tuple[Variant, ...]:
        if name == TUNED:
            return tuple(one for one in VARIANTS if self._setup.scale.compiled or not one.compile_mode)
        known = (PLAIN, GRAPHS)
        return known if self._best is None or self._best in known else (*known, self._best)

    def _conclude(self) -> None:
        self.record["seconds"] = time.monotonic() - self._started
        self.record["targets"] = [target.record() for target in self._targets()]
        self.record["checks"] = {"ok": all(_checks(self.record)) and not self.record["not_run"]}

    def _targets(self) -> list[Any]:
        """The best batch's share of the matrix rate, and step-level over request-level batching; of a GPU only."""
        if not self.record["is_gpu"]:
            return []
        engine = self.record["models"].get(TUNED, {}).get("engine", {})
        shares = [figures["share_of_matrix_rate"][TARGET_STEPS] for figures in engine.values()]
        found = (
            [at_least("sdxl_20_steps_share_of_matrix_rate", max(shares, key=median), SHARE_TARGET)] if shares else []
        )
        compared = self.record.get("mixed")
        if compared is not None and compared["checks"]["ok"]:
            ratios = compared["step_over"]["request_level"]
            found.append(at_least("step_over_request_level_mixed_guidance", ratios, MIXED_TARGET))
        return found


def _checks(record: dict[str, Any]) -> list[bool]:
    paintings = record["models"].values()
    return [
        *(painting["flops"]["ok"] for painting in paintings if "flops" in painting),
        *("variant" in painting for painting in paintings),
        *(painting["full_image"]["ok"] for painting in paintings if "full_image" in painting),
        *(record[name]["checks"]["ok"] for name in ("mixed", "picto") if name in record),
    ]


def _machine(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        **describe_machine(0),
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "device_memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1) if on_gpu else 0,
        "cuda": torch.version.cuda if on_gpu else None,
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }
