"""Compare encoders on labeled images: any number of Hub modules, beside raw pixels, by two
protocols.

    make demo    # writes the two modules of this example
    python examples/compare_encoders.py rotation=demo/module/rotation random=demo/module/random
    python examples/compare_encoders.py mine=runs/photos/module/1000 https://HOST/theirs.tar.gz --dataset folder:photos \
        --train_split 'train[:80%]' --test_split 'train[80%:]'

The endpoint of each encoder is chosen on a part of the training images, and reported on the test
images. `tfssl-eval` does more: every protocol, plots, a page to look at. Give an untrained network
(`tfssl-export --random_init`) too: an encoder that is not above it has learned nothing that helps.
"""

import argparse
from collections.abc import Sequence
from typing import Optional

import tfssl
from tfssl.downstream import Features

PROTOCOLS = ("knn", "logistic")


def best(protocol: str, train: Features, test: Features, labels: str) -> dict:
    """The result of the endpoint that is best on the validation part of the training images."""
    return max(
        tfssl.downstream.run(protocol, train, test, train_labels=labels),
        key=lambda result: result["val_value"],
    )


def main(argv: Optional[Sequence[str]] = None) -> dict[tuple[str, str], dict]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "modules", nargs="+", metavar="NAME=MODULE", help="a folder, a .tar.gz, or an https handle"
    )
    parser.add_argument("--dataset", default="glyphs", help="labeled images")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--test_split", default="test")
    parser.add_argument(
        "--labels", default="all", help="labels to learn from: all, 1%%, or a number"
    )
    args = parser.parse_args(argv)

    sources = [
        tfssl.open_source(args.dataset, split) for split in (args.train_split, args.test_split)
    ]
    results = {}
    for given in args.modules:
        name, _, module = given.partition("=")
        if not module or "/" in name:  # a module without a name; a handle may end in #sha256=...
            name = module = given
        train, test = (tfssl.downstream.extract(module, source) for source in sources)
        for protocol in PROTOCOLS:
            results[name, protocol] = best(protocol, train, test, args.labels)
    # The images themselves, as the last module sees them: cropped to its size, and averaged to at
    # most 54 pixels a side.
    train, test = (
        tfssl.downstream.extract(module, source, endpoints=["pixels"]) for source in sources
    )
    for protocol in PROTOCOLS:
        results["raw pixels", protocol] = best(protocol, train, test, args.labels)

    print(f"{'encoder':20} {'protocol':10} {'endpoint':12} {'validation':>10} {'test':>7}")
    for (name, protocol), result in results.items():
        figures = f"{result['val_value']:10.1%} {result['value']:7.1%}"
        print(f"{name:20} {protocol:10} {result['endpoint']:12} {figures}")
    return results


if __name__ == "__main__":
    main()
