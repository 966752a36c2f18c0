"""The forms rows come in, and the one form they become. Pure: a row is right, or it is a Problem with the way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from miyabi_llm.dataset.values import KINDS, Message, Messages, Problem, Reading, Row

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system"}
# what a foreign word most likely means, for the fix that is proposed; it is never applied unasked
MEANT = {
    "human": "user", "question": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant",
    "model": "assistant", "ai": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "claude": "assistant",
    "developer": "system", "function": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip
THINK = re.compile(r"\s*<think>(?P<thought>.*?)</think>\s*", re.DOTALL)
_REASONING = ("reasoning_content", "reasoning", "thinking")
_OPEN = re.compile(r"</?think>")


class _Bad(ValueError):
    """What is wrong with a row, and the way out of it."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


def detect(value: Any) -> str | None:
    """The form of a row by its keys, or None."""
    if not isinstance(value, Mapping):
        return None
    keys = set(value)
    if {"chosen", "rejected"} <= keys:
        return "preference"
    if {"prompt", "completion", "label"} <= keys:
        return "unpaired"
    if {"prompt", "completion"} <= keys:
        return "prompt-completion"
    if "messages" in keys:
        return "messages"
    if "conversations" in keys:
        return "sharegpt"
    return "alpaca" if {"instruction", "output"} <= keys else None


def no_form(value: Any) -> tuple[str, str]:
    """Why a row has no form we know, and the way out."""
    if not isinstance(value, Mapping):
        return "not a JSON object", 'a row is an object such as {"messages": [...]}'
    if "text" in value:
        return (
            "only a `text`: rendered text gets its begin and end tokens twice or not at all",
            'give the turns: {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}',
        )
    keys = ", ".join(sorted(str(k) for k in value))[:120] or "no keys"
    for known in ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "instruction", "output"):
        near = difflib.get_close_matches(known, [str(k) for k in value], n=1, cutoff=0.8)
        if near and near[0] != known:
            return f"has {keys}", f"did you mean `{known}` where it says `{near[0]}`?"
    return f"has {keys}", "known are messages, conversations, instruction/output, prompt/completion, chosen/rejected"


def row(value: Any, number: int, form: str, reading: Reading) -> Row | Problem:
    """One row of the form `form`, normalized, or what is wrong with it."""
    try:
        if not isinstance(value, Mapping):
            raise _Bad("not a JSON object")
        _whole(value, 0)
        other = detect(value)
        if other != form and not _fits(value, form):
            raise _Bad(f"is {other}, but the rows before are {form}" if other else f"is not {form}", "one form a file")
        prompt, answers, label = _READERS[form](value, reading)
        group = _group(value, reading)
        prompt = _with_system(prompt, reading.system)
        _judge(prompt, answers)
        made = tuple((_thought(a, reading),) for a in answers)
        return Row(KINDS[form], prompt, made, number, label, group)
    except _Bad as e:
        return Problem(number, str(e), e.fix)


def _whole(value: Any, depth: int) -> None:
    """Refuse texts that are no text: NUL, and halves of letters that no encoding can write."""
    if depth > 8:
        raise _Bad("too deeply nested")
    if isinstance(value, str):
        for c in value:
            if c == "\0" or 0xD800 <= ord(c) <= 0xDFFF:
                raise _Bad(f"holds U+{ord(c):04X}, which is no text", "remove it")
    elif isinstance(value, Mapping):
        for k, v in value.items():
            _whole(k, depth + 1)
            _whole(v, depth + 1)
    elif isinstance(value, Sequence):
        for v in value:
            _whole(v, depth + 1)


def _fits(value: Mapping[str, Any], form: str) -> bool:
    """Whether it can be read as `form` although its keys speak of another: prompt and completion with a label."""
    return form == "prompt-completion" and {"prompt", "completion"} <= set(value)


def _group(value: Mapping[str, Any], reading: Reading) -> str | None:
    if reading.group is None:
        return None
    found = value.get(reading.group)
    if not isinstance(found, str | int) or found == "":
        raise _Bad(f"has no `{reading.group}` to be grouped by", "see data.group")
    return str(found)


_Made = tuple[Messages, tuple[Message, ...], bool | None]


def _messages(value: Mapping[str, Any], reading: Reading) -> _Made:
    return *_turned(_turns(value.get("messages"), "role", "content", reading, {}), "messages"), None


def _sharegpt(value: Mapping[str, Any], reading: Reading) -> _Made:
    turns = value.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and "role" in turns[0]:
        found = _turns(turns, "role", "content", reading, {})
    else:
        found = _turns(turns, "from", "value", reading, SHAREGPT)
    system = value.get("system")
    if isinstance(system, str) and system.strip():
        found = ({"role": "system", "content": system}, *found)
    return *_turned(found, "conversations"), None


def _alpaca(value: Mapping[str, Any], reading: Reading) -> _Made:
    instruction, more = _text(value, "instruction"), value.get("input") or ""
    if not isinstance(more, str):
        raise _Bad("`input` is not a text")
    prompt: list[Message] = []
    system = value.get("system")
    if isinstance(system, str) and system.strip():
        prompt.append({"role": "system", "content": system})
    history = value.get("history") or []
    if not isinstance(history, list):
        raise _Bad("`history` is not a list of pairs")
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)):
            raise _Bad("`history` is not a list of pairs")
        prompt += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked = f"{instruction}\n\n{more}" if more.strip() else instruction
    prompt.append({"role": "user", "content": asked})
    return tuple(prompt), ({"role": "assistant", "content": _text(value, "output")},), None


def _pair(value: Mapping[str, Any], reading: Reading) -> _Made:
    return _asked(value, reading), (_answer(value, "completion", reading),), None


