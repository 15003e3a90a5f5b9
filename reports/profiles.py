"""A profile: which value every parameter of every notebook takes, what that costs and what it should reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reports.notebooks import Notebook, ReportError, choose

FOLDER = Path(__file__).resolve().parent / "profiles"
ABOUT = ("cost", "reaches")


@dataclass(frozen=True)
class Profile:
    """`about`: cost and reaches, a sentence each. `settings`: notebook number -> the parameters that differ from its defaults."""

    name: str
    about: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]


def profile_names(folder: Path = FOLDER) -> list[str]:
    """The profiles that there are."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_profile(name: str, notebooks: Mapping[str, Notebook], folder: Path = FOLDER) -> Profile:
    """Read and check a profile against the notebooks. Every unknown notebook, parameter or type is a ReportError.

    `defaults` apply to every notebook that has the parameter; `notebooks` lists the notebooks to run, with what is theirs alone.
    """
    if name not in profile_names(folder):
        raise ReportError(f"the profile is {name!r}; use one of {', '.join(profile_names(folder))}.")
    data = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    unknown = sorted(set(data) - {*ABOUT, "defaults", "notebooks"})
    if unknown or not all(isinstance(data.get(key), str) for key in ABOUT) or not data.get("notebooks"):
        raise ReportError(f"the profile {name} must have {', '.join(ABOUT)}, defaults and notebooks{', not ' + ', '.join(unknown) if unknown else ''}.")
    chosen = {choose(notebooks, key).number: values or {} for key, values in data["notebooks"].items()}
    defaults = data.get("defaults") or {}
    unused = [key for key in defaults if not any(key in notebooks[number].parameters for number in chosen)]
    if unused:
        raise ReportError(f"the profile {name} sets {', '.join(unused)} for all, which no notebook has.")
    settings = {}
    for number in sorted(chosen):
        notebook = notebooks[number]
        own = {key: value for key, value in defaults.items() if key in notebook.parameters} | chosen[number]
        settings[number] = {key: notebook.parameter(key).check(value, notebook.name) for key, value in own.items()}
    return Profile(name, {key: " ".join(data[key].split()) for key in ABOUT}, settings)


def override(profile: Profile, notebooks: Mapping[str, Notebook], assignments: Sequence[str]) -> Profile:
    """The profile with "03.train_steps=500" or "train_steps=500" (every notebook that has it) applied; ReportError otherwise."""
    settings = {number: dict(values) for number, values in profile.settings.items()}
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        where, dot, name = target.strip().rpartition(".")
        if not equals or not name:
            raise ReportError(f"{assignment!r} is no parameter; write NOTEBOOK.NAME=VALUE, for example 03.train_steps=500.")
        numbers = [choose(notebooks, where).number] if dot else [n for n in settings if name in notebooks[n].parameters]
        if not numbers:
            raise ReportError(f"no notebook of the profile {profile.name} has a parameter {name!r}.")
        for number in numbers:
            if number not in settings:
                raise ReportError(f"the profile {profile.name} does not run {notebooks[number].name}; it runs {', '.join(settings)}.")
            settings[number][name] = notebooks[number].parameter(name).parse(text, notebooks[number].name)
    return Profile(profile.name, profile.about, settings)
