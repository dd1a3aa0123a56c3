"""The `compress` command: each stage is a subcommand; errors become one line and an exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from compress import __version__
from compress.commands.base import check_options
from compress.commands.parameters import given, parameters_of
from compress.commands.progress import TerminalProgress
from compress.commands.registry import SUMMARIES, get_stage
from compress.errors import CompressError, UsageError

_RUN_SUMMARY = "Run a recipe: a pipeline of these commands in a TOML file"


class StageGroup(click.Group):
    """Subcommands that are imported only when they are called, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return [*SUMMARIES, "run"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name == "run":
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
        from compress.commands.show import show
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


@click.command(
    "run",
    help="Run a recipe: a pipeline of these commands in a TOML file. Finished stages are skipped.",
    epilog="Example: compress run recipes/demo.toml",
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for its files [default: the recipe's]")
@click.option("--set", "pairs", multiple=True, help="Variable of the recipe as NAME=VALUE; repeat for more")
@click.option("--force", is_flag=True, help="Run every stage again, finished or not")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def run(recipe: Path, output: Path | None, pairs: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Load, run, and name what was written."""
    from compress.commands.show import headline
    from compress.pipeline import StepReport, run_recipe
    from compress.recipe import load_recipe
    from compress.training.processes import launched

    if launched() > 1:
        raise UsageError(
            "a recipe runs in one process",
            found=f"WORLD_SIZE={launched()}",
            hint="Launch its commands one by one: several processes are for compress finetune and compress train",
        )
    variables = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise UsageError("a variable is written NAME=VALUE", found=pair)
        variables[name] = value
    loaded = load_recipe(recipe, folder=output, variables=variables)
    progress = TerminalProgress(quiet=as_json)
    progress.say(f"{loaded.title} ({len(loaded.steps)} stages, files in {loaded.folder})")

    def done(number: int, report: StepReport) -> None:
        state = "finished before" if report.skipped else headline(report.stage, report.record)
        progress.say(f"[{number}/{len(loaded.steps)}] {report.stage}: {state}")

    reports = run_recipe(loaded, progress, force=force, done=done)
    if as_json:
        steps = [
            {"stage": r.stage, "skipped": r.skipped, "files": [str(f) for f in r.files], "record": r.record}
            for r in reports
        ]
        click.echo(json.dumps({"title": loaded.title, "folder": str(loaded.folder), "stages": steps}))
        return
    written = [str(path) for path in reports[-1].files]
    if written:
        click.echo(f"Written: {', '.join(written)}")


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
