# SPDX-License-Identifier: Apache-2.0
"""Types for argparse."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """Raises argparse.ArgumentTypeError unless ``text`` is a whole number of 1 or more."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)
