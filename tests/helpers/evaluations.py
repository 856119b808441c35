"""Results of an evaluation that reports are made of."""

from tfssl.downstream.results import Result


def result(module, endpoint, value, val_value, protocol="knn", train_labels=100, **more):
    """A `Result`, with further fields and details."""
    return Result.of(
        {
            **{
                "module": module,
                "endpoint": endpoint,
                "protocol": protocol,
                "train_labels": train_labels,
            },
            **{"metric": "accuracy", "value": value, "val_value": val_value},
            **more,
        }
    )


RESULTS = [
    result("rotation", "block1", 0.512, 0.50),
    result("rotation", "block2", 0.631, 0.49),  # better on test, which must not count
    result("rotation", "pixels", 0.9, 0.99),  # not the module's
    result("rotation", "block1", 0.6, 0.5, "logistic", 1000, converged=False),
    result("rotation", "block2", 0.6, 0.5, "logistic", 1000, converged=True),
    result("rotation", "pixels", 0.25, None, "logistic", 1000),
    result("x", "output", 1.0, None, "logistic", 1000),
]
