"""MLP probe: one hidden layer on frozen features, as in the 2019 study (Kolesnikov et al., arXiv
1901.09005; supplement, section 2). Does a representation hold more than a linear classifier can
read?

    logits = dropout(relu(features V + a)) W + b;
    cross-entropy + l2 * (||V||^2 + ||W||^2);  momentum 0.9

Published: 1000 hidden units, dropout 0.5, batches of 512, 180 epochs, rate 0.01, divided by ten
after 60 and 120.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Optional, Union

import numpy as np
import tensorflow as tf

from tfssl.data.ops.draws import Draws
from tfssl.downstream import partition
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.protocols.logistic import check_l2, l2_of
from tfssl.downstream.results import Result
from tfssl.downstream.solvers import sgd
from tfssl.downstream.solvers.lbfgs import moments
from tfssl.downstream.solvers.resume import Curve, Losses
from tfssl.downstream.solvers.shares import Replicas
from tfssl.errors import UserError, check_choice

L2 = (1e-2, 1e-3, 1e-4, 1e-5)  # candidates of "select"


class Perceptron(sgd.Readout):
    """A hidden layer of ReLUs with dropout, and a linear layer."""

    def __init__(
        self,
        endpoint: str,
        dims: int,
        num_classes: int,
        hidden: int = 1000,
        dropout: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(endpoint, dims, **common)
        self.units, self.dropout = hidden, dropout
        self.hidden, self.hidden_bias = self.layer(dims, hidden)
        self.kernel, self.bias = self.layer(hidden, num_classes)

    def logits(self, x: tf.Tensor, draws: Optional[Draws]) -> tf.Tensor:
        x = tf.nn.relu(x @ self.hidden + self.hidden_bias)  # BxH
        if draws is not None and self.dropout:
            x = tf.where(draws.keep(1 - self.dropout, (self.units,)), x / (1 - self.dropout), 0)
        return x @ self.kernel + self.bias  # BxC


class MLP(Protocol[Features]):
    """One hidden layer of ReLUs with dropout on extracted features, by SGD.

    `value` is that of a network trained on all training rows, `val_value` that of one without the
    validation part; with a validation split one network gives both. "curve": [[epoch, accuracy on
    validation or None, on test], ...].

    Args:
      hidden: Hidden units (2019 study: 1000).
      dropout: Fraction of the hidden units that each step drops (2019 study: 0.5).
      l2: Factor of ||V||^2 + ||W||^2 in the loss: select (of 1e-2 to 1e-5, on validation),
        published (2019 study: 100 / (features * classes)), or a number.
      epochs: Length (2019 study: 180).
      decay_epochs: The rate is divided by ten after each (2019 study: 60,120).
      batch_size: Rows per step, at most all (2019 study: 512).
      learning_rate: At the first step, whatever the batch (2019 study: 0.01).
      standardize: Scale each feature to mean 0 and standard deviation 1 first; it changes what a
        penalty means (2019 study: no).
      epoch: Which epoch is reported: the last, or the best, that of the highest accuracy on
        validation (2019 study: last).
    """

    name = "mlp"
    flag_prefix = "mlp_"
    flag_names = {"standardize": "standardize", "epoch": "epoch"}
    magnitudes = (1e-12, 1e12)
    order_independent = False  # batches take rows in an order
    expense = 6
    quick = {"train_labels": 1000, "epochs": 60, "decay_epochs": (20, 40), "l2": 1e-4}
    trials = (
        {"epochs": 2, "decay_epochs": (), "l2": 1e-4},
        {"epochs": 8, "decay_epochs": (), "l2": 1e-4},
    )

    def __init__(
        self,
        hidden: int = 1000,
        dropout: float = 0.5,
        l2: Union[str, float] = "select",
        epochs: int = 180,
        decay_epochs: Sequence[float] = (60, 120),
        batch_size: int = 512,
        learning_rate: float = 0.01,
        standardize: bool = False,
        epoch: Literal["last", "best"] = "last",
    ) -> None:
        if hidden < 1 or not 0 <= dropout < 1:
            raise UserError(
                f"mlp: hidden={hidden}, dropout={dropout}: give at least 1 unit, and drop a "
                "fraction in [0, 1)"
            )
        check_choice("epoch", epoch, ("last", "best"))
        self.hidden, self.dropout, self.l2 = hidden, dropout, check_l2(l2)
        self.epochs, self.decay_epochs = (
            epochs,
            sgd.check("mlp", epochs, decay_epochs, batch_size, learning_rate),
        )
        self.batch_size, self.learning_rate, self.standardize, self.epoch = (
            batch_size,
            learning_rate,
            standardize,
            epoch,
        )

    def chooses(self) -> tuple[str, ...]:
        return tuple(
            name
            for name, value in (("l2", "select"), ("epoch", "best"))
            if getattr(self, name) == value
        )

    def passes(self) -> float:
        return self.epochs * (1 + (len(L2) if self.l2 == "select" else 1))

    def check(self, data: Data[Features]) -> None:
        self._split(data)

    def _split(self, data: Data[Features]) -> partition.Split:
        part = data.split()
        sgd.check_epoch(self.epoch, part)
        if self.l2 == "select" and not len(part.val):
            partition.nothing_to_choose_on(part, data.val_fraction)
        return part

    def run(self, data: Data[Features], endpoints: Sequence[str]) -> Iterator[Result]:
        part = self._split(data)
        for endpoint in endpoints:
            yield self._evaluate(data.train, data.test, endpoint, part, data.seed)

    def _evaluate(
        self, train: Features, test: Features, endpoint: str, part: partition.Split, seed: int
    ) -> Result:
        start, features = time.time(), train.endpoints[endpoint]
        classes, labels = np.unique(train.labels, return_inverse=True)
        perceptron = functools.partial(
            Perceptron,
            endpoint,
            features.shape[1],
            len(classes),
            hidden=self.hidden,
            dropout=self.dropout,
            seed=seed,
            scale=moments(features, part.rows) if self.standardize else None,
            dtype="float64" if features.dtype == np.float64 else "float32",
        )
        on_val = sgd.Held(part.held, part.val, [endpoint], classes)
        on_test = sgd.Held(test, np.arange(len(test.labels)), [endpoint], classes)

        def learn(
            l2s: Sequence[float], rows: np.ndarray, measured_on: Sequence[sgd.Held]
        ) -> tuple[Curve, Losses, float]:
            """Train a network for each l2: (curve [[epoch, accuracies of all on the first part,
            ...], ...], losses, rate)."""
            batch = min(self.batch_size, len(rows))
            settings = sgd.SGDSettings(self.epochs, self.decay_epochs, batch, self.learning_rate)
            strategy = sgd.strategy_for(train, batch)
            with strategy.scope():
                networks = [perceptron(l2=value) for value in l2s]
                return sgd.train(
                    networks,
                    sgd.feature_batches(
                        train, [endpoint], rows, batch, seed, replicas=Replicas(strategy)
                    ),
                    lambda inputs: inputs,
                    labels,
                    np.ones(len(labels), bool),
                    settings,
                    len(rows),
                    lambda: [held.accuracies(networks) for held in measured_on],
                    seed,
                    title=f"mlp@{len(rows)} {endpoint}",
                )

        given = self.l2 != "select"
        tried = (
            [l2_of(self.l2, features.shape[1], train.num_classes or len(classes))]
            if given
            else list(L2)
        )
        best = 0
        if part.fits_all:
            points, losses, rate = learn(tried, part.rows, [on_val, on_test])
        else:
            points, _, _ = learn(tried, part.fit, [on_val])
        if len(tried) > 1:
            reached = [
                sgd.reported([[e, v[i], 0] for e, v, *_ in points], self.epoch)
                for i in range(len(tried))
            ]
            best = max(range(len(tried)), key=lambda i: reached[i]["val_value"])
        if part.fits_all:
            curve = [[e, on_val[best], on_test[best]] for e, on_val, on_test in points]
        else:
            last, losses, rate = learn([tried[best]], part.rows, [on_test])
            curve = [
                [e, on_val[best], on_test[0]] for (e, on_val), (_, on_test) in zip(points, last)
            ]
        loss = losses[best if part.fits_all else 0]
        reported = sgd.reported(curve, self.epoch)
        return Result(
            protocol=self.name,
            endpoint=endpoint,
            metric=self.metric,
            value=reported.pop("value"),
            val_value=reported.pop("val_value"),
            train_labels=len(part.rows),
            details={
                **reported,
                "features": features.shape[1],
                "l2": tried[best],
                "batch_size": min(self.batch_size, len(part.rows)),
                "loss": loss,
                "diverged": loss is None,
                "images_per_second": rate,
                "l2_rule": self.l2 if isinstance(self.l2, str) else "given",
                "hidden": self.hidden,
                "dropout": self.dropout,
                "epochs": self.epochs,
                "decay_epochs": list(self.decay_epochs),
                "learning_rate": self.learning_rate,
                "standardize": self.standardize,
            },
            seconds=time.time() - start,
        )
