"""What the documents say is true: links lead somewhere, specs are valid, commands and targets exist."""

import os
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from service.cli import app
from service.compare import read_comparison
from service.spec import check
from trials.store import Store

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")])
TEXTS = [pytest.param(path.read_text(), id=path.name) for path in DOCUMENTS]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_to_files_and_headings(path):
    text = path.read_text()
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("text", TEXTS)
def test_yaml_blocks_are_valid_specs(text):
    for block in re.findall(r"```yaml\n(.*?)```", text, re.S):
        spec, task = check(yaml.safe_load(block))
        assert spec.network is not None
        assert task.inputs == 64


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_valid(path):
    data = yaml.safe_load(path.read_text())
    if path.stem.startswith("mnist") and not os.environ.get("CONTINUA_DATA"):
        pytest.skip("CONTINUA_DATA names no directory, so MNIST is not there")
    if "arms" in data:
        comparison = read_comparison(data, path.parent)
        assert len(comparison.judged) >= 2
    else:
        check(path)


@pytest.mark.parametrize("text", TEXTS)
def test_commands_and_their_options_exist(text):
    commands = typer.main.get_command(app).commands
    for line in re.findall(r"(?:^|`|\$ |=\S+ )(continua [a-z].*?)(?:`|$)", text, re.M):
        words = shlex.split(line.split(" #")[0], comments=False)
        command, words = commands.get(words[1]), words[2:]
        if hasattr(command, "commands") and words:  # config show, token add
            command, words = command.commands.get(words[0]), words[1:]
        assert command is not None, line
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("-"):
                assert word.split("=")[0] in options, line


def test_make_targets_named_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {t for path in DOCUMENTS for t in re.findall(r"`?make ([a-z-]+)", path.read_text())}
    assert {"demo", "test"} <= named <= targets | {"it", "up"}


def test_the_query_in_the_readme_runs(tmp_path):
    from trials.query import query

    text = (ROOT / "README.md").read_text()
    for sql in re.findall(r'continua query "(.+?)"', text):
        assert query(Store(tmp_path), sql).num_rows == 0


def test_every_constraint_pins_a_declared_dependency_and_none_is_left_out():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[<>=,; ]", line)[0].lower() for line in declared}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split() if "==" in line}
    assert pinned == names
