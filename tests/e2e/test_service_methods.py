"""Every method over a real socket: answers, errors, health, reflection."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from fakes import FakePipeline, Faults, Running, family_info, png, serve
from google.rpc import error_details_pb2
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from PIL import Image

from captory_engine.device import StageCounts
from captory_proto.v1 import captory_pb2 as pb
from captory_server.app import CAPTORY, App
from captory_server.config import Settings


async def test_an_image_becomes_a_caption(serving: Running) -> None:
    answer = await serving.stub.Caption(pb.CaptionRequest(image=png(9, 7), length="long"))
    assert answer.caption.text == "an image of 9 by 7 pixels"
    assert answer.caption.length == "long"


async def test_a_caption_becomes_prompts(serving: Running) -> None:
    request = pb.PromptRequest(caption="on a lake", class_name="crane", mode=pb.MODE_REWRITE, n=3)
    answer = await serving.stub.Prompt(request)
    assert [prompt.prompt_index for prompt in answer.prompts] == [0, 1, 2]
    assert answer.prompts[0].text == "a photo of crane, on a lake"


@pytest.mark.parametrize(("number", "name"), [(pb.IMAGE_FORMAT_PNG, "PNG"), (pb.IMAGE_FORMAT_WEBP, "WEBP")])
async def test_a_prompt_becomes_images(serving: Running, number: pb.ImageFormat.ValueType, name: str) -> None:
    parameters = pb.Parameters(n=3, seed=4, width=32, steps=9, format=number)
    images = (await serving.stub.Generate(pb.GenerateRequest(prompt="x", parameters=parameters))).images
    assert [image.provenance.sample_index for image in images] == [0, 1, 2]
    assert len({image.data for image in images}) == 3
    assert images[0].provenance.steps == 9
    with Image.open(io.BytesIO(images[0].data)) as opened:
        assert (opened.size, opened.format) == ((32, 16), name)


async def test_image_k_is_the_same_alone(serving: Running) -> None:
    many = await serving.stub.Generate(pb.GenerateRequest(prompt="x", parameters=pb.Parameters(n=4, seed=9)))
    made = many.images[2].provenance
    sample = pb.Sample(sample_index=2, seed=made.seed)
    call = serving.stub.Synthesize(iter([pb.SynthesizeRequest(item=pb.Item(id="a", prompt="x", samples=[sample]))]))
    [alone] = [response.image async for response in call if response.HasField("image")]
    assert alone.data == many.images[2].data


async def test_server_info_says_what_it_runs_and_its_limits(serving: Running) -> None:
    info = await serving.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert (info.family, info.models[0].sha256, info.in_world_only) == ("fake", "0" * 64, True)
    assert (info.defaults.steps, info.defaults.sampler, info.limits.max_images) == (4, "ddim", 8)
    assert info.limits.max_message_bytes == serving.app.settings.max_message_bytes


async def test_stats_say_what_the_device_has_done(serving: Running) -> None:
    serving.pipeline.device.counts["denoise"] = StageCounts(2, 9, 16, 0.5, Counter({8: 2}))
    stats = await serving.stub.GetStats(pb.GetStatsRequest())
    assert (stats.lanes, stats.uptime_seconds, stats.busy_seconds) == (2, 1.0, 0.5)
    [stage] = stats.stages
    assert (stage.name, stage.batches, stage.useful_rows, stage.computed_rows) == ("denoise", 2, 9, 16)
    assert (stage.seconds, dict(stage.batch_rows)) == (0.5, {8: 2})


async def test_a_failed_image_fails_a_unary_call_with_its_reason() -> None:
    first = pb.GenerateRequest(prompt="x")
    async with serve(FakePipeline()) as running:
        seed = (await running.stub.Generate(first)).images[0].provenance.seed
    for faults, code in (
        (Faults(failing_seeds={seed}), StatusCode.DATA_LOSS),
        (Faults(dropped_seeds={seed}), StatusCode.FAILED_PRECONDITION),
    ):
        async with serve(FakePipeline(faults=faults)) as running:
            with pytest.raises(aio.AioRpcError) as failed:
                await running.stub.Generate(first)
            assert failed.value.code() is code


async def test_a_refusal_names_the_field(serving: Running) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await serving.stub.Generate(pb.GenerateRequest(prompt="x", parameters=pb.Parameters(width=5)))
    status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
    bad = error_details_pb2.BadRequest()
    assert status is not None
    assert any(detail.Unpack(bad) for detail in status.details)
    assert bad.field_violations[0].field == "parameters.width"


async def test_a_full_server_says_when_to_come_again(serving: Running) -> None:
    serving.pipeline.gate.clear()
    num = serving.pipeline.info.limits.max_items
    call = serving.stub.Synthesize()
    for k in range(num):
        await call.write(pb.SynthesizeRequest(item=pb.Item(id=f"i{k}", prompt="x")))
    await serving.pipeline.wait_running(num)
    with pytest.raises(aio.AioRpcError) as refused:
        await serving.stub.Generate(pb.GenerateRequest(prompt="x"))
    assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
    status, retry = rpc_status.from_call(refused.value), error_details_pb2.RetryInfo()  # type: ignore[arg-type]
    assert status is not None
    assert any(detail.Unpack(retry) for detail in status.details)
    call.cancel()


async def test_a_message_above_the_limit_is_refused() -> None:
    async with serve(FakePipeline(), max_message_bytes=1 << 16) as running:
        with pytest.raises(aio.AioRpcError) as refused:
            await running.stub.Caption(pb.CaptionRequest(image=b"x" * (1 << 17)))
        assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert (await running.stub.Caption(pb.CaptionRequest(image=png()))).caption.text


async def test_calls_above_the_limit_are_refused() -> None:
    async with serve(FakePipeline(), max_calls=1) as running:
        running.pipeline.gate.clear()
        held = running.stub.Generate(pb.GenerateRequest(prompt="x"))
        await running.pipeline.wait_running(1)
        with pytest.raises(aio.AioRpcError) as refused:
            await running.stub.GetServerInfo(pb.GetServerInfoRequest())
        assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
        status, retry = rpc_status.from_call(refused.value), error_details_pb2.RetryInfo()  # type: ignore[arg-type]
        assert status is not None
        assert any(detail.Unpack(retry) for detail in status.details)
        running.pipeline.gate.set()
        await held
        await running.stub.GetServerInfo(pb.GetServerInfoRequest())


async def test_health_is_serving_only_after_warm_up_and_while_all_is_well() -> None:
    app, pipeline = App(Settings(address="127.0.0.1:0")), FakePipeline(family_info())
    address = await app.bind()
    try:
        async with aio.insecure_channel(address) as channel:
            running = Running(app, pipeline, address, channel)
            assert await health(running) == {"NOT_SERVING"}
            with pytest.raises(aio.AioRpcError) as early:
                await running.stub.GetServerInfo(pb.GetServerInfoRequest())
            assert early.value.code() is StatusCode.UNAVAILABLE

            async def open_fake(_: Settings) -> FakePipeline:
                return pipeline

            await app.load(open_fake)
            assert await health(running) == {"SERVING"}
            await app.drain()
    finally:
        await app.close()
    assert pipeline.closed


async def health(running: Running) -> set[str]:
    stub = health_pb2_grpc.HealthStub(running.channel)
    checks = [await stub.Check(health_pb2.HealthCheckRequest(service=name)) for name in ("", CAPTORY)]
    return {health_pb2.HealthCheckResponse.ServingStatus.Name(check.status) for check in checks}


async def test_each_of_several_watchers_hears_of_a_change(serving: Running) -> None:
    stub = health_pb2_grpc.HealthStub(serving.channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(service=CAPTORY)) for _ in range(3)]
    for watch in watches:
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watches[0].cancel()
    await serving.app.health.set_serving(False)
    for watch in watches[1:]:
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_service_that_nobody_knows_is_not_found(serving: Running) -> None:
    stub = health_pb2_grpc.HealthStub(serving.channel)
    with pytest.raises(aio.AioRpcError) as unknown:
        await stub.Check(health_pb2.HealthCheckRequest(service="nope"))
    assert unknown.value.code() is StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="nope"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


@pytest.mark.parametrize("name", ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"])
async def test_reflection_lists_the_services_under_both_of_its_names(serving: Running, name: str) -> None:
    ask = serving.channel.stream_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol=CAPTORY)
    requests = [reflection_pb2.ServerReflectionRequest(list_services=""), symbol]
    listed, described = [answer async for answer in ask(iter(requests))]
    assert {service.name for service in listed.list_services_response.service} >= {CAPTORY, "grpc.health.v1.Health"}
    assert described.file_descriptor_response.file_descriptor_proto


async def test_a_port_is_not_shared(serving: Running) -> None:
    second = App(Settings(address=serving.address))
    with pytest.raises(RuntimeError):
        await second.bind()
    await second.close()
