# SPDX-License-Identifier: Apache-2.0
"""Definitions of message types: those that come with rosbags, and those of packages that are installed."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from smolvla_mem_ros.share import PACKAGE

_NAME = re.compile(r"([a-z][a-z0-9_]*)/msg/([A-Za-z][A-Za-z0-9]*)")


class UnknownType(ValueError):
    """A message type that nothing here defines."""


def new_typestore() -> Typestore:
    """The common interfaces of ROS 2 Kilted; this package's own messages are found when asked for."""
    return get_typestore(Stores.ROS2_KILTED)


def ensure_type(store: Typestore, kind: str) -> None:
    """Make ``store`` know ``kind`` (such as ``sensor_msgs/msg/Image``) and all that it is made of.

    Raises:
        UnknownType: it is in no installed package.
    """
    if kind in store.types:
        return
    found: dict = {}
    missing = [kind]
    while missing:
        name = missing.pop()
        path = _definition(name)
        try:
            new = get_types_from_msg(path.read_text(), name)
        except (TypesysError, OSError, UnicodeDecodeError) as error:
            raise UnknownType(f"the definition of {name} in {path} cannot be read: {error}") from error
        found.update(new)
        used = {other for text in new.values() for other in _names(text)}
        missing += [other for other in used if other not in store.types and other not in found]
    store.register(found)


def _names(fields: object) -> set[str]:
    """Message types in the nested tuples that rosbags parses a definition to."""
    if isinstance(fields, str):
        return {fields} if _NAME.fullmatch(fields) else set()
    return {name for part in fields for name in _names(part)} if isinstance(fields, tuple | list) else set()


def _definition(kind: str) -> Path:
    name = _NAME.fullmatch(kind)
    if not name:
        raise UnknownType(f"{kind!r} is no name of a message type")
    package, message = name.groups()
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    places = [Path(prefix) / "share" / package for prefix in prefixes]
    if package == PACKAGE:
        places.append(Path(__file__).parents[2])
    for place in places:
        if (path := place / "msg" / f"{message}.msg").is_file():
            return path
    raise UnknownType(f"nothing here defines {kind}; install or source the package {package}")
