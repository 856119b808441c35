"""The report of an evaluation, report.html: the main result, then all results, then settings and
command.

The file is self-contained: pictures are embedded, nothing is loaded, there are no scripts. All
figures are those of results.json.
"""

import base64
import html
import math
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Optional, Union

from tfssl.downstream.report import embedding_map, plots
from tfssl.downstream.report.table import cautions, spelled
from tfssl.downstream.report.view import Cell, View
from tfssl.downstream.results import PIXELS, Result

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --paper: #ffffff;
  --line: #d5dae0; --band: #f3f5f7; --mark: #fff3c4;
  --up: #1a7f37; --down: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a2abb4; --paper: #16191d;
  --line: #3a414a; --band: #20252b;
  --mark: #4a3f12; --up: #5fce7c; --down: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 2rem 4rem; max-width: 1240px; color: var(--ink);
  background: var(--paper);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .4rem 0; max-width: 60rem; } .soft, caption, figcaption, small { color: var(--soft); }
.answer { font-size: 1.15rem; border-left: 4px solid var(--up); padding: .3rem .9rem;
  margin: 1rem 0; }
.less { border-color: var(--down); }
.scroll { overflow-x: auto; }
.side { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
.side > * { max-width: 100%; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; padding-bottom: .2rem; min-width: min(26rem, 78vw); }
th, td { padding: .18rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; } td.n, th.n { text-align: right; white-space: nowrap; }
tbody th { font-weight: 400; vertical-align: top; max-width: 24rem;
  overflow-wrap: anywhere; }
tbody.others, tr.other { color: var(--soft); }
tbody + tbody { border-top: 2px solid var(--line); }
td.main { background: var(--band); }
td.chosen { background: var(--mark); font-weight: 600; }
small { display: block; line-height: 1.25; }
.up { color: var(--up); }
.down { color: var(--down); }
.facts th { font-weight: 600; vertical-align: top; white-space: nowrap; }
figure { margin: .6rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr));
  gap: 1rem 1.5rem; }
