"""huey on SQLite, side by side with `turns`: a task that does nothing. `huey_turns.py DIR AT_ONCE TURNS`.

Each client has one task at a time: when its result is stored, the next one is put in. A client that waited for its
result as huey offers it would poll; this way it costs nothing. The workers poll as quickly as they can be told to.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

from huey import SqliteHuey
from huey.signals import SIGNAL_COMPLETE

THREADS = 8


def per_second(home: Path, at_once: int, turns: int) -> float:
    huey = SqliteHuey(filename=str(home / "huey.db"))
    each = max(turns // at_once, 1)
    left = dict.fromkeys(range(at_once), each)
    finished, count, lock = threading.Event(), [0], threading.Lock()

    @huey.task()
    def turn(_client: int) -> str:
        return "answer"

    @huey.signal(SIGNAL_COMPLETE)
    def completed(_signal: str, task: Any) -> None:
        client = task.args[0]
        with lock:
            count[0] += 1
            left[client] -= 1
            if count[0] == at_once * each:
                finished.set()
        if left[client]:
            turn(client)

    consumer = huey.create_consumer(
        workers=THREADS, periodic=False, initial_delay=0.001, max_delay=0.01, check_worker_health=False
    )
    logging.disable(logging.ERROR)
    consumer.start()
    began = time.perf_counter()
    for client in range(at_once):
        turn(client)
    finished.wait()
    elapsed_s = time.perf_counter() - began
    consumer.stop()
    return at_once * each / elapsed_s


if __name__ == "__main__":
    print(json.dumps(per_second(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
