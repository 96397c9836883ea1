"""Style, table-sorting script and template of the HTML pages."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5b6472; --line: #dfe3e8; --paper: #ffffff; --shade: #f5f7f9; --mark: #0b63a5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa4b2; --line: #343b45; --paper: #14181d; --shade: #1c2128; --mark: #6cb6f2; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.2rem 1.4rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { margin: 0 0 .5rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.4rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); font-size: 1.25rem; }
.lead { margin: 0; max-width: 48rem; color: var(--soft); font-size: 1.1rem; }
figure { margin: 0 0 1.8rem; }
figcaption { margin: .45rem 0; max-width: 60rem; color: var(--soft); font-size: .95rem; }
.table > figcaption { color: var(--ink); font-weight: 600; }
img { display: block; width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; background: #ffffff; }
iframe { display: block; width: 100%; height: 40rem; max-height: 90vh; border: 1px solid var(--line); border-radius: 6px; }
figcaption a { color: var(--mark); display: inline; }
.scroll, pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: var(--shade); }
pre { margin: 0; padding: .8rem 1rem; }
pre, table { font: .85rem/1.5 ui-monospace, Consolas, "DejaVu Sans Mono", monospace; }
table { border-collapse: collapse; min-width: 100%; }
th, td { padding: .32rem .9rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button::after { content: " \\2195"; color: var(--soft); opacity: .45; }
th[aria-sort="ascending"] button::after { content: " \\2191"; color: var(--mark); opacity: 1; }
th[aria-sort="descending"] button::after { content: " \\2193"; color: var(--mark); opacity: 1; }
th button:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
td small { color: var(--soft); font-size: .92em; }
td svg { display: inline-block; width: 5.5rem; height: .7rem; margin-left: .6rem; vertical-align: middle; }
td svg line { stroke: var(--mark); stroke-width: 2; vector-effect: non-scaling-stroke; }
td svg rect { fill: var(--mark); }
.files { columns: 18rem; column-gap: 2rem; padding: 0; list-style: none; font: .85rem/1.5 ui-monospace, Consolas, "DejaVu Sans Mono", monospace; }
.files a { color: var(--mark); overflow-wrap: anywhere; }
.files span { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.4rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
li { margin: .3rem 0; max-width: 60rem; }
a:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; display: block; }
@media (max-width: 40rem) {
  body { padding: 1.2rem .9rem 3rem; }
  h1 { font-size: 1.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
@media print { body { max-width: none; padding: 0; } figure { break-inside: avoid; } }
"""

SCRIPT = """
// A click on a heading sorts its table: down, up, and as it was. Numbers sort by value; what is absent stays last.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells], given = [...body.rows];
  const value = (row, k) => {
    const text = row.cells[k].textContent.trim(), number = parseFloat(text.replace("\\u2212", "-"));
    return headings[k].classList.contains("number") ? (Number.isNaN(number) ? null : number) : text.toLowerCase();
  };
  headings.forEach((heading, k) => heading.querySelector("button").addEventListener("click", () => {
    const first = heading.classList.contains("number") ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const order = { none: first, [first]: second, [second]: "none" }[heading.getAttribute("aria-sort")];
    headings.forEach(other => other.setAttribute("aria-sort", other === heading ? order : "none"));
    const sign = order === "ascending" ? 1 : -1;
    const rows = order === "none" ? given : [...given].sort((a, b) => {
      const x = value(a, k), y = value(b, k);
      return x === y ? 0 : x === null ? 1 : y === null ? -1 : sign * (x < y ? -1 : 1);
    });
    body.append(...rows);
  }));
}
"""

TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>{{ page.title }}</h1>
<p class="lead">{{ page.lead }}</p>
</header>
<main>
{% if page.tables %}
<section>
<h2>Results</h2>
{% for caption, table in page.tables %}
<figure class="table">
<figcaption>{{ caption }}</figcaption>
{% if table is string %}
<pre tabindex="0">
{{ table }}</pre>
{% else %}
<div class="scroll" tabindex="0">
<table>
<thead><tr>
{%- for name in table.header %}<th scope="col" aria-sort="none"{% if table.numeric(loop.index0) %} class="number"{% endif %}>\
<button type="button">{{ name }}</button></th>{% endfor -%}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>
{%- set number = loop.index0 %}
{%- for cell in row %}<td{% if table.numeric(loop.index0) %} class="number"{% endif %}>{% set span = table.span(number, loop.index0) -%}
{%- if span %}{{ span.value }} <small>{{ span.interval }}</small><svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">\
<line x1="{{ span.low }}" x2="{{ span.high }}" y1="5" y2="5"/><rect x="{{ span.at - 1.5 }}" y="1" width="3" height="8"/></svg>
{%- else %}{{ cell }}{% endif %}</td>{% endfor -%}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
</figure>
{% endfor %}
</section>
{% endif %}
{% if page.views %}
<section>
<h2>In three dimensions</h2>
{% for caption, path in page.views %}
<figure>
<iframe src="{{ path | urlencode }}" title="{{ caption }}" loading="lazy"></iframe>
<figcaption>{{ caption }} <a href="{{ path | urlencode }}">Open it alone</a></figcaption>
</figure>
{% endfor %}
</section>
{% endif %}
{% if page.pictures %}
<section>
<h2>Pictures</h2>
{% for caption, path in page.pictures %}
<figure>
<a href="{{ path | urlencode }}"><img src="{{ path | urlencode }}" alt="{{ caption }}"></a>
<figcaption>{{ caption }}</figcaption>
</figure>
{% endfor %}
</section>
{% endif %}
{% if page.facts %}
<section>
<h2>How this was made</h2>
<dl>
{% for name, value in page.facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
</section>
{% endif %}
{% if files %}
<section>
<h2>Files</h2>
<ul class="files">
{% for name, size in files %}
<li><a href="{{ name | urlencode }}">{{ name }}</a> <span>{{ size }}</span></li>
{% endfor %}
</ul>
</section>
{% endif %}
{% if page.notes %}
<section>
<h2>Notes</h2>
<ul>
{% for note in page.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</section>
{% endif %}
</main>
{% if sortable %}
<script>{{ script | safe }}</script>
{% endif %}
</body>
</html>
"""
