"""Several protocols on one module, result by result as they are there."""

from tfssl import downstream
from tfssl.downstream import features, splits


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


def on_features(protocols, train, test, val=None, endpoints=None, train_labels=("all",), **common):
    """Yield the results of protocols that learn from features: by protocol, number of labels and endpoint.

    Args:
      protocols: {one of `downstream.NAMES`: its settings}.
      train, test, val: `Features`.
      endpoints: names.
      train_labels: numbers of labels, such as ["1%", "all"].
      **common: settings of all protocols.
    """
    counts = dict.fromkeys(splits.label_count(amount, len(train.labels)) for amount in train_labels)
    for protocol, settings in protocols.items():
        together = getattr(getattr(downstream, protocol), "ONE_PASS", False)
        for count in counts:
            for names in [endpoints] if together else [[endpoint] for endpoint in endpoints]:
                where = {"val": val, "endpoints": names, "train_labels": count}
                yield from downstream.run(protocol, train, test, **where, **common, **settings)


def on_maps(protocols, module, sources, **common):
    """Yield the results of dense protocols.

    Args:
      protocols: {one of `downstream.DENSE`: its settings}.
      module: a `modules.Module`.
      sources: {"train", "test", perhaps "val": `Source`}.
      **common: settings of all protocols.
    """
    for protocol, settings in protocols.items():
        yield from getattr(downstream, protocol).run(module, **sources, **common, **settings)
