"""Several protocols on one module, result by result as they are there."""

import functools

from tfssl import downstream
from tfssl.data.sources.subset import spread
from tfssl.downstream import budget as times
from tfssl.downstream import splits
from tfssl.downstream.features import extract as features
from tfssl.downstream.protocols import low_shot
from tfssl.errors import UserError


def endpoints(opened, names=None, image_size=None, resize=None):
    """Which endpoints' features are extracted of each module; pixels, the same for all, of the first that has any.

    Args:
      opened: {name: `modules.Module`}.
      names: of endpoints; None: all of each module's, and pixels.
      image_size, resize: see `features.extract`.

    Returns:
      {name of the module: names of endpoints}, without modules that have none.
    """
    chosen = {}
    for name, module in opened.items():
        size, _ = module.sizes(image_size, resize)
        mine = features.check_endpoints(module, size, names) + [features.PIXELS] * (names is None)
        mine = [endpoint for endpoint in mine if not (chosen and endpoint == features.PIXELS)]
        if mine:
            chosen[name] = mine
    return chosen


def on_features(
    protocols,
    train,
    test,
    val=None,
    endpoints=None,
    train_labels=("all",),
    optional=(),
    left_out=print,
    refused=None,
    budget=None,
    **common,
):
    """Yield the results of protocols that learn from features: by protocol, number of labels and endpoint.

    Args:
      protocols: {one of `downstream.NAMES`: its settings}.
      train, test, val: `Features`.
      endpoints: names.
      train_labels: numbers of labels, such as ["1%", "all"].
      optional: names of protocols that are left out, wholly or for numbers of images that are too large, where they raise a UserError.
      left_out: told, in a line, what was left out and why.
      refused: told of the UserError of each part of a protocol that is not optional; the others go on. None: it is raised.
      budget: a `budget.Budget`, which may shorten protocols or leave them out; None: all are measured as they are.
      **common: settings of all protocols.
    """
    counts = dict.fromkeys(splits.label_count(amount, len(train.labels)) for amount in train_labels)
    for protocol, asked in protocols.items():
        settings = asked
        if budget:
            prepare = functools.partial(
                times.of_features, protocol, asked, train, test, endpoints, counts, budget.modules, common
            )
            settings = budget.permit(protocol, asked, prepare)
            if settings is None:
                continue
        together = getattr(getattr(downstream, protocol), "ONE_PASS", False)
        settings = dict(settings)
        these = dict.fromkeys(times.limited(count, settings, train.labels) for count in counts)
        settings.pop("train_labels", None)
        for count in these:
            for names in [endpoints] if together else [[endpoint] for endpoint in endpoints]:
                mine = {"val": val, "endpoints": names, "train_labels": count, **common, **settings}
                try:
                    if protocol in optional:
                        results = _as_far_as_it_goes(protocol, train, test, mine, left_out)
                    else:
                        results = downstream.run(protocol, train, test, **mine)
                except UserError as error:
                    if not refused:
                        raise
                    refused(error, protocol)
                    continue
                yield from _marked(results, budget, protocol, asked)
    if budget:
        budget.finished()


def _marked(results, budget, protocol, asked):
    """The results, which say where quick settings took the place of those asked for."""
    quick = budget.quick(protocol, asked) if budget else {}
    return [{**result, "quick": quick} if quick else result for result in results]


def _as_far_as_it_goes(protocol, train, test, settings, left_out):
    """The results of a protocol; where it refuses, for fewer "shots", or none."""
    shots = low_shot.check(settings["shots"]) if "shots" in settings else []
    what, dropped, reason = f"{protocol} on {settings['train_labels']} labels", [], None
    while True:
        try:
            results = downstream.run(protocol, train, test, **{**settings, **({"shots": shots} if shots else {})})
            break
        except UserError as error:
            if len(shots) < 2:
                left_out(f"left out: {what}: {error}")
                return []
            shots, dropped, reason = shots[:-1], [shots[-1], *dropped], error
    if dropped:
        left_out(f"left out: {what}, k={','.join(map(str, dropped))}: {reason}")
    return results


def on_maps(protocols, module, sources, pixels_of=(), optional=(), left_out=print, refused=None, budget=None, **common):
    """Yield the results of dense protocols.

    Args:
      protocols: {one of `downstream.DENSE`: its settings}.
      module: a `modules.Module`.
      sources: {"train", "test", perhaps "val": `Source`}.
      pixels_of: names of the protocols whose pixels are measured already: they are the same for every module.
      optional, left_out, refused, budget: as of `on_features`.
      **common: settings of all protocols.
    """
    for protocol, asked in protocols.items():
        settings = asked
        try:
            if budget:
                names = common.get("endpoints")
                rest = {name: value for name, value in common.items() if name != "endpoints"}
                prepare = functools.partial(
                    times.of_maps, protocol, asked, module, sources, names, budget.modules, rest
                )
                settings = budget.permit(protocol, asked, prepare)
                if settings is None:
                    continue
            run, settings, parts = getattr(downstream, protocol).run, dict(settings), dict(sources)
            if "train_labels" in settings:
                parts["train"] = spread(parts["train"], settings.pop("train_labels"), renumber=True)
            results = run(module, **parts, skip_pixels=protocol in pixels_of, **common, **settings)
        except UserError as error:
            if protocol in optional:
                left_out(f"left out: {protocol}: {error}")
            elif refused:
                refused(error, protocol)
            else:
                raise
            continue
        yield from _marked(results, budget, protocol, asked)
    if budget:
        budget.finished()
