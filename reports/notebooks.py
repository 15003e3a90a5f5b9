"""The notebooks as functions: their names, their typed parameters, and values that fit them.

A notebook's interface is its cell tagged `parameters`: annotated literals with a comment each. It is read here without
starting a kernel, so that a wrong name or type is refused before anything runs.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
_TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
_COMMENT = re.compile(r"^\w+\s*:.*?#\s*(.+)$")


class ReportError(ValueError):
    """A request that the reports cannot run; the message names what was wrong and what is allowed."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook: `kind` is int, float, str, bool or list; `default` its value in the notebook."""

    name: str
    kind: type
    default: Any
    comment: str

    def check(self, value: Any, where: str) -> Any:
        """`value` as this parameter's type (an int fits a float); ReportError if it does not fit."""
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            raise ReportError(f"{where}.{self.name} is {value!r}; it must be of type {self.kind.__name__}.")
        return value

    def parse(self, text: str, where: str) -> Any:
        """`text` from a command line as this parameter's type; text for a str parameter is taken as it is."""
        if self.kind is str:
            return text
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if self.kind is float and isinstance(value, str):  # YAML reads 1e-3 as a word
            try:
                value = float(value)
            except ValueError:
                pass
        return self.check(value, where)


@dataclass(frozen=True)
class Notebook:
    """A notebook file and its parameters; `number` is the two digits that it starts with."""

    path: Path
    title: str
    parameters: Mapping[str, Parameter]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        return self.path.stem[:2]

    def defaults(self) -> dict[str, Any]:
        """Parameter -> value in the notebook."""
        return {name: parameter.default for name, parameter in self.parameters.items()}

    def parameter(self, name: str) -> Parameter:
        """The parameter called `name`; ReportError when the notebook has none."""
        if name not in self.parameters:
            raise ReportError(f"{self.name} has no parameter {name!r}; it has {', '.join(self.parameters)}.")
        return self.parameters[name]


def find_notebooks(folder: Path = FOLDER) -> dict[str, Notebook]:
    """Number -> notebook, in the order of their numbers."""
    found = [read_notebook(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]
    if not found:
        raise ReportError(f"there are no notebooks in {folder}.")
    return {notebook.number: notebook for notebook in found}


def read_notebook(path: Path) -> Notebook:
    """Title and parameters of a notebook file; ReportError when its parameters cell is missing or holds anything but typed literals."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    if len(tagged) != 1:
        raise ReportError(f"{path.name} has {len(tagged)} cells tagged 'parameters'; it needs one.")
    heading = next((line for cell in cells if cell["cell_type"] == "markdown" for line in "".join(cell["source"]).splitlines()
                    if line.startswith("# ")), f"# {path.stem}")
    return Notebook(path, heading[2:].strip(), _read_parameters("".join(tagged[0]["source"]), path.name))


def _read_parameters(source: str, where: str) -> dict[str, Parameter]:
    lines, parameters = source.splitlines(), {}
    for statement in ast.parse(source).body:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(statement.annotation, ast.Name)
                and statement.value is not None):
            raise ReportError(f"{where}: {lines[statement.lineno - 1]!r} is no parameter; write 'name: type = literal  # comment'.")
        name, kind = statement.target.id, _TYPES.get(statement.annotation.id)
        if kind is None:
            raise ReportError(f"{where}: {name} is of type {statement.annotation.id}; use one of {', '.join(_TYPES)}.")
        comment = _COMMENT.match(lines[(statement.end_lineno or statement.lineno) - 1])
        parameter = Parameter(name, kind, None, comment[1].strip() if comment else "")
        value = parameter.check(ast.literal_eval(statement.value), where)
        parameters[name] = Parameter(name, kind, value, parameter.comment)
    return parameters


def choose(notebooks: Mapping[str, Notebook], wanted: str) -> Notebook:
    """The notebook called by its number or its name; ReportError for another word."""
    for notebook in notebooks.values():
        if wanted in (notebook.number, notebook.name):
            return notebook
    raise ReportError(f"there is no notebook {wanted!r}; use one of {', '.join(notebooks)}.")
