"""What the conformance suite wants to ask, mounted on our own factory and our own transport; a program for a port.

The names and texts are those of the suite's SERVER_REQUIREMENTS.md and of its scenarios' descriptions.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import warnings
from typing import Annotated, Any

import mcp_types as types
from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.types import (
    AudioContent,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel, Field

from miyabi_llm.mcp import http
from miyabi_llm.mcp.server import make
from miyabi_llm.types import silent

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAV = base64.b64encode(b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0@\x1f\0\0@\x1f\0\0\x01\0\x08\0data\0\0\0\0").decode()
Ctx = Context[Any, Any]
server: MCPServer[Any] = make([], "conformance", changing=True)
warnings.simplefilter("ignore")  # the older era's logging is deprecated, and asked for


def text(said: str) -> TextContent:
    return TextContent(type="text", text=said)


def image() -> ImageContent:
    return ImageContent(type="image", data=PNG, mime_type="image/png")


def resource(uri: str, said: str, kind: str = "text/plain") -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, text=said, mime_type=kind))


# -- tools that answer


@server.tool()
async def test_simple_text() -> str:
    """A text."""
    return "This is a simple text response for testing."


@server.tool(structured_output=False)
async def test_image_content() -> list[ImageContent]:
    """An image."""
    return [image()]


@server.tool(structured_output=False)
async def test_audio_content() -> list[AudioContent]:
    """A sound."""
    return [AudioContent(type="audio", data=WAV, mime_type="audio/wav")]


@server.tool(structured_output=False)
async def test_embedded_resource() -> list[EmbeddedResource]:
    """A resource."""
    return [resource("test://embedded-resource", "This is an embedded resource content.")]


@server.tool(structured_output=False)
async def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Several kinds."""
    data = json.dumps({"test": "data", "value": 123})
    mixed = resource("test://mixed-content-resource", data, "application/json")
    return [text("Multiple content types test:"), image(), mixed]


@server.tool()
async def test_tool_with_logging(ctx: Ctx) -> str:
    """Three lines of log, as clients of the older era may ask for them."""
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.log("info", line)
        await asyncio.sleep(0.05)
    return "Tool with logging executed successfully"


@server.tool()
async def test_logging_tool(ctx: Ctx) -> str:
    """One line, which must stay unsaid where no level was given."""
    await ctx.log("info", "a line")
    return "logged"


@server.tool()
async def test_tool_with_progress(ctx: Ctx) -> str:
    """Three steps."""
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100)
        await asyncio.sleep(0.05)
    return "Tool with progress executed successfully"


@server.tool()
async def test_error_handling() -> str:
    """An error."""
    raise ToolError("This tool intentionally returns an error for testing")


@server.tool()
async def test_reconnection(ctx: Ctx) -> str:
    """Close the stream in the middle: the client has to come back for the rest."""
    await ctx.close_sse_stream()
    await asyncio.sleep(0.2)
    return "Reconnection test completed"


# -- tools that ask back, as the older era does


@server.tool()
async def test_sampling(prompt: str, ctx: Ctx) -> str:
    """Ask the client's model."""
    said = await ctx.session.create_message(
        messages=[SamplingMessage(role="user", content=text(prompt))],
        max_tokens=100,
        related_request_id=ctx.request_id,  # on this call's own stream: the other may not be open yet
    )
    return f"LLM response: {getattr(said.content, 'text', '')}"


class Answer(BaseModel):
    username: str = Field(description="What the suite's client answers")
    email: str = Field(description="and this")


class Defaults(BaseModel):
    name: str = Field("John Doe", description="name")
    age: int = Field(30, description="age")
    score: float = Field(95.5, description="score")
    status: str = Field("active", json_schema_extra={"enum": ["active", "inactive", "pending"]})
    verified: bool = Field(True, description="verified")


def named(*names: str) -> list[dict[str, str]]:
    return [{"const": name, "title": name.title()} for name in names]


