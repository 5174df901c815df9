"""`submit` and `watch`: searches that a service runs, seen from here."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search_spaces.faults import Invalid
from service import show as out
from service.cli.app import (
    ERROR,
    FAILED,
    QuietOption,
    Search,
    Seen,
    SetOption,
    StoreOption,
    UrlOption,
    Whole,
    WholeOption,
    app,
)
from service.cli.places import reading, service_for, submitting_to, warn_of_damage
from service.show import say

if TYPE_CHECKING:
    from service.client import Client
    from service.client import Search as Submitted

Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="Wait no longer, and exit 7.")]


@app.command()
def submit(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A spec in YAML or JSON.")],
    url: UrlOption = None,
    store: StoreOption = None,
    code: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your own modules that the spec names; .gitignore counts.")
    ] = None,
    requirements: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What pip installs beside them, a package a line.")
    ] = None,
    priority: Annotated[int | None, typer.Option(metavar="N", help="1 to 100, the greater the sooner.")] = None,
    overrides: SetOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="The same without progress.")] = False,
    timeout: Timeout = None,
    key: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Submit once under this key, however often it is sent.")
    ] = None,
    output: WholeOption = Whole.table,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the spec and say what it means.")] = False,
    quiet: QuietOption = False,
) -> int:
    """Give a search to a service, and return at once."""
    from service.documents import document, override

    data = override(document(spec), overrides or ())
    if "arms" in data:
        way = out.command("compare", str(spec))
        raise Invalid([f"{spec}: must be a search, but is a comparison; it runs here alone: {way}"])
    data = data if data.get("name") else {**data, "name": spec.stem}
    needed = _requirements(requirements)
    _check(data, spec, code, bool(needed), output if dry_run else None)
    if dry_run:
        return 0
    with submitting_to(store, url) as client:
        made = client.submit(data, code=code, requirements=needed, priority=priority, key=key)
        if not (watch or wait):
            _print_submitted(made, client, output)
            return 0
        if not quiet:
            say(f"submitted {made.id}; watch it with: " + out.command("watch", made.id, "--url", client.url))
        return _followed(made, quiet=quiet or not watch, timeout=timeout, output=Seen(output.value))


@app.command()
def watch(
    search: Search,
    store: StoreOption = None,
    url: UrlOption = None,
    timeout: Timeout = None,
    output: Annotated[Seen, typer.Option("-o", "--output", help="How to print it; jsonl has an event a line.")] = (
        Seen.table
    ),
    quiet: QuietOption = False,
) -> int:
    """Follow a search to its end; exit 6 where it failed."""
    if (client := service_for(store, url)) is not None:
        with client:
            return _followed(client.search(search), quiet=quiet, timeout=timeout, output=output)
    from service.cli.watching import follow_files
    from service.summary import summary

    if output is Seen.jsonl:
        raise Invalid(["watch: events are a service's, but this is a store; name a service by --url, or use -o json."])
    witness = reading(store)
    chosen = witness.named(search)
    state = follow_files(chosen, quiet=quiet, timeout=timeout)
    found = summary(witness.search(chosen.id), witness)
    out.print_summary(found, output.value, spec=False)
    warn_of_damage(witness)
    return _code(state, found)


def _followed(search: Submitted, *, quiet: bool, timeout: float | None, output: Seen) -> int:
    """Follow it, print what it came to, and return the exit code."""
    from service.cli.watching import follow

    state = follow(search, quiet=quiet, timeout=timeout, events=output is Seen.jsonl)
    found = search.refresh().row
    if output is not Seen.jsonl:
        out.print_summary(found, output.value, spec=False)
    return _code(state, found)


def _code(state: str, found: dict[str, Any]) -> int:
    if state == "failed":
        say(f"error: the search failed: {found.get('why') or 'see its trials'}")
        return FAILED
    return 0 if state in ("complete", "stopped") else ERROR


def _print_submitted(made: Submitted, client: Client, output: Whole) -> None:
    if output is Whole.json:
        out.put(out.as_json({key: value for key, value in made.row.items() if key not in ("spec", "labels")}) + "\n")
        return
    out.print_facts([("search", made.id), ("name", made.name), ("state", made.state)])
    say("watch it with: " + out.command("watch", made.id, "--url", client.url))


# -- checking ----------------------------------------------------------------------------------------------------------


def _requirements(file: Path | None) -> list[str]:
    """The lines of a file, without comments. The service judges them."""
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise Invalid([f"requirements: {file} cannot be read: {getattr(error, 'strerror', None) or error}."]) from None
    return [text for line in lines if (text := line.partition("#")[0].strip())]


def _check(data: dict[str, Any], path: Path, code: Path | None, with_packages: bool, output: Whole | None) -> None:
    """Refuse what cannot run, as far as that can be told here: data and packages may be on the workers alone."""
    from service.spec import SearchSpec, check

    declared = SearchSpec.from_dict(data)
    if declared.own_code and code is None and output is None:
        way = f"name their directory, such as --code {path.parent}"
        raise Invalid([f"{path}: its own modules must be sent along, but no directory is named; {way}"])
    elsewhere = with_packages or (isinstance(declared.task, dict) and not declared.own_code)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the user's own modules may print
            checked, task = check(data, directory=code or path.parent)
    except Invalid as error:
        if not elsewhere or output is not None or any(not fault.startswith("task") for fault in error.faults):
            raise
        for fault in error.faults:
            say(f"note: only the workers can tell: {fault}")
        return
    from service.rules import spec_notes

    if output is not None:
        from service.dry import print_dry_run

        print_dry_run(checked, task, output)
        return
    for note in [*getattr(task, "notes", ()), *spec_notes(checked, task)]:
        say(f"note: {note}")
