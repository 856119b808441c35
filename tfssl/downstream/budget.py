"""How long will a protocol take? An estimate from short trials before it starts, and what to do where the time is short.

A trial runs the protocol itself on one endpoint of a few images. Three of them (few passes; more passes; more images) tell three
prices: what is paid once an endpoint, what a row costs, and what each pass (epoch, cost, episode) over a row costs.
"""

import collections
import dataclasses
import math
import time

import numpy as np

from tfssl import downstream
from tfssl.data.sources.subset import spread
from tfssl.downstream import splits
from tfssl.errors import UserError

ORDER = (
    "knn",
    "logistic",
    "svm",
    "few_shot",
    "low_shot",
    "mlp",
    "segmentation",
    "surface_normals",
    "detection",
)  # cheap first
QUICK = {  # settings that answer in a fraction of the time; train_labels: at most so many, or five of each class
    "knn": {"train_labels": 1000},
    "logistic": {"train_labels": 1000},
    "svm": {"train_labels": 1000, "costs": "0.1,1,10,100", "folds": 2},
    "few_shot": {"episodes": 100},
    "low_shot": {"samples": 2, "shots": (1, 4, 16, 64), "costs": "0.1,1,10,100"},
    "mlp": {"train_labels": 1000, "epochs": 60, "decay_epochs": (20, 40), "l2": 1e-4},
    "segmentation": {"train_labels": 500, "epochs": 15},
    "surface_normals": {"train_labels": 500, "epochs": 15},
    "detection": {"train_labels": 500, "epochs": 15},
}
_TRIALS = {  # settings of trials, with few passes and with more
    "knn": ({}, {}),
    "logistic": ({}, {}),
    "svm": ({"costs": "1", "folds": 2}, {"costs": "0.1,1,10", "folds": 2}),
    "few_shot": ({"episodes": 6, "shots": (1,)}, {"episodes": 30, "shots": (1,)}),
    "low_shot": ({"samples": 1, "shots": (1,), "costs": "1"}, {"samples": 1, "shots": (1,), "costs": "0.1,1,10"}),
    "mlp": ({"epochs": 2, "decay_epochs": (), "l2": 1e-4}, {"epochs": 8, "decay_epochs": (), "l2": 1e-4}),
    **dict.fromkeys(("segmentation", "surface_normals", "detection"), ({"epochs": 1}, {"epochs": 4})),
}
_ROWS, _IMAGES = 500, 4  # of the smaller sample, at most: of features; of a dense protocol, which sees whole images


def passes(protocol, settings):
    """How often a protocol goes through its images, in a unit of its own."""
    if protocol == "svm":
        return _costs(settings) * settings["folds"]
    if protocol == "few_shot":
        return settings["episodes"] * len(settings["shots"])
    if protocol == "low_shot":
        return settings["samples"] * len(settings["shots"]) * _costs(settings)
    if protocol == "mlp":
        return settings["epochs"] * (1 + (4 if settings["l2"] == "select" else 1))
    return settings.get("epochs") or (40 if protocol == "detection" else 60) if protocol in downstream.DENSE else 1


def _costs(settings):
    from tfssl.downstream.protocols import svm

    return len(svm.check(settings["costs"]))


Price = collections.namedtuple("Price", ["once", "row", "each"])
Price.__doc__ = """Seconds: `once` for each endpoint, `row` for a unit of `work`, `each` for a pass over one."""


def work(protocol, train, test, dims):
    """What the time on an endpoint of `dims` features is in proportion to, of `train` and `test` images."""
    if protocol == "knn":
        return train * test * dims
    if protocol == "svm":  # it works with the products of all pairs of rows where these are fewer than features
        return train * min(train, dims)
    if protocol == "few_shot":
        return dims  # an episode has as many images whatever there are
    return (min(train, 10_000) + test if protocol in ("low_shot", *downstream.DENSE) else train) * dims


