"""`vectorshard accept-loss`: go on without the rows that a shard's disk has lost."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Final

import typer
from rich.console import Console

from vectorshard.cli import asking, tables
from vectorshard.cli.addresses import DEFAULT_ADDRESS
from vectorshard.cli.json_output import print_json
from vectorshard.cli.output import terminal
from vectorshard.shard.errors import Unsupported
from vectorshard.shard.membership import AcceptLossRequest, AcceptLossResult
from vectorshard.shard.types import Call


def accept_loss(
    shard_id: Annotated[int, typer.Option(min=0, help="The number of the shard.")],
    target: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of a router over all shards.")
    ] = DEFAULT_ADDRESS,
    yes: Annotated[bool, typer.Option("--yes", help="Accept without a question.")] = False,
    timeout: asking.Timeout = 30.0,
    as_json: asking.AsJson = False,
) -> None:
    """Show what a shard's disk has lost and, if confirmed, go on without it.

    The ledger counts those rows as lost from then on. If the lost disk comes back, it is refused.
    It may be repeated: it then says that nothing is missing.
    """
    console = Console(stderr=True, highlight=False) if as_json else terminal()
    shown = asyncio.run(_ask(target, AcceptLossRequest(shard=shard_id), timeout))
    if not shown.losses:
        console.print(f"nothing is missing on shard {shard_id}", highlight=False)
        if as_json:
            print_json({"shard": shard_id, "losses": []})
        return
    console.print(tables.losses_table(shard_id, shown.losses))
    asking.require_agreement(yes, lambda: f"Accept the loss on shard {shard_id}?")
    done = asyncio.run(_ask(target, AcceptLossRequest(shard=shard_id, accept=True), timeout))
    console.print(
        f"accepted: shard {shard_id} goes on with what it has, in its life {done.life}",
        highlight=False,
    )
    if as_json:
        print_json({"shard": shard_id, "losses": shown.losses, "life": done.life})


async def _ask(target: str, request: AcceptLossRequest, timeout_s: float) -> AcceptLossResult:
    from vectorshard.router.remote.remote_shard import RemoteShard

    server = RemoteShard(target)
    try:
        return await server.accept_loss(request, call=Call(deadline=time.monotonic() + timeout_s))
    except Unsupported as error:
        raise Unsupported(
            f"{target} does not support accept-loss: it is of an earlier release"
        ) from error
    finally:
        await server.close()


COMMANDS: Final = (accept_loss,)
