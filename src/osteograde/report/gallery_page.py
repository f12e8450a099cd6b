"""The style and the script of the gallery (gallery.py).

What is chosen stands behind # in the address: #flag=CODE&class=0&most=60&q=TEXT&order=sure&study=3&slice=2, so a view
can be linked to. Cards are made as they come into view. All text is set as text, never as HTML.
"""

from __future__ import annotations

from osteograde.report.style import THEME

STYLE = (
    THEME
    + """
main{max-width:1500px;margin:0 auto;padding:1rem}
form{display:flex;flex-wrap:wrap;gap:.6rem 1.2rem;align-items:end;margin:0 0 .6rem}
label{display:grid;gap:.15rem;color:var(--soft);font-size:.9rem;min-width:0}
input,select,button{font:inherit;color:var(--ink);background:var(--card);border:1px solid var(--line);border-radius:6px;
padding:.35rem .6rem;max-width:100%;min-height:34px}
input[type=range]{padding:0;border:0;accent-color:var(--accent);background:none}
button{cursor:pointer}
#count{margin:.2rem 0 .8rem}
#cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:1rem}
.card{display:flex;flex-direction:column;justify-content:flex-start;text-align:left;
padding:0 0 .6rem;border-radius:8px;overflow:hidden;min-width:0}
.card img{display:block;width:100%;aspect-ratio:3/2;object-fit:contain;background:#14181e}
.card strong,.card span{display:block;padding:.15rem .7rem;overflow-wrap:anywhere}
.card span{font-size:.9rem}
.soft{color:var(--soft)}
.flag{color:var(--s1)}
dialog{width:min(1300px,100vw);max-width:100vw;max-height:100vh;border:1px solid var(--line);border-radius:8px;
background:var(--card);color:var(--ink);padding:1rem}
dialog::backdrop{background:rgba(0,0,0,.6)}
header{display:flex;flex-wrap:wrap;gap:.5rem 1rem;justify-content:space-between}
header h2{margin:0;overflow-wrap:anywhere}
dialog img{display:block;max-width:100%;height:auto;margin:.6rem 0;background:#14181e}
#slicepicture{max-height:70vh}
.row{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center}
.row input{flex:1 1 80px;min-width:0}
.sides{display:flex;flex-wrap:wrap;gap:.5rem 1.2rem}
.sides>*{flex:1 1 400px;min-width:0;max-width:100%}
.sides .wide{max-height:80vh;overflow:auto}
#said{margin:.6rem 0 .3rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.92rem}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid var(--line)}
.n{text-align:right;font-variant-numeric:tabular-nums}
[hidden]{display:none!important}
"""
)

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const CHUNK = 48;
let chosen = [], drawn = 0, open = -1;

function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

function choices(select, first, names, counts) {
  for (const [value, text] of first) select.append(new Option(text, value));
  names.forEach((name, i) => select.append(new Option(name + " (" + counts[i] + ")", i)));
}

function count(test) {
  return data.studies.filter(study => study.rows.some(test)).length;
}

function state() {
  return {q: at("q").value, flag: at("flag").value, class: at("class").value, most: at("most").value,
          order: at("order").value};
}

function matches(row, now) {
  const [, grade, sure, flags] = row;
  if (now.flag === "any" && !flags.length) return false;
  if (now.flag === "none" && flags.length) return false;
  if (now.flag !== "" && now.flag !== "any" && now.flag !== "none" && !flags.includes(+now.flag)) return false;
  if (now.class !== "" && grade !== +now.class) return false;
  return +now.most >= 100 || sure <= +now.most;
}

function rowText(row) {
  const name = row[1] < 0 ? "not graded, holds the prior" : data.classes[row[1]] + ", " + Math.round(row[2]) + " %";
  return data.targets[row[0]] + ": " + name;
}

function card(place) {
  const {study, rows} = chosen[place], node = make("button", undefined, "card"), picture = make("img");
  node.dataset.study = study.id;
  picture.loading = "lazy";
  picture.alt = "";
  picture.src = study.picture;
  node.append(picture, make("strong", study.id));
  for (const row of rows.slice(0, 4)) node.append(make("span", rowText(row)));
  if (rows.length > 4) node.append(make("span", "and " + (rows.length - 4) + " more rows", "soft"));
  const flags = [...new Set(rows.flatMap(row => row[3]))].map(i => data.flags[i]);
  if (flags.length) node.append(make("span", flags.join(", "), "flag"));
  node.addEventListener("click", () => show(place, 1));
  return node;
}

function more() {
  for (const end = Math.min(drawn + CHUNK, chosen.length); drawn < end; drawn++) at("cards").append(card(drawn));
}

