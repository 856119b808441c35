"""What does `make demo` spend its time on, after the installs?

    python benchmarks/demo.py
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/demo.py        # as on a processor without AVX-512

It runs the Makefile's four commands in a new folder.

How to read the table: seconds by the clock, told apart by what the commands print: "start" is all
before a command's first line (imports, the letters, drawn once per machine, the network's
variables). CPU seconds are the steadier figure on a busy machine; two cores give two a second at
most.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time

PARTS = (  # what a line says ends with it
    (r"images of glyphs, \d+ steps", "start"),
    (r"step \d+/\d+ ", "steps, the first traced"),
    (r"to learn from", "start"),
    (r"extracted in", "features"),
    (r"logistic@", "logistic regression"),
)


def measure(command, program, *arguments):
    """Run a command, pass on what it prints, and print its rows of the table."""
    line = [os.path.join(os.path.dirname(sys.executable), program), *arguments]
    begun = last = time.time()
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    parts = {}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    for said in process.stdout:
        print("   ", said, end="", file=sys.stderr)
        name = next((name for pattern, name in PARTS if re.search(pattern, said)), None)
        if name:
            parts[name] = parts.get(name, 0) + time.time() - last
            last = time.time()
    if process.wait():
        sys.exit(f"{program} failed")
    parts["the rest" if parts else "all"] = time.time() - last
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    split = ", ".join(f"{name} {value:.1f}" for name, value in parts.items() if len(parts) > 1)
    print(f"| {command} | {time.time() - begun:.1f} | {seconds:.1f} | {split} |", flush=True)


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    begun = time.time()
    print("| command | seconds | CPU seconds | of these by the clock |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        module = f"{folder}/module"
        measure(
            "train", "tfssl-train", "--flagfile=tfssl:glyphs/rotation.flags", f"--workdir={folder}"
        )
        measure("export", "tfssl-export", f"--workdir={folder}", f"--export_dir={module}/rotation")
        measure("export, untrained", "tfssl-export", f"--workdir={folder}", "--random_init")
        modules = f"--module=rotation={module}/rotation,random={module}/random"
        measure(
            "evaluate",
            "tfssl-eval",
            modules,
            "--flagfile=tfssl:glyphs/eval.flags",
            f"--workdir={folder}/eval",
        )
    print(f"| all | {time.time() - begun:.1f} | | |")


if __name__ == "__main__":
    main()
