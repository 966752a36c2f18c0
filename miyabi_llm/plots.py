"""Pictures of a report: a Vega-Lite description becomes SVG or PNG here, without a browser or a network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miyabi_llm.errors import BadUsage, Missing, MiyabiError

VEGA_LITE = "5.21"
NO_LIBRARY, GET_IT = "the library that draws is not here", "pip install vl-convert-python"
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', sans-serif"
_STYLE = f"""
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 {_FONT}; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }}
figure {{ margin: 1.5rem 0; background: #fff; border-radius: 6px; padding: .5rem; overflow-x: auto; }}
figure svg {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
th, td {{ padding: .25rem .45rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }}
td, th {{ font-size: 14px; }}
th:first-child, td:first-child, td:last-child, th:last-child {{ text-align: left; }}
tr.pick {{ font-weight: 600; background: #2a78; }}
.note {{ border-left: 4px solid #c80; padding: .2rem .8rem; margin: .4rem 0; }}
table.texts {{ margin-bottom: 1.4rem; }}
table.texts td {{ vertical-align: top; text-align: left; }}
td.text {{ white-space: pre-wrap; overflow-wrap: anywhere; width: 100%; font-family: ui-monospace, monospace; }}
dt {{ font-weight: 600; }} dd {{ margin: 0 0 .5rem 1rem; overflow-wrap: anywhere; }}
"""


def svg(spec: Mapping[str, Any]) -> str:
    """The picture as SVG text. Raises Missing without the library, MiyabiError on a description it cannot draw."""
    return str(_draw("vegalite_to_svg", spec))


def png(spec: Mapping[str, Any], scale: float = 2.0) -> bytes:
    """The picture as a PNG, `scale` pixels for each unit. Raises as `svg` does."""
    drawn = _draw("vegalite_to_png", spec, scale=scale)
    assert isinstance(drawn, bytes)
    return drawn


def _draw(name: str, spec: Mapping[str, Any], **more: Any) -> Any:
    try:
        import vl_convert
    except ImportError:
        raise Missing(NO_LIBRARY, hint=GET_IT) from None
    try:
        return getattr(vl_convert, name)(dict(spec), vl_version=VEGA_LITE, allowed_base_urls=[], **more)
    except ValueError as e:
        raise MiyabiError(f"the picture cannot be drawn: {str(e)[:300]}") from e


def page(title: str, parts: Sequence[str]) -> str:
    """A page that needs nothing else: `parts` are HTML, `title` is text. It holds no script and loads nothing."""
    safe = html.escape(title)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}"><title>{safe}</title>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{view}<style>{_STYLE}</style></head>\n'
        f"<body><h1>{safe}</h1>\n{body}\n</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], picked: int | None = None) -> str:
    """An HTML table of texts; the row number `picked` stands out."""
    cells = ["<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in header) + "</tr>"]
    for i, row in enumerate(rows):
        mark = ' class="pick"' if i == picked else ""
        cells.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>")
    return f'<div class="wide"><table>{"".join(cells)}</table></div>'


def check(path: Path) -> None:
    """Whether a report could be written there. Raises BadUsage, Missing without the library that draws."""
    if path.suffix.lower() not in (".html", ".svg", ".png"):
        raise BadUsage(f"{path}: a report is .html, .svg or .png", hint="--report report.html")
    if not path.absolute().parent.is_dir():
        raise BadUsage(f"{path}: there is no such folder", hint="Name a file in a folder that is there.")
    import importlib.util

    if importlib.util.find_spec("vl_convert") is None:
        raise Missing(NO_LIBRARY, hint=GET_IT)


def save(path: Path, spec: Mapping[str, Any], whole: str) -> None:
    """Write the page `whole` to a .html, or the picture alone to a .svg or .png. Raises BadUsage, MiyabiError."""
    check(path)
    kind = path.suffix.lower()
    data = png(spec) if kind == ".png" else (whole if kind == ".html" else svg(spec)).encode()
    try:
        path.write_bytes(data)
    except OSError as e:
        raise BadUsage(f"{path}: {e.strerror}", hint="Name a file in a folder that is there.") from e
