"""Opens a pipeline: finds the family, verifies and loads its models, builds the engines, warms up."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captory_engine.cache import LruCache, SingleFlight
from captory_engine.captioning import Captioner, EmbeddedCaptioner
from captory_engine.codecs import Codecs
from captory_engine.device import Device, StepEngine
from captory_engine.diffusion.samplers import samplers_of
from captory_engine.engines.batching import BatchRule
from captory_engine.engines.denoiser import Denoiser
from captory_engine.engines.single_step import SingleStep
from captory_engine.engines.token_decoder import DecoderShape, TokenDecoder
from captory_engine.errors import BadModel, Unavailable
from captory_engine.family import Family, LocatedFamily, find_family
from captory_engine.images import encode_image
from captory_engine.info import FamilyInfo, Limits, ModelInfo
from captory_engine.items import Captioned, Failed, ImageFormat, Item, Mode, Parameters, Sample
from captory_engine.modes import Modes, PromptPlan, read_modes
from captory_engine.pipeline import Pipeline
from captory_engine.profiles import cache_path, measured
from captory_engine.repository import open_model
from captory_engine.scheduler import Profile
from captory_engine.sessions.base import Session
from captory_engine.sessions.options import (
    CPU_PROVIDER,
    SessionOptions,
    TensorRtOptions,
    TorchOptions,
    TritonOptions,
    available_cpus,
)
from captory_engine.sessions.registry import open_session
from captory_engine.stages import EmbeddedWriter, Painter, schedule_of
from captory_engine.tokenizer import PromptTokenizer, Tokenizer
from captory_engine.vllm.options import VllmOptions
from captory_engine.wording import Worded, Wording

if TYPE_CHECKING:
    from captory_engine.sessions.triton_watch import Watch
    from captory_engine.vllm.roles import Roles

CACHED_CAPTIONS = 4096
CACHED_TEXTS = 1024
# One batch size for all `exact` work: see docs/design.md, "Determinism".
EXACT_ROWS = 8
REMOTE_LANES = 2


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What to serve and on what.

    `num_threads` are shared by `num_lanes`; 0: every CPU that this process may use, and as many lanes as pay.
    Batch sizes are `profiles`, or those that were measured and kept, or measured now where `measure` is set.
    Instruction files in the folder `modes` take the place of the shipped ones. A `writer` and a `captioner` on vLLM,
    `vllm://HOST:PORT` or `vllm:REF`, take the place of the family's own.
    """

    repository: Path
    family: str = ""
    backend: str = "onnx"
    num_threads: int = 0
    num_lanes: int = 0
    limits: Limits = field(default_factory=Limits)
    profiles: dict[str, Profile] | None = None
    measure: bool = False
    providers: tuple[str, ...] = (CPU_PROVIDER,)
    torch: TorchOptions = field(default_factory=TorchOptions)
    triton: TritonOptions = field(default_factory=TritonOptions)
    tensorrt: TensorRtOptions = field(default_factory=TensorRtOptions)
    modes: Path | None = None
    writer: str = ""
    captioner: str = ""
    vllm: VllmOptions = field(default_factory=VllmOptions)


# Where nothing was measured: small graphs, one CPU core a lane. Costs are milliseconds a row.
PROFILES = {
    "vision": Profile(max_rows=8, row_cost=2.0, min_rows=EXACT_ROWS),
    "caption": Profile(max_rows=16, row_cost=0.1, min_rows=EXACT_ROWS),
    "write": Profile(max_rows=16, row_cost=0.1, min_rows=EXACT_ROWS),
    "text": Profile(max_rows=16, row_cost=1.3, min_rows=4),
    "denoise": Profile(max_rows=32, row_cost=2.0, min_rows=2, neck=True),
    "vae": Profile(max_rows=16, row_cost=3.0, min_rows=4, max_wait_s=Profile.waits(bulk_s=0.25)),
}


