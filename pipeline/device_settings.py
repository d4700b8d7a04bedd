"""What `edgebuild.yaml` says of devices."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, model_validator

from edgebuild.device_tests.transport import RunRequest
from edgebuild.pipeline.record import Record, or_a

LOCAL: Final = "local:"


class Device(Record):
    """How to reach a device, and how models run there; a text is its URI."""

    model_config = ConfigDict(json_schema_extra=or_a("string"))

    transport: Literal["local", "ssh", "adb"] = "local"
    host: str | None = Field(default=None, description="of ssh, as in ~/.ssh/config; of adb, where it listens")
    port: Annotated[int, Field(gt=0, lt=65536)] | None = None
    user: str | None = Field(default=None, description="of ssh")
    serial: str | None = Field(default=None, description="of adb, where several devices are connected")
    uri: str | None = Field(default=None, description="instead of all these: ssh://pi@pi4.lan:22, adb://SERIAL, local:")
    python: str | None = Field(default=None, description="the interpreter there, 3.7 or newer")
    threads: Annotated[int, Field(ge=1)] = 1
    delegate: str = Field(
        default="default", description="what the runtime takes by itself; none, xnnpack, edgetpu, or a library's path"
    )
    delegate_options: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        return {"uri": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _can_be_reached(self) -> Device:
        if self.transport == "ssh" and not (self.host or self.uri):
            raise ValueError("host: required for ssh, a name of ~/.ssh/config or an address")
        apart = [key for key in ("host", "port", "user", "serial") if getattr(self, key) is not None]
        if self.uri and apart:
            raise ValueError(f"uri says it all: leave out {', '.join(apart)}")
        return self

    @property
    def request(self) -> RunRequest:
        """How a process measures there."""
        return RunRequest(threads=self.threads, delegate=self.delegate, delegate_options=self.delegate_options)

    @property
    def address(self) -> str:
        """Its URI."""
        if self.uri or self.transport == "local":
            return self.uri or LOCAL
        if self.transport == "adb" and self.serial:
            return f"adb://{self.serial}"
        user, port = (f"{self.user}@" if self.user else ""), (f":{self.port}" if self.port else "")
        return f"{self.transport}://{user}{self.host or ''}{port}"
