# SPDX-License-Identifier: Apache-2.0
"""All that is done with a bag, done with bags that were damaged.

A case is the name of a seed and a number, and always the same. To see one, in the folder test:

    ../scripts/env python -m bags.fuzzing zstd 17
"""

import json
import re
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import yaml
from bags.mutations import bombs, case
from bags.seeds import WRITERS, contract, lay_out, seed_files
from bags.worker import Worker, serve

from smolvla_mem_ros.bags.bag import Bag
from smolvla_mem_ros.bags.frames import Framer
from smolvla_mem_ros.bags.inspection import inspect, propose
from smolvla_mem_ros.bags.measures import Target, errors
from smolvla_mem_ros.bags.replay import Inference, Replay
from smolvla_mem_ros.bags.storage import BagError
from smolvla_mem_ros.bags.streams import find_topics
from smolvla_mem_ros.runtime.episode import Result
from smolvla_mem_ros.runtime.images import ImageError, decode_image

SERVE = ("-m", "bags.fuzzing", "--serve")


# Reading --------------------------------------------------------------------------------------------


class Still:
    """A policy that stays where it is."""

    def infer(self, request, played):
        actions = np.tile(request.observation.state.astype(float), (contract().chunk_size, 1))
        one = Inference(request.observation.stamp, request.step, actions, np.zeros(1), np.zeros(1), 0.0)
        played.inferences.setdefault("on", []).append(one)
        return Result(request, actions)


def read(path: Path) -> str:
    """All that is done with a bag: "read", "refused", or "salvaged".

    Raises:
        anything but BagError, if that is what it leads to; AssertionError: what came is not good.
    """
    strict, strict_error = messages(path, salvage=False)
    saved, saved_error = messages(path, salvage=True)
    assert not (strict and saved_error), f"what can be opened is not salvaged: {saved_error}"
    lost = Counter(strict) - Counter(saved)
    assert not lost, f"{lost.total()} messages come without salvage only"
    return "refused" if saved_error else "salvaged" if strict_error else "read"


def messages(path: Path, salvage: bool) -> tuple[list, str]:
    came: list[tuple[int, str, int, int]] = []  # time, topic, size and checksum
    try:
        with Bag(path, salvage=salvage) as bag:
            assert bag.count >= 0 and (bag.span is None or bag.span[0] <= bag.span[1])
            for message in bag.messages():
                came.append((message.stamp, message.topic, len(message.raw), crc32(message.raw)))
                look_at(bag, message)
            assert all(a[0] <= b[0] for a, b in pairwise(came)), "messages are out of order"
            # Without salvage there are no others; and hundreds of megabytes need not be read again.
            if salvage and sum(size for _, _, size, _ in came) < 2**26:
                use(bag)
            tell(bag.problems)
    except BagError as error:
        tell([error])
        return came, str(error)
    return came, ""


def look_at(bag: Bag, message) -> None:
    try:
        decoded = bag.decode(message)
        if "Image" in bag.topics[message.topic].kind:
            height, width, colours = decode_image(decoded).shape
            assert colours == 3 and height * width > 0
    except BagError as error:
        tell([error])
    except ImageError as error:
        assert_no_memory(error)


def use(bag: Bag) -> None:
    """As the programs do."""
    for use_it in (shown, framed, played):
        try:
            use_it(bag)
        except BagError as error:
            tell([error])


def shown(bag: Bag) -> None:
    inspection = inspect(bag)
    tell(inspection.problems)
    yaml.load(propose(inspection), yaml.CSafeLoader)


def framed(bag: Bag) -> None:
    framer = Framer(bag, contract(), task="sway")
    for frame in framer.frames():
        assert frame.action.shape == frame.state.shape == (6,)
        assert framer.actions_from != "commands" or np.isfinite(frame.action).all()
    json.dumps(framer.quality.summary())


def played(bag: Bag) -> int:
    """How often the policy was asked."""
    asked = 0
    topics = find_topics(bag, contract())
    for recorded in (False, True) if topics.commits and topics.events else (False,):
        replay = Replay(bag, contract(), topics, Still(), task="sway", recorded_ticks=recorded)
        replay.run()
        tell(replay.unused)
        inferences = [one for played in replay.played for one in played.inferences.get("on", [])]
        errors(inferences, Target(replay.reference), contract())
        asked += len(inferences)
    return asked


def tell(texts) -> None:
    """Check what people would read."""
    assert len(list(texts)) <= 110, "there is no end of problems"
    for text in map(str, texts):
        assert text and text.isprintable(), f"not one line: {text!r}"
        assert len(text) <= 2000, f"{len(text)} characters"
        assert_no_memory(text)


def assert_no_memory(error) -> None:
    assert not re.search("MemoryError|nsufficient memory|out of memory", repr(error)), f"memory: {error!r}"


# Cases ----------------------------------------------------------------------------------------------


def attempt(seed: str, number: int) -> str:
    _, files = case(seed, number)
    with tempfile.TemporaryDirectory() as folder:
        return read(lay_out(files, Path(folder)))


def warm_up() -> None:
    cv2.setNumThreads(1)
    bombs()
    for seed in WRITERS:
        with tempfile.TemporaryDirectory() as folder:
            path = lay_out(seed_files(seed), Path(folder))
            outcome = read(path)
            assert outcome == "read", f"the untouched {seed} is {outcome}"
            with Bag(path) as bag:
                # Or nothing is tried of what follows.
                assert played(bag) > 5, f"the untouched {seed} is not played"


def main(argv: list[str]) -> None:
    if argv == ["--serve"]:
        warm_up()
        serve(attempt)
        return
    seed, first, *count = argv
    numbers = range(int(first), int(first) + int(count[0] if count else 1))
    if not count:
        done, files = case(seed, int(first))
        print(done, {name: len(data) for name, data in files.items()})
    worker = Worker(*SERVE)
    outcomes, failures = worker.run(seed, numbers)
    worker.close()
    print(*failures, dict(outcomes), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
