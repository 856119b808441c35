"""Linear classifiers by SGD on crops of the images, as in the 2019 study (Kolesnikov et al., arXiv 1901.09005; its
supplement, section 2): one head per endpoint of the frozen module, all trained in one pass.

    features = pool(module(random crop));  logits = W features + b;  momentum 0.9, rate 0.1 * batch / 256

Published: batches of 2048 images (1024 for patch tasks), rate divided by ten after 480 and 500 of 520 epochs; the
study's code, for smaller machines: 512 images, after 30 and 50 of 70.

Goyal et al. 2019 (arXiv 1905.01235) put a batch normalisation before each matrix, and learn for 28 epochs:
`flags/goyal/eval_linear_sgd.flags`.
"""

import hashlib
import time

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.sources import identity
from tfssl.downstream import splits
from tfssl.downstream.features import extract as features
from tfssl.downstream.features.encoder import CROPS
from tfssl.downstream.solvers import sgd
from tfssl.downstream.solvers.batch_norm import KINDS, BatchNorm
from tfssl.downstream.solvers.lbfgs import moments
from tfssl.downstream.solvers.resume import State
from tfssl.errors import UserError

ONE_PASS = True  # all endpoints at once: `run` wants all of their names


class Linear(sgd.Classifier):
    """One matrix and one bias."""

    def __init__(self, endpoint, dims, num_classes, **common):
        super().__init__(endpoint, dims, **common)
        self.kernel, self.bias = self.layer(dims, num_classes)

    def logits(self, x, draws):
        return x @ self.kernel + self.bias  # BxC


def run(
    train,
    test,
    val=None,
    endpoints=None,
    augment=True,
    crops="random",
    epochs=70,
    decay_epochs=(30, 50),
    batch_size=256,
    learning_rate=0.1,
    lr_scaling=256,
    weight_decay=0.0,
    nesterov=False,
    batch_norm="none",
    init_std=0.0,
    standardize=False,
    epoch="last",
    train_labels="all",
    val_fraction=0.2,
    seed=0,
    state_dir=None,
):
    """Test accuracy of a linear classifier on each endpoint.

    Without `val` there are two heads per endpoint, of which one skips the validation part's images in each batch.

    Args:
      train, test: `Features`. With `augment` they must be of `extract`: the heads see new random crops of the images
        behind `train`, whose features serve the validation part only. Accuracy is measured on central crops.
      val: `Features` of a validation split; None: a part of `train`.
      endpoints: names; all of `test` by default.
      augment: random crops through the module in each epoch; False: the extracted features, without passes through the
        module.
      crops: what a random crop is: "random", "random_flip" or "resized_flip"; see `Images.random_crops`.
      epochs, decay_epochs: length, and after how many epochs the rate is divided by ten.
      batch_size: images per step; at most as many as there are.
      learning_rate: at the first step, times batch_size / lr_scaling (0: not scaled).
      weight_decay: adds 0.5 * weight_decay * ||W||^2 (nothing for biases, or for the normalisation's scales and shifts).
      nesterov: Nesterov's momentum.
      batch_norm: "fixed": features are normalised by the batch's mean and variance of each channel, when measured by those of
        all crops so far; "learned": and then scaled and shifted. Features that are not of `extract` have D channels.
      init_std: deviation of the normal distribution of initial weights; 0: Glorot's uniform one.
      standardize: scale each feature to mean 0 and standard deviation 1 first (those of `train`'s features).
      epoch: which epoch's heads are reported: "last", or "best" on validation.
      train_labels, val_fraction, seed: which rows are learned from; see `splits`.
      state_dir: a folder, where a run that was killed finds its last whole epoch; for features of `extract` only.

    Returns:
      a list of results, "curve" in each: [[epoch, accuracy on validation or None, on test], ...].
    """
    settings = dict(locals())
    decay_epochs = sgd.check("linear_sgd", epochs, decay_epochs, batch_size, learning_rate)
    check(crops, batch_norm, init_std)
    part = splits.split(train, test, train_labels, val_fraction, seed, val)
    sgd.check_epoch(epoch, part)
    if augment and train.images is None:
        raise UserError(f"{train.source}: no images behind these features to take random crops of: set augment=False")
    reads_train = not augment or standardize or (val is None and len(part.val))
    names = splits.endpoints([test, val, train if reads_train else None], endpoints)
    start = time.time()
    batch = min(batch_size, len(part.rows))
    rate = learning_rate * (batch / lr_scaling if lr_scaling else 1)
    plan = sgd.Plan(epochs, decay_epochs, batch, rate, nesterov=nesterov)

    classes, labels = np.unique(train.labels, return_inverse=True)
    scales = {name: moments(train.endpoints[name], part.rows) for name in names} if standardize else {}

    def head(name, fits_all):
        dims = test.endpoints[name].shape[1]
        channels = test.images.channels(name) if test.images else dims
        dtype = "float64" if test.endpoints[name].dtype == np.float64 else "float32"
        return Linear(
            name,
            dims,
            len(classes),
            l2=0.5 * weight_decay,
            fits_all=fits_all,
            seed=seed,
            scale=scales.get(name),
            norm=None if batch_norm == "none" else BatchNorm(channels, batch_norm == "learned", dtype),
            init_std=init_std,
            dtype=dtype,
        )

    heads = [head(name, fits_all) for fits_all in ([True] if part.fits_all else [True, False]) for name in names]
    finals, trials = heads[: len(names)], heads[-len(names) :]  # one and the same if nothing is held out
    on_val = sgd.Held(part.held, part.val, names, classes)
    on_test = sgd.Held(test, np.arange(len(test.labels)), names, classes)
    key = _key(settings, names) if state_dir and train.images else None
    state = State(state_dir if key else None, key)
    done = state.epoch * plan.steps(len(part.rows))
    if augment:
        batches = _crops(train, part.rows, batch, seed, crops, done)
        encode = train.images.large_batch_encoder(names, batch)
    else:
        batches = sgd.feature_batches(train, names, part.rows, batch, seed, done)
        encode = lambda features: features  # noqa: E731

    curve, losses, rate = sgd.train(
        heads,
        batches,
        encode,
        labels,
        np.isin(np.arange(len(labels)), part.fit),
        plan,
        len(part.rows),
        lambda: [on_val.accuracies(trials), on_test.accuracies(finals)],
        seed,
        title=f"linear_sgd@{len(part.rows)}",
        state=state,
    )
    return [
        {
            "protocol": "linear_sgd",
            "endpoint": name,
            "metric": "accuracy",
            **sgd.reported([[e, of_trials[i], of_finals[i]] for e, of_trials, of_finals in curve], epoch),
            "train_labels": len(part.rows),
            "features": test.endpoints[name].shape[1],
            "augment": augment,
            "crops": crops,
            "epochs": epochs,
            "decay_epochs": list(decay_epochs),
            "batch_size": batch,
            "learning_rate": plan.learning_rate,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "batch_norm": batch_norm,
            "init_std": init_std,
            "standardize": standardize,
            "loss": losses[i],
            "diverged": losses[i] is None,
            "images_per_second": rate,
            "seconds": time.time() - start,
        }
        for i, name in enumerate(names)
    ]


