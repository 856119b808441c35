"""Two workers on this machine train rotation; one is killed, both start again. Does the run end as
an uninterrupted one?

    python benchmarks/workers.py --data cifar10

How to read it: exit statuses of the uninterrupted run; after how many seconds the survivor ended,
and what it said; where the two went on; then the last value of each metric in both runs, and the
largest difference over all steps. Needs a clone: it starts and kills as tests/test_workers.py does.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(
    0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests")
)
sys.path.insert(0, os.path.join(sys.path[0], "helpers"))
import test_workers as workers  # noqa: E402

FLAGS = (
    "--strategy=multi_worker --backbone=resnet18_v2 --width_multiplier=0.125 --stem=small "
    "--image_size=24 --resize=32 --min_area=0.3 "
    "--batch_size=64 --train_steps=120 --checkpoint_steps=40 --log_steps=1 --warmup_epochs=0 "
    "--learning_rate=0.1 --lr_scaling=0 "
    "--bn_momentum=0.9 --train_split=train --val_split=test[:1000] --deterministic"
).split()


def metrics(folder):
    return [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a folder with splits train and test")
    args = parser.parse_args()
    workers.FLAGS = FLAGS
    data = os.path.abspath(args.data)
    with tempfile.TemporaryDirectory() as root:
        whole, killed = (pathlib.Path(root) / name for name in ("whole", "killed"))
        ended = workers.wait(workers.start(whole, data), whole, 900)
        print("uninterrupted:", [status for status, _, _ in ended])
        processes = workers.start(killed, data)
        workers.when(processes, killed, "step 61/", 900)
        processes[1].kill()
        begun = time.time()
        status, _, said = workers.wait(processes, killed, 900)[0]
        print(
            f"the survivor ended after {time.time() - begun:.0f} s with status {status}: "
            f"{said.splitlines()[-1][:160]}"
        )
        ended = workers.wait(workers.start(killed, data), killed, 900)
        print(
            "restarted:",
            [status for status, _, _ in ended],
            *(t for t in ended[0][1].splitlines() if "resuming" in t),
        )
        for name in ("loss", "accuracy", "validation_loss", "validation_accuracy"):
            a, b = (
                [line[name] for line in metrics(folder) if name in line]
                for folder in (killed, whole)
            )
            largest = max(abs(x - y) for x, y in zip(a, b))
            print(
                f"{name}: {a[-1]:.6f} and {b[-1]:.6f}; largest difference of {len(b)}: "
                f"{largest:.2g}"
            )


if __name__ == "__main__":
    main()
