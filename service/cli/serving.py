"""`up`, `serve` and `work`: the service, whole on one machine or in parts on many."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from search_spaces.faults import Invalid
from service.cli.app import BoardOption, StoreOption, app
from service.show import say

PORT = 8642


class Crew(StrEnum):
    """Where a runner trains."""

    local = "local"
    ray = "ray"


class Installer(StrEnum):
    """What installs the packages that users' code requires."""

    pip = "pip"
    uv = "uv"


HostOption = Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; others need tokens.")]
PortOption = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 takes a free one.")]
CrewOption = Annotated[Crew, typer.Option(help="Where trials are trained; RAY_ADDRESS names a cluster.")]
SearchesOption = Annotated[int, typer.Option(metavar="N", min=1, help="At most so many searches at once.")]
SlotsOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Worker slots for all searches [default: what there is].")
]
QuotaOption = Annotated[
    list[str] | None,
    typer.Option("--quota", metavar="OWNER=N", help="Most slots of an owner; *=N: any other's."),
]
InstallerOption = Annotated[Installer, typer.Option(help="What installs the packages that searches require, on Ray.")]
HostsOption = Annotated[
    list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A name that clients call it by.")
]


@app.command()
def up(
    host: HostOption = "127.0.0.1",
    port: PortOption = PORT,
    hosts: HostsOption = None,
    executor: CrewOption = Crew.local,
    searches: SearchesOption = 4,
    slots: SlotsOption = None,
    quota: QuotaOption = None,
    installer: InstallerOption = Installer.pip,
    store: StoreOption = None,
    board: BoardOption = None,
) -> int:
    """Start the whole service on this machine: API, board and a runner; Ctrl-C ends all of it in order."""
    from service.cli.upright import Up
    from service.settings import board_url, store_root

    _quotas(quota or ())
    root = store_root(store)[0]
    work = ["--executor", executor.value, "--searches", str(searches), "--installer", installer.value]
    work += [] if slots is None else ["--slots", str(slots)]
    work += [word for text in quota or () for word in ("--quota", text)]
    serve = [word for name in hosts or () for word in ("--allow-host", name)]
    return Up(root, board_url(root, board).value, host, port, work, serve).run()


@app.command()
def serve(
    host: HostOption = "127.0.0.1",
    port: PortOption = PORT,
    hosts: HostsOption = None,
    store: StoreOption = None,
    board: BoardOption = None,
) -> int:
    """The API alone; runners are started by `work`, here or elsewhere."""
    from service.api.serve import serve as served
    from service.settings import board_url, store_root

    root = store_root(store)[0]
    url = board_url(root, board).value
    served(root, url, host=host, port=port, hosts=hosts or (), ready=lambda at: say(f"the API answers at {at}"))
    return 0


@app.command()
def work(
    executor: CrewOption = Crew.local,
    searches: SearchesOption = 4,
    slots: SlotsOption = None,
    quota: QuotaOption = None,
    installer: InstallerOption = Installer.pip,
    name: Annotated[str | None, typer.Option(help="What the board calls it [default: machine and process].")] = None,
    store: StoreOption = None,
    board: BoardOption = None,
) -> int:
    """A runner: takes searches from the board and drives them, until SIGTERM or Ctrl-C."""
    from service.runner.work import work as worked
    from service.settings import board_url, store_root

    root = store_root(store)[0]
    url, quotas = board_url(root, board).value, _quotas(quota or ())
    worked(
        store=root,
        board=url,
        executor=executor.value,
        searches=searches,
        slots=slots,
        quotas=quotas,
        installer=installer.value,
        name=name,
    )
    return 0


def _quotas(texts: list[str] | tuple[()]) -> dict[str, int]:
    """`OWNER=N` by owner. Raises `Invalid` with every fault."""
    found, faults = {}, []
    for text in texts:
        owner, equals, most = text.rpartition("=")
        if not equals or not owner or not most.isdecimal():
            faults.append(f"--quota {text}: must be OWNER=N such as ada=4, or *=2 for everybody else.")
        else:
            found[owner] = int(most)
    if faults:
        raise Invalid(faults)
    return found
