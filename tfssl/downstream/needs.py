"""What protocols need, of their settings and of the images: checked before any work."""

from tfssl import downstream
from tfssl.data.listing import checks
from tfssl.errors import UserError

_ANNOTATIONS = {  # what a dense protocol needs: (its plural, who has it)
    "mask": ("masks", "masks:PATH and glyphs have"),
    "boxes": ("objects in boxes", "boxes:PATH, tfds:voc, tfds:coco and glyphs have"),
    "normals": ("surface normals", "normals:PATH has"),
}


def check_settings(protocols, held_out):
    """Raise UserError for what a protocol would refuse later.

    Args:
      protocols: {protocol: its settings}.
      held_out: whether there are images to choose on, a validation split or a part of the training images.
    """
    from tfssl.downstream.protocols import few_shot, logistic, low_shot, svm
    from tfssl.downstream.solvers import sgd

    for protocol, flag in (("logistic", "l2"), ("mlp", "mlp_l2")):
        if protocol in protocols and logistic.check_l2(protocols[protocol]["l2"]) == "select" and not held_out:
            raise UserError(f"--{flag}=select and --val_fraction=0: nothing to choose on; give published, or a number")
    for protocol in {"linear_sgd", "mlp"} & set(protocols):
        keys = ("epochs", "decay_epochs", "batch_size", "learning_rate")
        sgd.check(protocol, **{key: protocols[protocol][key] for key in keys})
        if protocols[protocol]["epoch"] == "best" and not held_out:
            raise UserError("--epoch=best and --val_fraction=0: nothing to choose on")
    for protocol in {"svm", "low_shot"} & set(protocols):
        svm.check(protocols[protocol]["costs"])
    for protocol in {"low_shot", "few_shot"} & set(protocols):
        low_shot.check(protocols[protocol]["shots"])
    if "few_shot" in protocols:
        ridges = few_shot.check(protocols["few_shot"]["ways"], ridges=protocols["few_shot"]["ridges"])
        if len(ridges) > 1 and not held_out:
            raise UserError("--few_shot_ridges and --val_fraction=0: nothing to choose one on; give a number")


def check_images(protocols, sources, train_labels=("all",), **common):
    """Raise UserError for what a protocol would refuse once it sees the labels: too few images of a class, one class alone.

    Of sources whose labels are known without reading their images; of others nothing is checked.

    Args:
      protocols: {one of `downstream.NAMES`: its settings}.
      sources: {"train", "test", perhaps "val": `Source`}.
      train_labels: numbers of labels, as of `measure.on_features`.
      **common: settings of all protocols.
    """
    from tfssl.downstream import splits
    from tfssl.downstream.features import extract as features

    if not protocols or not all(source.random_access for source in sources.values()):
        return
    parts = {}
    for part, source in sources.items():
        rows, targets = features.read_labels(source), source.targets()
        parts[part] = features.Features(
            {},
            rows["labels"],
            rows["index"],
            source.num_classes,
            source.class_names,
            f"{source.spec} {source.split}",
            targets=None if targets is None else targets[rows["index"]],
        )
    for protocol, settings in protocols.items():
        for amount in train_labels:
            count = splits.label_count(amount, len(parts["train"].labels))
            try:  # of no endpoint: all is checked, and nothing computed
                if protocol == "linear_sgd":  # which would train
                    splits.split(**parts, train_labels=count, **common)
                else:
                    downstream.run(protocol, **parts, endpoints=[], train_labels=count, **common, **settings)
            except UserError as error:
                raise UserError(f"--protocol={protocol}: {error}") from error


def obstacles(protocols, sources):
    """{protocol: why the images do not permit it, one line} of those protocols that they do not.

    Args:
      protocols: names.
      sources: list of `Source`s, of all splits.
    """
    found = {}
    for source in sources:
        several = source.targets() is not None
        unlabelled = None if several or not set(protocols) & set(downstream.NAMES) else checks.unlabelled(source)
        for protocol in protocols:
            if protocol in downstream.DENSE:
                need = getattr(downstream, protocol).NEEDS
                what, where = _ANNOTATIONS.get(need, (need, "see docs/protocols.md"))
                reason = None if need in source.annotations else f"--dataset={source.spec} has no {what}: {where}"
            elif several and protocol not in downstream.MULTI_LABEL:
                reason = (
                    f"an image of {source.spec} may show several classes, which only "
                    f"{' and '.join(downstream.MULTI_LABEL)} take"
                )
            else:
                reason = unlabelled
            if reason:
                found.setdefault(protocol, reason)
    return found


def permitted(protocols, sources, optional=(), left_out=print):
    """Those of the protocols that the images permit.

    Args:
      protocols: {protocol: its settings}.
      sources: list of `Source`s, of all splits.
      optional: names of those that may be left out.
      left_out: told, in a line, which those are and why.

    Raises:
      UserError: the images do not permit a protocol that is not optional, or none of them.
    """
    refused = obstacles(protocols, sources)
    for protocol, reason in refused.items():
        if protocol not in optional:
            raise UserError(f"--protocol={protocol}: {reason}")
    kept = {name: settings for name, settings in protocols.items() if name not in refused}
    reasons = dict.fromkeys(refused.values())
    if protocols and not kept:
        raise UserError(f"--protocol=all: {'; '.join(reasons)}")
    for reason in reasons:
        names = [name for name in refused if refused[name] == reason]
        left_out(f"left out: {', '.join(names)}: {reason}")
    return kept
