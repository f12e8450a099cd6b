"""What stands for the host's package ``kaggle_evaluation`` in a rehearsal: a class with the host's two methods.

A rehearsal copies this file into the data of the kernel. Standard library only: it runs alone. Calls come and tables go
as JSON through a socket of the file system, because the kernel has no network there.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

SOCKET = "OSTEOGRADE_GATEWAY"  # variable that names the socket


class InferenceServer:
    """Calls ``predict(path)`` for every study."""

    def __init__(self, predict: Callable[[str], Any]) -> None:
        self.predict = predict

    def serve(self) -> None:
        """Answer the calls of the gateway, until it has no more."""
        with Listener(os.environ[SOCKET], family="AF_UNIX") as listener, listener.accept() as gateway:
            while path := json.loads(gateway.recv_bytes()):
                gateway.send_bytes(json.dumps(self._answer(path)).encode())

    def run_local_gateway(self, data_paths: Iterable[str] = ()) -> None:
        """Ask about the visible studies, and write all answers as submission.csv into the working folder."""
        rows: list[dict[str, Any]] = []
        for data in data_paths:
            for path in sorted(Path(data, "test_images").iterdir()):
                answer = self._answer(str(path))
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                rows += answer["rows"]
        with Path("submission.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)

    def _answer(self, path: str) -> dict[str, Any]:
        """{"rows": the table, one record a row}, or {"error": why there is none}."""
        try:
            table = self.predict(path)
            records = table.to_dicts() if hasattr(table, "to_dicts") else table.to_dict("records")  # polars or pandas
            return {"rows": [{str(key): _plain(value) for key, value in record.items()} for record in records]}
        except Exception as error:  # the host ends the run with it: here it is told to the gateway, which does
            return {"error": f"{type(error).__name__}: {error}"}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) else float(value)