async def open_pipeline(config: EngineConfig) -> Pipeline:
    """Load, verify and warm up; what was opened is closed again if that ends early, in whatever way.

    Raises `BadModel` for whatever the repository lacks or has too much of, and `Unavailable` for a remote backend that
    does not answer in time.
    """
    modes = await asyncio.to_thread(read_modes, config.modes)
    located = await asyncio.to_thread(find_family, config.repository, config.family)
    here = _done_here(located.family, config)
    async with AsyncExitStack() as unless_open:
        watch = _watch(here, config)
        if watch:
            unless_open.push_async_callback(watch.close)
            await watch.connect()
        opening = asyncio.create_task(asyncio.to_thread(open_sessions, located.root, here, config))
        unless_open.push_async_callback(_close, opening)
        sessions = await asyncio.shield(opening)
        profiles = await asyncio.to_thread(_profiles, here, sessions, config)
        roles = await _open_roles(located, config, unless_open)
        pipeline = _build(located, here, modes, sessions, profiles, config, roles, watch)
        unless_open.push_async_callback(pipeline.close)
        await _warm_up(pipeline)
        unless_open.pop_all()
    return pipeline


def _done_here(family: Family, config: EngineConfig) -> Family:
    """The family without the parts that vLLM takes the place of. Raises `BadModel` where no captioner is left."""
    if family.captioner is None and not config.captioner:
        words = f"The family {family.name!r} has no captioner of its own: name one on vLLM by --captioner."
        raise BadModel("NO_CAPTIONER", words)
    taken = {"writer": config.writer, "captioner": config.captioner}
    return family.model_copy(update={part: None for part, place in taken.items() if place})


async def _open_roles(located: LocatedFamily, config: EngineConfig, unless_open: AsyncExitStack) -> Roles | None:
    """What is on vLLM; None where nothing is, and then nothing of it is imported."""
    if not (config.writer or config.captioner):
        return None
    from captory_engine.vllm.roles import open_roles

    return await open_roles(located, config.writer, config.captioner, config.vllm, unless_open)


def _watch(family: Family, config: EngineConfig) -> Watch | None:
    """Over what runs in a Triton; None where nothing does."""
    if config.backend != "triton":
        return None
    from captory_engine.sessions.triton_watch import Watch

    return Watch(config.triton, [name for name in family.models if _backend_of(name, family, config) == "triton"])


async def _close(opening: asyncio.Task[dict[str, Session]]) -> None:
    """Close what is open, or is about to be: a thread that opens cannot be stopped."""
    [opened] = await asyncio.gather(opening, return_exceptions=True)
    if isinstance(opened, dict):
        for session in opened.values():
            await asyncio.to_thread(session.close)