def check(crops, batch_norm, init_std):
    """Raise UserError for settings that are none."""
    for name, value, known in (("crops", crops, CROPS), ("batch_norm", batch_norm, KINDS)):
        if value not in known:
            raise UserError(f"linear_sgd: {name}={value!r}: there is {', '.join(known)}")
    if not 0 <= init_std < float("inf"):
        raise UserError(f"linear_sgd: init_std={init_std}: a deviation is at least 0")


def _key(settings, names):
    """What a run depends on, for `State`; None where that cannot be told, since a source does not say what it is made of."""
    key = {name: str(value) for name, value in settings.items() if name not in ("train", "test", "val", "state_dir")}
    parts = [settings[part] for part in ("train", "test", "val") if settings[part] is not None]
    data = [identity.key(identity.of(part.images.source)) for part in parts]
    if None in data:
        return None
    images = [(part.images.module.identity, known) for part, known in zip(parts, data)]  # noqa: B905 (Python 3.9)
    sizes = [(part.images.size, part.images.resize, part.images.pool, part.images.target) for part in parts]
    rows = [hashlib.sha256(part.index.tobytes() + part.labels.tobytes()).hexdigest() for part in parts]
    return {**key, "endpoints": names, "images": images, "sizes": sizes, "rows": rows, **features.versions()}


def _crops(train, rows, batch_size, seed, crops="random", start_step=0):
    """Batches for `sgd.train`: (images uint8 [B, S, S, 3], rows of `train`)."""
    row = np.zeros(train.images.source.num_examples, np.int64)
    row[train.index] = np.arange(len(train.index))
    row = tf.constant(row)
    if crops == "random" and train.images.size == train.images.resize:
        logging.warning(
            "image_size and resize are both %d: square images have one crop; augment=False is faster", train.images.size
        )
    data = train.images.random_crops(train.index[rows], batch_size, seed, crops, start_step)
    return data.map(lambda batch: (batch["image"], tf.gather(row, batch["index"])))
