"""How long will a protocol take? An estimate from short trials before it starts, and what to do where the time is short.

A trial runs the protocol itself on a few images of one endpoint, for few and for some more passes over them (epochs, costs, episodes):
the difference is the price of a pass, the rest is paid once an endpoint. A pass costs in proportion to rows times features.
"""

import collections
import dataclasses
import time

import numpy as np

from tfssl import downstream
from tfssl.data.subset import spread
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
QUICK = {  # settings that answer in a fraction of the time
    "svm": {"costs": "0.1,1,10,100", "folds": 2},
    "few_shot": {"episodes": 100},
    "low_shot": {"samples": 2, "shots": (1, 4, 16, 64), "costs": "0.1,1,10,100"},
    "mlp": {"epochs": 30, "decay_epochs": (10, 20), "l2": 1e-4},
    "segmentation": {"epochs": 15},
    "surface_normals": {"epochs": 15},
    "detection": {"epochs": 10},
}
_TRIALS = {  # settings of a short trial, and of a longer one
    "knn": ({}, {}),
    "logistic": ({"max_iterations": 2, "l2": 1e-4}, {"max_iterations": 8, "l2": 1e-4}),
    "svm": ({"costs": "1", "folds": 2}, {"costs": "0.1,1,10", "folds": 2}),
    "few_shot": ({"episodes": 6, "shots": (1,)}, {"episodes": 30, "shots": (1,)}),
    "low_shot": ({"samples": 1, "shots": (1,), "costs": "1"}, {"samples": 1, "shots": (1,), "costs": "0.1,1,10"}),
    "mlp": ({"epochs": 2, "decay_epochs": (), "l2": 1e-4}, {"epochs": 8, "decay_epochs": (), "l2": 1e-4}),
    **dict.fromkeys(("segmentation", "surface_normals", "detection"), ({"epochs": 1}, {"epochs": 4})),
}
_ROWS, _IMAGES = 1000, 24  # of a trial, at most: of features; of a dense protocol, which sees whole images
_UPDATES = 50  # of L-BFGS in a fit, about as many as it ordinarily takes


def passes(protocol, settings):
    """How often a protocol goes through its images, in a unit of its own."""
    if protocol == "logistic":
        return min(settings["max_iterations"], _UPDATES) * (4 if settings["l2"] == "select" else 1)
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
    from tfssl.downstream import svm

    return len(svm.check(settings["costs"]))


Price = collections.namedtuple("Price", ["once", "each"])
Price.__doc__ = (
    """Seconds of a protocol: `once` for each endpoint, and `each` for a pass over one row of one feature."""
)


def rows_of(protocol, train, test):
    """What the time of a pass is in proportion to, of numbers of images."""
    if protocol == "knn":
        return train * test
    if protocol == "few_shot":
        return 1  # an episode has as many images whatever there are
    return min(train, 10_000) + test if protocol == "low_shot" else train


def measured(protocol, settings, run, rows, features):
    """The `Price` by trials.

    Args:
      protocol: its name.
      settings: its settings.
      run: function settings -> None, the protocol on the trial's images.
      rows, features: of the trial; see `rows_of`.
    """
    took, counts = [], []
    for trial in (_TRIALS[protocol][0], *_TRIALS[protocol]):  # the first pays for what is traced once in a process
        mine = {**settings, **trial}
        begun = time.perf_counter()
        run(mine)
        took.append(time.perf_counter() - begun)
        counts.append(passes(protocol, mine))
    (_, short, long), (_, few, many) = took, counts
    if few == many:
        return Price(0.0, min(short, long) / (features * rows * few))
    each = max(long - short, 0.0) / (many - few)
    return Price(max(short - few * each, 0.0), each / (features * rows))


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
            full = f"{_clock(seconds)} estimated, of {_clock(self.left)} left of --budget_minutes={self.minutes:g}"
            if quickly > self.left and not first:
                self.note(f"left out for lack of time: {protocol}: {full}; {remedy}")
                chosen = None
            elif quick and quickly < seconds:
                chosen, how = {**settings, **quick}, "quick settings"
                shown = ", ".join(f"{key}={_shown(value)}" for key, value in quick.items())
                self.note(f"quick settings: {protocol}: {shown}: in full {full}; {remedy}")
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
    largest = max(endpoints, key=lambda name: train.endpoints[name].shape[1])
    few, ask = sample(train, largest, _ROWS), sample(test, largest, _ROWS)
    each, pixels = [train.endpoints[n].shape[1] for n in endpoints if n != "pixels"], "pixels" in endpoints
    dims = modules * sum(each) + (train.endpoints["pixels"].shape[1] if pixels else 0)
    sizes = rows_of(protocol, len(few.labels), len(ask.labels)), few.endpoints[largest].shape[1]
    settings = _listed(settings)

    def run(trial):
        downstream.run(protocol, few, ask, **{**common, **trial})

    try:
        price = measured(protocol, settings, run, *sizes)
    except UserError:  # it will say so itself, and that takes no time
        return lambda settings: 0.0

    def seconds(settings):
        rows = sum(rows_of(protocol, count, len(test.labels)) for count in counts)
        endpoints = len(counts) * (modules * len(each) + pixels)
        return endpoints * price.once + price.each * dims * rows * passes(protocol, _listed(settings))

    return seconds


def of_maps(protocol, settings, module, sources, names, modules, common):
    """The same of a dense protocol; `names` of the endpoints, None for all maps and pixels. Rows are images, and maps are of one size."""
    few = {part: spread(source, _IMAGES) for part, source in sources.items()}
    function = getattr(downstream, protocol).run

    def run(trial):
        function(module, **few, endpoints=names, **{**common, **trial})

    try:
        price = measured(protocol, settings, run, few["train"].num_examples, 1)
    except UserError:
        return lambda settings: 0.0
    images = sources["train"].num_examples
    return lambda settings: modules * (price.once + price.each * images * passes(protocol, settings))


def _listed(settings):
    shots = settings.get("shots")
    return {**settings, "shots": shots.split(",")} if isinstance(shots, str) else settings


def _shown(value):
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _clock(seconds):
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"
