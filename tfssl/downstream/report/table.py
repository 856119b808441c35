"""An evaluation as text: a table with notes, and a line for each result."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfssl.downstream.report.view import Cell, View, headings
from tfssl.downstream.results import Result

_METRICS = {  # full names of metrics other than accuracy
    "mAP": "mean average precision",
    "mIoU": "mean intersection over union",
    "effective rank": "RankMe, of the largest rank that so many images and features permit",
    "AP50": "average precision at an IoU of 0.5",
    "within 11.25\N{DEGREE SIGN}": "pixels whose angle is wrong by less than 11.25\N{DEGREE SIGN}",
}
_WIDEST = 200  # characters of a line; wider tables are split by columns


def table(results: Iterable[Mapping[str, Any]], baselines: Mapping[str, float]) -> str:
    """Results in percent: a line per module and endpoint, a column per protocol and number of
    training labels.

    Args:
      results: results, or records of results.json.
      baselines: {name: accuracy}.
    """
    return of_view(View.of(results, baselines))


def of_view(view: View) -> str:
    """The table of a view."""
    lines = [["module", "endpoint", *(f"{view.headings[c]} " for c in view.columns)]]
    for i, group in enumerate(group for group in (*view.groups, view.others) if group):
        lines += [[]] if i else []
        for j, row in enumerate(group):
            name = row.module if j == 0 or not row.endpoint else ""
            lines.append(
                [
                    name,
                    row.endpoint,
                    *(_cell(row.cells[c]) if c in row.cells else "" for c in view.columns),
                ]
            )
    widths = [max(len(line[i]) for line in lines if line) for i in range(len(lines[0]))]
    text: list[str] = []
    for part in _parts(widths[2:], _WIDEST - sum(widths[:2])):
        shown = [0, 1, *(2 + i for i in part)]
        block = [
            [line[i] for i in shown] if line else []
            for line in lines
            if not line or any(line[2 + i] for i in part)
        ]
        wide = [widths[i] for i in shown]
        rule = "-" * (sum(wide) + 2 * (len(wide) - 1))
        body = [_aligned(line, wide) if line else "" for line in block]
        text += [*([""] if text else []), body[0], rule, *body[1:], rule]
    return "\n".join([*text, *notes(view.results)])


def _cell(cell: Cell) -> str:
    return f"{100 * cell.value:.1f}" + ("*" if cell.chosen else " ")


def _parts(widths: Sequence[int], most: int) -> list[list[int]]:
    """The columns' numbers, in lists whose sum of widths is at most `most`."""
    parts: list[list[int]] = [[]]
    used = 0
    for i, width in enumerate(widths):
        if used + width + 2 > most and parts[-1]:
            parts.append([])
            used = 0
        parts[-1].append(i)
        used += width + 2
    return parts


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i]) for i, cell in enumerate(line)
    ]
    return "  ".join(cells).rstrip()


def spelled(metric: str) -> str:
    """The full name of a metric."""
    return _METRICS.get(metric, metric)


def notes(results: list[Result]) -> list[str]:
    """Explanations of the table: lines."""
    of_metric: dict[str, list[str]] = {}
    for metric, protocol in dict.fromkeys((r.metric, r.protocol) for r in results):
        if not metric.endswith("accuracy"):
            of_metric.setdefault(metric, []).append(protocol)
    order = [metric for metric in (*_METRICS, *of_metric) if metric in of_metric]
    named = "; ".join(
        f"{', '.join(of_metric[metric])}: {spelled(metric)}" for metric in dict.fromkeys(order)
    )
    measure = f"test accuracy ({named})" if named else "test accuracy"
    labels = (
        "training labels, or k of each class"
        if any(r.shots for r in results)
        else "training labels"
    )
    lines = [
        f"{measure} in %; protocol@{labels}; * the endpoint that validation chose for its module",
        *cautions(results),
    ]
    chosen = list(dict.fromkeys(r.chosen_on for r in results if r.chosen_on))
    for images in list(dict.fromkeys(r.reported_on for r in results if r.reported_on)):
        lines.append(f"chosen on {' and '.join(chosen) or 'nothing'}; reported on {images}")
    return lines


def cautions(results: list[Result]) -> list[str]:
    """Warnings about results: lines."""
    lines = []
    slow = [r for r in results if r.details.get("converged") is False]
    if slow:
        names = [f"{r.module}/{r.endpoint}@{r.train_labels}" for r in slow]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        lines.append(
            "logistic stopped at --max_iterations, before its optimum: "
            f"{', '.join(names[:4])}{more}"
        )
    quick = {r.protocol: r.quick for r in results if r.quick}
    for protocol, settings in quick.items():
        lines.append(
            f"quick settings of {protocol}, for lack of time: "
            f"{', '.join(f'{k}={v}' for k, v in settings.items())}"
        )
    unstable = [
        f"{r.protocol} {r.module}/{r.endpoint}" for r in results if r.details.get("diverged")
    ]
    if unstable:
        lines.append(
            "diverged, so take --standardize or a lower learning rate: "
            f"{', '.join(dict.fromkeys(unstable))}"
        )
    return lines


def line(result: Result) -> str:
    """A line about one result."""
    details = result.details
    figures = [f"accuracy {100 * details['accuracy']:.1f}%"] if "accuracy" in details else []
    figures += [f"AP {100 * details['coco_ap']:.1f}%"] if "coco_ap" in details else []
    figures += [f"AP75 {100 * details['ap75']:.1f}%"] if "ap75" in details else []
    figures += [f"VOC {100 * details['voc_ap']:.1f}%"] if "voc_ap" in details else []
    figures += (
        [f"median angle {details['median_angle']:.1f}\N{DEGREE SIGN}"]
        if "median_angle" in details
        else []
    )
    figures += [
        f"{name} {details[name]:.3g}"
        for name in ("rankme", "alignment", "uniformity", "normality")
        if name in details
    ]
    figures += [f"std {100 * details['std']:.1f}"] if "std" in details else []
    figures += [f"{key} {details[key]:.2g}" for key in ("l2", "cost", "ridge") if key in details]
    figures += [f"{details['iterations']} updates"] if "iterations" in details else []
    figures += (
        [f"epoch {details['epoch']}, {details['images_per_second']:.0f} images/s"]
        if "epoch" in details
        else []
    )
    listed = ", ".join([*figures, f"{result.seconds:.1f} s"])
    metric = "" if result.metric == "accuracy" else f"{result.metric} "
    heading = headings([result.column])[result.column]
    return (
        f"{result.module} {result.endpoint} {heading}: {metric}{100 * result.value:.1f}% ({listed})"
    )
