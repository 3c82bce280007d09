"""Every field of a message: what is refused, by name, and what is filled in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from fakes import DEFAULTS, LIMITS, family_info, png

from captory_engine.errors import InvalidInput
from captory_engine.items import (
    Determinism,
    GuidanceInterval,
    ImageFormat,
    Mode,
    Painted,
    Provenance,
    Sample,
    Stage,
    WorkClass,
)
from captory_proto.v1 import captory_pb2 as pb
from captory_server.codec import (
    derive_samples,
    derive_seed,
    read_caption_request,
    read_generate_request,
    read_item,
    read_prompt_request,
)
from captory_server.fields import check_text
from captory_server.names import MODES
from captory_server.results import write_image, write_info

INFO = family_info()


def item(**changes: object) -> pb.Item:
    base = pb.Item(id="a", prompt="a red crane")
    base.MergeFrom(pb.Item(**changes))  # type: ignore[arg-type]
    return base


def test_what_is_not_given_takes_the_family_s_defaults() -> None:
    read = read_item(item(), INFO)
    assert read.parameters == DEFAULTS
    assert read.mode is Mode.CIP
    assert read.samples == (Sample(0, 0, derive_seed(0, 0)),)


def test_what_is_given_is_taken() -> None:
    parameters = pb.Parameters(
        steps=7,
        guidance_scale=0.0,
        guidance_interval=pb.GuidanceInterval(start=0.25, stop=0.5),
        sampler="euler",
        width=32,
        height=16,
        negative_prompt="blur",
        determinism=pb.DETERMINISM_EXACT,
        deadline_ms=1500,
        stop_after=pb.STAGE_IMAGE,
        format=pb.IMAGE_FORMAT_WEBP,
        work_class=pb.WORK_CLASS_INTERACTIVE,
    )
    read = read_item(item(parameters=parameters), INFO).parameters
    assert (read.steps, read.guidance_scale, read.sampler, read.width) == (7, 0.0, "euler", 32)
    assert read.guidance_interval == GuidanceInterval(0.25, 0.5)
    assert (read.determinism, read.format) == (Determinism.EXACT, ImageFormat.WEBP)
    assert (read.work_class, read.deadline_s, read.negative_prompt) == (WorkClass.INTERACTIVE, 1.5, "blur")


BAD_ITEMS: dict[str, pb.Item] = {
    "id": pb.Item(id="a/b", prompt="x"),
    "input": pb.Item(id="a"),
    "prompt": pb.Item(id="a", prompt=" "),
    "caption": pb.Item(id="a", caption="line\nbreak"),
    "image (bytes)": pb.Item(id="a", image=b""),
    "class_name": item(class_name="x" * (LIMITS.max_text_bytes + 1)),
    "mode": item(mode=99),
    "parameters.n": item(parameters=pb.Parameters(n=LIMITS.max_images + 1)),
    "parameters.steps": item(parameters=pb.Parameters(steps=LIMITS.max_steps + 1)),
    "parameters.guidance_scale": item(parameters=pb.Parameters(guidance_scale=math.nan)),
    "parameters.guidance_interval.start": item(
        parameters=pb.Parameters(guidance_interval=pb.GuidanceInterval(start=-1, stop=1))
    ),
    "parameters.guidance_interval": item(
        parameters=pb.Parameters(guidance_interval=pb.GuidanceInterval(start=1, stop=1))
    ),
    "parameters.sampler": item(parameters=pb.Parameters(sampler="ddpm")),
    "parameters.width": item(parameters=pb.Parameters(width=17)),
    "parameters.seed": item(parameters=pb.Parameters(seed=2**53)),
    "parameters.negative_prompt": item(parameters=pb.Parameters(negative_prompt="\x1b[31m")),
    "parameters.determinism": item(parameters=pb.Parameters(determinism=9)),
    "parameters.stop_after": item(parameters=pb.Parameters(stop_after=pb.STAGE_PROMPT)),
    "parameters.format": item(parameters=pb.Parameters(format=9)),
    "parameters.work_class": item(parameters=pb.Parameters(work_class=9)),
    "samples (count)": item(samples=[pb.Sample(sample_index=k) for k in range(LIMITS.max_images + 1)]),
    "samples": item(samples=[pb.Sample(), pb.Sample(seed=1)]),
    "samples[0].seed": item(samples=[pb.Sample(seed=2**53)]),
    "samples[0].prompt_index": item(samples=[pb.Sample(prompt_index=2**31)]),
    "samples[0].sample_index": item(samples=[pb.Sample(sample_index=2**16)]),
    "attributes (count)": item(attributes=["a"] * 65),
    "attributes (bytes)": item(attributes=["é" * 100, "é" * 100]),
    "attributes[1]": item(attributes=["young", "a\nhat"]),
    "attributes[0]": item(attributes=[" "]),
}


@pytest.mark.parametrize("field", BAD_ITEMS)
def test_a_bad_field_is_refused_by_its_name(field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_item(BAD_ITEMS[field], INFO)
    assert refused.value.field == field


def test_exact_is_refused_where_words_are_not_repeated() -> None:
    info = replace(INFO, inexact_modes=(Mode.CIP,))
    exact = pb.Parameters(determinism=pb.DETERMINISM_EXACT)
    with pytest.raises(InvalidInput, match="cip has words of a vLLM server"):
        read_item(pb.Item(id="a", image=png(), mode=pb.MODE_CIP, parameters=exact), info)
    assert read_item(pb.Item(id="a", image=png(), mode=pb.MODE_BASIC, parameters=exact), info).mode is Mode.BASIC
    assert read_item(pb.Item(id="a", prompt="a boat", mode=pb.MODE_CIP, parameters=exact), info).prompt == "a boat"


def test_attributes_stand_beside_any_input() -> None:
    attributes = ["young", "a hat"]
    assert read_item(item(attributes=attributes), INFO).attributes == ("young", "a hat")
    assert read_item(pb.Item(id="a", image=png(), mode=pb.MODE_FACE, attributes=attributes), INFO).mode is Mode.FACE
    asked = pb.PromptRequest(caption="x", mode=pb.MODE_FACE, attributes=attributes)
    assert read_prompt_request(asked, INFO).attributes == ("young", "a hat")


def test_what_made_the_prompt_goes_out_again() -> None:
    made = Provenance(
        *("a bird", "a photo of a kite", "kite", Mode.CLOSED_LOOP, Sample(0, 0, 1), DEFAULTS, "fake", {}, 9, "split"),
        pixel_sha256="",
        backend="fake",
        mode_sha256="ab" * 32,
        attributes=("young",),
        synthetic_captions=("a kite", "two kites"),
    )
    message = write_image(Painted(b"", made)).provenance
    assert (message.mode, message.mode_sha256, message.token_policy) == (pb.MODE_CLOSED_LOOP, "ab" * 32, "split")
    assert (list(message.attributes), list(message.synthetic_captions)) == (["young"], ["a kite", "two kites"])


def test_a_server_says_the_digest_of_every_mode_that_it_has() -> None:
    told = write_info(INFO, version="1", max_message_bytes=1)
    assert dict(told.mode_sha256) == {str(mode): INFO.mode_sha256[mode] for mode in INFO.modes}


def test_a_mode_that_the_family_has_not_is_refused() -> None:
    with pytest.raises(InvalidInput, match="rewrite"):
        read_item(item(mode=pb.MODE_REWRITE), family_info(modes=(Mode.CIP,)))


@pytest.mark.parametrize(
    ("read", "message", "field"),
    [
        (read_caption_request, pb.CaptionRequest(image=png(), length="medium"), "length"),
        (read_caption_request, pb.CaptionRequest(), "image (bytes)"),
        (read_prompt_request, pb.PromptRequest(), "caption"),
        (read_prompt_request, pb.PromptRequest(caption="x", n=LIMITS.max_images + 1), "n"),
        (read_prompt_request, pb.PromptRequest(caption="x", seed=2**60), "seed"),
        (read_prompt_request, pb.PromptRequest(caption="x", attributes=["a"] * 65), "attributes (count)"),
        (read_prompt_request, pb.PromptRequest(caption="x", attributes=["young", "a\nhat"]), "attributes[1]"),
        (read_generate_request, pb.GenerateRequest(), "prompt"),
        (read_generate_request, pb.GenerateRequest(prompt="x", parameters=pb.Parameters(n=99)), "parameters.n"),
    ],
)
def test_unary_requests_are_checked_too(read: Callable[..., object], message: object, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(message, INFO)
    assert refused.value.field == field


def test_a_long_caption_is_asked_of_the_captioner_by_its_mode() -> None:
    read = read_caption_request(pb.CaptionRequest(image=png(), length="long"), INFO)
    assert (read.mode, read.parameters.stop_after) == (Mode.RECAP_LONG, Stage.CAPTION)


def test_unary_calls_are_interactive_unless_they_say_otherwise() -> None:
    assert read_generate_request(pb.GenerateRequest(prompt="x"), INFO).parameters.work_class is WorkClass.INTERACTIVE


def test_seeds_of_one_item_differ_and_depend_on_the_seed_alone() -> None:
    many = derive_samples(1, 1000, Mode.CIP)
    assert len({sample.seed for sample in many}) == 1000
    assert many[:3] == derive_samples(1, 3, Mode.CIP)
    assert not {sample.seed for sample in many} & {sample.seed for sample in derive_samples(2, 1000, Mode.CIP)}
    assert all(0 <= sample.seed < 2**53 for sample in many)


def test_modes_that_write_a_prompt_for_each_image_index_by_prompt() -> None:
    assert [sample.prompt_index for sample in derive_samples(0, 3, Mode.REWRITE)] == [0, 1, 2]
    assert [sample.sample_index for sample in derive_samples(0, 3, Mode.CIP)] == [0, 1, 2]


def test_every_name_has_its_number() -> None:
    assert {MODES.read("mode", MODES.write(mode), Mode.BASIC) for mode in Mode} == set(Mode)


@pytest.mark.parametrize("text", ["\0", "\u0085", "a\r", "\u2028", "\x7f"])
def test_control_characters_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        check_text("prompt", text, 10)


def test_text_is_measured_in_bytes() -> None:
    assert check_text("prompt", "é" * 5, 10) == "é" * 5
    with pytest.raises(InvalidInput):
        check_text("prompt", "é" * 6, 10)
