"""The report as one HTML page that needs nothing else: no network, no scripts (its own policy forbids them); light or dark, wide or narrow.

Text comes as Markdown and is made HTML by markdown-it, which lets no HTML through; charts come as SVG from matplotlib, in which text is
outlines.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from markdown_it import MarkdownIt

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --paper: #ffffff; --soft: #5b616b; --line: #d6d9de; --band: #f4f5f7; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #16181c; --soft: #a2a8b3; --line: #3a3f47; --band: #1f2227; --link: #7db7f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 1rem 1.5rem 3rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; } a { color: var(--link); } p { max-width: 75em; }
code, pre { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--band); padding: 0.7rem 0.9rem; border-radius: 6px; white-space: pre-wrap; }
.scroll { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.87em; overflow-wrap: normal; }
th, td { padding: 0.25rem 0.42rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--band); white-space: nowrap; } td { min-width: 2.5em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(370px, 100%), 1fr)); gap: 0.6rem 1.2rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; font-size: 0.95em; margin: 0.4rem 0; }
svg { display: block; width: 100%; height: auto; max-width: 560px; }
@media (max-width: 600px) { body { padding: 0.6rem 0.8rem 2rem; font-size: 14px; } h1 { font-size: 1.3rem; } }
"""


class Charts(NamedTuple):
    """A heading, a line of text below it, and charts: a caption and an <svg> element each."""

    title: str
    note: str
    charts: Sequence[tuple[str, str]]


def render_page(title: str, parts: Sequence[str | Charts]) -> str:
    """Markdown parts and charts, in order."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.disable("image")  # a picture would be fetched from elsewhere
    body = []
    for part in parts:
        if isinstance(part, Charts):
            body.append(_charts(part))
        else:
            body.append(markdown.render(part).replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>"))
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _charts(part: Charts) -> str:
    figures = []
    for caption, svg in part.charts:
        named = html.escape(caption)
        drawing = svg.replace("<svg ", f'<svg role="img" aria-label="{named}" ', 1)
        figures.append(f"<figure><figcaption>{named}</figcaption>{drawing}</figure>")
    head = f"<h2>{html.escape(part.title)}</h2>\n<p>{html.escape(part.note)}</p>\n"
    return f'{head}<div class="charts">' + "\n".join(figures) + "</div>"
