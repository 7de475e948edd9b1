"""Public functions and methods say by type hints what they take and return: read from the code."""

import ast

import pytest
from imports_test import ROOT, modules


def public_functions(path):
    """(name, definition) of the public functions of a module and methods of its public classes."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for part in node.body:
                own = isinstance(part, ast.FunctionDef)
                if own and (part.name == "__init__" or not part.name.startswith("_")):
                    yield f"{node.name}.{part.name}", part


def without_hint(function):
    """Names of the parameters that have no hint, and 'return' where the result has none."""
    taken = function.args
    parameters = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]
    names = [p.arg for p in parameters if p is not None and p.annotation is None]
    names = [name for name in names if name not in ("self", "cls")]
    return names + ["return"] * (function.returns is None and function.name != "__init__")


@pytest.mark.parametrize(
    "path", [path for path, _ in modules()], ids=lambda path: str(path.relative_to(ROOT))
)
def test_public_functions_have_complete_hints(path):
    functions = {name: without_hint(function) for name, function in public_functions(path)}
    bare = {name: missing for name, missing in functions.items() if missing}
    assert not bare, "; ".join(f"{name} lacks hints of {', '.join(bare[name])}" for name in bare)
