"""The closed schema of a policy file, as JSON Schema: the parser, `route schema` and the reference read this one."""

from __future__ import annotations

from typing import Any

VERSION = 1
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_VERDICTS = ["public", "internal", "confidential"]


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _texts(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "array", "description": description, "items": {"type": "string", "minLength": 1, **more}}


def _number(description: str, low: float = 0, **more: Any) -> dict[str, Any]:
    return {"type": "number", "description": description, "minimum": low, **more}


def _whole(description: str, low: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "description": description, "minimum": low, **more}


def _table(description: str, properties: dict[str, Any], *required: str) -> dict[str, Any]:
    table = {"type": "object", "description": description, "additionalProperties": False, "properties": properties}
    return table | ({"required": list(required)} if required else {})


_TARGET = _table(
    "One place a request may go; the table's key is its name.",
    {
        "kind": _text("`claude`: a cloud, behind the one door that holds the key. `local`: yours.",
                      enum=["claude", "local"], **{"x-hint": "Say kind = \"claude\" or kind = \"local\"."}),
        "url": _text("Base address, without `/v1`.", pattern=r"^https?://[^\s/@?#]+(/[^\s?#]*)?$",
                     **{"x-hint": "An address like http://127.0.0.1:8080 or https://api.anthropic.com."}),
        "model": _text("The model to ask for there. Without it the client's name is passed on.", minLength=1),
        "dialects": {"type": "array", "description": "Default: claude `anthropic`; local the first two, ollama all.",
                     "minItems": 1, "items": {"type": "string", "enum": ["anthropic", "openai", "ollama"]}},
        "key_env": _text("NAME of the environment variable with its key; never a key.", pattern=r"^[A-Z_][A-Z0-9_]*$",
                         **{"x-quiet": True,
                            "x-hint": "The NAME of a variable (ANTHROPIC_API_KEY): keys are not for files."}),
        "backend": _text("Kind of server of a local target.",
                         enum=["ollama", "llama-cpp", "vllm", "localai", "lm-studio", "embedded"]),
        "context": _whole("Tokens it can hold, question and answer; longer requests pass it by.", 1),
        "price": _text("Model whose prices hold, when it is not `model`.", minLength=1),
        "aliases": _texts("Model names by which a client asks for this target."),
        "clearance": _text("Most private verdict a local target may see. A cloud target never sees more than public.",
                           enum=_VERDICTS),
        "hosts": _texts("Addresses or networks (CIDR) beyond loopback at which this target counts as local."),
    },
    "kind", "url",
)  # fmt: skip

_WHEN = _table(
    "What the rule wants; all that is given must hold. Texts are globs, lists mean any of.",
    {
        "model": _texts("Model names."),
        "header": {"type": "object", "description": "Header name to glob.", "additionalProperties": {"type": "string"}},
        "path": _texts("Paths of the request, such as `/v1/embeddings`."),
        "project": _texts("Projects, by the header `x-miyabi-project`."),
        "hint": _texts("Task hints, by the header `x-miyabi-hint`: bulk, cheap, hard or your own."),
        "verdict": {"type": "array", "description": "Verdicts.", "items": {"type": "string", "enum": _VERDICTS}},
        "stream": {"type": "boolean", "description": "Only streamed, or only whole answers."},
        "min_tokens": _whole("At least this many tokens in the prompt (estimated)."),
        "max_tokens": _whole("At most this many tokens in the prompt (estimated)."),
    },
)

_RULE = _table(
    "The first rule whose `when` holds chooses.",
    {
        "name": _text("Shown in every decision.", pattern=NAME),
        "when": _WHEN,
        "use": _text("Name of a target.", pattern=NAME),
        "fallback": _texts("Targets to try, in order, when it fails before its first content.", pattern=NAME),
    },
    "name", "use",
)  # fmt: skip

_PRIVACY = _table(
    "What makes a request private. The strictest line that holds wins.",
    {
        "default_verdict": _text(
            "Of a request in which nothing is found. `public`: may go to a cloud. `internal`: stays.",
            enum=_VERDICTS,
            **{"x-hint": "Say \"public\" (clean requests may go to the cloud) or \"internal\" (nothing may)."},
        ),
        "deny_globs": _texts("A request that names a path like these is confidential."),
        "projects": {"type": "array", "description": "Projects that are more private.", "items": _table(
            "A project.", {"match": _text("Glob on the project's name.", minLength=1),
                           "verdict": _text("Its verdict.", enum=_VERDICTS)}, "match", "verdict")},
        "ignore": _texts("Kinds of findings that do not count, such as `ip-address`."),
        "allow": _texts("Globs of found text that does not count, such as your own public address."),
        "names": {"type": "boolean", "description": "Look for bare Japanese names too; needs the extra `names`."},
    },
    "default_verdict",
)  # fmt: skip

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "miyabi-llm routing policy",
    **_table(
        "Where requests go, and what may never leave.",
        {
            "version": _whole("Version of this format.", 1, **{"x-hint": f"Begin with version = {VERSION}."}),
            "mode": _text(
                "`claude`: the cloud first, local when it fails. `local`: never a cloud. "
                "`hybrid`: local first, the cloud for the hint `hard` and what does not fit.",
                enum=["claude", "local", "hybrid"],
                **{"x-hint": "Say mode = \"claude\", \"local\" or \"hybrid\"."},
            ),
            "targets": {"type": "object", "description": "Targets by name.", "additionalProperties": _TARGET},
            "rules": {"type": "array", "description": "Rules, in order.", "items": _RULE},
            "privacy": _PRIVACY,
            "budget": _table("US dollars for cloud targets.", {
                "monthly_usd": _number("Most in a calendar month (UTC)."),
                "per_request_usd": _number("Most that one request may cost at worst."),
            }),
            "electricity": _table("What local answers cost, for honest savings.", {
                "watts": _number("Of the machine at work, beyond idle."),
                "price_per_kwh": _number("In `currency`."),
                "currency": _text("ISO code.", pattern=r"^[A-Z]{3}$"),
                "per_usd": _number("Units of `currency` for one US dollar.", 0.000001),
            }),
            "limits": _table("Sizes and times beyond which a request is refused or held back.", {
                "body_bytes": _whole("Largest body taken.", 1024, maximum=1 << 30),
                "scan_bytes": _whole("Largest body looked through; larger is confidential.", 1024, maximum=1 << 30),
                "scan_seconds": _number("Processor time of a scan; more is confidential.", 0.001, maximum=600),
                "default_max_tokens": _whole("Tokens of an answer to reckon with when a client does not say.", 1),
            }),
        },
        "version", "mode",
    ),
}  # fmt: skip
