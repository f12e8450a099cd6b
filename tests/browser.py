"""A page as a real browser shows it: headless Chromium, where there is one, opens it in a frame of any width.

The browser is the program that OSTEOGRADE_BROWSER names, else the first Chromium on PATH.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = os.environ.get("OSTEOGRADE_BROWSER") or next((path for name in NAMES if (path := shutil.which(name))), "")
needs_browser = pytest.mark.skipif(
    not BROWSER, reason=f"no browser: none of {', '.join(NAMES)} is on PATH and OSTEOGRADE_BROWSER is not set"
)
DARK = "@media (prefers-color-scheme:dark)"

# What is wrong with a page: what is wider than it, words that are small, cut, upon each other or hard to see.
LOOK = """
const channel = text => (text.match(/[\\d.]+(e-?\\d+)?/g) || []).map(Number);
function colour(text) {
  const parts = channel(text), unit = text.startsWith("color(");
  return [...parts.slice(0, 3).map(v => unit ? v * 255 : v), parts.length > 3 ? parts[3] : 1];
}
function light(c) {
  const [r, g, b] = c.map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function ground(node) {
  for (let up = node; up; up = up.parentElement) {
    const c = colour(getComputedStyle(up).backgroundColor);
    if (c[3] > 0) return c;
  }
  return [255, 255, 255, 1];
}
function look() {
  const wrong = [], words = [];
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) wrong.push("the page is " + wide + " wide, the window " + innerWidth);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const own = node.parentElement, text = node.textContent.trim();
    if (!text || /^(SCRIPT|STYLE|TITLE|title|NOSCRIPT|OPTION)$/.test(own.tagName)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!box.width || !own.checkVisibility()) continue;
    const style = getComputedStyle(own), svg = own.closest("svg");
    const size = parseFloat(style.fontSize) * (svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1);
    if (size < 11.5) wrong.push("small, " + size.toFixed(1) + ": " + text);
    const [a, b] = [light(colour(svg ? style.fill : style.color)), light(ground(own))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) wrong.push("hard to see, " + contrast.toFixed(1) + ": " + text);
    if (svg) {
      const edge = svg.getBoundingClientRect(), at = own.getBoundingClientRect();
      if (at.left < edge.left - 1 || at.right > edge.right + 1 || at.top < edge.top - 1 || at.bottom > edge.bottom + 1)
        wrong.push("cut: " + text);
      words.push([svg, at, text]);
    } else if (!own.closest(".wide") && box.right > innerWidth + 1) wrong.push("beyond the edge: " + text);
  }
  words.forEach(([svg, a, text], i) => words.slice(i + 1).forEach(([other, b, more]) => {
    if (svg === other && a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
      wrong.push("upon each other: " + text + " | " + more);
  }));
  return wrong;
}
"""


def ask(page: Path, script: str, *, width: int = 1300, place: str = "", dark: bool = False) -> Any:
    """What a script says of a page in a frame of a width: ``script`` is the body of a function whose value is returned
    as JSON. place: what stands behind # in the address. dark: as a reader sees it who prefers dark pages."""
    text = page.read_text(encoding="utf-8")
    text = text.replace(DARK, "@media all") if dark else text
    answer = f"<script>{LOOK}addEventListener('load',()=>setTimeout(()=>parent.postMessage(JSON.stringify("
    text = text.replace("</body>", f"{answer}(()=>{{{script}}})()),'*'),400))</script></body>")
    asked, frame = page.with_name("asked.html"), page.with_name("frame.html")
    asked.write_text(text, encoding="utf-8")
    frame.write_text(
        f'<!doctype html><iframe src="asked.html#{html.escape(place)}" style="width:{width}px;height:900px;border:0">'
        "</iframe><pre></pre><script>addEventListener('message',event=>{document.querySelector('pre').textContent="
        "event.data})</script>"
    )
    try:
        dom = _dump(frame)
    finally:
        asked.unlink()
        frame.unlink()
    found = re.search(r"<pre>(.*)</pre>", dom, re.S)
    assert found and found[1], f"the page said nothing: {dom[-2000:]}"
    return json.loads(html.unescape(found[1]))


def _dump(page: Path) -> str:
    """The document that a page has become when it has settled."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
            "--virtual-time-budget=4000", "--window-size=1600,1000", "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
