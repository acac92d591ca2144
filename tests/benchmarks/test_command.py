"""`vectorshard bench`: how it is found, what its options mean, and what it ends with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner
from typer.testing import Result as Ended

from benchmarks.load import command
from benchmarks.load import run as run_module
from benchmarks.load.plan import Arrivals, CallKind, Plan
from benchmarks.load.record import Record
from benchmarks.load.result import Result, result_of
from benchmarks.load.schedule import Start
from vectorshard.cli import app
from vectorshard.cli.vector_files import UnreadableFile
from vectorshard.shard.errors import ShardUnavailable

ROOT = Path(__file__).resolve().parents[2]
Bench = Callable[..., tuple[Ended, Plan | None]]


def result_with(code: str) -> Result:
    """Return the result of a run with one call."""
    record = Record(distinct=1)
    start = Start(0, 0.0, counts=True)
    record.note(start, free_s=0.0, sent_s=0.0, ended_s=1.0, code=code, answer=None)
    return result_of(Plan(target="t"), record, ran_s=1, cpu_s=0, interrupted=False, recall=None)


def invoke(*arguments: str) -> Ended:
    """Run the command line."""
    return CliRunner().invoke(app.app, ["bench", *arguments])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Run the command; nothing is called, and the plan is handed back."""

    def ended(*arguments: str) -> tuple[Ended, Plan | None]:
        plans: list[Plan] = []

        def run(plan: Plan) -> Result:
            plans.append(plan)
            return result_with("OK")

        monkeypatch.setattr(run_module, "run", run)
        return invoke(*arguments), plans[0] if plans else None

    return ended


def test_without_options_it_searches_in_an_open_loop_for_10_s(bench: Bench) -> None:
    ended, plan = bench()
    assert ended.exit_code == 0
    assert plan == Plan(
        target="127.0.0.1:7700",
        call=CallKind.search,
        collection="bench",
        rate_per_s=100.0,
        arrivals=Arrivals.poisson,
        concurrency=1_000,
        duration_s=10.0,
        calls_total=None,
        warmup_s=1.0,
    )


def test_a_closed_loop_has_no_rate_and_fewer_callers(bench: Bench) -> None:
    _, plan = bench("--closed")
    assert plan is not None
    assert (plan.rate_per_s, plan.concurrency) == (None, 16)


def test_total_alone_sets_no_duration_and_both_together_both(bench: Bench) -> None:
    _, plan = bench("--total", "5")
    assert plan is not None
    assert (plan.duration_s, plan.calls_total) == (None, 5)
    _, plan = bench("--total", "5", "--duration", "2")
    assert plan is not None
    assert (plan.duration_s, plan.calls_total) == (2.0, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--closed", "--rps", "5"],
        ["--exact", "--nprobe", "3"],
        ["--target-recall", "0.5", "--nprobe", "3"],
        ["--rps", "0"],
        ["--total", "0"],
        ["--call", "delete"],
        ["--format", "xml"],
        ["--call", "upsert", "--filter", "n > 1"],
    ],
)
def test_options_that_make_no_sense_are_a_usage_error(bench: Bench, arguments: list[str]) -> None:
    ended, plan = bench(*arguments)
    assert (ended.exit_code, plan) == (2, None)
    assert not ended.stdout


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (result_with("OK"), 0),
        (result_with("UNAVAILABLE"), 1),
        (replace(result_with("OK"), interrupted=True), 130),
    ],
)
def test_the_exit_code_says_how_it_ended_and_the_result_is_printed(
    monkeypatch: pytest.MonkeyPatch, result: Result, code: int
) -> None:
    monkeypatch.setattr(run_module, "run", lambda plan: result)
    ended = invoke("--format", "json")
    assert ended.exit_code == code
    assert '"calls": 1' in ended.stdout


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("p99>20ms", "p99 is 1,000.45 ms"),
        ("p99.9 >= 1s", "p99.9 is 1,000.45 ms"),
        ("mean>999999us", "mean is 1,000.19 ms"),
        ("p99>1001ms", ""),
        ("qps<5", "qps is 0.1"),
        ("qps<0.05", ""),
        ("errors<1", "errors is 0"),
        ("errors>0.1%", ""),
        ("errors>=0%", "errors is 0%"),
        ("recall<0.9", "recall was not measured"),
    ],
)
def test_a_bar_that_is_missed_or_unknown_is_named_and_has_its_exit_code(
    bench: Bench, condition: str, told: str
) -> None:
    ended, _ = bench("--json", "--fail-if", condition, "--fail-if", "max<1ms")
    assert json.loads(ended.stdout)["calls"] == 1
    assert ended.exit_code == (3 if told else 0)
    assert ended.stderr == (f"failed: {condition}: {told}\n" if told else "")


@pytest.mark.parametrize("condition", ["p98>1", "p99=1", "p99>1h", "qps>3ms", "recall", "p99>1%"])
def test_what_is_no_bar_is_refused_before_a_call(bench: Bench, condition: str) -> None:
    ended, plan = bench("--fail-if", condition)
    assert (ended.exit_code, plan) == (1, None)
    assert ended.stderr.startswith("error: fail_if: ")


@pytest.mark.parametrize("failure", [ShardUnavailable("nobody\nthere"), UnreadableFile("no file")])
def test_a_run_that_cannot_begin_is_one_line(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def run(plan: Plan) -> Result:
        raise failure

    monkeypatch.setattr(run_module, "run", run)
    ended = invoke()
    assert ended.exit_code == 1
    assert not ended.stdout
    assert ended.stderr.startswith(f"error: {' '.join(str(failure).split())}")
    assert len(ended.stderr.splitlines()) == 1


def python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own."""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "stopped: nothing was measured\n"),
        (["--ingest"], "`vectorshard drop bench` removes them\n"),
    ],
)
def test_ctrl_c_before_the_first_call_says_what_stays(
    monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "prepare", interrupted)
    ended = invoke(*options)
    assert (ended.exit_code, ended.stdout) == (130, "")
    assert ended.stderr.startswith("stopped: nothing was measured")
    assert ended.stderr.endswith(told)


def test_help_lists_it_without_loading_what_measures() -> None:
    ended = python(
        "import sys\n"
        "from vectorshard.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'hdrh', 'grpc', 'faiss', 'benchmarks.load.run'} & set(sys.modules))\n"
    )
    assert re.search(r"bench +Load a server", ended.stdout)
    assert ended.stdout.splitlines()[-1] == "set()"


def test_without_the_extra_it_says_in_a_line_what_to_install() -> None:
    ended = python(
        "import sys\nsys.modules['hdrh'] = None\n"
        "from vectorshard.cli.app import app\napp(['bench'])\n"
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: the module hdrh is not installed; "
        "install the extra in the checkout with pip install -e '.[server,bench]'\n"
    )


def test_in_a_checkout_it_is_the_load_generator() -> None:
    assert app.bench_command() is command.bench
    assert (app.CHECKOUT / "pyproject.toml").is_file()


def test_outside_a_checkout_it_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(app, "CHECKOUT", tmp_path)
    for options in ((), ("--ingest", "--rps", "200", "--fail-if", "p99>20ms")):
        ended = CliRunner().invoke(app.app, ["bench", *options])
        assert ended.exit_code == 1
        assert not ended.stdout
        assert ended.stderr == (
            "error: bench: this command needs a checkout of vectorshard, with the extra `bench` "
            "installed\n"
        )
    listed = CliRunner().invoke(app.app, ["--help"], env={"COLUMNS": "200"})
    assert "needs a checkout of vectorshard" in listed.stdout
