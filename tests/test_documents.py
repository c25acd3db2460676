"""What README, docs and help texts tell people to type exists, and what they point to lies where they say."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
import typer

from rtsmap.cli.main import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("models/**/*.md"))]
COMMANDS = typer.main.get_command(app)


def typed(text: str) -> Iterator[str]:
    """Commands that a text shows: in fences, indented, after `Example`, and between backticks."""
    text = re.sub(r"\\\n\s*", "", text)
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    yield from (line.strip() for line in fenced.splitlines() if line.strip().startswith("rtsmap "))
    yield from (found[1] for found in re.finditer(r"^(?: {2,}|Examples?: )(rtsmap .*)$", text, re.MULTILINE))
    yield from (found[1] for found in re.finditer(r"`(rtsmap [^`\n]+)`", text))


def command_of(words: list[str]) -> tuple[object, list[str]]:
    """The command that words name, and what is left of them."""
    command, rest = COMMANDS, words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def wrong_with(line: str) -> str | None:
    """What is wrong with a command, None where nothing is."""
    words = shlex.split(re.sub(r"\s#.*", "", line).replace("...", ""))
    command, rest = command_of(words)
    if rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        return f"there is no command '{rest[0]}'"
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    known |= {"--help"}
    if command is COMMANDS:
        known |= {"--install-completion", "--show-completion"}
    unknown = [word for word in rest if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    return f"there is no option {unknown[0]}" if unknown else None


def help_texts(command: object = COMMANDS) -> Iterator[str]:
    """Help of all commands."""
    yield command.help or ""
    for part in getattr(command, "commands", {}).values():
        yield from help_texts(part)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_that_documents_show_exist_with_their_options(path):
    told = {line: wrong for line in typed(path.read_text("utf-8")) if (wrong := wrong_with(line))}
    assert told == {}


def test_commands_that_help_texts_show_exist_with_their_options():
    texts = list(help_texts())
    lines = [line for text in texts for line in typed(text)]
    assert len(lines) > 40
    assert {line: wrong for line in lines if (wrong := wrong_with(line))} == {}


def test_a_wrong_command_would_be_found():
    assert wrong_with("rtsmap predict scene.tif --dem dem.tif -o map.gpkg  # maps it") is None
    assert wrong_with("rtsmap predict scene.tif --dems dem.tif") == "there is no option --dems"
    assert wrong_with("rtsmap predicts scene.tif") == "there is no command 'predicts'"
    assert wrong_with("rtsmap evaluate maps scene.tif") == "there is no command 'maps'"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_point_to_what_is_there(path):
    text = path.read_text("utf-8")
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-")
        for h in re.findall(r"^#+ (.*)", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, heading = target.partition("#")
        if not name:
            assert heading in headings, target
        elif "://" not in name:
            assert (path.parent / name).exists(), target


def test_whoever_installs_rtsmap_gets_its_types_and_whoever_unpacks_it_its_documents():
    assert resources.files("rtsmap").joinpath("py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packed = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    wanted = {
        "docs",
        *(
            target.partition("/")[0]
            for target in re.findall(r"\]\(([\w./-]+)\)", (ROOT / "README.md").read_text("utf-8"))
        ),
    }
    assert {f"/{name}" for name in wanted} <= set(packed)
