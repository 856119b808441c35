"""Multinomial logistic regression on frozen features: full-batch L-BFGS, as in the 2019 study (Kolesnikov et al., arXiv 1901.09005, 4.1).

Objective: mean cross-entropy + l2 * ||W||^2. The bias is free, features are as they come.

Raw features make L-BFGS crawl: a few directions carry most of their variance, and 800 updates do not reach the optimum. So it works in
other coordinates, W = P V. P divides by the square root of the curvature, estimated from the leading principal components, and features
are centred, which moves the bias by -mean W. Both are changes of variables: the objective, and its minimum, are exactly the same.
`precondition=False` leaves them out: the study's plain procedure, which often ends before the optimum.
"""

import dataclasses
import math
import time

import numpy as np
import tensorflow as tf
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from tfssl.downstream import splits
from tfssl.errors import UserError

_COMPONENTS = 128  # principal components that P treats one by one; 512 save no further updates, and cost more than they save
_CHUNK_VALUES = 1 << 25  # values of features per product (128 MB), which bounds what is needed beside them
_RESIDENT = 8 << 30  # bytes of features that may stay on an accelerator; more are sent to it at each update


def run(
    train,
    test,
    endpoints=None,
    l2="select",
    max_iterations=800,
    standardize=False,
    precondition=True,
    train_labels="all",
    val_fraction=0.2,
    seed=0,
):
    """Test accuracy of logistic regression on each endpoint.

    Args:
      train, test: `Features`.
      endpoints: names; all by default.
      l2: "select": powers of ten, then half powers around the best, by accuracy on the validation part; ties go to the lower
        cross-entropy. "published": 100 / (features * classes). Or a number.
      max_iterations: L-BFGS updates, at most, of each fit.
      standardize: scale each feature to mean 0 and standard deviation 1 (of the training rows) first. It changes what l2 means.
      precondition: see above.
      train_labels, val_fraction, seed: which rows are learned from; see `splits`.

    Returns:
      a list of results. "value" is of a last fit to all training rows, "val_value" of one without the validation part; "iterations"
      and "converged" (within max_iterations) are those of the last fit; "loss" is its objective.
    """
    l2 = check_l2(l2)
    part = splits.split(train, test, train_labels, val_fraction, seed)
    if l2 == "select" and not len(part.val):
        raise UserError(f"l2=select needs two labels of some class to choose on: {len(part.rows)} labels are too few; give a number")
    classes = np.unique(train.labels[part.rows])
    results = []
    for endpoint in splits.endpoints(train, test, endpoints):
        start, features = time.time(), train.endpoints[endpoint]
        shift, scale = _moments(features, part.rows) if standardize else (0.0, 1.0)

        def rows(features, labels, chosen, shift=shift, scale=scale):
            return Rows(features, np.searchsorted(classes, labels), chosen, shift, scale)

        fit_rows, val_rows = rows(features, train.labels, part.fit), rows(features, train.labels, part.val)
        problem = Problem([fit_rows], len(classes), precondition)
        if l2 == "select":
            chosen, trial = select(problem, val_rows, max_iterations)
        else:
            num_classes = train.num_classes or len(classes)
            chosen = 100 / (features.shape[1] * num_classes) if l2 == "published" else l2
            trial = problem.fit(chosen, max_iterations)
        everything = Problem([fit_rows, val_rows], len(classes), precondition)
        final = everything.fit(chosen, max_iterations, start=trial if l2 == "select" else None)
        predicted = classes[predict(test.endpoints[endpoint], final, shift, scale)]
        results.append(
            {
                "protocol": "logistic",
                "endpoint": endpoint,
                "metric": "accuracy",
                "value": float(np.mean(predicted == test.labels)),
                "val_value": evaluate(val_rows, trial)[0] if len(part.val) else None,
                "train_labels": len(part.rows),
                "features": features.shape[1],
                "l2": chosen,
                "l2_rule": l2 if isinstance(l2, str) else "given",
                "iterations": final.iterations,
                "converged": final.converged,
                "loss": final.loss,
                "standardize": standardize,
                "precondition": precondition,
                "seconds": time.time() - start,
            }
        )
    return results


def check_l2(l2):
    """"select", "published", or a float >= 0; UserError for anything else."""
    if l2 in ("select", "published"):
        return l2
    try:
        value = float(l2)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"l2={l2!r}: give select, published (100 / (features * classes)), or a number >= 0")
    return value


