"""The settings of a class, read from the text of its constructor (or of its fields, if it is a
dataclass) and docstring.

The file is read, and the class not imported: `--help` answers without waiting for TensorFlow.
"""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import os
from typing import Any, Optional

from tfssl.errors import UserError

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_KINDS = {"bool": bool, "int": int, "float": float, "str": str}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One keyword argument of a constructor.

    Attributes:
      default: its default; None where it is unset.
      text: what the docstring's Args say of it.
      kind: bool, int, float or str; of a sequence that of its items.
      many: whether it is a sequence.
      choices: the values that a `Literal` annotation permits; () for any.
      flag: the name of its flag.
      bounds: (least, greatest) number that the flag takes, both allowed; None: see
        `tfssl.config.bounds`.
    """

    name: str
    default: Any
    text: str
    kind: type
    many: bool
    choices: tuple
    flag: str
    bounds: Optional[tuple[float, float]] = None


def read(module: str, class_name: str) -> dict[str, Setting]:
    """{argument: Setting} of a class's constructor, inherited ones last.

    A class may say how its flags are named, in two class attributes: `flag_prefix`, a str before
    each name; and `flag_names`, a dict of argument -> flag for those that are named otherwise. An
    argument that maps to "" has no flag. A third, `flag_bounds`, is a dict of argument -> (least,
    greatest).

    Raises:
      UserError: there is no such module or class; or a default is no literal, so that there can be
        no flag.
    """
    found = _read(module, class_name, {})
    prefix, names = found.prefix or "", found.names
    flags = {name: names.get(name, prefix + name) for name in found.arguments}
    return {
        name: Setting(
            name, default, text, *_kind(annotation, default), flags[name], found.bounds.get(name)
        )
        for name, (default, annotation, text) in found.arguments.items()
        if flags[name]
    }


def arguments(cls: type) -> tuple[str, ...]:
    """Names of all arguments of a class's constructor, those that go on to base classes last: also
    of a class that stands in no file."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" in vars(base):
            own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            names += [a.name for a in own if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)]
            if not any(a.kind is a.VAR_KEYWORD for a in own):
                break
    return tuple(dict.fromkeys(names))


def summary(module: str, class_name: str) -> str:
    """The first sentence of a class's docstring, without its period; "" where it has none.

    Raises:
      UserError: there is no such module or class.
    """
    node = _find(_parse(module), module, class_name)
    paragraph = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".")


@dataclasses.dataclass
class _Class:
    arguments: dict  # name -> (default, annotation or None, text)
    prefix: Optional[str]
    names: dict
    bounds: dict
    open: bool  # whether further keyword arguments go on to the bases


def _read(module: str, class_name: str, parsed: dict[str, ast.Module]) -> "_Class":
    tree = parsed[module] if module in parsed else parsed.setdefault(module, _parse(module))
    imported = _origin(tree, module, class_name)
    if imported and imported != (
        module,
        class_name,
    ):  # a package that passes on the class of one of its modules
        return _read(*imported, parsed)
    node = _find(tree, module, class_name)
    own = _own(node, f"{module}:{class_name}")
    bases = [
        base.value if isinstance(base, ast.Subscript) else base for base in node.bases
    ]  # Protocol[Features]
    for base in (b.id for b in bases if isinstance(b, ast.Name)):
        origin = _origin(tree, module, base)
        if origin:
            inherited = _read(*origin, parsed)
            for name, (default, annotation, text) in own.arguments.items():
                if not text and name in inherited.arguments:  # another default of the same setting
                    own.arguments[name] = default, annotation, inherited.arguments[name][2]
            if own.open:
                own.arguments |= {
                    k: v for k, v in inherited.arguments.items() if k not in own.arguments
                }
            own.prefix = inherited.prefix if own.prefix is None else own.prefix
            own.names = {**inherited.names, **own.names}
            own.bounds = {**inherited.bounds, **own.bounds}
    return own


def _find(tree: ast.Module, module: str, class_name: str) -> ast.ClassDef:
    node = next(
        (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), None
    )
    if node is None:
        raise UserError(f"{module}:{class_name}: module {module!r} defines no class {class_name!r}")
    return node


