"""What clients may ask for, checked field by field before anything waits for the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from higgsc.deploy.serve.errors import RequestError
from higgsc.deploy.serve.sound import Format
from higgsc.train.speech.sampling import Sampling


class SamplingAsk(BaseModel):
    """Seed and sampling, which OpenAI's API does not have: `extra_body` of its clients."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    ras_window: Annotated[int, Field(ge=0, le=1_000)] | None = None
    ras_max_repeats: Annotated[int, Field(ge=1, le=1_000)] | None = None

    def sampling(self) -> Sampling:
        """How codes are drawn."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            ras_window=self.ras_window,
            ras_max_repeats=self.ras_max_repeats,
        )


class SpeechAsk(SamplingAsk):
    """Body of `POST /v1/audio/speech`. What OpenAI has and this model has not is refused, not passed over."""

    model: str
    input: str
    voice: str
    response_format: Format = "wav"
    speed: Annotated[float, Field(ge=1, le=1)] = 1.0
    stream_format: Literal["audio"] = "audio"


class CloneAsk(SamplingAsk):
    """Fields of `POST /generate_speech` beside the recording."""

    target_text: str
    reference_text: str | None = None
    speaker_name: str | None = None
    response_format: Format = "wav"


Ask = TypeVar("Ask", bound=SamplingAsk)


def checked(kind: type[Ask], data: bytes | dict[str, Any]) -> Ask:
    """A request's fields.

    Raises:
        RequestError: They are not what they should be (400); it names the first field at fault.
    """
    try:
        return kind.model_validate_json(data) if isinstance(data, bytes) else kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        about = f"`{param}`: " if param else ""
        raise RequestError(400, f"{about}{first['msg']}", param=param, code=first["type"]) from None
