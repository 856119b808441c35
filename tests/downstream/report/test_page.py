"""report.html, looked at as readers do: in a browser."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from tfssl.downstream.features.extract import Features
from tfssl.downstream.report import embedding_map, page
from tfssl.downstream.report.view import View
from tfssl.downstream.results import Result, mark_chosen

CHROME = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
HOSTILE = "<script>document.title='taken'</script>\"'&amp;<b>$x_1$ \\frac{ \x07"

# Added to a copy of the page: what the browser made of it, as text at its end.
PROBE = """<script>addEventListener("load", () => {
  const found = {
    images: [...document.images].map(i => [i.naturalWidth, i.alt]),
    wide: document.documentElement.scrollWidth, view: document.documentElement.clientWidth,
    beyond: [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth && !e.closest(".scroll"))
      .map(e => e.outerHTML.slice(0, 80)),
    scrolls: [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1).length,
    scripts: document.scripts.length, title: document.title, text: document.body.innerText,
    loads: [...document.querySelectorAll("[src], link[href], [style*=url]")].map(e => (e.src || e.href || "url").slice(0, 5)),
    handlers: [...document.querySelectorAll("*")].filter(e => [...e.attributes].some(a => a.name.startsWith("on"))).length,
    map: (() => {
      const point = document.querySelector(".map g[tabindex]");
      if (!point) return null;
      const shown = () => getComputedStyle(point.querySelector(".seen")).visibility;
      const before = shown(); point.focus();
      return [before, shown(), point.querySelector("use").getBBox().width];
    })(),
    headers: [...document.querySelectorAll("table")].filter(t => !t.querySelector("th[scope]")).length,
  };
  const pre = document.createElement("pre"); pre.id = "probe"; pre.textContent = btoa(encodeURIComponent(JSON.stringify(found)));
  document.body.append(pre);
});</script>"""


def browse(text, folder, width=1280):
    """What PROBE found, and what the browser said on its console."""
    copy = folder / "copy.html"
    copy.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [
        CHROME,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--window-size={width},900",
    ]
    command += [f"--user-data-dir={folder}/profile", "--dump-dom", f"file://{copy}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    from urllib.parse import unquote

    probe = re.search(r'<pre id="probe">([^<]+)</pre>', done.stdout).group(1)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unquote(base64.b64decode(probe).decode())), console


def picture(side=24):
    return tf.io.encode_png(np.full([side, side, 3], 90, np.uint8)).numpy()


def evaluation(name="rotation", endpoints=("block1", "block2", "pre_logits"), chosen=True):
    """A record as of results.json: two modules, one of them untrained, and pixels; three
    protocols."""
    rng, results = np.random.default_rng(0), []
    columns = [
        ("logistic", 50, None),
        ("logistic", 500, None),
        ("low_shot", 500, 1),
        ("low_shot", 500, 4),
        ("segmentation", 500, None),
    ]
    for module in (name, "random"):
        for protocol, labels, shots in columns:
            for i, endpoint in enumerate([*endpoints, "pixels"] if module == name else endpoints):
                value = round(0.2 + 0.1 * i * (module == name) + 0.02 * rng.random(), 4)
                result = {
                    "module": module,
                    "protocol": protocol,
                    "endpoint": endpoint,
                    "value": value,
                    "train_labels": labels,
                }
                result |= {
                    "metric": {"logistic": "accuracy", "low_shot": "mAP"}.get(protocol, "mIoU"),
                    "seconds": 1.0,
                }
                result |= {
                    "val_value": value if chosen else None,
                    "chosen_on": "part of it",
                    "reported_on": f"folder:{name} test",
                }
                result |= {"shots": shots, "std": 0.01, "chance": 0.1} if shots else {}
                results.append(result)
    about = {
        "handle": f"modules/{name}",
        "identity": "ab" * 32,
        "image_size": 32,
        "resize": 36,
        "extraction_seconds": 2.0,
    }
    about["unreadable"] = {"train": [f"{name}.png"], "test": []}
    return {
        "command": [
            "tfssl-eval",
            f"--module={name}=modules/{name}",
            "--dataset=glyphs",
            "--workdir=it's here",
        ],
        "flags": {
            "dataset": f"folder:{name}",
            "train_split": "train",
            "test_split": "test",
            "seed": 3,
            "endpoints": ["all"],
        },
        "versions": {"tfssl": "0.1.0"},
        "seconds": 4000.0,
        "train_examples": 500,
        "test_examples": 400,
        "num_classes": 10,
        "baselines": {"chance": 0.1, "majority class": 0.1},
        "modules": {name: about, "random": {**about, "untrained_of": [name]}},
        "notes": [f"left out: few_shot: class {name} has 3 images"],
        "results": [dict(r) for r in mark_chosen(map(Result.of, results))],
    }


def panels(record):
    return {name: ("block2", picture()) for name in record["modules"]}


def with_pictures(record, path):
    path.write_bytes(picture())
    found = {True: picture(), False: str(path)}
    return [
        {**r, "picture": found[r["module"] == "random"]} if r["protocol"] == "segmentation" else r
        for r in record["results"]
    ]


@pytest.mark.skipif(not CHROME, reason="no chromium or chrome here")
@pytest.mark.parametrize(
    "name, endpoints",
    [("rotation", ("block1", "block2", "pre_logits")), (HOSTILE, (f"a{HOSTILE}", "_b" * 60, "c"))],
)
def test_in_a_browser(tmp_path, name, endpoints):
    record = evaluation(name, endpoints)
    text = page.page(record, panels(record), with_pictures(record, tmp_path / "picture.png"))
    found, console = browse(text, tmp_path)
    assert console == []
    # By layer, by number, nearest images of two, and two chosen segmentations beside pixels'.
    assert len(found["images"]) == 2 + 2 + 3 and all(
        width > 0 and alt for width, alt in found["images"]
    )
    assert 1240 < found["view"] == found["wide"] and found["beyond"] == []
    assert found["scrolls"] == 0 or name == HOSTILE
    assert set(found["loads"]) == {"data:"} and found["handlers"] == 0 and found["headers"] == 0
    assert found["scripts"] == 1  # the probe
    shown = " ".join(name.replace("\x07", "\ufffd").split())
    assert found["title"] == f"Evaluation on folder:{shown}" and shown in " ".join(
        found["text"].split()
    )
    narrow, _ = browse(text, tmp_path, width=600)
    assert narrow["wide"] == narrow["view"]


@pytest.mark.skipif(not CHROME, reason="no chromium or chrome here")
def test_a_map_in_a_browser(tmp_path):
    """The image of a point is hidden until the point is under the pointer or has the focus, and is
    then there: it stands in the page."""
    record = evaluation()
    x = np.random.default_rng(0).normal(size=[12, 4])
    test = Features({"block2": x}, np.arange(12) % 3, np.arange(12), 3)
    made = embedding_map.make(test, "block2")
    images = embedding_map.thumbnails(np.full([12, 32, 32, 3], 90, np.uint8), made.rows)
    view = View.of(record["results"], record["baselines"], page.untrained(record))
    maps = {"rotation": made, "random": made}
    found, console = browse(page.of_view(view, record, {}, maps, images), tmp_path)
    assert console == [] and found["scripts"] == 1 and found["beyond"] == []
    assert found["map"] == ["hidden", "visible", 160]


def text_of(html):
    """The words of a page."""
    import html as standard

    return " ".join(standard.unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_figures_are_those_of_the_results(tmp_path):
    record = evaluation()
    found = page.page(record)
    (answer,) = re.findall(r'<p class="answer less">(.*?)</p>', found)
    best = next(
        r
        for r in record["results"]
        if r["chosen"] and r["module"] == "rotation" and r["train_labels"] == 500
    )
    rival = next(
        r
        for r in record["results"]
        if r["chosen"] and r["module"] == "random" and r["train_labels"] == 500
    )
    pixels = next(
        r for r in record["results"] if r["endpoint"] == "pixels" and r["train_labels"] == 500
    )
    assert best["endpoint"] == "pre_logits" and pixels["value"] > best["value"]
    assert text_of(answer) == (
        f"rotation : {100 * best['value']:.1f} % test accuracy in logistic@500 by endpoint "
        "pre_logits, which validation chose: "
        f"{100 * (best['value'] - rival['value']):.1f} points above the same network untrained "
        f"({100 * rival['value']:.1f} % by "
        f"{rival['endpoint']}) and {100 * (pixels['value'] - best['value']):.1f} points below raw "
        f"pixels ({100 * pixels['value']:.1f} %)."
    )
    # Every value stands in its protocol's table, those that validation chose with a star.
    for protocol in ("logistic", "low_shot", "segmentation"):
        table = next(
            t for t in re.findall(r"<table>.*?</table>", found) if f"<b>{protocol}</b>" in t
        )
        cells = re.findall(r'<td class="n[^"]*">([^<]*)</td>', table)
        expected = [
            f"{100 * r['value']:.1f}" + "*" * r["chosen"]
            for r in record["results"]
            if r["protocol"] == protocol
        ]
        expected += {"logistic": ["10.0"] * 4, "low_shot": ["10.0"] * 2}.get(protocol, [])
        assert sorted(cells) == sorted(expected)
    words = text_of(found)
    half = 196 * np.sqrt(best["value"] * (1 - best["value"]) / 400)
    assert f"\u00b1{half:.1f} points" in words
    assert (
        "left out: few_shot: class rotation has 3 images" in words
        and "1 h 6 min" in words
        and "1: train: rotation.png" in words
    )
    assert "--workdir='it'\"'\"'s here'" in words  # as a shell takes it


def test_without_validation_and_beside_nothing():
    record = evaluation(chosen=False)
    record["results"] = [
        r for r in record["results"] if r["module"] == "rotation" and r["endpoint"] != "pixels"
    ]
    record["results"] = [
        r for r in record["results"] if r["endpoint"] == "pre_logits" and r["train_labels"] == 50
    ]
    record["modules"] = {"rotation": {"handle": "m", "identity": "0"}}
    del record["flags"], record["command"], record["notes"]
    found = page.page(record)
    assert (
        "its deepest, for nothing was chosen" in found
        and "<img" not in found
        and "Nearest" not in found
    )


def test_who_is_best():
    record = evaluation()
    for r in record["results"]:
        if r["endpoint"] == "pixels":
            r["value"] = 0.05
    twins = [
        {**r, "module": "twin"}
        for r in record["results"]
        if r["module"] == "rotation" and r["endpoint"] != "pixels"
    ]
    record["results"] += twins
    record["modules"]["twin"] = record["modules"]["rotation"]
    assert '<p class="answer">Of 2 modules <b>rotation</b> and <b>twin</b> are best: ' in page.page(
        record
    )
    for r in twins:
        r["value"] += 0.01
    assert '<p class="answer">Of 2 modules <b>twin</b> is best: ' in page.page(record)


def test_names_are_text(tmp_path):
    record = evaluation(HOSTILE, (f"a{HOSTILE}", "b"))
    found = page.page(record, panels(record))
    assert "<script" not in found and "<b>$x" not in found and "\x07" not in found
    assert (
        found.count(
            "&lt;script&gt;document.title=&#x27;taken&#x27;&lt;/script&gt;&quot;&#x27;&amp;amp;&lt;b&gt;$x_1$"
        )
        > 10
    )