def measured(protocol, settings, trials):
    """The `Price` by trials.

    Args:
      protocol, settings: what is to be estimated.
      trials: [(function settings -> None that runs the protocol on a sample, the sample's `work`)] of a smaller and a larger sample.
    """
    (small, few), (large, many) = trials
    short, long = ({**settings, **trial} for trial in _TRIALS[protocol])

    def took(run, settings):
        begun = time.perf_counter()
        run(settings)
        return time.perf_counter() - begun

    if protocol not in downstream.DENSE:  # these are traced each time
        took(small, short)  # what is traced once in a process
    base, more_passes, more_rows = took(small, short), 0.0, took(large, short)
    p, q = passes(protocol, short), passes(protocol, long)
    each = 0.0
    if q > p:
        more_passes = took(small, long)
        each = max(more_passes - base, 0.0) / ((q - p) * few)
    base, more_rows = base - each * p * few, more_rows - each * p * many
    row = max(more_rows - base, 0.0) / (many - few) if many > few else 0.0
    return Price(max(base - row * few, 0.0), row, each)


def sample(features, endpoint, count, seed=0):
    """`Features` of at most `count` images, of all classes in turn, and of one endpoint."""
    count = min(count, len(features.labels))
    if features.targets is None and features.labels.min() >= 0:
        rows = splits.balanced(features.labels, features.index, count, seed)
    else:
        rows = np.linspace(0, len(features.labels) - 1, count).round().astype(int)
    targets = None if features.targets is None else features.targets[rows]
    return dataclasses.replace(
        features,
        endpoints={endpoint: np.asarray(features.endpoints[endpoint][rows])},
        labels=features.labels[rows],
        index=features.index[rows],
        targets=targets,
    )


class Budget:
    """Which protocols a time is enough for, decided before each starts, from the cheapest on, for all modules alike.

    A protocol runs with its own settings where these take at most an equal share of what is left; with quick ones where these fit at all;
    and else not. What was decided on the first module holds for the others, whose results stand in the same columns.

    Args:
      minutes: of all modules' protocols together. Passes of the images through the modules are not counted.
      modules: how many there are.
      protocols: names of those that may be shortened or left out. Others are never touched.
      kept: names of those whose settings the user gave: they run as they are, or not.
      tell: told, in a line, of each estimate; note: of what was shortened or left out.
    """

    def __init__(self, minutes, modules, protocols, kept=(), tell=print, note=print):
        self.minutes, self.modules, self.kept, self.tell, self.note = minutes, modules, set(kept), tell, note
        self.waiting = [protocol for protocol in ORDER if protocol in protocols]
        self.left = 60.0 * minutes
        self.decided, self._running = {}, None

    def permit(self, protocol, settings, prepare):
        """The settings that a protocol runs with; None: it is left out.

        Args:
          protocol, settings: as asked for.
          prepare: function that makes the trials and returns another, settings -> seconds of all modules.
        """
        self.finished()
        if protocol in self.decided:
            return self.decided[protocol]
        if protocol not in self.waiting:
            return settings
        begun = time.perf_counter()
        if self.left <= 0:
            self.waiting.remove(protocol)
            self.decided[protocol] = None
            self.note(
                f"left out for lack of time: {protocol}: nothing of --budget_minutes={self.minutes:g} is left; --protocol={protocol} or "
                "--budget_minutes=0 measures it"
            )
            return None
        estimate = prepare()
        seconds = estimate(settings)
        share, quick, how = self.left / len(self.waiting), {}, "full settings"
        first = not self.decided
        self.waiting.remove(protocol)
        remedy = f"--protocol={protocol} or --budget_minutes=0 measures it in full"
        chosen = settings
        if seconds > share:
            quick = {} if protocol in self.kept else QUICK.get(protocol, {})
            quickly = estimate({**settings, **quick})
            lasts = f"about {_clock(seconds)} in full" + (f", {_clock(quickly)} with quick settings" if quick else "")
            of = f"{_clock(max(self.left, 0))} of --budget_minutes={self.minutes:g} are left"
            if quickly > self.left and not first:
                self.note(f"left out for lack of time: {protocol}: {lasts}; {of}; {remedy}")
                chosen = None
            elif quick and quickly < seconds:
                chosen, how = {**settings, **quick}, "quick settings"
                shown = ", ".join(f"{key}={_shown(value)}" for key, value in quick.items())
                self.note(f"quick settings: {protocol}: {shown}: {lasts}; {of}; {remedy}")
                seconds = quickly
        self.left -= time.perf_counter() - begun
        self.decided[protocol] = chosen
        if chosen is not None:
            self.tell(f"{protocol}: {_clock(seconds)} estimated ({how})")
            self._running = time.perf_counter()
        return chosen

    def finished(self):
        """The protocol that ran has ended: what it took of one module is set aside for all."""
        if self._running is not None:
            self.left -= (time.perf_counter() - self._running) * self.modules
            self._running = None

    def quick(self, protocol, asked):
        """{setting: value} of a protocol that runs with quick ones in place of those asked for; {} where none was shortened."""
        chosen = self.decided.get(protocol)
        return {} if chosen is None else {key: chosen[key] for key in chosen if chosen[key] != asked.get(key)}


