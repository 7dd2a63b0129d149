"""Parts of an HTML page that needs nothing but itself: no script, no network, no other file."""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any


class Markup(str):
    """Text that is HTML already. Any other text is escaped where it enters a page."""


def page(title: str, parts: Iterable[Markup]) -> str:
    """Return a whole page. Its policy forbids every request, so that it opens the same anywhere."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{text(title)}</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n'
        f"</head>\n<body>\n<main>\n<h1>{text(title)}</h1>\n" + "\n".join(parts)
    ) + "\n</main>\n</body>\n</html>\n"


def text(value: Any) -> Markup:
    """Return any value as text of a page or of an attribute."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def section(title: str, parts: Sequence[Markup], otherwise: str) -> Markup:
    """Return a section; without parts it says `otherwise`."""
    inner = "\n".join(parts) if parts else paragraph(otherwise, "absent")
    return Markup(f"<section>\n<h2>{text(title)}</h2>\n{inner}\n</section>")


def paragraph(value: Any, kind: str = "") -> Markup:
    """Return a paragraph; `kind` is `absent` or `warning` or none."""
    return Markup(f'<p class="{text(kind)}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>")


def listed(values: Iterable[Any]) -> Markup:
    """Return a list with a bullet for each value."""
    return Markup("<ul>" + "".join(f"<li>{text(each)}</li>" for each in values) + "</ul>")


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], marked: Sequence[str] = ()
) -> Markup:
    """Return a table. The first cell of a row names it; rows named in `marked` stand out."""
    lines = ["".join(f'<th scope="col">{text(each)}</th>' for each in head)]
    for name, *cells in rows:
        kind = ' class="marked"' if name in marked else ""
        cells_of_row = "".join(f"<td>{text(each)}</td>" for each in cells)
        lines.append(f'<th scope="row"{kind}>{text(name)}</th>{cells_of_row}')
    top, *body = (f"<tr>{line}</tr>\n" for line in lines)
    title = f"<caption>{text(caption)}</caption>\n" if caption else ""
    return Markup(
        f'<div class="wide" tabindex="0"><table>\n{title}<thead>{top}</thead>\n'
        f"<tbody>{''.join(body)}</tbody>\n</table></div>"
    )


def figure(png: bytes, caption: str, *, is_pixels: bool = False) -> Markup:
    """Return a PNG with a caption, which is its description too.

    `is_pixels` says that it must not be smoothed when it is enlarged.
    """
    kind = ' class="pixels"' if is_pixels else ""
    data = base64.b64encode(png).decode()
    return Markup(
        f'<figure><img{kind} alt="{text(caption)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def figures(found: Sequence[Markup]) -> list[Markup]:
    """Return figures beside each other where there is room; [] without one."""
    return [Markup('<div class="figures">\n' + "\n".join(found) + "\n</div>")] if found else []


def folded(title: str, inner: Markup, *, is_open: bool = False) -> Markup:
    """Return a part that is shown when its title is chosen."""
    opened = " open" if is_open else ""
    return Markup(f"<details{opened}><summary>{text(title)}</summary>\n{inner}</details>")


STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5a6675; --line: #d8dee6; --tint: #f4f6f9; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.8rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem;
  border-bottom: 2px solid var(--line); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; overflow-wrap: anywhere; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: break-word; }
thead th { background: var(--tint); }
tbody th { font-weight: 500; }
tbody th.marked, tbody th.marked ~ td { background: #fff4d6; font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.25rem; align-items: start; }
figure { margin: 0; padding: .75rem; border: 1px solid var(--line); border-radius: .4rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.pixels { image-rendering: pixelated; }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .88rem; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; }
pre { background: var(--tint); padding: .75rem; overflow-x: auto; font-size: .82rem; }
.absent { color: var(--soft); font-style: italic; }
.warning { border-left: 4px solid #b45309; background: #fff7ed; padding: .5rem .75rem; }
@media print { body { font-size: 10pt; } main { max-width: none; padding: 0; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } .wide { overflow: visible; }
  th, td { overflow-wrap: anywhere; }
  pre { white-space: pre-wrap; } * { print-color-adjust: exact; } }
"""
