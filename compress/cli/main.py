"""The `compress` command: each stage is a subcommand; errors become one line and an exit code."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from compress import __version__
from compress.cli.options import given, parameters_of
from compress.cli.progress import TerminalProgress
from compress.errors import CompressError
from compress.stages.base import check_options
from compress.stages.registry import SUMMARIES, get_stage

_RUN_SUMMARY = "Run a recipe: a pipeline of these commands in a TOML file"


class StageGroup(click.Group):
    """Subcommands that are imported only when they are called, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return [*SUMMARIES, "run"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name == "run":
            from compress.cli.run import run

            return run
        return stage_command(cmd_name) if cmd_name in SUMMARIES else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and summaries, without importing what they run."""
        with formatter.section("Commands"):
            formatter.write_dl([*SUMMARIES.items(), ("run", _RUN_SUMMARY)])


def stage_command(name: str) -> click.Command:
    """The subcommand of a stage: its options, a call, and the printing of its record."""
    stage = get_stage(name)

    def callback(**values: Any) -> None:
        as_json = values.pop("json")
        from compress.cli.show import show
        from compress.training.processes import is_main

        options = check_options(stage.options, given(values), f"compress {name}")
        result = stage.run(options, TerminalProgress(quiet=as_json))
        if not is_main():  # of several processes one speaks
            return
        if as_json:
            click.echo(json.dumps(result.record, allow_nan=False))
        else:
            show(name, result.record)

    json_option = click.Option(["--json"], is_flag=True, help="Print one JSON object on stdout.")
    return click.Command(
        name,
        params=[*parameters_of(stage.options), json_option],
        callback=callback,
        help=SUMMARIES[name] + ".",
        epilog=f"Example: {stage.example}",
    )


@click.group(cls=StageGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="compress")
def cli() -> None:
    """Compress human-pose networks: choose ranks, factorize, recover, export, measure, report.

    Every command reads files and writes files. Example: compress factorize model.pt --ratio 1/3
    """


def main() -> None:
    """Entry point: exit code 0 ok, 1 an error the user can mend, 2 wrong usage; our bugs keep their traceback."""
    try:
        cli(prog_name="compress", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except CompressError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
