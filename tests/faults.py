"""The fault matrix: each kind of fault at each moment of a run, and what comes of it. `python
tests/faults.py --out docs/reliability.md`

A cell is green if the disturbed command ends as it should (one line that names the cause, and a
status that is not 0; or none of it because nothing was disturbed), and the same command, given
again once the cause is gone, ends as the undisturbed one: the same weights bit for bit and each
logged step once, the same module, the same results.

Faults are put in by the disturbed process itself, when it comes for the first time to the function
that stands for the moment; a folder on a small file system of its own (tmpfs) is filled and set
read-only, which takes root, or is left out and said.
"""

import argparse
import contextlib
import dataclasses
import errno
import functools
import importlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import numpy as np
import tensorflow as tf

sys.path.append(str(pathlib.Path(__file__).parent / "helpers"))
from runs import BLOCK, Forked, logged, weights  # noqa: E402

STEPS = 12
MOUNTED = ("full disk", "no permission")  # kinds that need a file system of their own
LIMIT = 90  # seconds, after which a disturbed command counts as hung
SIZE = "96m"  # of the small file system
TRAIN = (
    *BLOCK, f"--train_steps={STEPS}", "--checkpoint_steps=4", "--log_steps=1", "--keep_checkpoints=1",
    "--train_split=train[:75%]", "--val_split=train[75%:]",
)  # fmt: skip
EVAL = (
    "--train_split=train[:75%]", "--test_split=train[75%:]", "--endpoints=pre_logits", "--protocol=knn", "--image_size=16",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a fault comes: at the `call`-th call of the function `place` (module:attribute) in `command`, or after that call."""

    command: str
    place: str
    call: int = 1
    after: bool = False
    data: str = "photos"
    reads: bool = False  # whether images are being read then; else something is being written


MOMENTS = {
    "claim": Moment("train", "tfssl.config.flagfile:write"),
    "unpack": Moment(
        "train", "tfssl.storage.archive:Extraction.write", call=20, data="photos.tar", reads=True
    ),
    "count": Moment(
        "train", "tfssl.data.listing.counts:_counter", data="photos.tfrecord", reads=True
    ),
    "first batch": Moment("train", "tfssl.training.callbacks:Log.on_epoch_begin", reads=True),
    "interval": Moment(
        "train", "tfssl.training.callbacks:Log.on_train_batch_end", call=6, reads=True
    ),
    "checkpoint": Moment("train", "tensorflow:train.Checkpoint.write", call=2, after=True),
    "prune": Moment("train", "tfssl.training.checkpoints:_delete"),
    "metrics line": Moment("train", "tfssl.training.callbacks:Log._append", call=7),
    "validation": Moment(
        "train", "tfssl.runtime.preemption:Preemption.on_test_batch_end", reads=True
    ),
    "export": Moment("export", "tensorflow:saved_model.save", after=True),
    "features": Moment("evaluate", "tfssl.downstream.features.cache:FeatureCache.commit"),
    "report": Moment("evaluate", "tfssl.downstream.report.save:save"),
}


# The faults, in the process that they befall.


def disturb(moment, fault, room):
    """Have this process meet a fault, a function (room, moment), at a moment; call it before the
    command begins."""
    module, _, attribute = moment.place.partition(":")
    *owners, name = attribute.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(function)
    def disturbed(*args, **settings):
        now = next(calls) == moment.call
        if now and not moment.after:
            strike()
        result = function(*args, **settings)
        if now and moment.after:
            strike()
        return result

    def strike():
        (room / "met").touch()
        fault(room, moment)

    setattr(owner, name, disturbed)


def kill(room, moment):
    os.kill(os.getpid(), signal.SIGKILL)


def terminate(room, moment):
    os.kill(os.getpid(), signal.SIGTERM)


def fill(room, moment):
    with contextlib.suppress(OSError), open(room / "disk" / "filler", "wb", buffering=0) as f:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while f.write(b"x" * size):
                    pass


def forbid(room, moment):
    """What is opened from now on finds everything read-only; what is open stays so."""
    for options in (["--bind", room / "disk"], ["-o", "remount,ro,bind"]):
        subprocess.run(["mount", *options, room / "disk"], check=True)


def fail_once(room, moment):
    """The images are away for a second; or the disk refuses once."""
    if moment.reads:
        take_away(room, moment)
        threading.Timer(1.0, bring_back, [room]).start()
        return
    sync = os.fsync

    def refuse(descriptor):
        os.fsync = sync
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    os.fsync = refuse


def take_away(room, moment):
    os.rename(room / "data", room / "away")


def take_away_for(seconds, room, moment):
    take_away(room, moment)
    timer = threading.Timer(seconds, bring_back, [room])
    timer.daemon = True  # a process that gives up does not wait for it
    timer.start()


def bring_back(room):
    if (room / "away").exists():
        os.rename(room / "away", room / "data")


def wait(room, moment):
    begun = time.monotonic()
    while not (room / "go").exists() and time.monotonic() - begun < LIMIT:
        time.sleep(0.02)


KINDS = {
    "KILL": kill,
    "TERM": terminate,
    "full disk": fill,
    "passing I/O error": fail_once,
    "no permission": forbid,
    "torn file": kill,
    "bit flip": kill,
    "data gone": take_away,
    "second process": wait,
    "data changed": kill,
}


# The other side: what is done around that process, and what has to come of it.


class Bench:
    """Cells of the matrix, and the undisturbed runs that they are measured by, in a folder that has to be empty."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.data = self.folder / "originals"
        _write_data(self.data)
        self.known = {}

    def arguments(self, moment, room):
        data = room / "data" / moment.data
        kind = "tfrecord" if moment.data.endswith(".tfrecord") else "folder"
        dataset = f"--dataset={kind}:{data}"
        if moment.command == "train":
            return (dataset, f"--workdir={room}/disk/out", *TRAIN)
        if moment.command == "export":
            return (
                f"--workdir={self.trained()}",
                f"--export_dir={room}/disk/out/module",
                "--tarball",
            )
        return (dataset, f"--workdir={room}/disk/out", f"--module={self.module()}", *EVAL)

    def undisturbed(self, moment):
        """What the command leaves that nothing befalls."""
        key = moment.command, moment.data
        if key not in self.known:
            room = self._room(f"undisturbed {moment.command} {moment.data}", disk=False)
            done = self._run(moment, room)
            assert done.returncode == 0, done.stderr
            self.known[key] = room, result(moment, room)
        return self.known[key][1]

    def trained(self):
        self.undisturbed(MOMENTS["interval"])
        return self.known["train", "photos"][0] / "disk" / "out"

    def module(self):
        self.undisturbed(MOMENTS["export"])
        return self.known["export", "photos"][0] / "disk" / "out" / "module"

    def cell(self, name, kind):
        """(None if it is green, or what is wrong with it, what the disturbed command said last)."""
        moment, room = MOMENTS[name], self._room(f"{name} {kind}", disk=True)
        wanted = self.undisturbed(moment)
        try:
            with mounted(room / "disk"):
                return self._cell(moment, kind, room, wanted)
        finally:
            shutil.rmtree(room)

    def _cell(self, moment, kind, room, wanted):
        process = self._start(moment, room, functools.partial(disturb, moment, KINDS[kind], room))
        second = None
        if kind == "second process":
            begun = time.monotonic()
            while (
                not (room / "met").exists()
                and process.process.is_alive()
                and time.monotonic() - begun < LIMIT
            ):
                time.sleep(0.02)
            second = self._start(moment, room)
            second.process.join(10)  # it may wait for what the first one unpacks
            (room / "go").touch()
        try:
            done = process.finished(LIMIT)
        except subprocess.TimeoutExpired:
            return f"hung for {LIMIT} s", ""
        said = (done.stderr.strip().splitlines() or [""])[-1]
        if not (room / "met").exists():
            return f"never came to that moment: {said}", said
        wrong = judge(done, kind)
        if kind == "TERM" and not wrong:
            seconds, left = time.time() - (room / "met").stat().st_mtime, _unfinished(room / "disk")
            wrong = (
                f"ended {seconds:.0f} s after SIGTERM"
                if seconds > 10
                else left and f"left behind: {left}"
            )
        if second:
            second = second.finished(LIMIT)
        if not wrong and second:
            said = (second.stderr.strip().splitlines() or [""])[-1]
            wrong = judge(second, kind)
            if (
                second.returncode == done.returncode == 0
                and "finished" not in second.stdout + done.stdout
            ):
                wrong = wrong or "a second process was let in"
        if wrong:
            return wrong, said
        self._undo(kind, room)
        if kind == "data changed":
            wrong = self._changed(moment, room)
            if wrong is not False:
                return wrong, said
        damaged = (
            damage(room / "disk", kind == "torn file")
            if kind in ("torn file", "bit flip")
            else None
        )
        if (
            moment.command == "export" and done.returncode == 0
        ):  # again it is refused: what is published never changes
            return difference(result(moment, room), wanted), said
        again = self._run(moment, room)
        if (
            damaged
            and again.returncode == 1
            and str(damaged) in again.stderr
            and "remove it" in again.stderr
        ):
            said = again.stderr.strip().splitlines()[-1]
            damaged.unlink()
            again = self._run(moment, room)
        if again.returncode != 0:
            last = (again.stderr.strip().splitlines() or [""])[-1]
            return f"the same command again, status {again.returncode}: {last}", said
        found = result(moment, room)
        if damaged and damaged.name == "metrics.jsonl":  # what was torn off it is gone
            wanted = {**wanted, "lines": found["lines"], "validations": found["validations"]}
        if (
            kind == "TERM" and moment is MOMENTS["validation"]
        ):  # the figures of that pass are missing, as documented
            wanted = {**wanted, "validations": found["validations"]}
        return difference(found, wanted), said

    def outage(self, seconds, steps=150):
        """The images are away for so many seconds, from the sixth step of a training on: a row of
        the table."""
        moment = dataclasses.replace(MOMENTS["interval"], command="outage")
        if "outage" not in self.known:
            room = self._room("undisturbed outage", disk=False)
            done = self._start_outage(room, steps).finished(LIMIT * 4)
            assert done.returncode == 0, done.stderr
            self.known["outage"] = weights(room / "disk" / "out", steps)
        room = self._room(f"outage {seconds}", disk=False)
        fault = functools.partial(take_away_for, seconds)
        process = self._start_outage(room, steps, functools.partial(disturb, moment, fault, room))
        said = None
        while process.process.is_alive():
            if said is None and "cannot be read" in (process.folder / "stderr").read_text():
                said = time.time()
            time.sleep(0.05)
        end, done = time.time(), process.finished(LIMIT)
        begun = (room / "met").stat().st_mtime
        lasted = (
            f"status {done.returncode} after {end - begun:.0f} s" if done.returncode else "went on"
        )
        if done.returncode:
            wrong = judge(done, "data gone")
            assert not wrong, wrong
            bring_back(room)
            done = self._start_outage(room, steps).finished(LIMIT * 4)
            assert done.returncode == 0, done.stderr
        rows = [line["replaced_images"] for line in logged(room / "disk" / "out") if "loss" in line]
        same = (
            difference(weights(room / "disk" / "out", steps), self.known["outage"])
            or "equal, bit for bit"
        )
        when = (
            "not met: what was loaded sufficed" if said is None else f"{max(0, said - begun):.1f} s"
        )
        shutil.rmtree(room)
        return f"| {seconds:g} s | {when} | {lasted} | {max(rows)} of {8 * steps} | {same} |"

    def _start_outage(self, room, steps, first=None):
        flags = (
            *BLOCK,
            f"--train_steps={steps}",
            "--checkpoint_steps=50",
            "--log_steps=1",
        )
        dataset, workdir = f"--dataset=folder:{room}/data/photos", f"--workdir={room}/disk/out"
        return Forked("train", dataset, workdir, *flags, first=first)

    def _undo(self, kind, room):
        bring_back(room)
        if kind == "full disk":
            (room / "disk" / "filler").unlink()
        if kind == "no permission":
            subprocess.run(["umount", room / "disk"], check=True)

    def _changed(self, moment, room):
        """What is wrong after the data changed; None: nothing; False: nothing yet, and the same
        data as before are there again."""
        begun = (room / "disk" / "out" / "flags.flags").exists()
        shutil.rmtree(room / "data")
        _write_data(room / "data", more=1)
        done = self._run(moment, room)
        if moment.command == "train" and begun:
            if done.returncode == 0:
                return "went on with other data"
            wrong = judge(done, "data changed")
            shutil.rmtree(room / "data")
            shutil.copytree(self.data, room / "data")
            return wrong or False
        if done.returncode:
            return f"refused: {done.stderr.strip().splitlines()[-1]}"
        if moment.command == "export":
            return difference(result(moment, room), self.undisturbed(moment))
        other = self._room(f"fresh {moment.place.replace(':', ' ')}", disk=False)
        shutil.rmtree(other / "data")
        shutil.copytree(room / "data", other / "data")
        fresh = self._run(moment, other)
        wrong = (
            difference(result(moment, room), result(moment, other))
            if fresh.returncode == 0
            else fresh.stderr
        )
        shutil.rmtree(other)
        return wrong

    def _room(self, name, disk):
        room = self.folder / name.replace(" ", "-").replace("/", "")
        shutil.copytree(self.data, room / "data")
        (room / "disk").mkdir()
        return room

    def _start(self, moment, room, first=None):
        first = functools.partial(_prepare, str(room / "disk" / "cache"), first)
        return Forked(
            moment.command if moment.command != "export" else "export.__main__",
            *self.arguments(moment, room),
            first=first,
        )

    def _run(self, moment, room):
        return self._start(moment, room).finished(LIMIT)


def _prepare(cache, disturbance):
    os.environ["TFSSL_CACHE"] = cache
    if disturbance:
        disturbance()


def _unfinished(disk):
    """Names of what an error has to take along."""
    return [
        p.name
        for p in disk.rglob("*")
        if p.name == "lock" or p.suffix in (".tmp", ".partial", ".unfinished")
    ]


def judge(done, kind):
    """What is wrong with the end of a disturbed command; None if nothing is."""
    if done.returncode == -signal.SIGKILL and KINDS[kind] is kill:
        return None
    if "Traceback" in done.stderr:
        return "a traceback"
    if kind == "TERM" and done.returncode != 75:
        return f"status {done.returncode} after SIGTERM"
    if done.returncode < 0:
        return f"died of signal {-done.returncode}"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        return (
            None
            if last and last[0].startswith("tfssl-")
            else f"status {done.returncode} without a line: {last}"
        )
    return None


def result(moment, room):
    """What a command has made, to be compared."""
    out = room / "disk" / "out"
    if moment.command == "train":
        lines = [
            {k: v for k, v in line.items() if "per_second" not in k and k != "input_wait"}
            for line in logged(out)
        ]
        parts = {
            "lines": [x for x in lines if "loss" in x],
            "validations": [x for x in lines if "loss" not in x],
        }
        return {**parts, **weights(out, STEPS)}
    if moment.command == "export":
        module = out / "module"
        reader = tf.train.load_checkpoint(str(module / "variables" / "variables"))
        names = sorted(str(p.relative_to(module)) for p in module.rglob("*") if p.is_file())
        with tarfile.open(f"{module}.tar.gz") as tar:
            packed = sorted(tar.getnames())
        beside = sorted(os.listdir(out))
        tensors = {
            n: reader.get_tensor(n)
            for n in reader.get_variable_to_shape_map()
            if n != "_CHECKPOINTABLE_OBJECT_GRAPH"
        }
        return {"names": names, "packed": packed, "beside": beside, **tensors}
    results = json.loads((out / "results.json").read_text().replace(str(room), ""))["results"]
    return {
        str(i): {k: v for k, v in row.items() if "seconds" not in k}
        for i, row in enumerate(results)
    }


def difference(found, wanted):
    """Where two results differ; None where they do not."""
    if found.keys() != wanted.keys():
        return f"other things came of it: {sorted(found.keys() ^ wanted.keys())[:3]}"
    other = [n for n in wanted if not np.array_equal(found[n], wanted[n])]
    return (
        f"{len(other)} of {len(wanted)} differ, {other[0]!r} first: {str(found[other[0]])[:200]}"
        if other
        else None
    )


def damage(disk, torn):
    """Tear the file that was written last, or flip a bit in it; returns it, or None where there is
    none."""
    files = [
        p
        for p in disk.rglob("*")
        if p.is_file() and p.stat().st_size > 1 and "tfevents" not in p.name and p.name != "lock"
    ]
    if not files:
        return None
    path = max(files, key=lambda p: p.stat().st_mtime_ns)
    content = bytearray(path.read_bytes())
    if torn:
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return path


@contextlib.contextmanager
def mounted(folder):
    """A small file system of its own, where that is permitted."""
    if not permitted():
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", folder], check=True)
    try:
        yield
    finally:
        while os.path.ismount(folder):
            subprocess.run(["umount", "-l", folder], check=True)


@functools.lru_cache
def permitted():
    """Whether this process may mount."""
    with tempfile.TemporaryDirectory() as folder:
        line = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
        if (
            sys.platform != "linux"
            or os.geteuid()
            or subprocess.run(line, capture_output=True).returncode
        ):
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def _write_data(folder, more=0):
    """photos, photos.tar and photos.tfrecord: 32 JPEGs of two classes, and `more`."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "photos.tfrecord")) as records:
        for i in range(32 + more):
            picture = np.clip(
                np.linspace(220, 30, 24)[:, None, None] + rng.normal(0, 20, [24, 24, 3]), 0, 255
            ).astype(np.uint8)
            picture[..., i % 2] //= 2
            content = tf.io.encode_jpeg(picture).numpy()
            path = folder / "photos" / ("warm" if i % 2 else "cold") / f"{i:03}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            feature = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[i % 2])),
            }
            records.write(
                tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
            )
    with tarfile.open(folder / "photos.tar", "w") as tar:
        tar.add(folder / "photos", "photos")


def page(cells, seconds):
    """Markdown: the matrix, and each cell that is not green."""
    marks = {None: "yes", False: "left out"}
    rows = [["", *KINDS], ["---"] * (len(KINDS) + 1)]
    for name in MOMENTS:
        rows.append(
            [
                name,
                *(
                    marks.get(cells[name, kind][0], "**no**") if (name, kind) in cells else ""
                    for kind in KINDS
                ),
            ]
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    red = [f"- {name}, {kind}: {wrong}" for (name, kind), (wrong, _) in cells.items() if wrong]
    said = [
        f"| {name} | {kind} | {line.replace('|', ' ')[:220]} |"
        for (name, kind), (_, line) in cells.items()
        if line
    ]
    green = sum(wrong is None for wrong, _ in cells.values())
    return (
        f"{green} of {len(cells)} cells are green, in {seconds / 60:.0f} minutes.\n\n{table}\n\n"
        + ("\n".join(red) + "\n\n" if red else "")
        + "What the disturbed commands said last:\n\n| moment | fault | line |\n|---|---|---|\n"
        + "\n".join(said)
        + "\n"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        help="a Markdown page, whose part between the two marks `<!-- faults -->` is written anew",
    )
    parser.add_argument("--moments", default=",".join(MOMENTS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(
        "--outages",
        help="comma list of seconds: how a training bears that its images are away so long, and no matrix",
    )
    args = parser.parse_args()
    if args.outages:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(folder)
            print(
                "| images away for | said after | what came of it | copies | at the end "
                "|\n|---|---|---|---|---|"
            )
            for seconds in map(float, args.outages.split(",")):
                print(bench.outage(seconds), flush=True)
        return
    begun, cells = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        for name in args.moments.split(","):
            for kind in args.kinds.split(","):
                cells[name, kind] = (
                    (False, "") if kind in MOUNTED and not permitted() else bench.cell(name, kind)
                )
                print(f"{name}, {kind}: {cells[name, kind][0] or 'green'}", flush=True)
    text = page(cells, time.monotonic() - begun)
    print(text)
    if args.out:
        path, mark = pathlib.Path(args.out), "<!-- faults -->\n"
        before, _, after = path.read_text().split(mark)
        path.write_text(before + mark + text + mark + after)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
    main()
