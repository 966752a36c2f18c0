"""How models, checks and the store's disk look to a person."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from miyabi_llm.cli.show import human, note, table

if TYPE_CHECKING:
    from miyabi_llm.bundle import Exported, Imported
    from miyabi_llm.describe import Description
    from miyabi_llm.outdated import Standing
    from miyabi_llm.store import Pruned, Removed, Usage
    from miyabi_llm.store.link import Linked
    from miyabi_llm.types import Artifact


def models(found: list[Artifact]) -> None:
    """One line per model."""
    if found:
        table(
            ("NAME", "FORMAT", "SIZE", "TRUST", "PULLED"),
            ((str(a.ref), a.format, human(a.size), a.trust, a.pulled_at[:10]) for a in found),
        )


def description(found: Description) -> None:
    """What the header says, then the files, then the card."""
    rows: list[tuple[str, object]] = [
        ("name", found.name),
        ("format", found.format),
        ("architecture", found.architecture),
        ("parameters", f"{found.parameters:,}"),
        ("context length", f"{found.context_length:,} tokens" if found.context_length else None),
        ("layers", found.layers),
        ("quantization", found.quantization),
        ("chat template", "yes" if found.chat_template else "no: a base model"),
        ("license", found.license),
        ("size", human(found.size)),
    ]
    if found.artifact:
        rows += [
            ("trust", found.artifact.trust),
            ("source", found.artifact.source),
            ("pulled", found.artifact.pulled_at),
        ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        if value is not None:
            print(f"{name:<{width}}  {clean(str(value))}")
    print()
    table(("TENSORS", "COUNT", "SIZE"), ((t.type, str(t.count), human(t.bytes)) for t in found.tensors))
    if found.artifact:
        print()
        table(("FILE", "SIZE", "SHA256"), ((f.name, human(f.size), f.sha256) for f in found.artifact.files))
        _show_card(found.artifact)


def _show_card(artifact: Artifact) -> None:
    facts = {k: v for k, v in artifact.card.items() if k not in ("source", "asked", "pulled_at") and v}
    if facts:
        print("\ncard")
    for key, value in facts.items():
        print(f"  {key}: {_text(value)}")


def value(value: Any) -> None:
    """One fact; objects as JSON."""
    print(_text(value))


def clean(text: str) -> str:
    """`text` without the control characters by which a model's own words could steer the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _text(value: Any) -> str:
    return clean(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def checks(found: dict[str, Any]) -> None:
    """A line per file on stdout; what is wrong, and how to mend it, on stderr."""
    for check in found["models"]:
        for file in check["files"]:
            print(f"{'ok ' if file.ok else 'BAD'}  {check['ref']}  {file.name}")
            if not file.ok:
                note(f"{file.name}: {file.problem}\n  expected sha256 {file.sha256}\n  found    sha256 {file.found}")
                if file.moved_to:
                    note(f"  the wrong bytes are kept at {file.moved_to}")
                note(f"  Repair it: miyabi-llm pull {check['ref']}")
    for problem in found["problems"]:
        print(f"BAD  {problem.name}")
        note(f"{problem.name}: {problem.message}" + (f"\n  {problem.fix}" if problem.fix else ""))


def removals(found: list[Removed]) -> None:
    """What is gone and what that freed."""
    for gone in found:
        why = f": {gone.kept}" if gone.kept else ""
        print(f"removed {gone.ref}, {human(gone.bytes)} free again{why}")


def pruned(found: Pruned) -> None:
    """What was removed or would be; what was kept and why on stderr."""
    things = [r for r in found.removed if r.kind != "lease"]  # a dead lease is an empty file: nobody misses it
    if things:
        table(("WHAT", "SIZE", "WHY", "PATH"), ((r.kind, human(r.bytes), r.reason, str(r.path)) for r in things))
    for kept in found.kept:
        note(f"kept {kept.path} ({human(kept.bytes)}): {kept.reason}")
    if found.dry_run and things:
        print(f"{human(found.bytes)} would be free again: run `miyabi-llm prune --yes`.")
    else:
        print(f"{human(found.bytes)} free again." if things else "Nothing to remove.")


def usage(found: Usage) -> None:
    """Bytes per model and of the store."""
    table(("MODEL", "SIZE", "SHARED"), ((str(m.ref), human(m.bytes), human(m.shared)) for m in found.models))
    print()
    rows = [(name, human(getattr(found, name))) for name in ("blobs", "unused", "partial", "quarantine", "free")]
    table(("STORE", "SIZE"), rows)


def standings(found: list[Standing]) -> None:
    """How each model stands to its source."""
    rows = ((str(s.ref), s.state, (s.here or "")[:12], (s.there or "")[:12], s.reason) for s in found)
    if found:
        table(("NAME", "STATE", "HERE", "THERE", "WHY"), rows)
    for s in found:
        if s.state == "outdated":
            note(f"miyabi-llm pull --refresh {s.ref}")


def linked(found: Linked) -> None:
    """Where the model appears now."""
    print(f"{found.tool}: {found.name}")
    for path, how in found.files.items():
        print(f"  {how:<8}  {path}")
    for text in found.notes:
        note(text)


def exported(found: Exported) -> None:
    """The written file and its hash."""
    print(f"{found.path}  {human(found.size)}  {found.ref}\nsha256 {found.sha256}")


def imported(found: Imported) -> None:
    """The model that came."""
    a = found.artifact
    print(f"{a.ref}  {a.format}  {human(a.size)}  {a.trust}")
    if a.trust != found.claimed:
        note(f"It was {found.claimed} where it was exported; nothing here vouches for that.")