class Choices(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["option1", "option2", "option3"]})
    titledSingle: str = Field(json_schema_extra={"oneOf": named("value1", "value2", "value3")})
    legacyEnum: str = Field(json_schema_extra={"enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]})
    untitledMulti: list[str] = Field(json_schema_extra={"items": {"type": "string", "enum": ["option1", "option2"]}})
    titledMulti: list[str] = Field(json_schema_extra={"items": {"anyOf": named("value1", "value2")}})


async def asked(ctx: Ctx, message: str, schema: type[BaseModel]) -> str:
    said = await ctx.elicit(message=message, schema=schema)
    content = said.data.model_dump_json() if said.action == "accept" else "{}"
    return f"Elicitation completed: action={said.action}, content={content}"


@server.tool()
async def test_elicitation(message: str, ctx: Ctx) -> str:
    """Ask the user."""
    return await asked(ctx, message, Answer)


@server.tool()
async def test_elicitation_sep1034_defaults(ctx: Ctx) -> str:
    """Ask with defaults."""
    return await asked(ctx, "Please answer", Defaults)


@server.tool()
async def test_elicitation_sep1330_enums(ctx: Ctx) -> str:
    """Ask with choices."""
    return await asked(ctx, "Please choose", Choices)


# -- tools that ask back, as the newer era does: by a result that wants a further request

Requests = dict[str, Any]


def elicit(message: str, **properties: Any) -> types.ElicitRequest:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    params = types.ElicitRequestFormParams(message=message, requested_schema=schema)
    return types.ElicitRequest(params=params)


def sample(prompt: str, most: int) -> types.CreateMessageRequest:
    message = SamplingMessage(role="user", content=text(prompt))
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[message], max_tokens=most))


def given(ctx: Ctx, *keys: str) -> list[Any] | None:
    """The answers, when all are there."""
    answers = ctx.input_responses or {}
    return [answers[key] for key in keys] if all(key in answers for key in keys) else None


def content(answer: Any, key: str) -> Any:
    return (getattr(answer, "content", None) or {}).get(key)


def wanted(state: str | None = None, **requests: Any) -> InputRequiredResult:
    return InputRequiredResult(input_requests=requests, request_state=state)


NAME = elicit("What is your name?", name={"type": "string"})


@server.tool()
async def test_input_required_result_elicitation(ctx: Ctx) -> str | InputRequiredResult:
    """Ask for a name."""
    answers = given(ctx, "user_name")
    return wanted(user_name=NAME) if answers is None else f"Hello, {content(answers[0], 'name')}!"


@server.tool()
async def test_input_required_result_sampling(ctx: Ctx) -> str | InputRequiredResult:
    """Ask the client's model."""
    answers = given(ctx, "capital_question")
    if answers is None:
        return wanted(capital_question=sample("What is the capital of France?", 100))
    return str(getattr(answers[0].content, "text", ""))


@server.tool()
async def test_input_required_result_list_roots(ctx: Ctx) -> str | InputRequiredResult:
    """Ask for the roots."""
    answers = given(ctx, "client_roots")
    if answers is None:
        return wanted(client_roots=types.ListRootsRequest())
    return ", ".join(str(root.uri) for root in answers[0].roots)


@server.tool()
async def test_input_required_result_request_state(ctx: Ctx) -> str | InputRequiredResult:
    """Keep a state with the client."""
    if given(ctx, "confirm") is None:
        return wanted("the state", confirm=elicit("Please confirm", ok={"type": "boolean"}))
    if ctx.request_state != "the state":
        raise MCPError(types.INVALID_PARAMS, "not the state that was given")
    return "state-ok"


@server.tool()
async def test_input_required_result_tampered_state(ctx: Ctx) -> str | InputRequiredResult:
    """Keep a state that nobody may change: the SDK seals it."""
    return await test_input_required_result_request_state(ctx)


@server.tool()
async def test_input_required_result_multiple_inputs(ctx: Ctx) -> str | InputRequiredResult:
    """Ask three things at once."""
    answers = given(ctx, "user_name", "greeting", "client_roots")
    if answers is None:
        greeting, roots = sample("Generate a greeting", 50), types.ListRootsRequest()
        return wanted("all", user_name=NAME, greeting=greeting, client_roots=roots)
    return f"{content(answers[0], 'name')}: {len(answers[2].roots)} roots"


@server.tool()
async def test_input_required_result_multi_round(ctx: Ctx) -> str | InputRequiredResult:
    """Ask one thing after the other."""
    if (second := given(ctx, "step2")) is not None:
        return f"{ctx.request_state} likes {content(second[0], 'color')}"
    if (first := given(ctx, "step1")) is None:
        return wanted("one", step1=elicit("Step 1: What is your name?", name={"type": "string"}))
    color = elicit("Step 2: What is your favorite color?", color={"type": "string"})
    return wanted(str(content(first[0], "name")), step2=color)


