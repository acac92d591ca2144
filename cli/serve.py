"""The commands that serve: a whole service in one process, one shard of a fleet, a router.

Each serves until SIGTERM. What they start is in `embedded`, `fleet`, `routing` and `workers`,
imported when a command runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from vectorshard.cli.addresses import DEFAULT_ADDRESS, shard_addresses
from vectorshard.shard.config import CONNECTION_AGE_S, SLOTS_TOTAL, ScrubConfig, ServerConfig

WORKERS_MAX: Final = 64

SCRUB: Final = ScrubConfig()


class LogFormat(StrEnum):
    """How a server writes its log."""

    json = "json"
    console = "console"


Listen = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Address to listen on; port 0 picks a free port.")
]
Metrics = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Address to serve Prometheus metrics on.")
]
Health = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Separate address for health checks, which answers under load."
    ),
]
LameDuck = Annotated[
    float,
    typer.Option(
        min=0, metavar="SECONDS", help="After SIGTERM: longest time to wait for callers to leave."
    ),
]
ConnectionAge = Annotated[
    float,
    typer.Option(
        min=1.0,
        max=1_000_000.0,
        metavar="SECONDS",
        help="Age at which a client must reconnect and look up the server's address again;"
        " running calls finish.",
    ),
]
Hold = Annotated[
    bool,
    typer.Option(
        "--hold",
        help="If the data directory is damaged, foreign, too new or unusable: stay up, not ready,"
        " and fail every call with the reason, instead of ending.",
    ),
]
ReserveMb = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="MB",
        help="Free space on the disk at which upserts are refused. Default: 256, but at most 5 % of"
        " the disk.",
    ),
]
ScrubInterval = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="How often the background scrub verifies all that is stored; 0 turns it off.",
    ),
]
ScrubMb = Annotated[
    float,
    typer.Option(min=0.001, metavar="MB/S", help="How much the scrub of a shard reads at most."),
]
LogFormatOption = Annotated[LogFormat, typer.Option(help="Format of the log.")]


def serve(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Directory that holds the rows.")],
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=SLOTS_TOTAL,
            help="Number of shards in this process, permanent. Default: that of the directory;"
            " 1 for a new one.",
        ),
    ] = None,
    listen: Listen = DEFAULT_ADDRESS,
    metrics: Metrics = None,
    health: Health = None,
    lame_duck: LameDuck = 1.0,
    connection_age: ConnectionAge = CONNECTION_AGE_S,
    reserve_mb: ReserveMb = None,
    scrub_interval: ScrubInterval = SCRUB.interval_s,
    scrub_mb: ScrubMb = SCRUB.bytes_per_s / 1e6,
    hold: Hold = False,
    log_format: LogFormatOption = LogFormat.console,
) -> None:
    """Serve a whole service in one process, until SIGTERM or Ctrl-C."""
    import uvloop

    from vectorshard.cli import embedded
    from vectorshard.shard.runtime.logs import configure_logs

    configure_logs(log_format.value)
    server = ServerConfig(
        listen=listen,
        metrics=metrics,
        health=health,
        lame_duck_s=lame_duck,
        connection_age_s=connection_age,
        hold=hold,
    )
    scrub = ScrubConfig(interval_s=scrub_interval, bytes_per_s=scrub_mb * 1e6)
    uvloop.run(
        embedded.serve(shards=shards, data=data, server=server, reserve_mb=reserve_mb, scrub=scrub)
    )


def shard(
    shard_id: Annotated[int, typer.Option(min=0, help="Number of this shard, from 0.")],
    shards: Annotated[
        int, typer.Option(min=1, max=SLOTS_TOTAL, help="Number of shards in the fleet; permanent.")
    ],
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory that holds this shard's rows.")
    ],
    listen: Listen = DEFAULT_ADDRESS,
    cluster: Annotated[
        str | None, typer.Option(help="Name of the fleet. Default: the one in the directory.")
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores that one search may use. Default: all.")
    ] = None,
    metrics: Metrics = None,
    health: Health = None,
    lame_duck: LameDuck = 1.0,
    connection_age: ConnectionAge = CONNECTION_AGE_S,
    reserve_mb: ReserveMb = None,
    scrub_interval: ScrubInterval = SCRUB.interval_s,
    scrub_mb: ScrubMb = SCRUB.bytes_per_s / 1e6,
    hold: Hold = False,
    log_format: LogFormatOption = LogFormat.console,
) -> None:
    """Serve one shard of a fleet, until SIGTERM or Ctrl-C."""
    import uvloop

    from vectorshard.cli import fleet
    from vectorshard.shard.runtime.logs import configure_logs

    if shard_id >= shards:
        raise typer.BadParameter(f"--shard-id {shard_id} must be less than --shards {shards}")
    configure_logs(log_format.value)
    server = ServerConfig(
        listen=listen,
        metrics=metrics,
        health=health,
        lame_duck_s=lame_duck,
        connection_age_s=connection_age,
        hold=hold,
    )
    uvloop.run(
        fleet.serve_shard(
            shard=shard_id,
            shards_total=shards,
            data=data,
            cluster=cluster,
            cores=cores or len(os.sched_getaffinity(0)),
            server=server,
            reserve_mb=reserve_mb,
            scrub=ScrubConfig(interval_s=scrub_interval, bytes_per_s=scrub_mb * 1e6),
        )
    )


def router(
    shard: Annotated[
        list[str],
        typer.Option(
            metavar="HOST:PORT",
            help="Address of a shard; repeat it for each, in the order of their numbers."
            " Or give one address and --shards: {shard} stands for the number, as in"
            " dns:///shard-{shard}.fleet:7700.",
        ),
    ],
    shards: Annotated[
        int | None,
        typer.Option(min=1, max=SLOTS_TOTAL, help="Number of shards that {shard} stands for."),
    ] = None,
    listen: Listen = DEFAULT_ADDRESS,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="For a router below another: accept a part of the fleet."),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=WORKERS_MAX,
            help="Number of processes that share the port. The n-th, from 0, serves metrics and"
            " health on the given port plus n.",
        ),
    ] = 1,
    shares_port: Annotated[bool, typer.Option("--shares-port", hidden=True)] = False,
    metrics: Metrics = None,
    health: Health = None,
    lame_duck: LameDuck = 1.0,
    connection_age: ConnectionAge = CONNECTION_AGE_S,
    log_format: LogFormatOption = LogFormat.console,
) -> None:
    """Serve a router over the shards of a fleet, until SIGTERM or Ctrl-C."""
    from vectorshard.shard.runtime.logs import configure_logs

    configure_logs(log_format.value)
    server = ServerConfig(
        listen=listen,
        shares_port=shares_port,
        metrics=metrics,
        health=health,
        lame_duck_s=lame_duck,
        connection_age_s=connection_age,
    )
    _serve_router(shard_addresses(shard, shards), partial, server, workers, log_format)


def _serve_router(
    addresses: Sequence[str],
    partial: bool,
    server: ServerConfig,
    workers: int,
    log_format: LogFormat,
) -> None:
    """Serve in this process, or start `workers` processes and exit with their code."""
    import asyncio

    import uvloop

    from vectorshard.cli import routing
    from vectorshard.cli.workers import end_with, serve_workers

    if workers > 1:
        serving = serve_workers(
            workers, shards=addresses, partial=partial, server=server, log_format=log_format.value
        )
        raise typer.Exit(asyncio.run(serving))
    if server.shares_port:
        end_with(sys.stdin.buffer)
    uvloop.run(routing.serve_router(shards=addresses, partial=partial, server=server))


COMMANDS: Final = (serve, shard, router)
