"""Everything serialised in a request, looked through: what is private in it, and what could not be looked at."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from miyabi_llm import detect
from miyabi_llm.route.names import NamesMissing, names
from miyabi_llm.route.values import Dialect, Finding, Limits, Privacy, Verdict
from miyabi_llm.route.verdict import pattern

# Headers that hold keys for this gateway, or how to talk with it: they are never sent on as they came.
_OWN_HEADERS = frozenset(
    ("authorization", "x-api-key", "proxy-authorization", "host", "content-length", "content-type", "cookie", "accept",
     "accept-encoding", "connection", "transfer-encoding", "user-agent")
)  # fmt: skip
_DEPTH = 64  # levels of JSON
_SHOWN = 200  # findings kept; more of them change nothing
_LABEL = 80  # letters of a key that count as its value's label
_JOINT = 80  # characters on both sides of the joint between two blocks of text

# Lists whose entries are blocks with a type, and the types that hold nothing but text. All others are not looked at:
# pictures, sound, files, whatever comes next year.
_BLOCKS = frozenset(("content", "system", "input", "messages", "parts", "output"))
_TEXT_TYPES = frozenset(
    ("text", "tool_use", "tool_result", "thinking", "redacted_thinking", "server_tool_use", "search_result", "document",
     "web_search_tool_result", "web_search_result", "web_search_tool_result_error", "mcp_tool_use", "mcp_tool_result",
     "tool_reference", "input_text", "output_text", "refusal", "message", "function_call", "function_call_output",
     "reasoning", "reasoning_text", "summary_text", "custom_tool_call", "custom_tool_call_output")
)  # fmt: skip
_SOURCES = frozenset(("text", "content"))  # of a document
# Names of what lies at the provider already: it belongs to the request, and nobody here can look at it.
_ELSEWHERE = frozenset(
    ("previous_response_id", "file_id", "file_ids", "vector_store_ids", "container", "conversation", "audio")
)
# Values that a model reads as JSON, whatever they look like: nothing in them is a block.
_AS_WRITTEN = frozenset(
    ("tools", "functions", "input_schema", "parameters", "arguments", "response_format", "metadata")
)
_CALLS = frozenset(("tool_use", "server_tool_use", "mcp_tool_use", "custom_tool_call"))
_STORED = frozenset(("file_ids", "vector_store_ids"))  # of a tool
# Sealed by the provider, opaque to everyone else, and only ever sent back to it.
_SEALED = frozenset(("signature", "encrypted_content", "encrypted_index"))
# Keys that say nothing about their value. Every other key is read together with it: `password`, `name`, `tel`.
_DUMB = frozenset(
    ("text", "content", "type", "role", "id", "input", "output", "arguments", "description", "thinking", "signature",
     "data", "model", "command", "file_path", "path", "old_string", "new_string", "pattern", "url", "query", "prompt",
     "system", "messages", "tools", "source", "title", "tool_use_id", "tool_call_id", "call_id", "function",
     "parameters", "required", "properties", "items", "enum", "format", "stop", "metadata", "stream", "max_tokens",
     "temperature", "cache_control", "media_type", "encrypted_content", "ttl", "additionalProperties", "$schema",
     "input_schema", "tool_choice", "effort")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan saw. Not `complete`: something was not looked through, and `unseen` says what.

    `files` are the paths that match the policy's `deny_globs`, `size` the bytes of its texts in UTF-8, `seconds` the
    time taken, `parsed` the body as JSON (None when it is none). `marks` are kinds with hashes of what was found: for
    `Taints.mark`, in memory only.
    """

    findings: tuple[Finding, ...]
    complete: bool
    unseen: tuple[str, ...]
    files: tuple[str, ...]
    size: int
    seconds: float
    parsed: Any = None
    marks: tuple[tuple[str, bytes], ...] = ()

    @property
    def floor(self) -> Verdict:
        """The least verdict this scan allows: PUBLIC only when it is complete and found nothing."""
        return Verdict.PUBLIC if self.complete and not self.findings else Verdict.CONFIDENTIAL


