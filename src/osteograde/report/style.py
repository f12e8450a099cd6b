"""The style sheet of every HTML page, and the frame of pages of sections. A page of tables needs no torch for it.

Pages follow the reader's choice of light or dark. Charts take all their colours from here: ``s0`` to ``s5`` are series,
``axis`` lines, ``soft`` words of less weight. Text is at least 12 pixels high, also in charts, which are as wide as a
phone at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

SERIES = 6  # colours of series

THEME = """
:root{color-scheme:light dark;--page:#f4f6f8;--card:#fff;--ink:#1a1f26;--soft:#4d5661;--line:#d5dae0;--link:#174f8f;
--accent:#1f5fa8;--s0:#1f5fa8;--s1:#b3530a;--s2:#2b7a3d;--s3:#7b3fa0;--s4:#b01f5c;--s5:#0b7285}
@media (prefers-color-scheme:dark){:root{--page:#0f1318;--card:#181d24;--ink:#e6eaf0;--soft:#a9b3bf;--line:#343c47;
--link:#82b4f5;--accent:#3f7fd0;--s0:#6ea8fe;--s1:#ffa657;--s2:#74d680;--s3:#cf9ff5;--s4:#ff86a8;--s5:#56d4dd}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0 .8rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .6rem}
h3{font-size:1rem;margin:1rem 0 .3rem;overflow-wrap:anywhere}
a{color:var(--link)}
"""

CSS = (
    THEME
    + """
main{max-width:1120px;margin:0 auto;padding:1.2rem 1rem 4rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1rem;margin-bottom:1rem}
section{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:1rem 1.2rem;margin:0 0 1rem}
p{margin:.3rem 0 .7rem;max-width:75ch;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.15rem 1rem;margin:0 0 1rem}
dt,.cap,figcaption{color:var(--soft)}
.cap{margin:0 0 .3rem;font-size:.92rem}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:0 0 1rem;max-width:100%}
table{border-collapse:collapse;font-size:.92rem}
caption{text-align:left;color:var(--soft);padding:0 0 .3rem}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{border-bottom:2px solid var(--line);font-weight:600;vertical-align:bottom;white-space:normal}
tbody th{font-weight:400;position:sticky;left:0;background:var(--card)}
.n{text-align:right;font-variant-numeric:tabular-nums}
.heat td small{display:block;font-size:.78rem}
.heat td.cell{background:color-mix(in srgb,var(--accent) calc(var(--p)*.55%),var(--card))}
.grid,.charts{display:flex;flex-wrap:wrap;gap:.4rem 1.4rem}
.charts figure{width:320px}
svg{display:block;max-width:100%;height:auto;margin:0 0 .5rem}
svg text{fill:var(--ink);font-size:12px;font-family:inherit}
svg text.soft{fill:var(--soft)}
svg text.big{font-size:15px;font-weight:600}
svg .axis{stroke:var(--soft);fill:none}
svg .rule{stroke:var(--line);fill:none}
svg .bar{fill:var(--accent)}
svg .grey{fill:var(--soft)}
svg polyline,svg .stroke{fill:none;stroke:currentColor;stroke-width:2}
svg circle,svg .fill{fill:currentColor}
.s0{color:var(--s0)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}.s4{color:var(--s4)}.s5{color:var(--s5)}
svg text.s0,svg text.s1,svg text.s2,svg text.s3,svg text.s4,svg text.s5{fill:currentColor}
.swatch{display:inline-block;width:.8em;height:.8em;border-radius:2px;background:currentColor;margin-right:.4em}
.big{font-size:2.6rem;line-height:1.1;font-weight:650;margin:0}
.headline{display:flex;flex-wrap:wrap;gap:.4rem 3rem}
.headline>div{flex:1 1 300px}
.headline p{margin:.1rem 0 .4rem}
.grid>div,.charts>div{min-width:0;max-width:100%}
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:1rem}
.case{border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;min-width:0}
.case h3{margin:0 0 .2rem}
.case p{max-width:none}
.strip{display:flex;flex-wrap:wrap;gap:.6rem;margin:0 0 .6rem}
.case .strip figure{flex:1 1 45%;max-width:260px}
summary{cursor:pointer;color:var(--link);min-height:24px}
figure{margin:0;max-width:100%}
img{display:block;max-width:100%;height:auto;background:#000;border-radius:4px}
figcaption{font-size:.8rem;overflow-wrap:anywhere}
@media (max-width:600px){section{padding:.8rem}th,td{padding:.2rem .4rem}
tbody th{white-space:normal;min-width:7rem}thead th{min-width:5rem}
dl{grid-template-columns:1fr}dt{margin-top:.3rem}}
@media print{section{break-inside:avoid;border:0}body{background:#fff}}
"""
)


def document(title: str, sections: Mapping[str, str], *, lead: str = "", style: str = "") -> str:
    """A whole page: its title, links to all sections, and the sections under their names. sections: name -> HTML. lead:
    HTML between the title and the links. style: CSS of this page alone."""
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in sections)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{part}</section>' for name, part in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}{style}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{lead}<nav>{links}</nav>{body}</main></body></html>\n"
    )


def _anchor(name: str) -> str:
    """The name of a section as the target of a link."""
    return name.lower().replace(" ", "-").replace(",", "")