def _parse(module: str) -> ast.Module:
    parts = module.split(".")
    path = os.path.join(_PACKAGE, *parts[1:]) if parts[0] == "tfssl" else None
    if path and os.path.exists(path + ".py"):
        path += ".py"
    else:
        try:
            spec = importlib.util.find_spec(module)
            path = spec.origin if spec else None
        except (ImportError, AttributeError):
            path = None
        if path is None:
            raise UserError(f"no module {module!r}: is it installed, or its folder in PYTHONPATH?")
    return _tree(path, os.stat(path).st_mtime_ns)


@functools.cache
def _tree(path: str, changed: int) -> ast.Module:
    """The syntax tree of a file as it was when it was last changed: bases are read once for all
    classes."""
    with open(path, encoding="utf-8") as f:
        return ast.parse(f.read(), path)


def _origin(tree: ast.Module, module: str, base: str) -> Optional[tuple[str, str]]:
    """(module, class) of a base class: in the same file, or imported by its name from a module of
    the same package, or of ours."""
    if any(isinstance(n, ast.ClassDef) and n.name == base for n in tree.body):
        return module, base
    for node in ast.walk(tree):  # also of what is imported late, and so for type checkers alone
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == base:
                    origin = node.module or ""
                    if node.level:
                        origin = ".".join(
                            [*module.split(".")[: -node.level], *filter(None, [origin])]
                        )
                    known = origin.split(".")[0] in ("tfssl", module.split(".")[0])
                    return (origin, alias.name) if known else None
    return None


def _own(node: ast.ClassDef, name: str) -> "_Class":
    texts = argument_texts(ast.get_docstring(node) or "")
    constants = {
        target.id: statement.value
        for statement in node.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    prefix = ast.literal_eval(constants["flag_prefix"]) if "flag_prefix" in constants else None
    names, bounds = (
        ast.literal_eval(constants[key]) if key in constants else {}
        for key in ("flag_names", "flag_bounds")
    )
    init = next(
        (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )
    if init is not None:
        positional = init.args.args[len(init.args.args) - len(init.args.defaults) :]
        pairs = [
            *zip(positional, init.args.defaults),
            *zip(init.args.kwonlyargs, init.args.kw_defaults),
        ]
        given = [(a.arg, a.annotation, d) for a, d in pairs if d is not None]
        is_open = init.args.kwarg is not None
    else:
        fields = (
            node.body if any("dataclass" in ast.unparse(d) for d in node.decorator_list) else ()
        )
        given = [
            (n.target.id, n.annotation, n.value)
            for n in fields
            if isinstance(n, ast.AnnAssign)
            and isinstance(n.target, ast.Name)
            and n.value is not None
        ]
        is_open = True
    arguments = {}
    for argument, annotation, default in given:
        try:
            arguments[argument] = (ast.literal_eval(default), annotation, texts.get(argument, ""))
        except ValueError as error:
            raise UserError(
                f"{name}: the default of {argument} is no literal (a number, a text, True, False, "
                "None or a tuple of those), and so cannot "
                "be a flag's"
            ) from error
    return _Class(arguments, prefix, names, bounds, is_open)


def _kind(annotation: Optional[ast.expr], default: Any) -> tuple[type, bool, tuple]:
    """(kind, many, choices) by the annotation, or else by the default."""
    kind, many, choices = _annotated(annotation)
    if kind is None:
        item = default[0] if isinstance(default, (tuple, list)) and default else default
        many = many or isinstance(default, (tuple, list))
        kind = type(item) if type(item) in (bool, int, float) else str
    return kind, many, choices


def _annotated(node: Optional[ast.AST]) -> tuple[Optional[type], bool, tuple]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.Name):
        return _KINDS.get(node.id), False, ()
    if isinstance(node, ast.BinOp):  # X | None
        return _annotated(node.left)
    if isinstance(node, ast.Subscript):
        outer = (
            node.value.attr
            if isinstance(node.value, ast.Attribute)
            else getattr(node.value, "id", "")
        )
        inner = node.slice
        if outer == "Optional":
            return _annotated(inner)
        if outer == "Literal":
            choices = ast.literal_eval(inner)
            choices = choices if isinstance(choices, tuple) else (choices,)
            return type(choices[0]), False, choices
        if outer in ("tuple", "list", "Sequence", "Tuple", "List"):
            kind, _, choices = _annotated(inner.elts[0] if isinstance(inner, ast.Tuple) else inner)
            return kind, True, choices
    return None, False, ()


def argument_texts(docstring: str) -> dict[str, str]:
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
