"""Tables and plots of the results that studies/scaling.py writes: python studies/scaling.py --out
runs/scaling --report docs/scaling

How to read them: a value is that of the endpoint that the validation part chose, of each network
for itself; in percent; with several seeds their mean, and their range in brackets. What is said of
an axis is said by the rule that stands beside it; none is written by hand.
"""

import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from cells import mean_and_range, table

LEVEL = {"jigsaw": "permutations, |P|", "colorization": "nearest bins, K"}
UNTRAINED = {"jigsaw": "random_patches", "colorization": "random"}
METRICS = {"svm": "mAP, %", "logistic": "accuracy, %"}
DEFAULT = {"jigsaw": 100, "colorization": 10}
COLORS = ("tab:blue", "tab:red", "tab:green", "tab:purple")

HEAD = """# Data, capacity and complexity at home scale

`python studies/scaling.py --imagenette ...`: {cells} cells, {hours:.1f} hours of computation, {steps} training steps (the same in all
cells of a task), {labels} labels to learn from. Networks: {networks}; pretrained on up to {images:,} images of Imagenette, 96 pixels
(jigsaw: patches of 32). The paper: 1 to 100 million images of 224 pixels, AlexNet and ResNet-50, hundreds of thousands of steps, the 20
classes of VOC 2007.

What this can show: whether these tasks learn something here, and which way each axis points at a fixed amount of computation. What it
cannot:

- Steps are constant, so a smaller subset is seen more often, and overfitting, not want of training, is what it may lose by.
- Labels are those of images that the network was pretrained on, from the same set. The paper transfers to another one.
- A harder problem may need more steps, or a larger network, than this: a curve that falls here says nothing about the paper's. Where
  the task's own accuracy, on images it did not learn from, is near chance (of the jigsaw 1 / |P|), it was not learned.
- Of a colour's target at most {beyond} lie beyond the {nearest} nearest bins (sigma 5, a grid of 10, the colours
  of sRGB). Cells that differ by less than float32 can tell are the same training.
- A larger network's random features may be better too: what capacity adds to the task is its gain less the untrained ones'.
- The jigsaw shows each image in 8 orders, and its encoder averages over nine patches; the paper's takes one order, and whole images.
- The settings are those of earlier tries with one seed, whose test figures had been seen; none was changed since.
- Sweeps have one seed where their tables show no range. The range of the seeds at the default, of the task or of its untrained
  network, is the yardstick: what lies within it is noise, and what lies beyond it a hint (of one seed more, one difference in seven would)."""


def report(rows, folder):
    """Write study.md and the plots, and print the text.

    Args:
      rows: list of dicts, the lines of results.jsonl.
      folder: for study.md, svm.png, logistic.png.
    """
    if not rows:
        raise SystemExit("there are no results to report yet")
    os.makedirs(folder, exist_ok=True)
    facts = {
        "cells": len(rows),
        "hours": sum(r["minutes"] for r in rows) / 60,
        "steps": " or ".join(map(str, sorted({r["steps"] for r in rows}))),
        "labels": " or ".join(map(str, sorted({r["labels"] for r in rows}))),
        "networks": ", ".join(networks(rows)),
        "images": max(r["images"] for r in rows),
        **target_beyond((2, 5, 10, 20, 40)),
    }
    text = [HEAD.format(**facts), "\n## The base: all images\n", base(rows), "", *margins(rows)]
    for network in networks(rows):
        text += [
            f"\nBy layer, {network}, mean over the seeds (svm / logistic):\n",
            layers(rows, network),
        ]
    for task in LEVEL:
        tables = (
            sweep(rows, task, "level", LEVEL[task].replace("|", "\\|")),
            sweep(rows, task, "images", "images"),
        )
        text += [f"\n## {task}\n", "\n\n".join(filter(None, tables))]
    text += ["\n## Which way the axes point\n", directions(rows)]
    for metric, title in METRICS.items():
        if plot(rows, metric, os.path.join(folder, f"{metric}.png")):
            text.append(f"\n![{title} along the axes]({metric}.png)")
    with open(os.path.join(folder, "study.md"), "w") as f:
        f.write("\n".join(text) + "\n")
    print("\n".join(text))


def where(rows, **fields):
    return [r for r in rows if all(r[k] == v for k, v in fields.items())]


