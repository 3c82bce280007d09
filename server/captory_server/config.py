"""How a server is set up: defaults < file < environment (`CAPTORY_…`) < flags; checked once, printed once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from captory_engine.info import Limits
from captory_engine.repository import default_repository
from captory_engine.sessions.options import CPU_PROVIDER, TensorRtOptions, TorchOptions, TritonOptions
from captory_engine.vllm.options import VllmOptions, place_of
from captory_server.address import check_address

LogLevel = Literal["debug", "info", "warning", "error"]
Count = Annotated[int, Field(ge=1)]


def _split(value: Any) -> Any:
    """`A,B` is a list of two."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1), NoDecode, BeforeValidator(_split)]


def _check_limits(limits: Limits) -> Limits:
    wrong = [name for name, value in asdict(limits).items() if not value > 0]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} must be above 0")
    return limits


def _check_place(value: str) -> str:
    if value:
        place_of(value)
    return value


Place = Annotated[str, AfterValidator(_check_place)]


class Settings(BaseSettings):
    """A server's settings. `CAPTORY_LIMITS__MAX_ITEMS`, `CAPTORY_TORCH__DTYPE` and their like set one of a group.

    A list in a group comes in JSON of the group: `CAPTORY_TORCH='{"buckets": [1, 8]}'`; `providers` come with commas.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix="CAPTORY_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    address: Annotated[str, AfterValidator(check_address)] = "127.0.0.1:50061"
    repository: Path = Field(default_factory=default_repository)
    family: str = ""
    modes: Path | None = None
    backend: str = "onnx"
    threads: Annotated[int, Field(ge=0)] = 0
    lanes: Annotated[int, Field(ge=0)] = 0
    measure: bool = True
    providers: Names = (CPU_PROVIDER,)
    torch: TorchOptions = TorchOptions()
    triton: TritonOptions = TritonOptions()
    tensorrt: TensorRtOptions = TensorRtOptions()
    writer: Place = ""
    captioner: Place = ""
    vllm: VllmOptions = VllmOptions()
    limits: Annotated[Limits, AfterValidator(_check_limits)] = Limits()
    max_stream_images: Count = 128
    max_input_bytes: Count = 256 << 20
    max_stream_input_bytes: Count = 128 << 20
    max_calls: Count = 256
    max_item_price: Count = 1 << 34
    max_queued_price: Count = 1 << 38
    max_message_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 30)] = 64 << 20
    handshake_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    max_idle_s: Annotated[float, Field(gt=0)] = 3600.0
    grace_s: Annotated[float, Field(ge=0)] = 30.0
    log_level: LogLevel = "info"
    log_file: Path | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then the environment, then the file that `load` names."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def load(file: Path | None = None, **flags: Any) -> Settings:
    """Settle the settings; a flag that is None was not given.

    Raises pydantic's `ValidationError` for a value out of its range, and `OSError` for a file that cannot be read.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if file is None:
        return Settings(**given)
    file.open().close()  # a missing file would be passed over in silence

    class FromFile(Settings):
        model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(yaml_file=file)

    return FromFile(**given)


def explain(error: ValidationError | OSError) -> list[str]:
    """A line for each setting that is wrong."""
    if isinstance(error, OSError):
        return [f"{error.filename}: {error.strerror}"]
    return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
