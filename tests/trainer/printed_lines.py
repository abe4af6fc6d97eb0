"""The lines of Python in messages, as a user pastes them into a new process of Python."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import subprocess
import sys


def line_in(message: str) -> str:
    """The line of Python in a message: it begins with its imports."""
    (line,) = [line[line.index(": import ") + 2 :] for line in message.splitlines() if ": import " in line]
    return line


def run_line(message: str) -> str:
    """What the line in a message prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", line_in(message)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def unknown_names(line: str) -> set[str]:
    """The names in a line that nothing in it defines. Lines for pandas are run, too, where pandas is."""
    if importlib.util.find_spec("pandas") is not None:
        run_line(f": {line}")
    nodes = list(ast.walk(ast.parse(line)))
    known = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    known |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {node.id for node in nodes if isinstance(node, ast.Name)} - known - set(dir(builtins))
