"""What the code promises about its own size: short modules, short functions, few parameters, or the reason why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = sorted(file for package in ("search", "studies", "trainer") for file in (ROOT / package).rglob("*.py"))

MOST_LINES_OF_A_MODULE = 400
MOST_LINES_OF_A_FUNCTION = 80
MOST_PARAMETERS = 6

LONG = "Long: "
MANY_PARAMETERS = "Many parameters: "
"""A line of a docstring that begins so gives the reason for what is beyond the bound."""

NOT_YET: set[str] = set()
"""What is beyond a bound and has no reason. This list only gets shorter."""


def gives_reason(docstring: str | None, beginning: str) -> bool:
    return any(line.strip().startswith(beginning) for line in (docstring or "").splitlines())


def num_parameters(function: ast.FunctionDef, *, is_method: bool) -> int:
    """Parameters without self or cls; *args and **kwargs count as one each."""
    values = function.args
    named = [*values.posonlyargs, *values.args, *values.kwonlyargs]
    is_static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in function.decorator_list)
    bound = 1 if is_method and not is_static else 0
    return len(named) - bound + (values.vararg is not None) + (values.kwarg is not None)


def functions(
    tree: ast.AST, owner: ast.ClassDef | None = None
) -> Iterator[tuple[ast.FunctionDef, ast.ClassDef | None]]:
    """All functions of a module, nested ones too, each with the class whose method it is."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield node, owner
            yield from functions(node)
        else:
            yield from functions(node, node if isinstance(node, ast.ClassDef) else None)


def is_command(function: ast.FunctionDef) -> bool:
    """Whether typer calls it: its parameters are what the user can say."""
    return any(ast.unparse(one).startswith("app.") for one in function.decorator_list)


def beyond_bounds(name: str, text: str) -> Iterator[str]:
    """What a module has beyond a bound without a reason in its docstring."""
    tree = ast.parse(text)
    lines = len(text.splitlines())
    if lines > MOST_LINES_OF_A_MODULE and not gives_reason(ast.get_docstring(tree), LONG):
        yield f"{name}: {lines} lines"
    for function, owner in functions(tree):
        # A constructor's arguments are described by its class.
        described_by = owner if owner is not None and function.name == "__init__" else function
        reason = ast.get_docstring(described_by)
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        if lines > MOST_LINES_OF_A_FUNCTION and not gives_reason(reason, LONG):
            yield f"{name} {function.name}: {lines} lines"
        number = num_parameters(function, is_method=owner is not None)
        if number > MOST_PARAMETERS and not is_command(function) and not gives_reason(reason, MANY_PARAMETERS):
            yield f"{name} {function.name}: {number} parameters"


def test_modules_and_functions_are_short_and_have_few_parameters_or_say_why_not() -> None:
    found = {
        line
        for file in MODULES
        for line in beyond_bounds(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    }
    assert found - NOT_YET == set(), "make it smaller, or give the reason in the docstring"
    assert NOT_YET - found == set(), "these are within the bounds now: take them off the list"


def test_what_is_too_large_is_found_unless_its_docstring_gives_the_reason() -> None:
    many = "def f({}):\n    '''Do it.\n\n    {}\n    '''\n"
    seven, six = "a, b, c, d, *, e, f, **g", "a, b, c, d, *, e, f"
    assert list(beyond_bounds("m.py", many.format(seven, ""))) == ["m.py f: 7 parameters"]
    assert list(beyond_bounds("m.py", many.format(six, ""))) == []
    assert list(beyond_bounds("m.py", many.format(seven, "Many parameters: those of the caller."))) == []
    assert list(beyond_bounds("m.py", "@app.command()\n" + many.format(seven, ""))) == []
    method = "class A:\n    def __init__(self, a, b, c, d, e, f{}): ...\n"
    assert list(beyond_bounds("m.py", method.format(""))) == []
    assert list(beyond_bounds("m.py", method.format(", g"))) == ["m.py __init__: 7 parameters"]
    long = "def f():\n    '''{}'''\n" + 80 * "    g()\n"
    assert list(beyond_bounds("m.py", long.format(""))) == ["m.py f: 82 lines"]
    assert list(beyond_bounds("m.py", long.format("Long: read from top to bottom."))) == []
    assert list(beyond_bounds("m.py", 401 * "g()\n")) == ["m.py: 401 lines"]
    assert list(beyond_bounds("m.py", "'''Long: a list.'''\n" + 400 * "g()\n")) == []
