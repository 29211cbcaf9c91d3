# SPDX-License-Identifier: Apache-2.0
"""The topics of a contract, for nodes that run no policy: reading the whole contract would import torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml


def contract_topics(path: Path) -> tuple[list[str], str]:
    """What a policy observes (cameras and joint states), and its command topic, as the contract names them.

    Raises:
        ValueError: it cannot be read as a contract.
        OSError: it is not there.
    """
    try:
        entries = yaml.safe_load(path.read_text())
        cameras = [camera["topic"] for camera in entries["cameras"].values()]
        return [*cameras, entries["state"]["topic"]], entries["command"]["topic"]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no contract ({error!r}); see config/contract.yaml") from error


def match_topic(names: Mapping[str, str], wanted: str) -> str:
    """The key of ``names`` whose value is ``wanted``, or the only one that ends so (in some namespace).

    Raises:
        ValueError: there is none, or there are several.
    """
    full = f"/{wanted.lstrip('/')}"
    ends = [key for key, name in names.items() if f"/{name.lstrip('/')}".endswith(full)]
    same = [key for key in ends if names[key].lstrip("/") == full[1:]]
    found = same or ends
    if len(found) != 1:
        raise ValueError(
            f"the bag has {len(found) or 'no'} topics called {full}, which the contract names; it has "
            f"{', '.join(sorted(names.values()))}. Rename the one that is meant: remap:=/theirs:={full}"
        )
    return found[0]
