"""The `compress` command: each stage is a subcommand; errors become one line and an exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress import __version__
from compress.commands.base import check_options
from compress.commands.fields import parse_pairs
from compress.commands.parameters import given, parameters_of
from compress.commands.registry import SUMMARIES, get_command
from compress.errors import CompressError, UsageError

if TYPE_CHECKING:
    from compress.pipeline import StepReport

_RUN_SUMMARY = "Run a recipe: a pipeline of these commands in a TOML file"
_SWEEP_SUMMARY = "Run a recipe for every combination of values of its variables"


class CommandGroup(click.Group):
    """Subcommands that are imported only when they are called, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return [*SUMMARIES, "run", "sweep"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name in ("run", "sweep"):
            return run if cmd_name == "run" else sweep
        return subcommand(cmd_name) if cmd_name in SUMMARIES else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and summaries, without importing what they run."""
        with formatter.section("Commands"):
            formatter.write_dl([*SUMMARIES.items(), ("run", _RUN_SUMMARY), ("sweep", _SWEEP_SUMMARY)])


def subcommand(name: str) -> click.Command:
    """The subcommand of that name: its options, a call, and the printing of its result."""
    command = get_command(name)

    def callback(**values: Any) -> None:
        from compress.commands.terminal import TerminalProgress

        as_json = values.pop("json")
        options = check_options(command.options, given(values), f"compress {name}")
        result = command.run(options, TerminalProgress(quiet=as_json))
        from compress.training.processes import is_main  # with torch, which wrong options need not wait for

        if not is_main():  # only one of several processes prints
            return
        if as_json:
            click.echo(json.dumps(result.record, allow_nan=False))
        else:
            result.show()

    json_option = click.Option(["--json"], is_flag=True, help="Print the result as one JSON object.")
    return click.Command(
        name,
        params=[*parameters_of(command.options), json_option],
        callback=callback,
        help=SUMMARIES[name] + ".",
        epilog=f"Example: {command.example}",
    )


@click.command(
    "run",
    help="Run a recipe: a pipeline of these commands in a TOML file. Finished stages are skipped unless their options, "
    "models or data have changed.",
    epilog="Example: compress run recipes/demo.toml",
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for its files [default: the recipe's]")
@click.option("--set", "pairs", multiple=True, help="Variable of the recipe as NAME=VALUE; repeat for more")
@click.option("--force", is_flag=True, help="Run every stage again, finished or not")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def run(recipe: Path, output: Path | None, pairs: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Run a recipe and print what was written."""
    from compress.commands.terminal import TerminalProgress
    from compress.pipeline import run_recipe
    from compress.recipe import load_recipe

    _check_single_process()
    loaded = load_recipe(recipe, folder=output, variables=parse_pairs(pairs, "a variable"))
    progress = TerminalProgress(quiet=as_json)
    progress.say(f"{loaded.title} ({len(loaded.steps)} stages, files in {loaded.folder})")

    def done(number: int, report: StepReport) -> None:
        state = "unchanged, skipped" if report.skipped else report.summary
        progress.say(f"[{number}/{len(loaded.steps)}] {report.stage}: {state}")

    reports = run_recipe(loaded, progress, force=force, done=done)
    if as_json:
        stages = [
            {"stage": r.stage, "skipped": r.skipped, "files": [str(f) for f in r.files], "record": r.record}
            for r in reports
        ]
        click.echo(json.dumps({"title": loaded.title, "folder": str(loaded.folder), "stages": stages}))
    elif reports[-1].files:
        click.echo(f"Written: {', '.join(map(str, reports[-1].files))}")


def _check_single_process() -> None:
    from compress.training.processes import launched

    if launched() > 1:
        raise UsageError(
            "a recipe runs in one process",
            found=f"WORLD_SIZE={launched()}",
            hint="Launch its commands one by one; only compress finetune and compress train use several processes",
        )


@click.command(
    "sweep",
    help="Run a recipe once for every combination of values of its variables, each in a subfolder named after it. "
    "Finished stages are skipped as in compress run. A combination that fails is reported and the others go on; the "
    "exit code is then 1. The results are printed and written to sweep.json and sweep.csv.",
    epilog="Example: compress sweep recipes/esa-coco.toml --over attention=esa_seq,esa_par,esa_7 --set coco=DIR",
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--over",
    multiple=True,
    required=True,
    help="Variable of the recipe and its values as NAME=VALUE,VALUE; repeat for more",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder of the subfolders [default: the recipe's]"
)
@click.option("--set", "pairs", multiple=True, help="Variable with one value for all, as NAME=VALUE; repeat for more")
@click.option("--force", is_flag=True, help="Run every stage again, finished or not")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def sweep(
    recipe: Path, over: tuple[str, ...], output: Path | None, pairs: tuple[str, ...], force: bool, as_json: bool
) -> None:
    """Run all combinations and print a table."""
    from compress.commands.terminal import TerminalProgress, print_table
    from compress.sweep import load_sweep, parse_over, run_sweep

    _check_single_process()
    swept = parse_over(over)
    home, recipes = load_sweep(recipe, swept, folder=output, variables=parse_pairs(pairs, "a variable"))
    result = run_sweep(home, recipes, swept, TerminalProgress(quiet=as_json), force=force)
    if as_json:
        click.echo(json.dumps(result.to_dict(), allow_nan=False))
    else:
        print_table(f"{result.title} ({result.folder})", *result.table(), left=len(swept) + 1)
    if result.failed:
        raise click.exceptions.Exit(1)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pose-compress", message="%(prog)s %(version)s")
def cli() -> None:
    """Compress human-pose networks: choose ranks, factorize, recover accuracy, export, measure and report.

    Every command reads and writes files. Example: compress factorize model.pt --ratio 1/3
    """


def main() -> None:
    """Entry point.

    Exit code 0: success; 1: an error that the user can fix; 2: wrong usage; 130: interrupted. Bugs of the program keep
    their traceback.
    """
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
