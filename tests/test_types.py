"""Every public function has types; `python tests/test_types.py` counts them by room. Whether they
are right, `make lint` says."""

import ast
import collections
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def public_functions(node):
    """The public functions of a module and public methods of its classes, constructors among them:
    ast.FunctionDef."""
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from public_functions(child)
        elif isinstance(child, ast.FunctionDef) and (
            child.name == "__init__" or not child.name.startswith("_")
        ):
            yield child


def is_typed(function):
    """Whether the return value and all parameters have annotations."""
    a = function.args
    parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    return function.returns is not None and all(
        p.annotation or p.arg in ("self", "cls") for p in parameters
    )


def count():
    """{room or module of tfssl, or export: (public functions with types, public functions)}."""
    counts = collections.defaultdict(lambda: (0, 0))
    for file in sorted(
        file for package in ("export", "tfssl") for file in (ROOT / package).rglob("*.py")
    ):
        parts = file.relative_to(ROOT).with_suffix("").parts
        room = ".".join(parts[:2]) if parts[0] == "tfssl" else parts[0]
        typed = [
            is_typed(function)
            for function in public_functions(ast.parse(file.read_text(encoding="utf-8")))
        ]
        counts[room] = counts[room][0] + sum(typed), counts[room][1] + len(typed)
    return dict(counts)


def test_what_counts_as_typed():
    module = """
def whole(a: int, *b: str, c: float = 1.0, **d: bool) -> None: ...
def no_return(a: int): ...
def no_parameter(a, b: int) -> None: ...
def no_rest(*a) -> None: ...
def _private(a): ...
class Class:
    def __init__(self, a: int) -> None: ...
    def __eq__(self, other): ...
    def method(self, a): ...
    @classmethod
    def make(cls) -> "Class": ...
"""
    found = {f.name: is_typed(f) for f in public_functions(ast.parse(module))}
    assert [name for name, typed in found.items() if typed] == ["whole", "__init__", "make"]
    assert [name for name, typed in found.items() if not typed] == [
        "no_return",
        "no_parameter",
        "no_rest",
        "method",
    ]


def test_every_public_function_has_types():
    lacking = {
        room: functions - typed for room, (typed, functions) in count().items() if typed < functions
    }
    assert not lacking


if __name__ == "__main__":
    for name, (with_types, all_of_them) in count().items():
        print(f"{with_types:4} of {all_of_them:4}  {name}")
    print("{:4} of {:4}".format(*map(sum, zip(*count().values()))))