def at_default(rows, task, network):
    """On all images, at the task's default level."""
    return where(
        rows,
        task=task,
        network=network,
        level=DEFAULT.get(task, 0),
        images=max(r["images"] for r in rows),
    )


def networks(rows):
    return list(dict.fromkeys(r["network"] for r in rows))


def values(rows, metric):
    """The chosen endpoint's, of each row, in percent."""
    return np.array([100 * r["value"][r["chosen"][metric]][metric] for r in rows])


def curve(rows, task, axis, network):
    """{place on the axis: rows} where all else is at its default: all images, the default level."""
    fixed = (
        {"level": DEFAULT[task]} if axis == "images" else {"images": max(r["images"] for r in rows)}
    )
    mine = where(rows, task=task, network=network, **fixed)
    return {place: where(mine, **{axis: place}) for place in sorted({r[axis] for r in mine})}


def base(rows):
    """A line for each task and network, untrained ones and pixels among them."""
    lines = []
    for network in networks(rows):
        for task in (t for pair in UNTRAINED.items() for t in pair):
            found = at_default(rows, task, network)
            if found:
                untrained = at_default(rows, UNTRAINED.get(task), network)
                shown = [mean_and_range(values(found, metric)) for metric in METRICS]
                above = [
                    f"{values(found, m).mean() - values(untrained, m).mean():+.1f}"
                    for m in METRICS
                    if untrained
                ]
                lines.append([network, task, len(found), *shown, " / ".join(above)])
    pixels = [r["value"]["pixels"] for r in rows if "pixels" in r["value"]]
    if pixels:
        lines.append(
            ["", "pixels", "", *(f"{100 * pixels[0][metric]:.1f}" for metric in METRICS), ""]
        )
    return table(
        [
            "network",
            "task",
            "seeds",
            "svm, mAP",
            "logistic, accuracy",
            "above its untrained network",
        ],
        lines,
    )


def margins(rows):
    """A sentence for each task: the least that a seed's cell is above its untrained network and
    above pixels."""
    pixels, lines = next(r["value"]["pixels"] for r in rows if "pixels" in r["value"]), []
    for task, untrained in UNTRAINED.items():
        for network in networks(rows):
            found = []
            for row in at_default(rows, task, network):
                for other in where(at_default(rows, untrained, network), seed=row["seed"]):
                    found += [
                        values([row], m) - max(values([other], m), 100 * pixels[m]) for m in METRICS
                    ]
            if found:
                seeds = len(found) // len(METRICS)
                seeds = f"{seeds} seed{'s' * (seeds > 1)}"
                lines.append(
                    f"- {network}, {task}: at least {min(found)[0]:+.1f} above both, by either "
                    f"metric ({seeds})."
                )
    return lines


def layers(rows, network):
    """A line for each endpoint of a network, a column for each task; of the cells at the
    default."""
    tasks = {task: at_default(rows, task, network) for pair in UNTRAINED.items() for task in pair}
    tasks, lines = {task: found for task, found in tasks.items() if found}, []
    for endpoint in [e for e in next(iter(tasks.values()))[0]["value"] if e != "pixels"]:
        means = [
            [np.mean([100 * r["value"][endpoint][m] for r in found]) for m in METRICS]
            for found in tasks.values()
        ]
        lines.append([endpoint, *(" / ".join(f"{mean:.1f}" for mean in pair) for pair in means)])
    return table(["endpoint", *tasks], lines)


def target_beyond(nearest):
    """For people: the numbers K, and the greatest share of a color's soft target beyond its K
    nearest bins."""
    from tfssl.data.ops import lab
    from tfssl.pretext.parts import ab_bins

    levels = np.arange(0, 256, 15) / 255
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    bins = ab_bins.of_gamut()
    _, weights = ab_bins.soft_targets(
        lab.from_rgb(colors).numpy()[:, 1:], bins.points, len(bins.points)
    )
    shares = [weights[:, k:].sum(1).max() for k in nearest]
    return {
        "nearest": ", ".join(map(str, nearest)),
        "beyond": ", ".join(f"{share:.0e}" for share in shares),
    }


