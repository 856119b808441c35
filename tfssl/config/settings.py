"""Settings of classes, read from their constructors; and flags.flags, the complete record of a run.

The constructors are read from their files, not from the imported classes: `--help` answers without waiting for TensorFlow.
"""

import ast
import os
from dataclasses import dataclass, field

from tfssl.config.data_flags import at_home
from tfssl.errors import UserError, one_line
from tfssl.storage.files import write_file


@dataclass
class Setting:
    """One keyword argument that some task's constructor has: its flag."""

    name: str
    tasks: int  # how many there are in all
    defaults: dict = field(default_factory=dict)  # task -> default
    texts: dict = field(default_factory=dict)  # task -> what it says of the setting

    @property
    def kind(self):
        return type(next(iter(self.defaults.values())))

    def describe(self):
        """The help of its flag: what it means, and its default; for which tasks, where they differ."""
        meanings = _by_value(self.texts)
        text = " ".join(f"{tasks}: {said}" for said, tasks in meanings.items())
        if len(meanings) == 1:
            (text,) = meanings
            text = text[:1].upper() + text[1:]
        defaults = _by_value({task: as_text(value) or "none" for task, value in self.defaults.items()})
        if len(defaults) == 1 and len(self.defaults) == self.tasks:
            return f"{text} Default: {next(iter(defaults))}."
        return f"{text} Default: {'; '.join(f'{value} for {tasks}' for value, tasks in defaults.items())}."


def _by_value(of_task):
    """{task: value} -> {value: "task, task"}."""
    tasks = {}
    for task, value in of_task.items():
        tasks[value] = f"{tasks[value]}, {task}" if value in tasks else task
    return tasks


def of_classes(classes):
    """{name: Setting} of the constructors of {task: (module, class name)}, in that order."""
    settings = {}
    for task, source in classes.items():
        for name, (default, text) in _signature(*source).items():
            setting = settings.setdefault(name, Setting(name, len(classes)))
            setting.defaults[task], setting.texts[task] = default, text
    return settings


def _signature(module, class_name):
    """{argument: (default, its line of the docstring)} of a class's constructor, inherited arguments last."""
    path = os.path.join(os.path.dirname(os.path.dirname(__file__)), *module.split(".")[1:]) + ".py"
    with open(path, encoding="utf-8") as f:
        tree = ast.parse(f.read())
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    arguments = {}
    if init is not None:
        names = init.args.args[-len(init.args.defaults) :] if init.args.defaults else []
        texts = _argument_texts(ast.get_docstring(node) or "")
        pairs = zip(names, init.args.defaults)  # noqa: B905 (Python 3.9)
        arguments = {a.arg: (ast.literal_eval(d), texts.get(a.arg, "")) for a, d in pairs}
    if init is None or init.args.kwarg:
        for base in (b.id for b in node.bases if isinstance(b, ast.Name)):
            origin = next(
                (n.module for n in tree.body if isinstance(n, ast.ImportFrom) and base in [a.name for a in n.names]),
                module,
            )
            if origin.startswith("tfssl."):
                arguments = {**arguments, **{k: v for k, v in _signature(origin, base).items() if k not in arguments}}
    return arguments


def _argument_texts(docstring):
    """{name: text} of a docstring's Args section."""
    texts, name, inside = {}, None, False
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() == "Args:":
            inside = True
        elif inside and line.strip() and indent == 0:
            break
        elif inside and indent == 2 and ":" in line:
            name, _, text = line.strip().partition(":")
            texts[name] = text.strip()
        elif inside and name and line.strip():
            texts[name] += " " + line.strip()
    return texts


def as_text(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(as_text(v) for v in value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def write_flags(path, values):
    """Write {flag: value} as a flagfile, in one step: the file is complete or absent."""
    lines = [f"--{name}={as_text(value)}" for name, value in values.items() if value is not None]
    write_file(path, "\n".join(lines) + "\n")


def read_flags(path):
    """{flag: text} of a file that `write_flags` wrote.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    import tensorflow as tf

    if not tf.io.gfile.exists(path):
        raise UserError(f"{os.path.dirname(path)!r} is not the workdir of a run: it has no {os.path.basename(path)}")
    try:
        with tf.io.gfile.GFile(path) as f:
            pairs = [line.strip()[2:].partition("=") for line in f if line.startswith("--")]
    except (UnicodeDecodeError, tf.errors.OpError) as e:
        raise UserError(f"{path}, the record of the run, cannot be read: {one_line(e)}") from e
    return {
        name: at_home(name, text) if equals else "true" for name, equals, text in pairs
    }  # --name alone: so absl reads it


def differences(stored, values, free=()):
    """The flags, by name, whose stored text is not that of `values`: [(name, stored text, new text)]."""
    new = {name: as_text(value) for name, value in values.items() if value is not None}
    names = [n for n in dict.fromkeys([*stored, *new]) if n not in free and stored.get(n) != new.get(n)]
    return [(n, stored.get(n, "unset"), new.get(n, "unset")) for n in names]
