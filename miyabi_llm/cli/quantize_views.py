"""How a plan and a finished quantization look to a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from miyabi_llm.cli.show import human, note, table

if TYPE_CHECKING:
    from miyabi_llm.quantize import Made, Plan, Planned


def plan(found: Plan) -> None:
    """A line for each type, the largest first."""
    rows = []
    for p in sorted(found.types, key=lambda p: -p.size):
        fits = "" if p.fits is None else "fits" if p.fits else "does not fit"
        saved, bits = f"{100 * p.saved:.1f}%", f"{p.bits:.2f}"
        rows.append((p.type, human(p.size), saved, bits, human(p.needed), fits, _remark(p)))
    table(("TYPE", "SIZE", "SAVED", "BITS", f"MEMORY AT {found.ctx}", "", ""), rows)
    note(f"source: {found.source}, {human(found.source_size)}; {found.provenance.evidence}")
    if found.budget is not None:
        note(f"to be made, in this order, until one passes: {', '.join(found.order) or 'none fits'}")
    note(f"disk while it works: at most {human(sum(found.disk.values()))}")


def _remark(p: Planned) -> str:
    if p.needs_imatrix:
        return "needs an importance matrix"
    if p.dominated:
        return f"not smaller than {p.dominated}, and expected to be worse"
    return f"tensors of another type: {p.fallbacks}" if p.fallbacks else ""


def made(found: Made) -> None:
    """What was measured, the front marked, then the chosen file."""
    from miyabi_llm.quantize import report

    header = tuple(c.upper() for c in report.COLUMNS)
    table(header, report.rows(found))
    q, chosen = found.quality, found.chosen
    print(f"\n{found.artifact.ref}  {human(found.artifact.size)}  {q.kld:.6f} nats\nagainst {q.against}")
    print(f"measured on {q.tokens} tokens in {q.chunks} windows")
    resident = f", {human(found.resident)} resident in a server" if found.resident is not None else ""
    print(f"memory {human(chosen.needed)} planned at {found.plan.ctx} tokens{resident}")
    if s := found.speed:
        writing, reading = f"{s.speed:.1f} ± {s.spread:.1f}", f"{s.prompt_speed:.1f} ± {s.prompt_spread:.1f}"
        print(f"{writing} tokens/s writing, {reading} reading, {s.threads} threads")
    if h := found.handed:
        alike = f"{h.probes} prompts rendered alike" if h.probes else "no template to compare"
        print(f"Ollama on {h.url}: {h.name}, {alike}")
    for line in found.notes:
        note(f"note: {line}")
