"""Linear probe by SGD on random crops, as in the 2019 study (Kolesnikov et al., arXiv 1901.09005;
supplement, section 2): one head per endpoint of the frozen module, all trained in one pass.

    features = pool(module(random crop));  logits = W features + b;
    momentum 0.9, rate 0.1 * batch / 256

Published: batches of 2048 images (1024 for patch tasks), rate divided by ten after 480 and 500 of
520 epochs; the study's code, for smaller machines: 512 images, after 30 and 50 of 70.

Goyal et al. 2019 (arXiv 1905.01235) put batch normalization before each linear layer, and train for
28 epochs: `flags/goyal/eval_linear_sgd.flags`.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Optional

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.ops.draws import Draws
from tfssl.data.sources import identity
from tfssl.downstream import partition
from tfssl.downstream.features import extract as features
from tfssl.downstream.features.encoder import CROPS, Encoder
from tfssl.downstream.features.extract import Features
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.results import Result
from tfssl.downstream.solvers import sgd
from tfssl.downstream.solvers.feature_norm import KINDS, FeatureNorm
from tfssl.downstream.solvers.lbfgs import Moments, moments
from tfssl.downstream.solvers.resume import Curve, Losses, State
from tfssl.downstream.solvers.shares import Replicas
from tfssl.errors import UserError, check_choice
from tfssl.runtime import strategy as strategies


class Linear(sgd.Readout):
    """A linear layer with bias."""

    def __init__(self, endpoint: str, dims: int, num_classes: int, **common: Any) -> None:
        super().__init__(endpoint, dims, **common)
        self.kernel, self.bias = self.layer(dims, num_classes)

    def logits(self, x: tf.Tensor, draws: Optional[Draws]) -> tf.Tensor:
        return x @ self.kernel + self.bias  # BxC


class LinearSGD(Protocol[Features]):
    """Linear probe by SGD: softmax regression on random crops, all endpoints in one pass.

    With `augment`, `train` and `test` must be results of `extract`: heads are trained on new random
    crops of the images behind `train`, whose features serve the validation part only; accuracy is
    measured on central crops. All replicas that made the features share each batch. Without a
    validation split there are two heads per endpoint, of which one skips the images of the
    validation part in each batch. "curve": [[epoch, accuracy on validation or None, on test], ...].
    With a `Data.state_dir` an interrupted run resumes after its last epoch.

    Args:
      augment: Random crops of the image size from the resized image, through the module in each
        epoch (2019 study: yes). Without: the extracted features, with no passes through the module.
      crops: What augment means: random, a random crop (2019 study); random_flip, the same with a
        random horizontal flip (Goyal et al. for colorization); resized_flip, a random resized crop
        of 8 to 100 % of the area and a random flip (VISSL).
      epochs: Length (2019 study: 520; its code: 70).
      decay_epochs: The rate is divided by ten after each (2019 study: 480,500; its code: 30,50).
      batch_size: Images per step, at most all (2019 study: 2048, patch tasks 1024; its code: 512).
      learning_rate: At the first step, times batch size / 256 (2019 study: 0.1).
      lr_scaling: Divisor of the batch size; 0: the rate is not scaled.
      weight_decay: Adds 0.5 * this * ||W||^2 to the loss, not for biases or the normalization's
        scales and shifts (2019 study's code: 0; Goyal et al.: 1e-4, AlexNet 5e-4).
      nesterov: Nesterov's momentum (Goyal et al.: for ResNets).
      batch_norm: Batch normalization of the pooled maps before each classifier: fixed, without
        scale and shift; learned, with both (Goyal et al.: fixed; colorization's ResNet: learned).
        In inference its statistics are those of all crops so far.
      init_std: Standard deviation of the initial weights, normally distributed (Goyal et al.:
        0.01); 0: Glorot's uniform distribution.
      standardize: Scale each feature to mean 0 and standard deviation 1 first; it changes what a
        penalty means (2019 study: no).
      epoch: Which epoch is reported: the last, or the best, that of the highest accuracy on
        validation (2019 study: last).
    """

    name = "linear_sgd"
    flag_prefix = "sgd_"
    flag_names = {
        "augment": "augment",
        "standardize": "standardize",
        "epoch": "epoch",
        "lr_scaling": "",
    }
    one_pass = True
    magnitudes = (0.0, math.inf)  # crops are encoded anew
    order_independent = False  # batches take rows in an order

    def __init__(
        self,
        augment: bool = True,
        crops: Literal["random", "random_flip", "resized_flip"] = "random",
        epochs: int = 70,
        decay_epochs: Sequence[float] = (30, 50),
        batch_size: int = 256,
        learning_rate: float = 0.1,
        lr_scaling: float = 256,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        batch_norm: Literal["none", "fixed", "learned"] = "none",
        init_std: float = 0.0,
        standardize: bool = False,
        epoch: Literal["last", "best"] = "last",
    ) -> None:
        for name, value, known in (("crops", crops, CROPS), ("batch_norm", batch_norm, KINDS)):
            if value not in known:
                raise UserError(f"linear_sgd: {name}={value!r}: there is {', '.join(known)}")
        if not 0 <= init_std < math.inf:
            raise UserError(f"linear_sgd: init_std={init_std}: a standard deviation is at least 0")
        check_choice("epoch", epoch, ("last", "best"))
        self.augment, self.crops, self.epochs, self.batch_size = augment, crops, epochs, batch_size
        self.decay_epochs = sgd.check("linear_sgd", epochs, decay_epochs, batch_size, learning_rate)
        self.learning_rate, self.lr_scaling, self.weight_decay = (
            learning_rate,
            lr_scaling,
            weight_decay,
        )
        self.nesterov, self.batch_norm, self.init_std = nesterov, batch_norm, init_std
        self.standardize, self.epoch = standardize, epoch

    def chooses(self) -> tuple[str, ...]:
        return ("epoch",) if self.epoch == "best" else ()

    def passes(self) -> float:
        return self.epochs

    def reads_train(self, held_out: bool) -> bool:
        return not self.augment or self.standardize or held_out

    def endpoints(
        self, data: Data[Features], names: Optional[Sequence[str]] = None, pixels: bool = True
    ) -> list[str]:
        held_out = data.val is None and len(data.split().val) > 0
        return partition.endpoints(
            [data.test, data.val, data.train if self.reads_train(held_out) else None], names
        )

    def run(self, data: Data[Features], endpoints: Sequence[str]) -> Iterator[Result]:
        train, test, names = data.train, data.test, list(endpoints)
        part = data.split()
        sgd.check_epoch(self.epoch, part)
        images = _images(train) if self.augment else None
        smaller = min(self.batch_size, len(part.rows))
        strategy = images.strategy if images else sgd.strategy_for(train, smaller)
        start = time.time()
        batch = self._batch(len(part.rows), strategy.num_replicas_in_sync)
        rate = self.learning_rate * (batch / self.lr_scaling if self.lr_scaling else 1)
        settings = sgd.SGDSettings(
            self.epochs, self.decay_epochs, batch, rate, nesterov=self.nesterov
        )
        with strategy.scope():
            curve, losses, rate = self._train(data, part, names, settings, images)
        for i, name in enumerate(names):
            reported = sgd.reported(
                [[e, of_trials[i], of_finals[i]] for e, of_trials, of_finals in curve], self.epoch
            )
            yield Result(
                protocol=self.name,
                endpoint=name,
                metric=self.metric,
                value=reported.pop("value"),
                val_value=reported.pop("val_value"),
                train_labels=len(part.rows),
                details={
                    **reported,
                    "features": test.endpoints[name].shape[1],
                    "augment": self.augment,
                    "crops": self.crops,
                    "epochs": self.epochs,
                    "decay_epochs": list(self.decay_epochs),
                    "batch_size": batch,
                    "learning_rate": settings.learning_rate,
                    "weight_decay": self.weight_decay,
                    "nesterov": self.nesterov,
                    "batch_norm": self.batch_norm,
                    "init_std": self.init_std,
                    "standardize": self.standardize,
                    "loss": losses[i],
                    "diverged": losses[i] is None,
                    "images_per_second": rate,
                },
                seconds=time.time() - start,
            )

    def _batch(self, count: int, replicas: int) -> int:
        """Images of a step, at most `count`, shared by the replicas."""
        if self.batch_size % replicas or count < replicas:
            raise UserError(
                f"linear_sgd: batch_size={self.batch_size} of {count} images does not divide over "
                f"{replicas} replicas: give a multiple of their number"
            )
        return min(self.batch_size, count // replicas * replicas)

    def _train(
        self,
        data: Data[Features],
        part: partition.Split,
        names: list[str],
        settings: sgd.SGDSettings,
        images: Optional[Encoder],
    ) -> tuple[Curve, Losses, float]:
        """The heads' curve and last losses, the final ones first, and images per second; call it in
        the scope of a strategy."""
        train, test, seed, batch = data.train, data.test, data.seed, settings.batch_size
        classes, labels = np.unique(train.labels, return_inverse=True)
        scales = (
            {name: moments(train.endpoints[name], part.rows) for name in names}
            if self.standardize
            else {}
        )
        both = [True] if part.fits_all else [True, False]
        heads = [
            self._head(name, test, len(classes), fits, scales.get(name), seed)
            for fits in both
            for name in names
        ]
        # one and the same if nothing is held out
        finals, trials = heads[: len(names)], heads[-len(names) :]
        on_val = sgd.Held(part.held, part.val, names, classes)
        on_test = sgd.Held(test, np.arange(len(test.labels)), names, classes)
        key = self._key(data, names) if data.state_dir else None
        state = State(data.state_dir if key else None, key)
        done = state.epoch * settings.steps(len(part.rows))
        batches: Iterable[tuple[Any, tf.Tensor]]
        if images:
            batches = _crops(train, part.rows, batch, seed, self.crops, done)
            share = batch // images.strategy.num_replicas_in_sync
            encode = images.large_batch_encoder(names, share)
        else:
            replicas = Replicas(tf.distribute.get_strategy())
            batches = sgd.feature_batches(train, names, part.rows, batch, seed, done, replicas)
            encode = _unchanged
        return sgd.train(
            heads,
            batches,
            encode,
            labels,
            np.isin(np.arange(len(labels)), part.fit),
            settings,
            len(part.rows),
            lambda: [on_val.accuracies(trials), on_test.accuracies(finals)],
            seed,
            title=f"linear_sgd@{len(part.rows)}",
            state=state,
        )

    def _head(
        self,
        name: str,
        test: Features,
        num_classes: int,
        fits_all: bool,
        scale: Optional[Moments],
        seed: int,
    ) -> Linear:
        dims = test.endpoints[name].shape[1]
        channels = test.images.channels(name) if test.images else dims
        dtype = "float64" if test.endpoints[name].dtype == np.float64 else "float32"
        return Linear(
            name,
            dims,
            num_classes,
            l2=0.5 * self.weight_decay,
            fits_all=fits_all,
            seed=seed,
            scale=scale,
            norm=None
            if self.batch_norm == "none"
            else FeatureNorm(channels, self.batch_norm == "learned", dtype),
            init_std=self.init_std,
            dtype=dtype,
        )

    def _key(self, data: Data[Features], names: list[str]) -> Optional[dict[str, Any]]:
        """Everything that a run depends on, for `State`; None for features without images, or a
        source without identity."""
        behind = [part.images for part in data.parts if part.images]
        known = [identity.key(identity.of(images.source)) for images in behind]
        if len(behind) < len(data.parts) or None in known:
            return None
        common = {name: getattr(data, name) for name in ("train_labels", "val_fraction", "seed")}
        modules = [(images.module.identity, content) for images, content in zip(behind, known)]
        sizes = [
            (images.size, images.resize, images.pool, images.target, images.dtype)
            for images in behind
        ]
        rows = [
            hashlib.sha256(part.index.tobytes() + part.labels.tobytes()).hexdigest()
            for part in data.parts
        ]
        settings = {name: str(value) for name, value in {**self.settings, **common}.items()}
        return {
            **settings,
            "endpoints": names,
            "images": modules,
            "sizes": sizes,
            "rows": rows,
            **features.versions(),
        }


def _images(train: Features) -> Encoder:
    """The images behind features; UserError where there are none."""
    if train.images is None:
        raise UserError(
            f"{train.source}: no images behind these features to take random crops of: set "
            "augment=False"
        )
    return train.images


def _unchanged(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return features


def _crops(
    train: Features,
    rows: np.ndarray,
    batch_size: int,
    seed: int,
    crops: str = "random",
    start_step: int = 0,
) -> tf.data.Dataset:
    """Batches for `sgd.train`: (images uint8 [B, S, S, 3], rows of `train`)."""
    images = _images(train)
    row_of = np.zeros(images.source.num_examples, np.int64)
    row_of[train.index] = np.arange(len(train.index))
    row = tf.constant(row_of)
    if crops == "random" and images.size == images.resize:
        logging.warning(
            "image_size and resize are both %d: square images have one crop; augment=False is "
            "faster",
            images.size,
        )

    def batches(**share: Any) -> tf.data.Dataset:
        data = images.random_crops(train.index[rows], batch_size, seed, crops, start_step, **share)
        return data.map(lambda batch: (batch["image"], tf.gather(row, batch["index"])))

    return strategies.distribute(images.strategy, batch_size, batches)