class Rows:
    """Some rows of one endpoint, and their labels, in chunks of tensors: float32, or float64 if the features are."""

    def __init__(self, features, labels, chosen, shift=0.0, scale=1.0):
        dtype = np.float64 if features.dtype == np.float64 else np.float32
        size = len(chosen) * features.shape[1] * np.dtype(dtype).itemsize
        self.count, self.dims, self.dtype, self.chunks = len(chosen), features.shape[1], dtype, []
        with tf.device("CPU" if size > _RESIDENT else None):
            for part in _in_chunks(chosen, self.dims):
                values = ((features[part].astype(dtype) - shift) / scale).astype(dtype)
                self.chunks.append((tf.constant(values), tf.constant(labels[part].astype(np.int32))))


@dataclasses.dataclass
class Fit:
    """A solution: weights float64 [D, C] and bias [C] for the features as they come, and how it was reached."""

    weights: np.ndarray
    bias: np.ndarray
    loss: float
    iterations: int
    converged: bool


class Problem:
    """mean cross-entropy + l2 * ||W||^2 over some rows, to be minimised for one l2 after another.

    Args:
      parts: list of Rows.
      num_classes: C.
      precondition: whether to work in centred, decorrelated coordinates.
    """

    def __init__(self, parts, num_classes, precondition=True):
        self.chunks = [chunk for part in parts for chunk in part.chunks]
        self.count, self.dims = sum(part.count for part in parts), parts[0].dims
        self.dtype, self.num_classes, self.precondition = parts[0].dtype, num_classes, precondition
        sums = sum(np.stack(_sums(x)) for x, _ in self.chunks)
        self.mean = sums[0] / self.count
        #: sum of the features' variances: the scale by which l2 is judged strong or weak
        self.variance = float(np.maximum(sums[1] / self.count - self.mean**2, 0).sum())
        if precondition:
            self._components = self._leading_components()

    def objective(self, weights, bias, l2):
        """(loss, gradient by weights [D, C], gradient by bias [C]), float64."""
        w, b = tf.constant(weights, self.dtype), tf.constant(bias, self.dtype)
        loss, dw, db = 0.0, 0.0, 0.0
        for x, y in self.chunks:
            terms = [t.numpy().astype(np.float64) for t in _cross_entropy(x, y, w, b)]
            loss, dw, db = loss + float(terms[0]), dw + terms[1], db + terms[2]
        loss = loss / self.count + l2 * float((weights**2).sum())
        return loss, dw / self.count + 2 * l2 * weights, db / self.count

    def fit(self, l2, max_iterations=800, start=None, **options):
        """Minimise by SciPy's L-BFGS with its default tolerances (`options` are SciPy's), from a Fit or from zero. Returns a Fit."""
        apply, invert, bias_scale, mean = self._coordinates(l2)
        shape = self.dims, self.num_classes

        def unpack(point):
            weights = apply(point[: -self.num_classes].reshape(shape))
            return weights, point[-self.num_classes :] * bias_scale - mean @ weights

        def function(point):
            weights, bias = unpack(point)
            loss, dw, db = self.objective(weights, bias, l2)
            return loss, np.concatenate([apply(dw - np.outer(mean, db)).ravel(), db * bias_scale])

        point = np.zeros(math.prod(shape) + self.num_classes)
        if start is not None:
            bias = start.bias + mean @ start.weights
            point = np.concatenate([invert(start.weights).ravel(), bias / bias_scale])
        # maxfun must not end the search first: one update may take several evaluations.
        options = {"maxiter": max_iterations, "maxfun": 20 * max_iterations, **options}
        # TensorFlow's threads do the large products. BLAS threads beside them wait by spinning: up to 20 times slower on busy cores.
        with threadpool_limits(1, user_api="blas"):
            found = minimize(function, point, jac=True, method="L-BFGS-B", options=options)
        # Status 2: the line search can gain no more in this precision. 1 is the limit.
        return Fit(*unpack(found.x), float(found.fun), int(found.nit), found.status != 1)

    def _coordinates(self, l2):
        """(P, its inverse, scale of the bias, mean): symmetric P as functions of [D, C]; the identity where not preconditioned."""
        if not self.precondition:
            return (lambda v: v), (lambda w: w), 1.0, np.zeros(self.dims)
        curvature = (1 / self.num_classes) * (1 - 1 / self.num_classes)  # of the softmax at W = 0, where every fit begins
        vectors, values, rest = self._components
        tiny = 1e-12 * curvature * (self.variance or 1.0)  # for directions without variance, at l2 = 0
        outer = math.sqrt(curvature * rest + 2 * l2 + tiny)
        inner = np.sqrt(curvature * values + 2 * l2 + tiny)

        def apply(v):
            return v / outer + vectors @ ((1 / inner - 1 / outer)[:, None] * (vectors.T @ v))

        def invert(w):
            return w * outer + vectors @ ((inner - outer)[:, None] * (vectors.T @ w))

        return apply, invert, curvature**-0.5, self.mean

    def _leading_components(self):
        """(vectors [D, k], variances [k], mean variance of each remaining direction), by subspace iteration.

        They need not be accurate, for any invertible P leaves the objective as it is. But vectors must be orthonormal.
        """
        k = min(_COMPONENTS, self.dims, self.count)
        vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((self.dims, min(k + 16, self.dims))))[0]
        for _ in range(2):
            vectors = np.linalg.qr(self._covariance_times(vectors))[0]
        values, turn = np.linalg.eigh(vectors.T @ self._covariance_times(vectors))
        # contiguous: a product with a reversed view does not reach BLAS
        vectors, values = np.ascontiguousarray((vectors @ turn)[:, ::-1][:, :k]), np.maximum(values[::-1][:k], 0)
        rest = max(self.variance - values.sum(), 0) / max(self.dims - k, 1)
        return vectors, values, min(rest, values[-1])

    def _covariance_times(self, vectors):
        v = tf.constant(vectors, self.dtype)
        offset = tf.constant(self.mean @ vectors, self.dtype)
        product = sum(_gram_times(x, v, offset).numpy().astype(np.float64) for x, _ in self.chunks)
        return product / self.count  # (x - mean) v sums to zero over the rows, so x^T of it needs no centring