@server.tool()
async def test_input_required_result_capabilities(ctx: Ctx) -> str | InputRequiredResult:
    """Ask only what the client can answer."""
    can = ctx.client_capabilities
    requests: Requests = {}
    if can is not None and can.sampling is not None:
        requests["greeting"] = sample("Generate a greeting", 50)
    if can is not None and can.elicitation is not None:
        requests["user_name"] = NAME
    return wanted(None, **requests) if requests and not ctx.input_responses else "done"


@server.tool()
async def test_streaming_elicitation(ctx: Ctx) -> str | InputRequiredResult:
    """Report progress, then ask."""
    await ctx.report_progress(1, 2)
    return await test_input_required_result_elicitation(ctx)


@server.tool()
async def test_missing_capability(ctx: Ctx) -> str:
    """Refuse a client that cannot sample."""
    if ctx.client_capabilities is None or ctx.client_capabilities.sampling is None:
        needed = types.ClientCapabilities(sampling=types.SamplingCapability())
        data = types.MissingRequiredClientCapabilityErrorData(required_capabilities=needed)
        body = data.model_dump(by_alias=True, exclude_none=True)
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "sampling is needed", body)
    return "ok"


@server.tool()
async def test_trigger_tool_change(ctx: Ctx) -> str:
    """Say that the tools changed."""
    await ctx.notify_tools_changed()
    return "ok"


@server.tool()
async def test_trigger_prompt_change(ctx: Ctx) -> str:
    """Say that the prompts changed."""
    await ctx.notify_prompts_changed()
    return "ok"


@server.tool()
async def test_mirrored(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
    """A parameter that stands in a header too."""
    return region


@server.tool()
async def json_schema_2020_12_tool(name: str = "") -> str:
    """Tool with JSON Schema 2020-12 features."""
    return name


SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

# -- resources, prompts, completion


@server.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    """A text."""
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    """An image."""
    return base64.b64decode(PNG)


@server.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    """A template."""
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@server.resource("test://watched-resource", mime_type="text/plain")
def watched() -> str:
    """One that can be watched."""
    return "Watched resource content"


@server.prompt()
def test_simple_prompt() -> str:
    """No arguments."""
    return "This is a simple prompt for testing."


@server.prompt()
def test_prompt_with_arguments(
    arg1: Annotated[str, Field(description="First")], arg2: Annotated[str, Field(description="Second")]
) -> str:
    """Two arguments."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@server.prompt()
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    """A resource in it."""
    inside = resource(resourceUri, "Embedded resource content for testing.")
    return [UserMessage(inside), UserMessage("Please process the embedded resource above.")]


@server.prompt()
def test_prompt_with_image() -> list[UserMessage]:
    """An image in it."""
    return [UserMessage(image()), UserMessage("Please analyze the image above.")]


@server.prompt()
def test_input_required_result_prompt(ctx: Ctx) -> str | InputRequiredResult:
    """A prompt that asks first."""
    answers = given(ctx, "user_context")
    if answers is None:
        question = elicit("What context should the prompt use?", context={"type": "string"})
        return wanted(user_context=question)
    return f"Context: {content(answers[0], 'context')}"


@server.completion()
async def complete(ref: Any, argument: Any, context: Any) -> types.Completion:
    """Nothing to suggest."""
    return types.Completion(values=[], total=0, has_more=False)


async def nothing(ctx: Any, params: Any) -> types.EmptyResult:
    return types.EmptyResult()


def older_era(server: MCPServer[Any]) -> None:
    """What only the low-level server takes: log levels and subscriptions, both gone in the newer era."""
    low = server._lowlevel_server
    low.add_request_handler("logging/setLevel", types.SetLevelRequestParams, nothing)
    low.add_request_handler("resources/subscribe", types.SubscribeRequestParams, nothing)
    low.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, nothing)
    tool = server._tool_manager.get_tool("json_schema_2020_12_tool")
    assert tool is not None
    tool.parameters = SCHEMA


class Events(EventStore):
    """Every event of every stream, so that a client that comes back gets what it missed."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        last = int(last_event_id)
        if not 0 < last <= len(self._events):
            return None
        stream = self._events[last - 1][0]
        for number, (name, message) in enumerate(self._events[last:], last + 1):
            if name == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


if __name__ == "__main__":
    assert CallToolResult
    older_era(server)
    http.serve(
        server, http.Place(port=int(sys.argv[1])), lambda: None, silent, event_store=Events(), retry_interval=100
    )