def sweep(rows, task, axis, title):
    """A line for each place on an axis, a column for each network and metric, and the task's own
    accuracy; "" if none has two places."""
    curves = {network: curve(rows, task, axis, network) for network in networks(rows)}
    curves = {network: its for network, its in curves.items() if len(its) > 1}
    places = sorted({place for its in curves.values() for place in its})
    if not curves:
        return ""

    def shown(found):
        return [
            *(mean_and_range(values(found, m)) for m in METRICS),
            mean_and_range(np.array([100 * r["pretext"]["validation_accuracy"] for r in found])),
        ]

    lines = [
        [p, *(text for its in curves.values() for text in shown(its.get(p, [])))] for p in places
    ]
    return table(
        [
            title,
            *(f"{network}, {what}" for network in curves for what in (*METRICS, "own accuracy")),
        ],
        lines,
    )


def directions(rows):
    """For each task and axis: last place less first, each the mean of its seeds; beyond the
    yardstick or not, which is the range of the seeds of the same task, trained or not."""
    first, *others = networks(rows)
    lines = []
    for task in LEVEL:
        pairs = []
        for axis in ("images", "level"):
            for network in networks(rows):
                its = list(curve(rows, task, axis, network).items())
                if len(its) > 1:
                    (low, few), (high, many) = its[0], its[-1]
                    pairs.append((task, network, f"{axis}: {low} to {high}", few, many))
        for network in others:
            for what in (task, UNTRAINED[task]):
                found = at_default(rows, what, network)
                if found:
                    of = "" if what == task else ", both untrained"
                    pairs.append(
                        (
                            what,
                            network,
                            f"capacity: {first} to this{of}",
                            at_default(rows, what, first),
                            found,
                        )
                    )
        for what, network, axis, few, many in pairs:
            defaults = at_default(rows, what, first)
            noise = np.ptp(values(defaults, "svm")) if len(defaults) > 1 else np.nan
            yardstick = "" if np.isnan(noise) else f"{noise:.1f}"
            gain = np.mean(values(many, "svm")) - np.mean(values(few, "svm"))
            verdict = (
                "no yardstick"
                if np.isnan(noise)
                else "beyond it"
                if abs(gain) > noise
                else "within it"
            )
            lines.append([task, network, axis, f"{gain:+.1f}", yardstick, verdict])
    return table(
        ["task", "network", "axis", "gain, mAP", "range of the seeds at the default", "which is"],
        lines,
    )


def plot(rows, metric, path):
    """As the paper's figures: against data size above, against the task's difficulty below; a panel
    for each task. False: no axis has two places to show."""
    titles = {"images": dict.fromkeys(LEVEL, "images (the same number of steps)"), "level": LEVEL}
    first = networks(rows)[0]
    measured = [
        axis for axis in titles if any(len(curve(rows, task, axis, first)) > 1 for task in LEVEL)
    ]
    if not measured:
        return False
    size = (9, 1 + 3 * len(measured))
    figure, axes = plt.subplots(
        len(measured), len(LEVEL), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for column, task in enumerate(LEVEL):
        for row, axis in enumerate(measured):
            title = titles[axis][task]
            panel = axes[row, column]
            for network, color in zip(networks(rows), COLORS):
                its = curve(rows, task, axis, network)
                if axis == "level" and len(its) < 2:
                    continue
                found = [values(of_place, metric) for of_place in its.values()]
                panel.plot(
                    list(its), [v.mean() for v in found], "o-", ms=4, color=color, label=network
                )
                panel.vlines(
                    list(its),
                    [v.min() for v in found],
                    [v.max() for v in found],
                    color=color,
                    alpha=0.5,
                )
                untrained = values(where(rows, task=UNTRAINED[task], network=network), metric)
                if len(untrained):
                    panel.axhline(
                        untrained.mean(),
                        color=color,
                        ls="--",
                        lw=0.9,
                        label=f"{network}, untrained",
                    )
            pixels = [100 * r["value"]["pixels"][metric] for r in rows if "pixels" in r["value"]]
            if pixels:
                panel.axhline(pixels[0], color="gray", ls=":", lw=1.2, label="pixels")
            panel.set_xscale("log")
            ticks = sorted(
                {place for network in networks(rows) for place in curve(rows, task, axis, network)}
            )
            panel.set_xticks(ticks, ticks, fontsize=8)
            panel.minorticks_off()
            panel.set_xlabel(title, fontsize=9)
            panel.grid(color="#dddddd", lw=0.6)
        axes[0, column].set_title(task)
    for row in axes:
        row[0].set_ylabel(f"{metric}, {METRICS[metric]}")
    handles = {}
    for panel in axes.flat:
        handles.update(dict(zip(*reversed(panel.get_legend_handles_labels()))))
    figure.legend(
        handles.values(), handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
