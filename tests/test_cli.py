"""The command line as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, run_command

from compress import __version__
from compress import cli as program
from compress.commands.registry import SUMMARIES, get_command
from compress.errors import CompressError
from compress.progress import Silent

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture
def compress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the program with arguments."""

    def call(*words: object) -> Outcome:
        return run_command(monkeypatch, capsys, *words)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the default network with random weights."""
    from compress.checkpoint.load import create
    from compress.checkpoint.save import save

    path = tmp_path_factory.mktemp("cli") / "model.pt"
    save(create("default", trained=False), path)
    return path


@pytest.mark.parametrize("name", [*SUMMARIES, "run"])
def test_every_command_has_help_with_an_example_and_is_in_the_readme(compress: Any, name: str) -> None:
    done = compress(name, "--help")
    assert done.code == 0
    assert f"Example: compress {name}" in " ".join(done.out.split())
    assert f"compress {name}" in README.read_text()


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_example_of_every_command_names_only_options_it_has(name: str) -> None:
    command = get_command(name)
    flags = {word[2:].replace("-", "_") for word in command.example.split() if word.startswith("--")}
    assert flags <= set(command.options.model_fields)


def test_python_m_compress_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "compress", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pose-compress {__version__}\n"


def test_networks(capsys: pytest.CaptureFixture[str]) -> None:
    command = get_command("networks")
    result = command.run(command.options(), Silent())
    rows = {row["name"]: row for row in json.loads(json.dumps(result.record, allow_nan=False))["networks"]}
    assert rows["lightweight-openpose"]["params"] == 4_091_698
    result.show()
    shown = capsys.readouterr().out
    assert all(name in shown for name in rows)
    assert result.summary == f"{len(result.record['networks'])} networks"


def test_inspect_lists_every_layer_with_ranks_or_a_reason(compress: Any, model: Path) -> None:
    record = compress("inspect", model, "--input", "128x160", "--json").json
    assert record["params"] > sum(layer["params"] for layer in record["layers"])  # batch normalisation has some too
    assert record["macs"] == sum(layer["macs"] for layer in record["layers"])
    assert sum(layer["share"] for layer in record["layers"]) == pytest.approx(1)
    for layer in record["layers"]:
        assert layer["why"] or layer["vbmf_ranks"]
    shown = compress("inspect", model).out
    assert all(layer["name"] in shown for layer in record["layers"])


def test_factorize_writes_a_smaller_network_that_inspect_can_read(compress: Any, model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.pt"
    record = compress("factorize", model, "--ratio", "1/3", "-o", small, "--json").json
    assert record["output"] == str(small)
    assert record["params"][1] < record["params"][0]
    assert record["macs"][1] < record["macs"][0]
    seen = compress("inspect", small, "--json").json
    assert (seen["params"], seen["macs"]) == (record["params"][1], record["macs"][1])


def test_a_dry_run_writes_nothing_and_a_saved_plan_gives_the_same_network(
    compress: Any, model: Path, tmp_path: Path
) -> None:
    plan, one, two = tmp_path / "plan.json", tmp_path / "one.pt", tmp_path / "two.pt"
    before = sorted(model.parent.iterdir())
    dry = compress("factorize", model, "--energy", "0.6", "--dry-run", "--save-plan", plan, "--json").json
    assert dry["output"] is None
    assert sorted(model.parent.iterdir()) == before
    direct = compress("factorize", model, "--energy", "0.6", "-o", one, "--json").json
    planned = compress("factorize", model, "--plan", plan, "-o", two, "--json").json
    assert direct["layers"] == planned["layers"] == dry["layers"]
    ranks = json.loads(plan.read_text())
    chosen = next(layer for layer in ranks["layers"] if layer["method"] == "tucker2")
    chosen["ranks"] = [3, 5]
    plan.write_text(json.dumps(ranks))
    edited = compress("factorize", model, "--plan", plan, "-o", two, "--force", "--json").json
    assert next(layer for layer in edited["layers"] if layer["name"] == chosen["name"])["ranks"] == [3, 5]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--ratio", "0"], (1, 2), "0"),
        (["--ratio", "4/3"], (1, 2), "4/3"),
        (["--ratio", "a"], (1, 2), "'a'"),
        (["--ratio", "1/3", "--energy", "0.9"], (2,), "choose one"),
        ([], (2,), "choose one"),
        (["--ratio", "1/3", "--weaken", "0.5"], (2,), "--rank vbmf"),
        (["--rank", "vbmf", "--clamp", "1/4"], (2,), "--clamp 1/4,1/3"),
        (["--ratio", "1/3", "--include", "trnuk*"], (1, 2), "trnuk"),
        (["--energy", "1.5"], (1, 2), "1.5"),
        (["--rank", "best"], (2,), "vbmf"),
        (["--ratio", "1/3", "--input", "12"], (2,), "HEIGHTxWIDTH"),
        (["--plan", "nowhere.json"], (1,), "does not exist"),
    ],
)
def test_invalid_options_of_a_factorization_are_one_clear_error(
    compress: Any, model: Path, tmp_path: Path, words: list[str], code: tuple[int, ...], message: str
) -> None:
    output = tmp_path / "small.pt"
    done = compress("factorize", model, *words, "-o", output)
    assert done.code in code
    assert message in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_forced(compress: Any, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.pt"
    output.write_bytes(b"precious")
    done = compress("factorize", model, "--ratio", "1/3", "-o", output)
    assert (done.code, output.read_bytes()) == (1, b"precious")
    assert "--force" in done.err
    assert compress("factorize", model, "--ratio", "1/3", "-o", output, "--force").code == 0


def test_a_plan_for_another_network_is_refused(compress: Any, model: Path, tmp_path: Path) -> None:
    plan, other = tmp_path / "plan.json", tmp_path / "other.pt"
    assert compress("factorize", model, "--ratio", "1/3", "--dry-run", "--save-plan", plan).code == 0
    assert compress("init", "lightweight-openpose", "--set", "refinements=0", "-o", other).code == 0
    done = compress("factorize", other, "--plan", plan, "-o", tmp_path / "x.pt")
    assert done.code == 1
    assert "default" in done.err
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "empty"), (b"\x80\x04nonsense", "model.pt"), (b"\xff\xd8\xff\xe0", "JPEG")],
)
def test_files_that_are_not_checkpoints_are_refused(
    compress: Any, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    for command in (
        ["inspect", path],
        ["factorize", path, "--ratio", "1/2"],
        ["evaluate", path, "--data", "synthetic"],
    ):
        done = compress(*command)
        assert done.code == 1
        assert message in done.err
        assert "Traceback" not in done.err


def test_data_that_does_not_exist_is_refused(compress: Any, model: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--data", "cocoo:x"], "names no data set"),
        (["--data", f"coco:{tmp_path / 'x'}"], "no such COCO folder"),
        ([], "no data set is named"),
        (["--annotations", tmp_path / "a.json"], "go together"),
    ):
        done = compress("evaluate", model, *words)
        assert done.code in (1, 2)
        assert message in done.err


def test_bugs_keep_their_traceback(compress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(program, "check_options", broken)
    with pytest.raises(ZeroDivisionError):
        compress("networks")


def test_the_exit_code_of_an_error_is_its_own(compress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise CompressError("it broke", found=3, hint="Fix it")

    monkeypatch.setattr(program, "check_options", failing)
    done = compress("networks")
    assert (done.code, done.err) == (1, "Error: it broke (found: 3). Fix it\n")