def of_features(protocol, settings, train, test, endpoints, counts, modules, common):
    """A function settings -> seconds that a protocol takes on all endpoints of all `modules`, for all numbers of labels.

    `common`: settings of all protocols. Pixels are counted for one module.
    """
    dims = {name: train.endpoints[name].shape[1] for name in endpoints}
    largest, settings, trials = max(endpoints, key=dims.get), _listed(settings), []
    few = min(_ROWS, len(train.labels) // 2)
    for rows in (few, 2 * few):
        parts = sample(train, largest, rows), sample(test, largest, rows)

        def run(trial, parts=parts):
            downstream.run(protocol, *parts, **{**common, **trial})

        trials.append((run, work(protocol, *(len(part.labels) for part in parts), dims[largest])))
    try:
        price = measured(protocol, settings, trials)
    except UserError:  # it will say so itself, and that takes no time
        return lambda settings: 0.0

    def seconds(settings):
        each, total = price.row + price.each * passes(protocol, _listed(settings)), 0.0
        for count in dict.fromkeys(limited(count, settings, train.labels) for count in counts):
            for name in endpoints:
                one = price.once + each * work(protocol, count, len(test.labels), dims[name])
                total += one * (1 if name == "pixels" else modules)
        return total

    return seconds


def limited(count, settings, labels):
    """How many of `count` labels a protocol learns from whose settings may have quick ones' "train_labels"."""
    limit = settings.get("train_labels")
    return count if limit is None else min(count, max(limit, 5 * len(np.unique(labels))))


def of_maps(protocol, settings, module, sources, names, modules, common):
    """The same of a dense protocol; `names` of the endpoints, None for all maps and pixels."""
    from tfssl.downstream.features import maps

    function, trials = getattr(downstream, protocol).run, []
    size = maps.image_sides(sources["train"], settings["size"])
    names = maps.check_endpoints(module, size, protocol, names, settings.get("trunk", "frozen") != "frozen")
    values = {name: np.prod(size) * 3 if name == "pixels" else np.prod(module.shapes(size)[name]) for name in names}
    largest = max(names, key=values.get)
    few = min(_IMAGES, sources["train"].num_examples // 2)
    for images in (few, 2 * few):
        parts = {part: spread(source, images, renumber=True) for part, source in sources.items() if part != "val"}

        def run(trial, parts=parts):
            function(module, **parts, endpoints=[largest], **{**common, **trial})

        trials.append((run, work(protocol, *(parts[p].num_examples for p in ("train", "test")), values[largest])))
    try:
        price = measured(protocol, settings, trials)
    except UserError:
        return lambda settings: 0.0

    def seconds(settings):
        images = min(sources["train"].num_examples, settings.get("train_labels", math.inf))
        on = {
            name: price.once + price.row * work(protocol, images, sources["test"].num_examples, values[name])
            for name in names
        }
        on = {
            name: its + price.each * passes(protocol, settings) * work(protocol, images, 0, values[name])
            for name, its in on.items()
        }
        return sum(its * (1 if name == "pixels" else modules) for name, its in on.items())

    return seconds


def _listed(settings):
    shots = settings.get("shots")
    return {**settings, "shots": shots.split(",")} if isinstance(shots, str) else settings


def _shown(value):
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _clock(seconds):
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"