def open_sessions(root: Path, family: Family, config: EngineConfig) -> dict[str, Session]:
    """A session for each model. Raises `BadModel`, and `Unreachable` for a remote backend that does not answer."""
    num_threads = max(1, (config.num_threads or available_cpus()) // num_lanes(config))
    options = SessionOptions(
        num_threads=num_threads,
        providers=config.providers,
        torch=config.torch,
        triton=config.triton,
        tensorrt=config.tensorrt,
    )
    sessions: dict[str, Session] = {}
    with ExitStack() as unless_all_open:
        for name in family.models:
            sessions[name] = open_session(_backend_of(name, family, config), open_model(root, name), options)
            unless_all_open.callback(sessions[name].close)
        unless_all_open.pop_all()
    return sessions


def _backend_of(name: str, family: Family, config: EngineConfig) -> str:
    """Token decoders stay here: their caches are too large to travel each step."""
    return "onnx" if config.backend == "triton" and name in family.token_decoders else config.backend


def num_lanes(config: EngineConfig) -> int:
    """How many batches run at once.

    On a CPU, graphs of one thread side by side beat one graph of many threads: nothing waits at its barriers. A remote
    server has the next batch before it is done with one.
    """
    if config.num_lanes:
        return config.num_lanes
    if config.backend == "onnx" and config.providers[0] == CPU_PROVIDER:
        return config.num_threads or available_cpus()
    return REMOTE_LANES if config.backend == "triton" else 1


def _profiles(family: Family, sessions: dict[str, Session], config: EngineConfig) -> dict[str, Profile]:
    lanes = num_lanes(config)
    own = {stage: replace(profile, max_in_flight=lanes + 1) for stage, profile in PROFILES.items()}
    if config.profiles is not None:
        return own | config.profiles
    path = cache_path(family.name, config.backend, lanes)
    curves = measured(path, family, sessions, lanes, may_measure=config.measure and config.backend != "fake")
    return own | {stage: curves[stage].applied(own[stage]) for stage in curves}


def _build(
    located: LocatedFamily,
    here: Family,
    modes: Modes,
    sessions: dict[str, Session],
    profiles: dict[str, Profile],
    config: EngineConfig,
    roles: Roles | None,
    watch: Watch | None,
) -> Pipeline:
    root, family = located
    device, codecs = _device(_engines(here, sessions, profiles), sessions, config, watch), Codecs()
    return Pipeline(
        _info(family, modes, sessions, config.limits, roles),
        device,
        _captioner(root, here, device, codecs, config.limits, roles),
        _wording(root, here, device, roles),
        Painter(device, family.painter, _prompt_tokenizers(root, family), CACHED_TEXTS),
        modes,
        codecs,
        [*sessions.values()],
        remotes=roles.servers if roles else (),
    )


def _captioner(
    root: Path, here: Family, device: Device, codecs: Codecs, limits: Limits, roles: Roles | None
) -> Captioner:
    captions = SingleFlight(LruCache[Captioned](CACHED_CAPTIONS, CACHED_CAPTIONS << 10, lambda words: len(words.text)))
    if roles and roles.captioner:
        from captory_engine.vllm.captioner import VllmCaptioner

        return VllmCaptioner(roles.captioner, captions, codecs, limits.max_image_pixels)
    assert here.captioner is not None, "a family is opened only with a captioner, its own or one on vLLM"
    tokenizer = Tokenizer(root / here.captioner.tokenizer)
    return EmbeddedCaptioner(device, here.captioner, tokenizer, captions, codecs, limits.max_image_pixels)


def _wording(root: Path, here: Family, device: Device, roles: Roles | None) -> Wording | None:
    """The language model, if there is one."""
    writer = roles.writer if roles else None
    if writer is None and here.writer is not None:
        writer = EmbeddedWriter(device, here.writer, Tokenizer(root / here.writer.tokenizer))
    words = LruCache[Worded](CACHED_CAPTIONS, CACHED_CAPTIONS << 10, lambda worded: len(worded.text or ""))
    return Wording(writer, SingleFlight(words)) if writer else None


def _device(
    engines: list[StepEngine[Any]], sessions: dict[str, Session], config: EngineConfig, watch: Watch | None
) -> Device:
    lanes = num_lanes(config)
    if watch is None:
        return Device(engines, num_lanes=lanes)
    from captory_engine.triton_device import TritonDevice

    remote = [sessions[name] for name in watch.names]
    return TritonDevice(engines, watch, remote, patience_s=config.triton.patience_s, num_lanes=lanes)


def _prompt_tokenizers(root: Path, family: Family) -> dict[str, PromptTokenizer]:
    """By the text encoder's input, the first of them the one that counts a prompt's tokens."""
    first = family.painter
    texts = [("input_ids", first.tokenizer, first.max_tokens, first.pad_id)]
    texts += [(text.input, text.tokenizer, text.max_tokens, text.pad_id) for text in first.further_text]
    return {
        name: PromptTokenizer(Tokenizer(root / file), max_tokens, pad_id) for name, file, max_tokens, pad_id in texts
    }


def _engines(here: Family, sessions: dict[str, Session], profiles: dict[str, Profile]) -> list[StepEngine[Any]]:
    """The engines in pipeline order."""
    captioner, writer, painter = here.captioner, here.writer, here.painter
    rule = BatchRule(exact_rows=EXACT_ROWS)
    wording = BatchRule(exact_rows=EXACT_ROWS, always=True)  # a changed bit may change a word, in `stable` too
    engines: list[StepEngine[Any]] = []
    if captioner:
        engines.append(SingleStep("vision", sessions[captioner.vision], profiles["vision"], wording))
        shape = DecoderShape(
            captioner.num_layers, captioner.num_heads, captioner.head_dim, captioner.max_positions, captioner.eos_id
        )
        engines.append(TokenDecoder("caption", sessions[captioner.decoder], shape, profiles["caption"], wording))
    if writer:
        shape = DecoderShape(
            writer.num_layers, writer.num_kv_heads, writer.head_dim, writer.max_positions, writer.eos_id
        )
        engines.append(TokenDecoder("write", sessions[writer.decoder], shape, profiles["write"], wording))
    return [
        *engines,
        SingleStep("text", sessions[painter.text_encoder], profiles["text"], rule),
        Denoiser(sessions[painter.denoiser], profiles["denoise"], rule),
        SingleStep("vae", sessions[painter.vae_decoder], profiles["vae"], rule),
    ]


def _info(
    family: Family, modes: Modes, sessions: dict[str, Session], limits: Limits, roles: Roles | None
) -> FamilyInfo:
    defaults, (width, height) = family.painter.defaults, family.painter.sizes[0]
    chats = roles is not None and roles.chats
    offered = tuple(mode for mode, plan in modes.plans.items() if chats or _can_word(family, plan))
    own = {name: ModelInfo(session.digest, session.backend) for name, session in sessions.items()}
    return FamilyInfo(
        name=family.name,
        models=own | (roles.models if roles else {}),
        defaults=Parameters(defaults.steps, defaults.guidance_scale, defaults.sampler, width, height),
        sizes=family.painter.sizes,
        samplers=samplers_of(schedule_of(family.painter)),
        modes=offered,
        limits=limits,
        backend=sessions[family.painter.denoiser].backend,
        in_world_only=family.in_world_only,
        mode_sha256={mode: modes.digests[mode] for mode in offered},
        inexact_modes=tuple(mode for mode in offered if roles and roles.words(modes.plans[mode])),
    )


def _can_word(family: Family, plan: PromptPlan) -> bool:
    """Whether the mode needs no language model, or the family's was trained for its task."""
    return plan.instruction is None or (family.writer is not None and plan.instruction.task in family.writer.templates)


async def _warm_up(pipeline: Pipeline) -> None:
    """One item through every stage, so that the first caller does not pay for first calls.

    Raises `BadModel`, and `Unavailable` when what is elsewhere went away meanwhile.
    """
    try:
        await _first(pipeline)
    except Unavailable:
        raise
    except Exception as error:
        raise BadModel("WARM_UP", f"the family {pipeline.info.name!r} is loaded but cannot paint") from error


async def _first(pipeline: Pipeline) -> None:
    size = pipeline.info.defaults
    parameters = replace(size, steps=1)
    slopes = np.indices((size.height, size.width)).sum(axis=0) % 256  # so that there is something to be said of it
    image = encode_image(np.repeat(slopes.astype(np.uint8)[:, :, None], 3, axis=2), ImageFormat.PNG)
    mode = Mode.REWRITE if Mode.REWRITE in pipeline.info.modes else Mode.CIP
    item = Item("warm-up", parameters, (Sample(0, 0, 0),), mode=mode, class_name="photo", image=image)
    async for event in pipeline.run(item):
        if isinstance(event, Failed) and not event.dropped:
            raise (Unavailable if event.status == Unavailable.grpc_status else BadModel)(event.reason, event.message)
