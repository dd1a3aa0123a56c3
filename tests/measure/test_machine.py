from __future__ import annotations

import getpass
import json
import os
import platform
import socket
from dataclasses import fields

import pytest
import torch

from compress.measure import machine
from compress.measure.machine import ABSENT, Machine, describe

ARM = {"Features": "fp asimd evtstrm bf16 sve", "model name": ""}
X86 = {"flags": "fpu sse avx2 avx512f avx512_bf16 amx_tile", "model name": "Some CPU 9000"}


def test_description_is_complete_and_survives_json() -> None:
    record = json.loads(json.dumps(describe().to_dict()))
    assert set(record) == {field.name for field in fields(Machine)}
    assert all(record[name] not in ("", None) for name in record)
    assert record["torch"] == torch.__version__
    assert record["python"] == platform.python_version()
    assert 1 <= record["cores"] <= (os.cpu_count() or 1)
    assert record["openvino"] != ABSENT
    assert record["onnxruntime"] != ABSENT
    assert record["threads"] == torch.get_num_threads()


def test_no_names_of_host_or_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """With names that occur in no honest word, in every place from which they could be read."""
    host, user = "zqhostname", "zquser"
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(platform, "node", lambda: host)
    monkeypatch.setattr(getpass, "getuser", lambda: user)
    for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME", "HOME"):
        monkeypatch.setenv(name, f"/{user}/{host}")
    real = platform.uname()
    monkeypatch.setattr(platform, "uname", lambda: real._replace(node=host))
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((real.system, host, *real[2:5])))
    text = json.dumps(describe().to_dict()).lower()
    assert real.machine.lower() in text, "the system is not described at all"
    assert host not in text
    assert user not in text


def test_absent_gpu_is_called_not_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert describe().gpu == "not present"


def test_gpu_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert describe().gpu == "GPU 0"


@pytest.mark.parametrize(
    ("info", "expected"),
    [(X86, ("avx2", "avx512", "avx512-bf16", "amx")), (ARM, ("neon", "arm-bf16", "sve")), ({"flags": "sse"}, ())],
)
def test_instruction_sets_by_cpu_flags(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, str], expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda: info)
    assert describe().instruction_sets == expected


def test_other_systems_are_described_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> dict[str, str]:
        raise OSError("no such file")

    monkeypatch.setattr(machine, "_cpuinfo", dict)
    monkeypatch.setattr(platform, "freedesktop_os_release", missing)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    found = describe()
    assert found.cpu
    assert platform.system() in found.os
    assert found.cores == os.cpu_count()
    assert found.memory_gb == 0


def test_absent_runtime_is_called_not_present(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise machine.PackageNotFoundError(package)

    monkeypatch.setattr(machine, "version", absent)
    assert (describe().openvino, describe().onnxruntime) == (ABSENT, ABSENT)
