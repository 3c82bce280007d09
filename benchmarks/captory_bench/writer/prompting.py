"""What the writer is asked, and what came of it: captions in, rewritten captions out, nothing painted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from captory_bench.measuring.outcome import Stopwatch
from captory_bench.measuring.served import ArmFailed
from captory_bench.measuring.workload import paintings
from captory_client.client import Client
from captory_proto.v1 import captory_pb2 as pb
from captory_training.picto.reading import read_caption

ATTRIBUTES = ("kind", "colour", "count", "position")
ARM_BITS = 40  # of a seed: above those of all scenes


class Task(NamedTuple):
    """One caption to rewrite."""

    id: str
    caption: str
    seed: int


class Written(NamedTuple):
    """One run of one arm: its tasks, the prompts by the task's id, and how long it took."""

    tasks: Sequence[Task]
    prompts: dict[str, pb.PromptResult]
    wall_s: float

    @property
    def prompts_per_s(self) -> float:
        """Throughput of the whole run."""
        return len(self.prompts) / self.wall_s

    @property
    def complete(self) -> bool:
        """Whether every task has a prompt that is not empty."""
        return all(task.id in self.prompts and self.prompts[task.id].text.strip() for task in self.tasks)

    @property
    def accepted(self) -> list[Task]:
        """The tasks whose prompt is the model's: the others fell back."""
        return [task for task in self.tasks if task.id in self.prompts and self.prompts[task.id].writer == "model"]

    def num_kept(self) -> int:
        """Attributes of the captions that the model's prompts name alike, over all accepted tasks."""
        pairs = [(read_caption(task.caption), read_caption(self.prompts[task.id].text)) for task in self.accepted]
        return sum(getattr(said, name) == getattr(told, name) for said, told in pairs for name in ATTRIBUTES)


def tasks(num: int, batch_of_scenes: int, arm: int) -> list[Task]:
    """Captions of fresh scenes, the same for every arm. Seeds are an arm's own: no cache of ours serves one to another.

    vLLM's prefix cache goes by tokens whatever the seed; one of our own runs without it, one that is reached as it is.
    """
    return [Task(job.id, job.prompt, job.seed + (arm + 1 << ARM_BITS)) for job in paintings(num, batch_of_scenes)]


async def write(address: str, wanted: Sequence[Task], max_in_flight: int) -> Written:
    """Have all captions rewritten, so many at a time. Raises `ArmFailed`, `ClientError`."""
    prompts: dict[str, pb.PromptResult] = {}
    async with Client(address, max_in_flight=max_in_flight) as client:
        await client.server_info()
        watch = Stopwatch()
        async for response in client.synthesize(_items(wanted)):
            match response.WhichOneof("event"):
                case "prompt":
                    prompts[response.item_id] = response.prompt
                case "failure":
                    raise ArmFailed(f"{response.item_id}: {response.failure.status.message}")
                case "done" if response.done.status.code:
                    raise ArmFailed(f"{response.item_id}: {response.done.status.message}")
        return Written(wanted, prompts, watch.read().wall_s)


def _items(wanted: Sequence[Task]) -> Iterator[pb.Item]:
    """Without a class, so that a prompt is the rewritten caption and nothing else."""
    only_prompt = pb.Parameters(stop_after=pb.STAGE_PROMPT)
    for task in wanted:
        samples = [pb.Sample(seed=task.seed)]
        yield pb.Item(id=task.id, caption=task.caption, mode=pb.MODE_REWRITE, parameters=only_prompt, samples=samples)
