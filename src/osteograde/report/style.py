"""The style sheet of every HTML page. It stands alone, so that a page of tables needs no torch."""

from __future__ import annotations

CSS = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:#f6f7f9;color:#1a1f26;font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .6rem}
h3{font-size:1rem;margin:1rem 0 .3rem;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1rem;margin-bottom:1rem}
a{color:#174f8f}
section{background:#fff;border:1px solid #dfe3e8;border-radius:8px;padding:1rem 1.2rem;margin:0 0 1rem}
p{margin:.3rem 0 .7rem;max-width:75ch}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.15rem 1rem;margin:0 0 1rem}
dt{color:#4a535e}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:0 0 1rem}
table{border-collapse:collapse;font-size:.92rem}
caption{text-align:left;color:#4a535e;padding:0 0 .3rem}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #e6e9ed;white-space:nowrap}
thead th{border-bottom:2px solid #c3c9d1;font-weight:600}
tbody th{font-weight:400}
.n{text-align:right;font-variant-numeric:tabular-nums}
.heat td small{display:block;font-size:.75rem}
.grid{display:flex;flex-wrap:wrap;gap:0 1.2rem}
svg{display:block;width:100%;height:auto;margin:0 0 .5rem}
.case{border-top:1px solid #e6e9ed;padding:.4rem 0 .8rem}
.case p{max-width:none}
.bars{max-width:390px}
.strip{display:flex;flex-wrap:wrap;gap:.6rem;margin:0 0 .6rem}
figure{margin:0;max-width:100%}
img{display:block;max-width:100%;height:auto;background:#000;border-radius:4px}
figcaption{font-size:.8rem;color:#4a535e}
@media (max-width:600px){section{padding:.8rem}th,td{padding:.2rem .4rem}
dl{grid-template-columns:1fr}dt{margin-top:.3rem}}
@media print{section{break-inside:avoid;border:0}body{background:#fff}}
"""
