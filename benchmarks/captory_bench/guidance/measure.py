"""`captory bench guidance`: guidance at some noise levels only, against guidance at all: speed, and what is painted.

Outside its interval an item has no unconditional row. Texts are encoded before the clock starts, so that no interval
pays for those that come after it. Quality is what the oracle of the picture world reads in the
images, as `captory eval picto` measures it: over all rounds, each on fresh scenes, the same for every arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from captory_bench.measuring.checks import check_paintings, fold, open_reference
from captory_bench.measuring.outcome import Agreement, Outcome
from captory_bench.measuring.served import ArmFailed, Served, server_options, serving
from captory_bench.measuring.subject import Say, Subject
from captory_bench.measuring.workload import Painting
from captory_training.evaluation import Evaluation, Share, fresh_scenes
from captory_training.oracle import Oracle
from captory_training.picto.captions import full_caption
from captory_training.picto.scene import Scene

CONSTANT = (0.0, 1.0)
INTERVALS = (CONSTANT, (0.1, 0.8), (0.2, 0.8), (0.25, 0.75), (0.0, 0.6))
FIRST_SEED, WARM_UP_SEED = 100, 99  # of fresh scenes; `captory eval` takes 0 unless told
WARM_UP_ITEMS = 16
FULL_IMAGES = 512

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and on how much."""

    subject: Subject
    num_images: int = 96  # an interval and round
    num_rounds: int = 3
    steps: int = 0  # 0: the family's default


@dataclass(slots=True)
class Measured:
    """Everything that came out, by round and interval."""

    steps: int
    guidance_scale: float
    rounds: list[dict[Interval, Outcome]] = field(default_factory=list)
    evaluations: list[dict[Interval, Evaluation]] = field(default_factory=list)
    agreement: dict[str, Agreement] = field(default_factory=dict)

    def quality(self, interval: Interval) -> dict[str, Share]:
        """What the oracle reads right, over all rounds."""
        shares = [round_[interval].painter() for round_ in self.evaluations]
        return {
            name: Share(sum(one[name].right for one in shares), sum(one[name].num for one in shares))
            for name in shares[0]
        }


async def measure(settings: Settings, say: Say) -> Measured:
    """Paint and read. Raises `CaptoryError`, `ClientError`, and `ArmFailed`, also for a family without an oracle."""
    oracle = _oracle(settings.subject.repository)
    reference = open_reference(settings.subject)
    defaults = reference.crew.graphs.painter.defaults
    measured = Measured(settings.steps or defaults.steps, defaults.guidance_scale)
    options = server_options(*settings.subject)
    async with serving(options) as served:
        await served.paintings(_jobs(fresh_scenes(WARM_UP_ITEMS, WARM_UP_SEED), measured.steps, CONSTANT))
        for index in range(settings.num_rounds):
            scenes = fresh_scenes(settings.num_images, FIRST_SEED + index)
            measured.rounds.append(await _round(served, scenes, measured, index, say))
            outcomes = measured.rounds[-1].items()
            measured.evaluations.append({interval: _read(oracle, scenes, outcome) for interval, outcome in outcomes})
            for interval, outcome in outcomes:
                agreement = check_paintings(reference, _jobs(scenes, measured.steps, interval), outcome)
                fold(measured.agreement, name_of(interval), agreement)
    return measured


async def _round(
    served: Served, scenes: Sequence[Scene], measured: Measured, index: int, say: Say
) -> dict[Interval, Outcome]:
    """Every interval once over the same scenes; every other round the other way round."""
    await served.paintings(_jobs(scenes, 1, CONSTANT))  # all intervals find their texts encoded
    outcomes = {}
    for interval in INTERVALS if index % 2 == 0 else reversed(INTERVALS):
        outcomes[interval] = await served.paintings(_jobs(scenes, measured.steps, interval))
        say(f"round {index + 1}: guidance in {name_of(interval)}: {outcomes[interval].images_per_s:.2f} images/s")
    return outcomes


def _oracle(repository: Path) -> Oracle:
    try:
        return Oracle(repository)
    except FileNotFoundError as error:
        raise ArmFailed(f"this repository has no oracle to read images with: {error}") from None


def name_of(interval: Interval) -> str:
    """For tables."""
    return f"{interval[0]:g} to {interval[1]:g}"


def _jobs(scenes: Sequence[Scene], steps: int, interval: Interval) -> list[Painting]:
    return [
        Painting(f"scene-{scene.seed}", full_caption(scene), steps, scene.seed, guidance_interval=interval)
        for scene in scenes
    ]


def _read(oracle: Oracle, scenes: Sequence[Scene], outcome: Outcome) -> Evaluation:
    """The readings of one arm's images; the other fields of an evaluation are not asked for."""
    paintings = [outcome.images[f"scene-{scene.seed}"] for scene in scenes]
    return Evaluation(list(scenes), [], [], [*paintings], [], [*oracle.read(paintings)])
