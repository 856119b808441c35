"""A perceptron with one hidden layer on frozen features, as in the 2019 study (Kolesnikov et al., arXiv 1901.09005;
its supplement, section 2): does a representation hold more than a linear classifier can read?

    logits = dropout(relu(features V + a)) W + b;  cross-entropy + l2 * (||V||^2 + ||W||^2);  momentum 0.9

Published: 1000 hidden units, dropout 0.5, batches of 512, 180 epochs, rate 0.01, divided by ten after 60 and 120.
"""

import dataclasses
import time

import numpy as np
import tensorflow as tf

from tfssl.downstream import splits
from tfssl.downstream.protocols.logistic import check_l2
from tfssl.downstream.solvers import sgd
from tfssl.downstream.solvers.lbfgs import moments
from tfssl.errors import UserError

L2 = (1e-2, 1e-3, 1e-4, 1e-5)  # what "select" chooses among


class Perceptron(sgd.Classifier):
    """Hidden units with ReLU, of which training drops some at random, and a linear layer."""

    def __init__(self, endpoint, dims, num_classes, hidden=1000, dropout=0.5, **common):
        super().__init__(endpoint, dims, **common)
        self.units, self.dropout = hidden, dropout
        self.hidden, self.hidden_bias = self.layer(dims, hidden)
        self.kernel, self.bias = self.layer(hidden, num_classes)

    def logits(self, x, draws):
        x = tf.nn.relu(x @ self.hidden + self.hidden_bias)  # BxH
        if draws is not None and self.dropout:
            x = tf.where(draws.keep(1 - self.dropout, (self.units,)), x / (1 - self.dropout), 0)
        return x @ self.kernel + self.bias  # BxC


def run(
    train,
    test,
    val=None,
    endpoints=None,
    hidden=1000,
    dropout=0.5,
    l2="select",
    epochs=180,
    decay_epochs=(60, 120),
    batch_size=512,
    learning_rate=0.01,
    standardize=False,
    epoch="last",
    train_labels="all",
    val_fraction=0.2,
    seed=0,
):
    """Test accuracy of a perceptron with one hidden layer on each endpoint.

    Args:
      train, test: `Features`, in memory or on disk: a batch at a time is read.
      val: `Features` of a validation split to choose on; None: a part of `train`.
      endpoints: names; all by default.
      hidden: units.
      dropout: part of the hidden units' outputs that training sets to 0.
      l2: "select": that of 1e-2, 1e-3, 1e-4 and 1e-5 with the best accuracy on the validation part; "published":
        100 / (features * classes); or a number. It multiplies the squares of both layers' kernels.
      epochs, decay_epochs: length, and after how many epochs the rate is divided by ten.
      batch_size: rows per step; at most as many as there are.
      learning_rate: of the first step (not scaled by the batch).
      standardize: scale each feature to mean 0 and standard deviation 1 first.
      epoch: which epoch's network is reported: "last", or "best" on validation.
      train_labels, val_fraction, seed: which rows are learned from; see `splits`. The seed is also that of the weights,
        the order and the dropout.

    Returns:
      a list of results. "value" is of a network that learned from all training rows, "val_value" of one without the
      validation part; with `val` one network is both. "curve": [[epoch, accuracy on validation or None, on test], ...].
    """
    l2 = check_l2(l2)
    check(hidden, dropout)
    decay_epochs = sgd.check("mlp", epochs, decay_epochs, batch_size, learning_rate)
    part = splits.split(train, test, train_labels, val_fraction, seed, val)
    sgd.check_epoch(epoch, part)
    if l2 == "select" and not len(part.val):
        splits.nothing_to_choose_on(part, val_fraction)
    return [
        {
            "protocol": "mlp",
            "endpoint": endpoint,
            "metric": "accuracy",
            **_evaluate(
                train,
                test,
                endpoint,
                part,
                l2,
                lambda *args, **common: Perceptron(*args, hidden=hidden, dropout=dropout, seed=seed, **common),
                sgd.Plan(epochs, decay_epochs, batch_size, learning_rate),
                standardize,
                epoch,
                seed,
            ),
            "train_labels": len(part.rows),
            "l2_rule": l2 if isinstance(l2, str) else "given",
            "hidden": hidden,
            "dropout": dropout,
            "epochs": epochs,
            "decay_epochs": list(decay_epochs),
            "learning_rate": learning_rate,
            "standardize": standardize,
        }
        for endpoint in splits.endpoints([train, test, val], endpoints)
    ]


def _evaluate(train, test, endpoint, part, l2, network, plan, standardize, epoch, seed):
    start, features = time.time(), train.endpoints[endpoint]
    classes, labels = np.unique(train.labels, return_inverse=True)
    common = {
        "scale": moments(features, part.rows) if standardize else None,
        "dtype": "float64" if features.dtype == np.float64 else "float32",
    }
    on_val = sgd.Held(part.held, part.val, [endpoint], classes)
    on_test = sgd.Held(test, np.arange(len(test.labels)), [endpoint], classes)

    def learn(l2s, rows, measured_on):
        """A network for each l2: its accuracies, [[epoch, [of each, on the first part], ...], ...], losses, rate."""
        networks = [network(endpoint, features.shape[1], len(classes), l2=value, **common) for value in l2s]
        own = dataclasses.replace(plan, batch_size=min(plan.batch_size, len(rows)))
        return sgd.train(
            networks,
            sgd.feature_batches(train, [endpoint], rows, own.batch_size, seed),
            lambda inputs: inputs,
            labels,
            np.ones(len(labels), bool),
            own,
            len(rows),
            lambda: [held.accuracies(networks) for held in measured_on],
            seed,
            title=f"mlp@{len(rows)} {endpoint}",
        )

    if l2 == "published":
        l2 = 100 / (features.shape[1] * (train.num_classes or len(classes)))
    tried = list(L2) if l2 == "select" else [l2]
    best = 0
    if part.fits_all:
        points, losses, rate = learn(tried, part.rows, [on_val, on_test])
    else:
        points, _, _ = learn(tried, part.fit, [on_val])
    if len(tried) > 1:
        best = max(
            range(len(tried)), key=lambda i: sgd.reported([[e, v[i], 0] for e, v, *_ in points], epoch)["val_value"]
        )
    if part.fits_all:
        curve = [[e, on_val[best], on_test[best]] for e, on_val, on_test in points]
    else:
        last, losses, rate = learn([tried[best]], part.rows, [on_test])
        curve = [[e, on_val[best], on_test[0]] for (e, on_val), (_, on_test) in zip(points, last)]  # noqa: B905
    loss = losses[best if part.fits_all else 0]
    return {
        **sgd.reported(curve, epoch),
        "features": features.shape[1],
        "l2": tried[best],
        "batch_size": min(plan.batch_size, len(part.rows)),
        "loss": loss,
        "diverged": loss is None,
        "images_per_second": rate,
        "seconds": time.time() - start,
    }


def check(hidden, dropout):
    """Raise UserError unless hidden >= 1 and 0 <= dropout < 1."""
    if hidden < 1 or not 0 <= dropout < 1:
        raise UserError(f"mlp: hidden={hidden}, dropout={dropout}: give at least 1 unit, and drop a part in [0, 1)")
