"""A training run that is killed in the middle of its WRITING-th write: ``killed.py STATE WRITING``."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import launched
import torch

from compress.training import state as state_file
from compress.training.loop import StateFile
from compress.training.processes import ProcessGroup


def main(path: Path, fatal: int) -> None:
    torch.set_num_threads(1)
    save, written = torch.save, [0]

    def save_half(content: object, file: Path) -> None:
        written[0] += 1
        if written[0] < fatal:
            save(content, file)
            return
        whole = io.BytesIO()
        save(content, whole)
        file.write_bytes(whole.getvalue()[: whole.tell() // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    state_file.torch.save = save_half
    launched.tune(ProcessGroup(torch.device("cpu")), state=StateFile(path))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