pre { background: var(--band); padding: .7rem .9rem; border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .scroll { overflow: visible; } }
"""


About = Mapping[str, Any]  # the content of results.json
Panels = Mapping[str, tuple[str, bytes]]  # of nearest images: {module: (endpoint, PNG's bytes)}


def page(
    record: Mapping[str, Any],
    panels: Optional[Panels] = None,
    results: Optional[Iterable[Mapping[str, Any]]] = None,
) -> str:
    """The page.

    Args:
      record: the content of results.json.
      panels: {module: (endpoint, PNG's bytes)}: nearest images.
      results: the same as record["results"], where some may have a `picture`: a PNG's bytes, or its
        path.

    Returns:
      str, an HTML document.
    """
    results = record["results"] if results is None else results
    return of_view(View.of(results, record["baselines"], untrained(record)), record, panels or {})


def untrained(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """{name of an untrained module: names of the modules whose network it is}."""
    return {
        name: about["untrained_of"]
        for name, about in record["modules"].items()
        if "untrained_of" in about
    }


def _steps(record: Mapping[str, Any]) -> dict[str, int]:
    """{module: step of training}, of modules that say it."""
    return {name: about["step"] for name, about in record["modules"].items() if "step" in about}


def of_view(
    view: View,
    record: Mapping[str, Any],
    panels: Panels,
    maps: Optional[Mapping[str, embedding_map.Map]] = None,
    thumbnails: str = "",
    attention: Optional[Mapping[str, bytes]] = None,
) -> str:
    """The page of a view."""
    flags = record.get("flags", {})
    title = f"Evaluation on {flags.get('dataset', view.results[0].reported_on)}"
    body = [
        f"<header><h1>{_e(title)}</h1>{_subtitle(record)}</header><main>",
        _answer(view),
        _section("At a glance", _glance(view), _precision(view, record), _left_out(record)),
        _section("By layer", _plot(plots.layers(view), _LAYERS)),
        _section("By step of training", _plot(plots.steps(view, _steps(record)), _STEPS)),
        _section("By number of labels", _plot(plots.amounts(view), _AMOUNTS)),
        _section("Nearest images", _neighbors(view, panels)),
        _section("Attention", _attention(attention or {})),
        _section("Maps", _maps(view, maps or {}, thumbnails)),
        _section("Pictures", _pictures(view)),
        _section(
            "All results",
            _tables(view),
            *(f'<p class="soft">{_e(n)}.</p>' for n in cautions(view.results)),
        ),
        _section("What was run", _facts(view, record)),
        "</main>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{_e(title)}</title>'
        f"<style>{STYLE}{embedding_map.STYLE if maps else ''}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


_LAYERS = (
    "A panel for each protocol, at its most training labels and its largest k. Endpoints stand in "
    "the order of depth; dashed lines are "
    "untrained networks."
)
_STEPS = (
    "The checkpoints of a run, each by the endpoint that validation chose for it, or its deepest "
    "one."
)
_AMOUNTS = (
    "Each module by the endpoint that validation chose for that number. Bars are standard "
    "deviations or 95 % intervals, where "
    "a protocol has them."
)


def _e(text: object) -> str:
    """Any text as HTML; characters that are invalid in it become a replacement character."""
    return html.escape(
        "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text))
    )


def _section(heading: str, *parts: str) -> str:
    content = "\n".join(part for part in parts if part)
    return f"<section><h2>{heading}</h2>\n{content}</section>" if content else ""


def _subtitle(record: About) -> str:
    parts = [
        f"{record[f'{part}_examples']} images {what}"
        for part, what in _PARTS.items()
        if record.get(f"{part}_examples")
    ]
    parts += [f"{record['num_classes']} classes"] if record.get("num_classes") else []
    parts += [record["date"]] if record.get("date") else []
    parts += [_duration(record["seconds"])] if record.get("seconds") else []
    return f'<p class="soft">{_e("; ".join(parts))}</p>'


_PARTS = {"train": "to learn from", "val": "to choose on", "test": "to test on"}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _gain(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\u2212")


def _answer(view: View) -> str:
    """One sentence: the best module on the first protocol, compared with its untrained network and
    pixels."""
    column = view.largest[0]
    of_module = {
        module: view.best[module, column]
        for module in view.trained
        if (module, column) in view.best
    }
    if not of_module:
        return ""
    most = max(result.value for result in of_module.values())
    leading = [name for name, result in of_module.items() if result.value == most]
    module, heading = leading[0], view.headings[column]
    best = of_module[module]
    rivals = [
        ("the same network untrained", view.rival_best(module, column)),
        ("raw pixels", view.pixels.get(column)),
    ]
    against = []
    for name, rival in rivals:
        if rival:
            gain = best.value - rival.value
            by_endpoint = "" if rival.of_pixels else f" by {rival.endpoint}"
            points = f"{abs(100 * gain):.1f} points {'above' if gain >= 0 else 'below'}"
            against.append(f"{points} {_e(name)} ({_percent(rival.value)} %{_e(by_endpoint)})")
    subject = "<b>" + "</b> and <b>".join(map(_e, leading)) + "</b>"
    if len(of_module) > 1:
        subject = (
            f"Of {len(of_module)} modules {subject} {'are' if len(leading) > 1 else 'is'} best"
        )
    below = any(rival and rival.value > best.value for _, rival in rivals)
    how = "which validation chose" if best.chosen else "its deepest, for nothing was chosen"
    kind = "answer less" if below else "answer"
    compared = f": {' and '.join(against)}" if against else ""
    return (
        f'<p class="{kind}">{subject}: <b>{_percent(best.value)} %</b> test {_e(best.metric)} '
        f"in {_e(heading)} by endpoint {_e(best.endpoint)}, {how}{compared}.</p>"
    )


def _glance(view: View) -> str:
    """A row for each module, by its chosen endpoints; a column for each protocol."""
    columns, untrained = view.largest, view.untrained
    head = "".join(
        f'<th scope="col" class="n">{_e(view.headings[c])}<small>{_e(view.metrics[c])}</small></th>'
        for c in columns
    )
    rows = []
    for module in [*view.trained, *(name for name in untrained if name not in view.trained)]:
        cells = []
        for i, column in enumerate(columns):
            r, rival = view.best.get((module, column)), view.rival_best(module, column)
            cells.append(_glance_cell(r, r.value - rival.value if r and rival else None, i == 0))
        of_module = (
            f"<small>{_e(' '.join([', '.join(untrained[module]), 'untrained']))}</small>"
            if module in untrained
            else ""
        )
        kind = ' class="other"' if module in untrained and module not in view.trained else ""
        rows.append(f'<tr{kind}><th scope="row">{_e(module)}{of_module}</th>{"".join(cells)}</tr>')
    for row in view.others:
        cells = [_glance_cell(row.cells.get(c), None, i == 0) for i, c in enumerate(columns)]
        rows.append(f'<tr class="other"><th scope="row">{_e(row.module)}</th>{"".join(cells)}</tr>')
    caption = "Test results in percent, by the endpoint that validation chose"
    caption += (
        "; colored: points above or below the same network untrained"
        if any(untrained.values())
        else ""
    )
    return (
        f'<div class="scroll"><table><caption>{caption}</caption>'
        f'<thead><tr><th scope="col">module</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _glance_cell(result: Union[Result, Cell, None], gain: Optional[float], main: bool) -> str:
    """A table cell of a `Result` or a `Cell`."""
    kind = "n main" if main else "n"
    if result is None:
        return f'<td class="{kind}">\u2013</td>'
    under = (
        f'<small class="{"up" if gain >= 0 else "down"}">{_gain(gain)}</small>'
        if gain is not None
        else ""
    )
    named = "" if result.endpoint in ("", PIXELS) else f"<small>{_e(result.endpoint)}</small>"
    return f'<td class="{kind}">{_percent(result.value)}{under}{named}</td>'


def _precision(view: View, record: About) -> str:
    """The confidence interval of the main result, for the choice of test images."""
    column, images = view.largest[0], record.get("test_examples")
    best = [view.best.get((module, column)) for module in view.trained]
    values = [r.value for r in best if r and r.metric == "accuracy" and r.shots is None]
    if not values or not images:
        return ""
    value = max(values)
    width = 1.96 * math.sqrt(value * (1 - value) / images)
    return (
        f'<p class="soft">With {images} test images an accuracy of {_percent(value)} % is known to '
        f"about \u00b1{_percent(width)} points "
        "(95 %, for the choice of the test images alone); differences well below that say "
        "little.</p>"
    )


def _left_out(record: About) -> str:
    notes = "".join(f"<li>{_e(note)}</li>" for note in record.get("notes", []))
    return f"<h3>Notes</h3><ul>{notes}</ul>" if notes else ""


def _image(png: bytes, text: str, width: Optional[int] = None) -> str:
    size = f' width="{width}"' if width else ""
    return (
        f'<img alt="{_e(text)}"{size} src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


def _plot(png: Optional[bytes], text: str) -> str:
    if png is None:
        return ""
    # of the PNG's header: all plots at one scale
    width = round(int.from_bytes(png[16:20], "big") / 1.5)
    picture = _image(png, f"Plot. {text} The figures are in the tables below.", width)
    return f"<figure>{picture}<figcaption>{_e(text)}</figcaption></figure>"


def _neighbors(view: View, panels: Panels) -> str:
    """Each module's picture, and beside it that of the untrained network."""
    if not panels:
        return ""
    order: list[str] = []
    for module in [name for name in panels if name not in view.untrained]:
        rival = view.rival(module)
        order += [module, rival] if rival is not None and rival in panels else [module]
    order += [name for name in panels if name not in order]
    figures = []
    for module in order:
        endpoint, png = panels[module]
        kind = ", untrained" if module in view.untrained else ""
        text = f"{module}{kind}, by {endpoint}"
        alt = f"Ten test images, each with its nearest training images: {text}"
        figures.append(f"<figure>{_image(png, alt)}<figcaption>{_e(text)}</figcaption></figure>")
    return (
        "<p>Test images on the left, and beside each the training images that are nearest by "
        "cosine similarity: green of the same class, "
        f'red of another.</p><div class="pictures">{"".join(figures)}</div>'
    )


def _attention(attention: Mapping[str, bytes]) -> str:
    """A picture for each vision transformer."""
    if not attention:
        return ""
    figures = []
    for module, png in attention.items():
        alt = f"Test images, each with a map of attention for each head: {module}"
        figures.append(f"<figure>{_image(png, alt)}<figcaption>{_e(module)}</figcaption></figure>")
    return (
        "<p>Test images on the left, and beside each what the class token attends to in the last "
        "block, head by head; bright is each head's largest weight in that image.</p>"
        f'<div class="pictures">{"".join(figures)}</div>'
    )


def _maps(view: View, maps: Mapping[str, embedding_map.Map], thumbnails: str) -> str:
    """A map for each module."""
    if not maps:
        return ""
    figures = []
    for module, of_module in maps.items():
        untrained = ", untrained" if module in view.untrained else ""
        text = f"{module}{untrained}, by {of_module.endpoint}, {_KINDS[of_module.kind]}"
        picture = embedding_map.svg(of_module, f"Map of test images: {text}")
        figures.append(f"<figure>{picture}<figcaption>{_e(text)}</figcaption></figure>")
    count = max(len(of_module.rows) for of_module in maps.values())
    return (
        f"<p>{count} test images, near each other where their features are alike. The pointer on a "
        f"point shows its image.</p>{thumbnails}{''.join(figures)}"
    )


_KINDS = {"pca": "the two directions of most variance (PCA)", "tsne": "t-SNE", "umap": "UMAP"}


def _pictures(view: View) -> str:
    """Pictures of results: of chosen endpoints, or of all where nothing was chosen."""
    offered = [(r, r.picture) for r in view.results if r.picture]
    chosen = [(r, picture) for r, picture in offered if r.chosen or r.of_pixels]
    figures = []
    for r, picture in chosen if any(r.chosen for r, _ in chosen) else offered:
        png = picture if isinstance(picture, bytes) else _read(picture)
        network = PIXELS if r.of_pixels else f"{r.module}, {r.endpoint}"
        text = f"{r.protocol}: {network}: {r.metric} {_percent(r.value)} %"
        figures.append(f"<figure>{_image(png, text)}<figcaption>{_e(text)}</figcaption></figure>")
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""


def _read(path: str) -> bytes:
    import tensorflow as tf

    with tf.io.gfile.GFile(path, "rb") as f:
        return f.read()


def _tables(view: View) -> str:
    """A table per protocol, with all endpoints and columns."""
    tables = []
    for protocol in dict.fromkeys(column[0] for column in view.columns):
        columns = [c for c in view.columns if c[0] == protocol]
        head = "".join(
            f'<th scope="col" class="n">{_e(view.headings[c].partition("@")[2])}</th>'
            for c in columns
        )
        bodies = []
        for group in (*view.groups, view.others):
            group = [row for row in group if any(c in row.cells for c in columns)]
            rows = []
            for i, row in enumerate(group):
                first = (
                    f'<th scope="rowgroup" rowspan="{len(group)}">{_e(row.module)}</th>'
                    if i == 0
                    else ""
                )
                first += f'<th scope="row">{_e(row.endpoint)}</th>'
                if not row.endpoint:
                    first = f'<th scope="row" colspan="2">{_e(row.module)}</th>'
                rows.append(f"<tr>{first}{''.join(_cell(row.cells.get(c)) for c in columns)}</tr>")
            kind = ' class="others"' if group and not group[0].endpoint else ""
            bodies += [f"<tbody{kind}>{''.join(rows)}</tbody>"] if rows else []
        kind = "k of each class, or labels" if any(c[2] for c in columns) else "training labels"
        caption = (
            f"<b>{_e(protocol)}</b>: test {_e(spelled(view.metrics[columns[0]]))} in %, by {kind}"
        )
        tables.append(
            f'<div class="scroll"><table><caption>{caption}</caption>'
            '<thead><tr><th scope="col">module</th>'
            f'<th scope="col">endpoint</th>{head}</tr></thead>{"".join(bodies)}</table></div>'
        )
    key = '<p class="soft">Marked: the endpoint that validation chose for its module.</p>'
    return f'{key}<div class="side">{"".join(tables)}</div>'


def _cell(cell: Optional[Cell]) -> str:
    if cell is None:
        return '<td class="n"></td>'
    if cell.chosen:
        return f'<td class="n chosen">{_percent(cell.value)}*</td>'
    return f'<td class="n">{_percent(cell.value)}</td>'


def _facts(view: View, record: About) -> str:
    """Command, data, modules, versions, settings."""
    results, flags = view.results, record.get("flags", {})
    chosen_on: dict[str, list[str]] = {}
    for protocol, on in dict.fromkeys((r.protocol, r.chosen_on) for r in results):
        chosen_on.setdefault(on or "nothing was chosen", []).append(protocol)
    unreadable = [
        f"{part}: {name}"
        for about in record["modules"].values()
        for part, names in about.get("unreadable", {}).items()
        for name in names
    ]
    unreadable = list(dict.fromkeys(unreadable))
    splits = [
        f"{flags[f'{part}_split']} {what}"
        for part, what in _PARTS.items()
        if flags.get(f"{part}_split")
    ]
    facts = {
        "data set": f"{flags.get('dataset', '')}: {', '.join(splits)}" if flags else "",
        "data": "; ".join(
            f"{part}: {digest['num_examples']} images, {digest['num_classes'] or 'no'} classes, "
            f"digest {digest['digest']}"
            for part, digest in record.get("data", {}).items()
        ),
        "reported on": ", ".join(dict.fromkeys(r.reported_on for r in results if r.reported_on)),
        "chosen on": "; ".join(
            f"{', '.join(protocols)}: {on}" for on, protocols in chosen_on.items()
        ),
        "unreadable images": f"{len(unreadable)}: {', '.join(unreadable[:5])}"
        if unreadable
        else "none"
        if flags
        else "",
        "seed": flags.get("seed", ""),
        "time": _time(record, results),
        "versions": ", ".join(
            f"{name} {number}" for name, number in record.get("versions", {}).items()
        ),
    }
    rows = "".join(
        f'<tr><th scope="row">{_e(key)}</th><td>{_e(value)}</td></tr>'
        for key, value in facts.items()
        if value != ""
    )
    parts = []
    if record.get("command"):
        command = " \\\n    ".join(_quoted(part) for part in record["command"])
        parts.append(
            "<p>This command repeats it, in the same folder; all that is random follows from its "
            f"seed.</p><pre>{_e(command)}</pre>"
        )
    parts.append(f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>')
    parts.append(_modules(record))
    if flags:
        settings = "\n".join(
            f"--{name}={_setting(value)}" for name, value in flags.items() if value is not None
        )
        parts.append(f"<details><summary>All settings</summary><pre>{_e(settings)}</pre></details>")
    return "\n".join(parts)


def _time(record: About, results: list[Result]) -> str:
    if not record.get("seconds"):
        return ""
    in_protocols = _duration(sum(result.seconds for result in results))
    return f"{_duration(record['seconds'])}, of which protocols {in_protocols}"


def _quoted(argument: str) -> str:
    """An argument as a shell takes it; of --name=value the value is quoted, if anything must be."""
    name, equals, value = argument.partition("=")
    named = equals and name.startswith("--") and shlex.quote(name) == name
    return f"{name}={shlex.quote(value)}" if named and value else shlex.quote(argument)


def _setting(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _modules(record: About) -> str:
    rows = []
    for name, about in record["modules"].items():
        size = f"{about['image_size']} of {about['resize']}" if "image_size" in about else ""
        took = f"{about['extraction_seconds']:.1f} s" if about.get("extraction_seconds") else ""
        values = (about.get("handle", ""), size, took, about.get("identity", "")[:12])
        cells = "".join(f"<td>{_e(value)}</td>" for value in values)
        rows.append(f'<tr><th scope="row">{_e(name)}</th>{cells}</tr>')
    names = ("module", "handle", "crop of shorter side, pixels", "extraction", "identity")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    table = (
        f"<caption>Modules</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    )
    return f'<div class="scroll"><table>{table}</table></div>'
