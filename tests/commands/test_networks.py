"""`compress networks`: one network, and the explanation of its paper."""

from __future__ import annotations

import pytest

from compress.commands.networks import NetworksOptions, run
from compress.errors import NetworkError, UsageError
from compress.progress import Silent
from compress.zoo.explanation import WIDTH, explain


def test_one_network_is_counted_with_its_variants() -> None:
    rows = run(NetworksOptions(network="cbam-lite-hrnet"), Silent()).networks
    assert len(rows) > 1
    assert {row.network for row in rows} == {"cbam-lite-hrnet"}


def test_an_explanation_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(NetworksOptions(network="repose", explain=True), Silent())
    assert result.record["explanation"] == explain("repose")
    result.show()
    shown = capsys.readouterr().out
    assert shown == explain("repose")
    assert max(map(len, shown.splitlines())) <= WIDTH


def test_without_an_explanation_the_record_has_none() -> None:
    assert set(run(NetworksOptions(network="cbam-lite-hrnet-mpii"), Silent()).record) == {"networks"}


def test_an_explanation_needs_a_known_network() -> None:
    with pytest.raises(UsageError, match="explains one network"):
        run(NetworksOptions(explain=True), Silent())
    with pytest.raises(NetworkError, match="unknown network"):
        run(NetworksOptions(network="repos", explain=True), Silent())