function update() {
  const now = state(), words = now.q.toLowerCase();
  chosen = data.studies.filter(study => study.id.toLowerCase().includes(words))
    .map(study => ({study, rows: study.rows.filter(row => matches(row, now)).sort((a, b) => b[1] - a[1])}))
    .filter(one => one.rows.length);
  const least = one => Math.min(...one.rows.map(row => row[2]));
  if (now.order === "sure") chosen.sort((a, b) => least(a) - least(b));
  at("mostsaid").textContent = now.most + " %";
  at("count").textContent = chosen.length + " of " + data.studies.length + " studies";
  at("cards").replaceChildren();
  drawn = 0;
  more();
  remember();
}

function remember() {
  const told = new URLSearchParams();
  for (const [name, value] of Object.entries(state())) {
    if (value === "" || (name === "most" && value === "100")) continue;
    told.set(name, name === "flag" && data.flags[value] !== undefined ? data.flags[value] : value);
  }
  if (open >= 0) {
    told.set("study", data.studies.indexOf(chosen[open].study) + 1);
    if (chosen[open].study.slices.length) told.set("slice", at("slice").value);
  }
  history.replaceState(null, "", "#" + told);
}

function recall() {
  const told = new URLSearchParams(location.hash.slice(1)), flag = told.get("flag") || "";
  at("q").value = told.get("q") || "";
  at("flag").value = data.flags.includes(flag) ? data.flags.indexOf(flag) : flag;
  at("class").value = told.get("class") || "";
  at("most").value = told.get("most") || 100;
  at("order").value = told.get("order") || "";
  const study = data.studies[told.get("study") - 1], slice = +told.get("slice") || 1;
  open = -1;
  update();
  const place = chosen.findIndex(one => one.study === study);
  if (place >= 0) show(place, slice); else at("viewer").close();
}

function show(place, slice) {
  if (place < 0 || place >= chosen.length) return;
  open = place;
  const study = chosen[place].study;
  at("name").textContent = study.id;
  at("picture").src = study.picture;
  at("picture").alt = "points, crops and probabilities of study " + study.id;
  at("slices").hidden = !study.slices.length;
  at("slice").max = study.slices.length;
  at("before").disabled = place === 0;
  at("next").disabled = place === chosen.length - 1;
  at("rows").replaceChildren(...study.rows.map(row => {
    const line = make("tr"), graded = row[1] >= 0;
    line.append(make("td", data.targets[row[0]]), make("td", graded ? data.classes[row[1]] : "prior"),
                make("td", graded ? row[2].toFixed(1) + " %" : "-", "n"),
                make("td", row[3].map(i => data.flags[i]).join(", "), "flag"));
    return line;
  }));
  if (!at("viewer").open) at("viewer").showModal();
  turn(slice);
}

function turn(slice) {
  const slices = chosen[open].study.slices;
  if (slices.length) {
    const number = Math.min(Math.max(slice, 1), slices.length), [source, words] = slices[number - 1];
    at("slice").value = number;
    at("slicepicture").src = source;
    at("slicepicture").alt = words;
    at("said").textContent = words + " (" + number + " of " + slices.length + " with points)";
    at("down").disabled = number === 1;
    at("up").disabled = number === slices.length;
  }
  remember();
}

choices(at("flag"), [["", "all rows"], ["any", "with a flag"], ["none", "without a flag"]], data.flags,
        data.flags.map((_, i) => count(row => row[3].includes(i))));
choices(at("class"), [["", "all"]], data.classes, data.classes.map((_, i) => count(row => row[1] === i)));
if (count(row => row[1] < 0)) at("class").append(new Option("not graded", -1));
at("filter").addEventListener("submit", event => event.preventDefault());
for (const id of ["q", "flag", "class", "most", "order"]) at(id).addEventListener("input", update);
at("before").addEventListener("click", () => show(open - 1, 1));
at("next").addEventListener("click", () => show(open + 1, 1));
at("close").addEventListener("click", () => at("viewer").close());
at("viewer").addEventListener("close", () => { open = -1; remember(); });
at("slice").addEventListener("input", () => turn(+at("slice").value));
at("down").addEventListener("click", () => turn(+at("slice").value - 1));
at("up").addEventListener("click", () => turn(+at("slice").value + 1));
at("slicepicture").addEventListener("wheel", event => {
  event.preventDefault();
  turn(+at("slice").value + Math.sign(event.deltaY));
}, {passive: false});
document.addEventListener("keydown", event => {
  if (open < 0 || event.target === at("slice")) return;
  const several = chosen[open].study.slices.length > 1, step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  const studies = {PageUp: -1, PageDown: 1}[event.key];
  if (step && several) turn(+at("slice").value + step); else if (step || studies) show(open + (step || studies), 1);
  if (step || studies) event.preventDefault();
});
new IntersectionObserver(seen => { if (seen.some(one => one.isIntersecting)) more(); },
                         {rootMargin: "600px"}).observe(at("end"));
addEventListener("hashchange", recall);
recall();
"""