def select(problem, val, max_iterations=800):
    """Choose l2 on validation rows: from strong to weak, each fit starting from the last one; stops when three have been no better.

    Returns:
      (l2, Fit).
    """
    # Relative to the features' variance, 0.1 leaves nothing but the class frequencies, and 1e-8 hardly restrains at all.
    strongest = math.floor(math.log10(0.1 * max(problem.variance, 1e-30)))
    best, fit, worse = None, None, 0
    for exponent in range(strongest, strongest - 8, -1):
        fit = problem.fit(10.0**exponent, max_iterations, fit)
        score = evaluate(val, fit)
        if best is None or score > best[0]:
            best, worse = (score, exponent, fit), 0
        else:
            worse += 1
        if worse == 3:
            break
    middle = best
    for exponent in (middle[1] + 0.5, middle[1] - 0.5):
        fit = problem.fit(10.0**exponent, max_iterations, middle[2])
        best = max(best, (evaluate(val, fit), exponent, fit), key=lambda candidate: candidate[0])
    return 10.0 ** best[1], best[2]


def evaluate(rows, fit):
    """(accuracy, minus the mean cross-entropy): the order in which fits are preferred."""
    right, loss = 0, 0.0
    w, b = tf.constant(fit.weights, rows.dtype), tf.constant(fit.bias, rows.dtype)
    for x, y in rows.chunks:
        logits = x @ w + b  # NxC
        right += int(tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == y, tf.int32)))
        loss += float(tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)))
    return right / rows.count, -loss / rows.count


def predict(features, fit, shift=0.0, scale=1.0):
    """The most likely class of each row of float [N, D]: int64 [N]."""
    predicted = []
    for part in _in_chunks(np.arange(len(features)), features.shape[1]):
        rows = Rows(features, np.zeros(len(features), int), part, shift, scale)
        ((x, _),) = rows.chunks
        predicted.append(tf.argmax(x @ tf.constant(fit.weights, rows.dtype) + tf.constant(fit.bias, rows.dtype), 1).numpy())
    return np.concatenate(predicted)


def _in_chunks(rows, dims):
    size = max(_CHUNK_VALUES // dims, 1)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _moments(features, rows):
    """(mean, standard deviation) of each feature over some rows, float64 [D]; constant ones get standard deviation 1."""
    total, squares = 0.0, 0.0
    for part in _in_chunks(rows, features.shape[1]):
        x = features[part].astype(np.float64)
        total, squares = total + x.sum(0), squares + (x**2).sum(0)
    mean = total / len(rows)
    std = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
    return mean, np.where(std > 1e-6 * np.abs(mean), std, 1.0)


def _sums(x):
    x = tf.cast(x, tf.float64)
    return tf.reduce_sum(x, 0).numpy(), tf.reduce_sum(x * x, 0).numpy()


@tf.function(reduce_retracing=True)
def _cross_entropy(x, y, w, b):
    logits = x @ w + b  # NxC
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
    error = tf.nn.softmax(logits) - tf.one_hot(y, tf.shape(w)[1], dtype=x.dtype)  # NxC
    return tf.reduce_sum(tf.cast(loss, tf.float64)), tf.linalg.matmul(x, error, transpose_a=True), tf.reduce_sum(error, 0)


@tf.function(reduce_retracing=True)
def _gram_times(x, v, offset):
    return tf.linalg.matmul(x, x @ v - offset, transpose_a=True)  # DxK