def _unpaired(value: Mapping[str, Any], reading: Reading) -> _Made:
    label = value.get("label")
    if isinstance(label, str) and label.lower() in ("true", "false"):
        label = label.lower() == "true"
    if not isinstance(label, bool):
        raise _Bad("`label` is not true or false")
    return _asked(value, reading), (_answer(value, "completion", reading),), label


def _preference(value: Mapping[str, Any], reading: Reading) -> _Made:
    if "prompt" in value:
        prompt = _asked(value, reading)
        chosen, rejected = (_answer(value, k, reading) for k in ("chosen", "rejected"))
    else:
        (prompt, one), (other, two) = (
            _turned(_turns(value.get(k), "role", "content", reading, {}), k) for k in ("chosen", "rejected")
        )
        if prompt != other:
            raise _Bad("chosen and rejected answer different questions", "give the common part as `prompt`")
        chosen, rejected = one[0], two[0]
    if chosen["content"] == rejected["content"]:
        raise _Bad("chosen and rejected are the same")
    return prompt, (chosen, rejected), None


_READERS = {
    "messages": _messages, "sharegpt": _sharegpt, "alpaca": _alpaca, "prompt-completion": _pair,
    "unpaired": _unpaired, "preference": _preference,
}  # fmt: skip


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise _Bad(f"`{key}` is not a text" if key in value else f"no `{key}`")
    if not found.strip():
        raise _Bad(f"`{key}` is empty")
    return found


def _asked(value: Mapping[str, Any], reading: Reading) -> Messages:
    if isinstance(value.get("prompt"), list):
        return _turns(value["prompt"], "role", "content", reading, {})
    return ({"role": "user", "content": _text(value, "prompt")},)


def _answer(value: Mapping[str, Any], key: str, reading: Reading) -> Message:
    if not isinstance(value.get(key), list):
        return {"role": "assistant", "content": _text(value, key)}
    turns = _turns(value[key], "role", "content", reading, {})
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise _Bad(f"`{key}` is not one turn of the assistant", "put the turns before it into `prompt`")
    return turns[0]


def _turns(value: Any, role: str, content: str, reading: Reading, known: Mapping[str, str]) -> Messages:
    if not isinstance(value, list) or not value:
        raise _Bad("no turns")
    return tuple(_turn(t, i, (role, content), reading, known) for i, t in enumerate(value, 1))


def _turn(value: Any, at: int, names: tuple[str, str], reading: Reading, known: Mapping[str, str]) -> Message:
    if not isinstance(value, Mapping):
        raise _Bad(f"turn {at} is not an object")
    role, content = value.get(names[0]), value.get(names[1])
    if not isinstance(role, str):
        raise _Bad(f"turn {at} has no `{names[0]}`")
    ours = reading.roles.get(role) or known.get(role) or (role if role in ROLES else None)
    if ours is None:
        meant = MEANT.get(role.lower(), "user")
        raise _Bad(f"turn {at} is by {role!r:.40}, an unknown role", f"for example --set data.roles.{role:.40}={meant}")
    if value.get("tool_calls"):
        raise _Bad(f"turn {at} calls tools, which is not trained yet", "write the call as text, or drop the row")
    if isinstance(content, list):
        content = _parts(content, at)
    thought = next((value[k] for k in _REASONING if isinstance(value.get(k), str) and value[k].strip()), None)
    if not isinstance(content, str):
        raise _Bad(f"turn {at} has no text in `{names[1]}`")
    if thought is not None and ours == "assistant":
        content = f"<think>\n{thought.strip()}\n</think>\n\n{content}"
    return {"role": ours, "content": content}


def _parts(parts: list[Any], at: int) -> str:
    texts = []
    for part in parts:
        if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise _Bad(f"turn {at} holds something that is not text", "only text is trained")
        texts.append(part["text"])
    return "".join(texts)


def _turned(turns: Messages, key: str) -> tuple[Messages, tuple[Message, ...]]:
    """Everything before the last answer, and that answer."""
    if turns[-1]["role"] != "assistant":
        if any(t["role"] == "assistant" for t in turns):
            raise _Bad(f"the last turn is the {turns[-1]['role']}'s: nothing answers it", "cut it off")
        raise _Bad(f"`{key}` holds no turn of the assistant: nothing to learn", "check the names of the roles")
    return turns[:-1], (turns[-1],)


def _with_system(prompt: Messages, system: str | None) -> Messages:
    if system is None or (prompt and prompt[0]["role"] == "system"):
        return prompt
    return ({"role": "system", "content": system}, *prompt)


def _judge(prompt: Messages, answers: tuple[Message, ...]) -> None:
    for i, turn in enumerate((*prompt, *answers), 1):
        if not turn["content"].strip():
            raise _Bad(f"turn {i}, by the {turn['role']}, is empty")
        if turn["role"] == "system" and i > 1:
            raise _Bad(f"turn {i} is a system prompt; only the first may be one")
    if not any(t["role"] == "user" for t in prompt):
        raise _Bad("no turn of the user before the answer")


def _thought(answer: Message, reading: Reading) -> Message:
    text = answer["content"]
    if reading.thinking == "keep" or not _OPEN.search(text):
        return answer
    if reading.thinking == "none":
        _refuse_thought()
    bare = THINK.sub("", text)
    if _OPEN.search(bare):
        raise _Bad("a <think> that is not closed", "mend or drop the row")
    if not bare.strip():
        raise _Bad("nothing but reasoning in the answer", "mend or drop the row")
    return {**answer, "content": bare}


def _refuse_thought() -> NoReturn:
    raise _Bad("the answer holds reasoning (<think>)", "say data.thinking: keep, or strip")
