# SPDX-License-Identifier: Apache-2.0
"""Tries cases in a process of little memory and little time, and outlives what happens to it."""

import json
import resource
import select
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

MEMORY = 2**30  # bytes that a case may take
SECONDS = 5  # of a processor
SILENCE = 300  # seconds on the clock after which a process is taken for dead


class Slow(BaseException):
    """It takes too long; no ordinary handler of errors catches it."""


def too_slow(*_):
    raise Slow(f"it takes more than {SECONDS} s")


def serve(attempt: Callable[[str, int], str]) -> None:
    """Try the cases that are asked for, one a line, and tell the outcome of each.

    Args:
        attempt: of a case's kind and number; whatever it raises is a failure.
    """
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    signal.signal(signal.SIGPROF, too_slow)
    print("ready", flush=True)
    for line in sys.stdin:
        kind, number = line.split()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            answer = attempt(kind, int(number)), ""
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            answer = "failed", "".join(traceback.format_exception(error, limit=-4, chain=False))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that serves; another one takes over when it dies."""

    def __init__(self, *command: str) -> None:
        self._command = [sys.executable, *command]
        self._process: subprocess.Popen | None = None

    def run(self, kind: str, numbers: range) -> tuple[Counter[str], list[str]]:
        """Outcomes, and what went wrong with which case."""
        outcomes: Counter[str] = Counter()
        failures = []
        for number in numbers:
            if self._process is None:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=Path(__file__).parents[1],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                assert self._answer() == "ready\n", "the process does not start"
            print(kind, number, file=self._process.stdin, flush=True)
            answer = self._answer()
            if answer:
                outcome, failure = json.loads(answer)
            else:
                self.close()
                outcome, failure = "failed", f"the process died ({self._process.returncode})"
                self._process = None
            outcomes[outcome] += 1
            failures += [f"{kind} {number}: {failure}"] if failure else []
        return outcomes, failures

    def _answer(self) -> str:
        ready, _, _ = select.select([self._process.stdout], [], [], SILENCE)
        return self._process.stdout.readline() if ready else ""

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