def scan_request(
    body: bytes,
    dialect: Dialect,
    headers: Mapping[str, str],
    cache: detect.Cache,
    privacy: Privacy = Privacy(),  # noqa: B008  # frozen
    limits: Limits = Limits(),  # noqa: B008  # frozen
) -> Scan:
    """Look through a request. Never raises: whatever goes wrong is an incomplete scan, and so CONFIDENTIAL."""
    begin = time.perf_counter()
    looker = _Looker(cache, time.thread_time() + limits.scan_seconds)
    parsed: Any = None
    try:
        looker.options = replace(options(privacy), deadline=looker.deadline)
        looker.ignore = frozenset(privacy.ignore)
        looker.salt = _salt(privacy)
        for name, value in headers.items():
            if name.lower() not in _OWN_HEADERS:
                looker.text(value, (("headers",), name), name)
        if len(body) > limits.scan_bytes:
            looker.unseen.append(f"a body of {len(body)} bytes, more than {limits.scan_bytes}")
        else:
            parsed = json.loads(body, object_pairs_hook=looker.pairs, parse_constant=_no_constant)
            looker.look(parsed, (), "", 0)
    except detect.LateError:
        looker.unseen.append(f"a scan that takes longer than {limits.scan_seconds:g} s")
    except NamesMissing as e:
        looker.unseen.append(e.message)
    except (ValueError, RecursionError):
        looker.unseen.append("a body that is no JSON")
    except Exception as e:  # a fault of a detector means "not looked through", never "clean"
        looker.unseen.append(f"a fault of the scanner ({type(e).__name__})")
    return Scan(
        tuple(looker.findings[:_SHOWN]),
        not looker.unseen,
        tuple(dict.fromkeys(looker.unseen)),
        tuple(looker.files),
        looker.size,
        time.perf_counter() - begin,
        parsed,
        tuple(looker.marks[:_SHOWN]),
    )


@lru_cache(maxsize=64)
def options(privacy: Privacy) -> detect.Options:
    """What the detectors are to look for by a policy. Raises NamesMissing."""
    return detect.Options(
        names=names() if privacy.names else None,
        allow=pattern(privacy.allow) if privacy.allow else None,
        paths=pattern(privacy.deny_globs) if privacy.deny_globs else None,
    )


@lru_cache(maxsize=64)
def _salt(privacy: Privacy) -> bytes:
    return options(privacy).salt


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


_Place = tuple[Any, ...]  # (the place around it, key or index): made into words only for a finding


