"""`pause`, `resume`, `stop` and the other verbs that change what is wanted of a search, by a service or not."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search_spaces.faults import Invalid
from service import show as out
from service.cli.app import Search, StoreOption, UrlOption, Whole, WholeOption, app
from service.cli.places import reading, service_for, warn_of_damage
from service.show import say

if TYPE_CHECKING:
    from trials.store import Goal, SearchStore

Version = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="Only if the goal is at this version (`show` says which).")
]
Total = Annotated[str | None, typer.Option(metavar="N|+N", help="The new total, or +N for so much more.")]


@app.command()
def pause(
    search: Search,
    if_version: Version = None,
    store: StoreOption = None,
    url: UrlOption = None,
    output: WholeOption = Whole.table,
) -> int:
    """No new trials; what runs finishes."""
    return _change(search, {"verb": "pause"}, if_version, store, url, output)


@app.command()
def resume(
    search: Search,
    if_version: Version = None,
    store: StoreOption = None,
    url: UrlOption = None,
    output: WholeOption = Whole.table,
) -> int:
    """Go on with a search, whatever ended it."""
    return _change(search, {"verb": "resume"}, if_version, store, url, output)


@app.command()
def stop(
    search: Search,
    if_version: Version = None,
    store: StoreOption = None,
    url: UrlOption = None,
    output: WholeOption = Whole.table,
) -> int:
    """End a search; what runs finishes."""
    return _change(search, {"verb": "stop"}, if_version, store, url, output)


@app.command()
def cancel(
    search: Search,
    if_version: Version = None,
    store: StoreOption = None,
    url: UrlOption = None,
    output: WholeOption = Whole.table,
) -> int:
    """End a search, and what runs at once."""
    return _change(search, {"verb": "cancel"}, if_version, store, url, output)


@app.command()
def scale(
    search: Search,
    workers: Annotated[int, typer.Option(metavar="N", help="Worker slots from now on.")],
    if_version: Version = None,
    store: StoreOption = None,
    url: UrlOption = None,
    output: WholeOption = Whole.table,
) -> int:
    """Give a search more workers, or fewer, while it runs."""
    return _change(search, {"verb": "scale", "workers": workers}, if_version, store, url, output)


@app.command()
def extend(
    search: Search,
    trials: Total = None,
    epochs: Total = None,
    flops: Total = None,
    device_seconds: Total = None,
    wall_seconds: Total = None,
    if_version: Version = None,
    store: StoreOption = None,
    url: UrlOption = None,
    output: WholeOption = Whole.table,
) -> int:
    """Raise a search's budget; one that was complete goes on."""
    given = {"trials": trials, "epochs": epochs, "flops": flops}
    given |= {"device_seconds": device_seconds, "wall_seconds": wall_seconds}
    budget = {name: _amount(name, text) for name, text in given.items() if text is not None}
    if not budget:
        raise Invalid(["extend: needs a budget to raise, but got none; add --trials N or another of its options."])
    return _change(search, {"verb": "extend", "budget": budget}, if_version, store, url, output)


@app.command()
def narrow(
    search: Search,
    space: Annotated[Path, typer.Option(metavar="FILE", help="The keys that change: {lr: {high: 0.1}}.")],
    if_version: Version = None,
    store: StoreOption = None,
    url: UrlOption = None,
    output: WholeOption = Whole.table,
) -> int:
    """Ask the trials to come in narrower ranges."""
    from service.client.calls import narrowing

    return _change(search, {"verb": "narrow", "space": narrowing(space)}, if_version, store, url, output)


@app.command()
def prioritise(
    search: Search,
    priority: Annotated[int, typer.Option(metavar="N", help="1 to 100, the greater the sooner.")],
    if_version: Version = None,
    store: StoreOption = None,
    url: UrlOption = None,
    output: WholeOption = Whole.table,
) -> int:
    """Have a search claimed sooner than others, and given more of the worker slots; or later, and fewer."""
    return _change(search, {"verb": "prioritise", "priority": priority}, if_version, store, url, output)


def _amount(name: str, text: str) -> float | str:
    """A number as a goal takes it; one that begins with `+` stays text."""
    number = text.removeprefix("+")
    try:
        value = float(number)
    except ValueError:
        option = name.replace("_", "-")
        raise Invalid([f"--{option}: must be a number such as 512, or +64 for more, but got {text!r}."]) from None
    if text.startswith("+"):
        return text
    return int(number) if number.isdecimal() else value


def _change(
    search: str, edit: dict[str, Any], if_version: int | None, store: str | None, url: str | None, output: Whole
) -> int:
    if (client := service_for(store, url)) is not None:
        with client:
            found = client.search(search)
            _print(found.id, found.edit(**edit, if_version=if_version), output)
        return 0
    from service.access import user
    from service.goal import Edit, change

    witness = reading(store)
    chosen = witness.named(search)
    goal = change(chosen, Edit.from_dict(edit), by=user(), if_version=if_version)
    told = _tell_board(chosen, goal, witness.root)
    _print(chosen.id, goal.to_dict(), output)
    if goal.state == "run" and not told and chosen.state() != "running":
        again = out.command("run", "--resume", chosen.id, "--store", str(witness.root))
        say(f"nobody runs it now; go on with: {again}")
    warn_of_damage(witness)
    return 0


def _tell_board(search: SearchStore, goal: Goal, root: Path) -> bool:
    """Let the store's board know at once, where there is one and the search stands on it; a runner that has the search
    looks at the store in any case."""
    from service.board import Unreachable, open_board
    from service.board.rebuild import for_runners, mirrored
    from service.settings import board_url
    from trials.store import NotFound

    if not for_runners(search):
        return False
    setting = board_url(root)
    if setting.origin == "default" and not (root / "board.sqlite").exists():
        return False
    try:
        with contextlib.closing(open_board(setting.value)) as board:
            board.control(search.id, **mirrored(goal))
    except NotFound:
        return False
    except (Unreachable, Invalid, OSError) as error:  # the goal is durable all the same
        say(f"warning: the board does not answer, so runners learn of it later: {error}")
    return True


def _print(search_id: str, goal: dict[str, Any], output: Whole) -> None:
    """The new goal: one JSON object, or what it says in words."""
    if output is Whole.json:
        out.put(out.as_json({"search_id": search_id, **goal}) + "\n")
        return
    space = goal.get("space")
    facts = [
        ("search", search_id),
        ("goal", f"version {goal['version']}: {goal['verb']}"),
        ("state", str(goal["state"])),
        ("workers", str(goal["workers"])),
        ("budget", out.values(goal["budget"])),
        *([("space", out.values(space))] if space else []),
        *([("priority", str(goal["priority"]))] if goal.get("priority") else []),
    ]
    out.print_facts(facts)
