"""`compress run`: a recipe from start to end."""

from __future__ import annotations

import json
from pathlib import Path

import click

from compress.cli.progress import TerminalProgress
from compress.cli.show import headline
from compress.errors import UsageError


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
    from compress.pipeline import StepReport, run_recipe
    from compress.recipe import load_recipe
    from compress.training.processes import launched

    if launched() > 1:
        raise UsageError(
            "a recipe runs in one process",
            found=f"WORLD_SIZE={launched()}",
            way_out="Launch its commands one by one: several processes are for compress finetune and compress train",
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