class _Looker:
    """Walks a body. Collects findings, file names and what it could not look at."""

    def __init__(self, cache: detect.Cache, deadline: float) -> None:
        self.cache = cache
        self.deadline = deadline
        self.options = detect.Options()
        self.salt = b""
        self.ignore: frozenset[str] = frozenset()
        self.findings: list[Finding] = []
        self.marks: list[tuple[str, bytes]] = []
        self.unseen: list[str] = []
        self.files: dict[str, None] = {}
        self.size = 0
        self.as_written = 0  # how many such values we are in

    def pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):  # the other end may take the one we do not see
            self.unseen.append("a key that stands twice in one object")
        return found

    def look(self, value: Any, place: _Place, label: str, depth: int) -> None:
        if isinstance(value, str):
            self.text(value, place, label)
        elif depth > _DEPTH:
            self.unseen.append("JSON nested too deeply")
        elif isinstance(value, dict):
            self._table(value, place, depth)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                self.look(item, (place, i), label, depth + 1)
        elif value is not None and value is not True and value is not False:
            self.text(str(value), place, label)

    def _table(self, table: dict[str, Any], place: _Place, depth: int) -> None:
        for key, item in table.items():
            here = (place, key)
            if key not in _DUMB:
                self.text(key, here, "")
            if key in _AS_WRITTEN or (key == "input" and depth > 1 and table.get("type") in _CALLS):
                self.as_written += 1
                self.look(item, here, "" if key in _DUMB else key, depth + 1)
                self.as_written -= 1
            elif key in _BLOCKS and isinstance(item, list) and not self.as_written:
                self._blocks(item, here, depth + 1)
            elif key == "content" and isinstance(item, dict) and not self.as_written:
                self._blocks([item], here, depth + 1)
            elif item and self._elsewhere(key, item, table):
                self.unseen.append(f"what lies elsewhere ({key})")
            elif key == "images" and item and not self.as_written:
                self.unseen.append("pictures")
            elif key in _SEALED or (key == "data" and table.get("type") == "redacted_thinking"):
                known = len(self.unseen)
                self.look(item, here, "", depth + 1)
                del self.unseen[known:]
            else:
                self.look(item, here, "" if key in _DUMB else key, depth + 1)

    def _elsewhere(self, key: str, item: Any, table: dict[str, Any]) -> bool:
        if not self.as_written:
            return key in _ELSEWHERE
        stored = key in _STORED and isinstance(item, list)
        return stored or (key == "container" and table.get("type") == "code_interpreter")

    def _blocks(self, blocks: list[Any], place: _Place, depth: int) -> None:
        before: str | None = None
        for i, block in enumerate(blocks):
            if isinstance(block, dict):
                kind = block.get("type", "text")
                source = block.get("source")
                if kind not in _TEXT_TYPES or (isinstance(source, dict) and source.get("type") not in _SOURCES):
                    self.unseen.append(f"a block of the type {str(kind)[:40]!r}")
                    continue
            self.look(block, (place, i), "", depth + 1)
            text = block.get("text") if isinstance(block, dict) else None
            if before is not None and isinstance(text, str) and before and text:
                self._joint(before[-_JOINT:], text[:_JOINT], (place, i))
            before = text if isinstance(text, str) else None

    def _joint(self, before: str, after: str, place: _Place) -> None:
        """What begins in one block and ends in the next: a model reads them as one."""
        for hit in self._examined(before + after).hits:
            if hit.start < len(before) < hit.end and hit.kind not in self.ignore:
                self._found(hit, place, 0)

    def text(self, text: str, place: _Place, label: str) -> None:
        self.size += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        if not label:
            if len(text) < detect.SHORT:
                return
            shift, result = 0, self._examined(text)
        else:
            quote = '"' if len(text) < 500 and '"' not in text and "\n" not in text else ""
            lead = f"{'Name' if label.lower() == 'name' else label[-_LABEL:]}: {quote}"
            shift, result = len(lead), self._examined(lead + text + quote)
        if result is detect.CLEAN:
            return
        self.unseen.extend(result.unseen)
        self.files.update(dict.fromkeys(result.paths))
        for hit in result.hits:
            if hit.kind not in self.ignore:
                self._found(hit, place, shift)

    def _examined(self, text: str) -> detect.Result:
        key = detect.Cache.key(text, self.salt)
        result = self.cache.get(key)
        if result is None:
            if time.thread_time() > self.deadline:
                raise detect.LateError
            result = detect.examine(text, self.options)
            self.cache.put(key, result)
        return result

    def _found(self, hit: detect.Hit, place: _Place, shift: int) -> None:
        if len(self.findings) < _SHOWN:
            self.findings.append(Finding(hit.kind, f"{_spelled(place)}:{max(0, hit.start - shift)}", hit.masked))
            self.marks.append((hit.kind, hit.mark))


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,40}")


def _spelled(place: _Place) -> str:
    """`messages[3].content[0].text`; a key that is itself odd is not repeated."""
    words: list[str] = []
    while place:
        if len(place) == 1:
            words.append(str(place[0]))
            break
        place, key = place
        if isinstance(key, int):
            words.append(f"[{key}]")
        else:
            words.append(f".{key}" if _PLAIN.fullmatch(key) and not detect.scan(key) else ".{key}")
    return "".join(reversed(words)).lstrip(".")
