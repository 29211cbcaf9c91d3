# SPDX-License-Identifier: Apache-2.0
"""The progress bar of a program that reads a bag from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def bag_progress(span: tuple[int, int], name: str) -> Iterator[Callable[[int], None]]:
    """A function to be called with the time (ns) that has been reached.

    Args:
        span: of the bag, ns.
    """
    begin, end = span
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    with tqdm(total=max(end - begin, 1) / 1e9, desc=name, bar_format=form) as bar:
        yield lambda now: bar.update(min(bar.total, (now - begin) / 1e9) - bar.n)
