"""The style sheet of the page: one column, light and dark by the reader's setting, fit for paper."""

STYLE = """
:root {
  --paper: #ffffff; --panel: #f5f7f9; --ink: #1b2430; --soft: #3f4a58; --muted: #66707f; --rule: #d4d9e0;
  --accent: #0072b2; --good: #0b7a53; --bad: #b3400a; --chip: #e9edf2; --warn: #fff1d6; --warn-ink: #6b4700;
  --direct: #0072b2; --reconstructed: #d55e00; --before: #8a929e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181e; --panel: #1c222a; --ink: #e8ecf1; --soft: #c3cad3; --muted: #98a2b0; --rule: #343d49;
    --accent: #6cb8e8; --good: #5fd0a3; --bad: #ff9a6b; --chip: #262e38; --warn: #3d3015; --warn-ink: #ffdf9e;
    --direct: #4ba9e6; --reconstructed: #f58b3c; --before: #98a2b0;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header, footer { max-width: 1180px; margin: 0 auto; padding: 0 32px; }
header { padding-top: 44px; }
h1 {
  font-size: 2.35rem; line-height: 1.16; letter-spacing: -0.018em; margin: 6px 0 10px; max-width: 24em;
  text-wrap: balance;
}
h2 { font-size: 1.42rem; line-height: 1.25; letter-spacing: -0.01em; margin: 0 0 10px; }
h3 { font-size: 1.02rem; margin: 26px 0 8px; }
p { margin: 0 0 12px; max-width: 74ch; }
a { color: var(--accent); }
.kicker { color: var(--muted); font-size: .84rem; margin: 0; letter-spacing: .02em; }
.lede { font-size: 1.1rem; color: var(--soft); max-width: 70ch; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; list-style: none; padding: 0; margin: 18px 0 0; }
.chips li { background: var(--chip); border-radius: 999px; padding: 3px 12px; font-size: .84rem; }
.chips .warn { background: var(--warn); color: var(--warn-ink); font-weight: 600; }
nav {
  display: flex; flex-wrap: wrap; gap: 4px 20px; border-bottom: 1px solid var(--rule); margin-top: 26px;
  padding-bottom: 10px; font-size: .88rem;
}
nav a { color: var(--muted); text-decoration: none; white-space: nowrap; }
nav a:hover { color: var(--accent); text-decoration: underline; }
section { padding: 34px 0 26px; border-bottom: 1px solid var(--rule); }
section:last-of-type { border-bottom: 0; }
.stats { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; margin: 4px 0 22px; }
.stat { background: var(--panel); border-radius: 10px; padding: 16px 20px 14px; }
.stat h3 { margin: 0 0 2px; font-size: .88rem; font-weight: 600; color: var(--soft); }
.stat p { font-size: .87rem; color: var(--muted); margin: 4px 0 0; line-height: 1.42; }
.stat p.big {
  color: var(--ink); font-size: 1.62rem; font-weight: 650; letter-spacing: -0.015em; margin: 0;
  white-space: nowrap; font-variant-numeric: tabular-nums;
}
.stat .from { color: var(--muted); font-weight: 450; }
.stat .by { font-size: .92rem; font-weight: 600; margin-left: 6px; letter-spacing: 0; }
.good { color: var(--good); } .bad { color: var(--bad); }
table { border-collapse: collapse; font-size: .92rem; }
caption { text-align: left; font-weight: 600; padding: 0 0 6px; }
th { text-align: left; font-weight: 500; }
.scores { width: 100%; margin: 4px 0 18px; font-variant-numeric: tabular-nums; }
.scores th, .scores td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: middle; }
.scores thead th { color: var(--muted); font-size: .84rem; padding-bottom: 4px; }
.scores small { display: block; color: var(--muted); font-size: .82rem; line-height: 1.35; }
.scores td { width: 27%; white-space: nowrap; }
.bar {
  display: inline-block; width: 62%; height: 9px; background: var(--chip); border-radius: 5px;
  margin-right: 12px; overflow: hidden;
}
.bar i { display: block; height: 100%; border-radius: 5px; background: var(--before); }
.bar i.direct { background: var(--direct); } .bar i.reconstructed { background: var(--reconstructed); }
.bar i.trivial { background: repeating-linear-gradient(90deg, var(--before) 0 5px, transparent 5px 8px); }
.words { display: grid; grid-template-columns: repeat(2, 1fr); gap: 4px 36px; margin: 10px 0 0; font-size: .92rem; }
.words div { padding: 6px 0; } .words dt { font-weight: 600; } .words dd { margin: 0; color: var(--soft); }
.read {
  background: var(--panel); border-left: 3px solid var(--accent); border-radius: 0 8px 8px 0;
  padding: 10px 16px; margin: 14px 0 16px; font-size: .92rem; color: var(--soft); max-width: 96ch;
}
.read strong { color: var(--ink); margin-right: 6px; }
.notice {
  background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: 10px 16px; margin: 14px 0;
  max-width: 96ch; font-size: .95rem;
}
figure { margin: 0; min-width: 0; }
figcaption { font-size: .88rem; font-weight: 600; margin-bottom: 5px; }
figure .note, .note { font-size: .84rem; color: var(--muted); margin: 5px 0 0; line-height: 1.42; }
img, svg { display: block; width: 100%; height: auto; }
img { border-radius: 4px; background: var(--panel); }
.pixels, svg image { image-rendering: pixelated; }
.two h3, .three h3 { margin-top: 0; }
.two .read, .three .read { margin: 26px 0 0; }
.two, .three { display: grid; gap: 26px 30px; margin: 16px 0; align-items: start; }
.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.stack figure + figure { margin-top: 18px; }
.rig { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 4px; }
.strip { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 10px; margin: 20px 0 4px; }
.strip figcaption { font-weight: 500; color: var(--soft); margin: 6px 0 0; }
.strip figure { display: flex; flex-direction: column; }
.scroll { overflow-x: auto; }
.pics { width: 100%; min-width: 720px; table-layout: fixed; }
.pics th, .pics td { padding: 0 0 10px 10px; vertical-align: top; }
.pics thead th { font-size: .86rem; line-height: 1.35; padding-bottom: 6px; vertical-align: bottom; }
.pics thead small { display: block; font-weight: 400; color: var(--muted); font-size: .8rem; }
.pics tbody th { padding-left: 0; color: var(--muted); font-size: .86rem; }
.pics col.name { width: 84px; }
.pics .note { margin-top: 2px; }
.swatch {
  display: inline-block; width: .85em; height: .85em; border: 1px solid var(--muted); border-radius: 3px;
  margin-right: 5px; vertical-align: -0.06em;
}
.legend { font-size: .88rem; max-width: none; } .legend .pair { display: inline-block; margin-right: 16px; }
.counts th, .counts td { width: auto; padding-right: 18px; white-space: nowrap; }
.counts thead th { white-space: normal; vertical-align: bottom; }
.scale { max-width: 560px; margin: 8px 0 14px; font-size: .8rem; color: var(--muted); }
.scale img { height: 11px; border-radius: 3px; }
.scale .ticks { position: relative; height: 1.5em; display: block; }
.scale .ticks span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.scale .ticks span:first-child { transform: none; } .scale .ticks span:last-child { transform: translateX(-100%); }
.facts { columns: 2; column-gap: 36px; }
.facts table { width: 100%; margin-bottom: 22px; break-inside: avoid; }
.facts .wide { column-span: all; margin-top: 22px; }
.facts .pair { display: inline-block; margin-right: 18px; }
.facts th, .facts td {
  padding: 4px 12px 4px 0; border-top: 1px solid var(--rule); vertical-align: top; overflow-wrap: anywhere;
}
.facts th { color: var(--muted); width: 34%; } .facts .wide th { width: 22%; }
.facts .key { color: var(--muted); } .none { color: var(--muted); }
pre {
  background: var(--panel); border-radius: 8px; padding: 12px 16px; overflow-x: auto; margin: 8px 0 14px;
  font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details summary { cursor: pointer; font-weight: 600; padding: 6px 0; }
footer { color: var(--muted); font-size: .84rem; padding-top: 10px; padding-bottom: 44px; }
@media screen and (max-width: 860px) {
  main, header, footer { padding-left: 18px; padding-right: 18px; }
  h1 { font-size: 1.7rem; }
  .strip { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .stats, .two, .three, .words { grid-template-columns: minmax(0, 1fr); }
  .facts { columns: 1; }
  .scores td { white-space: normal; } .bar { display: block; width: 90%; margin-bottom: 3px; }
}
@media print {
  :root { --paper: #fff; --panel: #f5f7f9; --ink: #000; --soft: #222; --muted: #555; --rule: #ccc; --chip: #eee;
    --accent: #0072b2; --good: #0b7a53; --bad: #b3400a; --warn: #fff1d6; --warn-ink: #6b4700;
    --direct: #0072b2; --reconstructed: #d55e00; --before: #8a929e; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  @page { size: A4; margin: 14mm 12mm; }
  html { font-size: 11px; } body { font-size: 1rem; }
  main, header, footer { max-width: none; padding-left: 0; padding-right: 0; }
  nav { display: none; } section { padding: 14px 0; }
  figure, tr, .read, .stat, .words div { break-inside: avoid; } h2, h3, caption { break-after: avoid; }
  .scroll { overflow: visible; } .pics { min-width: 0; } pre { white-space: pre-wrap; }
  details::details-content { content-visibility: visible; height: auto; block-size: auto; }
}
"""
