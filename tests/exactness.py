"""What changes the numbers of a run, and what does not: `python tests/exactness.py`

The same training with --deterministic, each time with one thing different; and each of them begun
as the first one is, stopped in the middle and gone on with otherwise. Prints, for each, how many
tensors of the last checkpoint differ, and what the resumed run said about it.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parent / "helpers"))
from runs import TINY, command, weights  # noqa: E402

STEPS, HALF = 16, 8
FLAGS = (
    *TINY,
    "--dataset=glyphs",
    "--train_split=train[:256]",
    "--val_split=train[256:288]",
    f"--checkpoint_steps={HALF}",
    f"--validation_steps={HALF}",
    "--learning_rate=0.05",
    "--schedule=constant",
)


def one_core():
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


ONEDNN_OFF = {"TF_ENABLE_ONEDNN_OPTS": "0"}


VARIANTS = {
    "nothing": ((), None),
    "one core instead of all": ((), one_core),
    "oneDNN off": ((), ONEDNN_OFF),
    "--checkpoint_steps": (("--checkpoint_steps=4",), None),
    "no validation": (("--val_split=",), None),
    "--log_steps": (("--log_steps=1",), None),
    "one training image less": (("--train_split=train[:255]",), None),
}


def train(workdir, steps, flags=(), different=None):
    """The finished run. `different`: called in its process before it begins; or variables of the
    environment, for a fresh interpreter."""
    arguments = (*FLAGS, f"--train_steps={steps}", f"--workdir={workdir}", *flags)
    if isinstance(different, dict):
        line = [sys.executable, "-m", "tfssl.train", *arguments]
        return subprocess.run(
            line, env={**os.environ, **different}, capture_output=True, text=True, check=False
        )
    return command("train", *arguments, first=different)


def differing(one, other):
    """How many tensors differ between two checkpoints of the same network."""
    return f"{sum(not np.array_equal(one[n], other[n]) for n in one)} of {len(one)}"


def main():
    chosen = sys.argv[1:] or VARIANTS
    print(
        "| different | tensors that differ, run through | resumed with it | said "
        "|\n|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        done = train(folder / "whole", STEPS)
        assert done.returncode == 0, done.stderr
        whole = weights(folder / "whole", STEPS)
        for i, (name, (flags, different)) in enumerate(VARIANTS.items()):
            if name not in chosen:
                continue
            through, resumed = folder / f"{i}", folder / f"{i}-resumed"
            done = train(through, STEPS, flags, different)
            ran = (
                differing(weights(through, STEPS), whole)
                if done.returncode == 0
                else done.stderr.splitlines()[-1]
            )
            train(resumed, HALF)
            done = train(resumed, STEPS, flags, different)
            went_on = (
                differing(weights(resumed, STEPS), whole) if done.returncode == 0 else "refused"
            )
            lines = (done.stdout + done.stderr).splitlines()
            said = (
                lines[-1:]
                if done.returncode
                else [
                    line
                    for line in (done.stdout + done.stderr).splitlines()
                    if "differ" in line or "WARNING" in line
                ]
            )
            print(f"| {name} | {ran} | {went_on} | {' '.join(said[:2])[:300]} |", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
    main()
