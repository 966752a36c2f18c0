"""Names of models: every spelling has one meaning, and hostile text is wrong usage, never a crash."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miyabi_llm.errors import BadUsage
from miyabi_llm.refs import LIMIT, ModelRef, digest, is_safe_name

HEX = "0123456789abcdef" * 4

CANONICAL = {
    "qwen2.5-coder": ModelRef("catalog", "qwen2.5-coder"),
    "qwen2.5-coder:1.5b": ModelRef("catalog", "qwen2.5-coder", "1.5b"),
    "hf:Qwen/Q-GGUF": ModelRef("hf", "Qwen/Q-GGUF"),
    "hf:Qwen/Q-GGUF:Q4_K_M": ModelRef("hf", "Qwen/Q-GGUF", quant="Q4_K_M"),
    "hf:Qwen/Q-GGUF@main:Q4_K_M": ModelRef("hf", "Qwen/Q-GGUF", "main", quant="Q4_K_M"),
    "hf:Qwen/Q-GGUF@refs%2Fpr%2F3/sub/a.gguf": ModelRef("hf", "Qwen/Q-GGUF", "refs/pr/3", file="sub/a.gguf"),
    "ollama:llama3.2": ModelRef("ollama", "llama3.2"),
    "ollama:me/llama3.2:1b": ModelRef("ollama", "me/llama3.2", "1b"),
    "https://example.org/a.gguf": ModelRef("https", "https://example.org/a.gguf"),
    f"https://example.org/a.gguf#sha256={HEX}": ModelRef("https", "https://example.org/a.gguf", sha256=digest(HEX)),
    "http://127.0.0.1:8/a.gguf?x=1": ModelRef("https", "http://127.0.0.1:8/a.gguf?x=1"),
    "file:/srv/a b.gguf": ModelRef("file", "/srv/a b.gguf"),
    "pypi:some-dist": ModelRef("pypi", "some-dist"),
    "pypi:some-dist==1!2.0.post1": ModelRef("pypi", "some-dist", "1!2.0.post1"),
}

OTHER_SPELLINGS = {
    "  qwen2.5-coder:1.5b ": "qwen2.5-coder:1.5b",
    "hf://Qwen/Q-GGUF:Q4_K_M": "hf:Qwen/Q-GGUF:Q4_K_M",
    "hf.co/Qwen/Q-GGUF:Q4_K_M": "hf:Qwen/Q-GGUF:Q4_K_M",
    "https://huggingface.co/Qwen/Q-GGUF": "hf:Qwen/Q-GGUF",
    "https:example.org/a.gguf": "https://example.org/a.gguf",
    "./a.gguf": "file:./a.gguf",
    "a.gguf": "file:a.gguf",
    "~/models": "file:~/models",
    "file:///srv/a.gguf": "file:/srv/a.gguf",
}

WRONG = {
    "": "empty",
    "   ": "empty",
    "x" * (LIMIT + 1): "characters",
    "a\x00b": "control character at position 1",
    "a\ud800": "not valid text",
    "s3://bucket/a.gguf": "unknown scheme 's3'",
    "hff:Qwen/Q": "unknown scheme 'hff'",
    "Qwen/Q": "no short name",
    "hf:Qwen": "lacks ORG/REPO",
    "hf:../..": "organisation",
    "hf:Qwen/Q@../x": "revision",
    "hf:Qwen/Q:Q4/../../x": "not a quantization",
    "hf:Qwen/Q/../../etc/passwd": "plain path",
    "hf:Qwen/Q//etc/passwd": "plain path",
    "https://user:pw@example.org/a": "user or password",
    "https://example.org/a#md5=1": "unknown fragment",
    "https://example.org/a#sha256=12": "not a sha256",
    "https://": "no host",
    "https://[::1/a": "not a URL",
    "https://example.org:99999/a": "not a URL",
    "file:": "lacks a path",
    "pypi:-r": "distribution",
    "pypi:x==": "not a version",
    "pypi:x==--index-url": "not a version",
    "ollama:a/b/c": "not a model's name",
    "name:": "tag",
    "-rf": "name",
}


@pytest.mark.parametrize(("text", "ref"), CANONICAL.items())
def test_a_canonical_name_is_its_own_spelling(text: str, ref: ModelRef) -> None:
    assert ModelRef.parse(text) == ref
    assert str(ref) == text


@pytest.mark.parametrize(("text", "canonical"), OTHER_SPELLINGS.items())
def test_other_spellings_mean_the_same(text: str, canonical: str) -> None:
    assert str(ModelRef.parse(text)) == canonical


@pytest.mark.parametrize(("text", "says"), WRONG.items())
def test_a_wrong_name_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(BadUsage, match=says):
        ModelRef.parse(text)


# text near our grammar finds more than plain text does
pieces = st.sampled_from(
    ["hf:", "hf.co/", "https://", "http://", "file:", "pypi:", "ollama:", "a", "Q4_K_M", "/", ":", "@", "==", "..", "."]
) | st.sampled_from(
    ["#sha256=", HEX, "%2F", "%", "[", "]", "?", "\\", "é", "\u2028", " ", "1.0", "huggingface.co", "~"]
)
hostile = st.one_of(st.text(max_size=60), st.lists(pieces, max_size=9).map("".join))


@given(hostile)
@example("https://huggingface.co")
@example("https://[v1.a]/x")
@example("https://a:b/x")
@example("hf:a/b@%")
def test_hostile_text_is_wrong_usage_or_a_name_that_round_trips(text: str) -> None:
    try:
        ref = ModelRef.parse(text)
    except BadUsage:
        return
    again = ModelRef.parse(str(ref))
    assert str(again) == str(ref)
    assert again == ref
    if ref.file is not None:
        assert is_safe_name(ref.file)


segment = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)


@given(segment, segment, st.none() | st.lists(segment, min_size=1, max_size=3).map("/".join), st.none() | segment)
def test_every_hub_name_round_trips(org: str, repo: str, revision: str | None, quant: str | None) -> None:
    ref = ModelRef("hf", f"{org}/{repo}", revision, quant)
    assert ModelRef.parse(str(ref)) == ref


@given(st.text(max_size=80))
def test_a_safe_name_stays_inside(name: str) -> None:
    import posixpath

    if is_safe_name(name):
        joined = posixpath.normpath(posixpath.join("/root", name))
        assert joined.startswith("/root/")
        assert not set("\\:") & set(name)


@pytest.mark.parametrize("text", [HEX, HEX.upper(), "sha256:" + HEX, "sha256-" + HEX])
def test_a_digest_is_lower_case_hex(text: str) -> None:
    assert digest(text) == HEX


@given(st.text(max_size=80))
def test_a_digest_is_64_digits_or_wrong_usage(text: str) -> None:
    try:
        found = digest(text)
    except BadUsage:
        return
    assert len(found) == 64
    assert set(found) <= set("0123456789abcdef")
