"""`list`, `show`, `best`, `query`, `config show` and `doctor`: what there is, in the store or by a service."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from search_spaces.faults import Invalid
from service import show as out
from service.cli.app import ERROR, Rows, RowsOption, Search, StoreOption, UrlOption, Whole, WholeOption, app, config
from service.cli.places import reading, service_for, warn_of_damage
from service.show import say


@app.command("list")
def list_searches(store: StoreOption = None, url: UrlOption = None, output: RowsOption = Rows.table) -> int:
    """The searches, the oldest first."""
    if (client := service_for(store, url)) is not None:
        with client:
            _print_list([search.row for search in client.searches()], output, client.url)
        return 0
    from service.summary import summary

    witness = reading(store)
    _print_list([summary(witness.search(search_id)) for search_id in witness.searches()], output, str(witness.root))
    warn_of_damage(witness)
    return 0


def _print_list(found: list[dict[str, Any]], output: Rows, where: str) -> None:
    import pyarrow as pa

    found.sort(key=lambda row: (row["created"], row["search_id"]))
    rows = [
        {
            **{key: row[key] for key in ("search_id", "name", "state")},
            "trials": row["asked"],
            "complete": row["trials"].get("complete", 0),
            "metric": row["metric"],
            "best": row["best"] and row["best"]["value"],
            "created": out.moment(row["created"]) if output is Rows.table else row["created"],
        }
        for row in found
    ]
    text, whole, number = pa.string(), pa.int64(), pa.float64()
    created = text if output is Rows.table else number
    kinds = {"search_id": text, "name": text, "state": text, "trials": whole, "complete": whole, "metric": text}
    if rows or output is not Rows.table:
        schema = pa.schema({**kinds, "best": number, "created": created})
        out.print_rows(pa.Table.from_pylist(rows, schema), output.value)
    else:
        say(f"there is no search in {where} yet")


@app.command()
def show(search: Search, store: StoreOption = None, url: UrlOption = None, output: WholeOption = Whole.table) -> int:
    """One search: its state, spec, counts, best trial and cost."""
    if (client := service_for(store, url)) is not None:
        with client:
            out.print_summary(client.search(search).row, output.value, spec=True)
        return 0
    from service.summary import described

    witness = reading(store)
    out.print_summary(described(witness.named(search), witness), output.value, spec=True)
    warn_of_damage(witness)
    return 0


@app.command()
def best(
    search: Search,
    store: StoreOption = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write its plain network there: .pt2, .onnx, or .py with .safetensors."),
    ] = None,
    draw: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw its graph there: .png or .svg.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let these replace a file.")] = False,
    retrain: Annotated[
        int | None, typer.Option(metavar="SEEDS", min=1, help="Retrain it from scratch, so often, and store that.")
    ] = None,
    url: UrlOption = None,
    output: WholeOption = Whole.table,
) -> int:
    """The best trial of a search: where it was asked, where it ended, and what it measured."""
    from service.summary import best_trial

    making = retrain is not None or export is not None or draw is not None
    if (client := service_for(store, url)) is not None:
        if making:
            raise Invalid(["best: --export, --draw and --retrain need the store itself; name it by --store DIR."])
        with client:
            out.print_best(client.search(search).best(), output.value)
        return 0
    witness = reading(store)
    chosen, made = witness.named(search), {}
    if making:
        from service.networks import make_of_best

        with contextlib.redirect_stdout(sys.stderr):  # the user's own modules may print
            made = make_of_best(
                witness.root, chosen, say, retrain=retrain, export=export, draw=draw, overwrite=overwrite
            )
    found = {**best_trial(chosen, witness), **made}
    out.print_best(found, output.value)
    warn_of_damage(witness)
    return 0


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over searches, trials and reports.")],
    store: StoreOption = None,
    url: UrlOption = None,
    output: RowsOption = Rows.table,
) -> int:
    """Ask the store, or a service, in SQL (DuckDB's dialect)."""
    if (client := service_for(store, url)) is not None:
        with client:
            out.print_rows(client.query(sql), output.value)
        return 0
    from trials.query import query as answered

    witness = reading(store)
    out.print_rows(answered(witness, sql), output.value)
    warn_of_damage(witness)
    return 0


@config.command("show")
def config_show(
    store: StoreOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Also say where each was set.")] = False,
    output: RowsOption = Rows.table,
) -> int:
    """The settings that hold here."""
    import pyarrow as pa

    from service.settings import settings

    names = ("name", "value", "origin")[: 3 if origin else 2]
    rows = [dict(zip(names, row, strict=False)) for row in settings(store).rows()]
    out.print_rows(pa.Table.from_pylist(rows), output.value)
    return 0


@app.command()
def doctor(
    store: StoreOption = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Move damaged files to quarantine/ beside them.")
    ] = False,
    output: RowsOption = Rows.table,
) -> int:
    """Verify every file of every search; exit 1 when one is damaged."""
    import pyarrow as pa

    from service.health import COLUMNS, examined

    witness = reading(store)
    rows = [row for search_id in witness.searches() for row in examined(witness.search(search_id), quarantine)]
    if rows or output is not Rows.table:
        out.print_rows(pa.Table.from_pylist(rows, pa.schema(dict.fromkeys(COLUMNS, pa.string()))), output.value)
    found = out.counted(len(rows), "damaged file") if rows else "all sound"
    many = len(witness.opened)
    say(f"{many} search{'' if many == 1 else 'es'} in {witness.root}: {found}")
    return ERROR if rows else 0
