"""What clients may send, with OpenAI's names; a limit on every number and every length.

Three kinds of fields: those that do what OpenAI documents; those that change no answer (`user`,
`metadata`, ...) and are accepted and ignored; those that would change the answer but are not built
(`tools`, `logit_bias`, ...), which are refused unless empty. Whatever else stands in a body is
refused by name, as OpenAI does: a misspelt option is never silently dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_CHOICES = 16
MAX_TOP = 20
UNSUPPORTED = frozenset(
    {"tools", "functions", "logit_bias", "tool_choice", "function_call", "audio", "prediction", "web_search_options"}
    | {"modalities", "echo", "suffix", "best_of"}
)

Count = Annotated[int, Field(ge=1, le=1 << 31)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Nothing = Annotated[list[Any], Field(max_length=0)] | None
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="one more event before [DONE], with the usage")
    include_obfuscation: bool | None = Field(None, description="ignored: nothing is padded")


class TextFormat(Body):
    type: Literal["text"]


class ObjectFormat(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    name: str = Field(min_length=1, max_length=64)
    description: str | None = Field(None, max_length=4096)
    rules: dict[str, Any] = Field(alias="schema", description="a JSON schema that the answer follows")
    strict: bool | None = Field(None, description="ignored: the schema is always enforced")


class SchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class Sampling(Body):
    """Fields that chat and plain completions share."""

    model: str = Field(
        min_length=1,
        max_length=512,
        description="the base's id, an adapter's name, or a blend such as pizza+0.5*cheerful",
    )
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="answers to each prompt")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63, description="the same seed, the same answer")
    temperature: float | None = Field(None, ge=0, le=2, description="default 1; 0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1 << 31, description="extra field; 0 or -1: all tokens")
    min_p: float | None = Field(None, ge=0, le=1, description="extra field")
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="extra field; 1: none")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    response_format: ResponseFormat | None = None
    user: Any = Field(None, description="ignored")
    metadata: Any = Field(None, description="ignored")
    store: Any = Field(None, description="ignored: nothing is kept")
    service_tier: Any = Field(None, description="ignored")
    safety_identifier: Any = Field(None, description="ignored")
    prompt_cache_key: Any = Field(None, description="ignored: equal prefixes are always found")
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = Field(None, description="not supported")

    @model_validator(mode="after")
    def options_only_with_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only allowed when 'stream' is true")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(Body):
    type: Literal["text"]
    text: str


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=256)]
    name: Any = Field(None, description="ignored: templates show roles alone")
    refusal: None = None


class ChatRequest(Sampling):
    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    max_tokens: Count | None = Field(None, description="default: what the context leaves")
    max_completion_tokens: Count | None = Field(None, description="newer name of max_tokens; wins over it")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP, description="needs logprobs")
    parallel_tool_calls: Any = Field(None, description="ignored: there are no tools")
    tools: Nothing = Field(None, description="not supported")
    functions: Nothing = Field(None, description="not supported")
    tool_choice: Literal["none", "auto"] | None = Field(None, description="there are no tools")
    function_call: Literal["none", "auto"] | None = Field(None, description="there are no functions")
    modalities: list[Literal["text"]] | None = Field(None, max_length=1)
    audio: None = Field(None, description="not supported")
    prediction: None = Field(None, description="not supported")
    web_search_options: None = Field(None, description="not supported")

    @model_validator(mode="after")
    def alternatives_only_with_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' is only allowed when 'logprobs' is true")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampling):
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: Count | None = Field(None, description="default 16")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    echo: Literal[False] | None = Field(None, description="not supported")
    suffix: None = Field(None, description="not supported")
    best_of: Literal[1] | None = Field(None, description="not supported")

    @property
    def limit(self) -> int | None:
        return self.max_tokens or 16

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class LoadAdapter(Body):
    """vLLM's field names; an adapter is named, never pointed at."""

    lora_name: str = Field(min_length=1, max_length=128, description="an adapter of the store")
    lora_path: str | None = Field(None, max_length=128, description="if given, the same name: paths are refused")
    load_inplace: Any = Field(None, description="ignored: changed weights of the same name always replace it")


class UnloadAdapter(Body):
    lora_name: str = Field(min_length=1, max_length=128)
    lora_int_id: Any = Field(None, description="ignored")
