"""`token add`, `token list`, `token revoke`: who may use the service that is started by this user on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from service import show as out
from service.cli.app import Rows, RowsOption, token
from service.show import say


@token.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, such as ada or ci.")],
    scope: Annotated[str, typer.Option(help="read, submit or admin; submit is a shell on the workers.")] = "submit",
    owner: Annotated[str | None, typer.Option(help="Owns what it submits [default: NAME].")] = None,
) -> int:
    """Make a token and print it: it cannot be shown again."""
    from service.access import add as made

    out.put(made(name, scope, owner=owner) + "\n")
    say(f"a token of scope {scope} for {name}; who has it sets CONTINUA_TOKEN, or keeps it in a file of mode 0600 that")
    say("CONTINUA_TOKEN_FILE names. It is not shown again.")
    return 0


@token.command("list")
def list_tokens(output: RowsOption = Rows.table) -> int:
    """The tokens, without what makes them work."""
    import pyarrow as pa

    from service.access import tokens

    rows = [
        {
            "name": known.name,
            "scope": known.scope,
            "owner": known.owner,
            "created": out.moment(known.created) if output is Rows.table else known.created,
        }
        for known in tokens()
    ]
    if rows or output is not Rows.table:
        created = pa.string() if output is Rows.table else pa.float64()
        schema = pa.schema({**dict.fromkeys(("name", "scope", "owner"), pa.string()), "created": created})
        out.print_rows(pa.Table.from_pylist(rows, schema), output.value)
    else:
        say("there is no token yet; `continua up` makes the first one")
    return 0


@token.command("revoke")
def revoke(name: Annotated[str, typer.Argument(metavar="NAME", help="The token's name.")]) -> int:
    """Take a token away: a running service refuses it at once."""
    from service.access import revoke as gone

    say(f"revoked {gone(name).name}")
    return 0
