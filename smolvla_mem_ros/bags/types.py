# SPDX-License-Identifier: Apache-2.0
"""Definitions of message types: that come with rosbags, of packages that are installed, and out of bags."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from smolvla_mem_ros.bags.storage import MAX_DEFINITION, plain
from smolvla_mem_ros.share import PACKAGE

MAX_VALUES = 10_000  # that a message without sequences has; rosbags writes a line of code for each
_NAME = re.compile(r"([a-z][a-z0-9_]{0,99})/msg/([A-Za-z][A-Za-z0-9]{0,99})")

# {type: (constants, [(field, description)])}, as rosbags parses definitions.
Types = dict[str, tuple[list, list[tuple[str, Any]]]]


class UnknownType(ValueError):
    """A message type that nothing here defines, or whose definition cannot be used."""


def new_typestore() -> Typestore:
    """The common interfaces of ROS 2 Kilted; this package's own messages are found when asked for."""
    return get_typestore(Stores.ROS2_KILTED)


@lru_cache(maxsize=64)
def typestore_of(kind: str, definition: str = "") -> Typestore:
    """A store that reads ``kind``; the same one for the same arguments, so nothing is to be added to it.

    Raises:
        UnknownType: see :func:`ensure_type`.
    """
    if kind in _standard().types:
        return _standard()
    store = new_typestore()
    try:
        ensure_type(store, kind, definition)
        store.get_msgdef(kind)  # writes the code that reads it
    except RecursionError as error:
        raise UnknownType(f"the definition of {kind} is nested too deep") from error
    return store


@cache
def _standard() -> Typestore:
    return new_typestore()


def ensure_type(store: Typestore, kind: str, definition: str = "") -> None:
    """Make ``store`` know ``kind`` (such as ``sensor_msgs/msg/Image``) and all that it is made of.

    Args:
        definition: that a bag embeds; it counts for what the store does not know, before that of an
            installed package. It may be anything: code is made of it, so it is checked.

    Raises:
        UnknownType: nothing defines it, or ``definition`` cannot be used.
    """
    if kind in store.types:
        return
    found = _embedded(kind, definition) if definition else {}
    missing = {kind, *_used(found)}
    while missing := {name for name in missing if name not in store.types and name not in found}:
        new = _installed(missing.pop())
        found |= new
        missing |= _used(new)
    unknown = {name: types for name, types in found.items() if name not in store.types}
    _count_values(kind, store.fielddefs | unknown, {})
    try:
        store.register(unknown)
    except TypesysError as error:  # of fields of one name
        raise UnknownType(f"the definition of {kind} cannot be used: {plain(error)}") from error


def _embedded(kind: str, definition: str) -> Types:
    what = f"the definition of {plain(kind)} in the bag"
    if len(definition) > MAX_DEFINITION:
        raise UnknownType(f"{what} has {len(definition)} characters")
    try:
        types = get_types_from_msg(definition, kind)
    except (TypesysError, ValueError, AssertionError) as error:  # the last of a constant that is a list
        raise UnknownType(f"{what} is damaged: {plain(error)}") from error
    if kind not in types or not all(map(_NAME.fullmatch, types)):
        raise UnknownType(f"{what} is damaged: it is of {plain(', '.join(types))}")
    if kind.startswith(f"{PACKAGE}/"):
        there = dict(types[kind][1])
        lacks = [name for name, form in _installed(kind)[kind][1] if there.get(name) != form]
        if lacks:
            raise UnknownType(f"{what} has no such {', '.join(lacks)} as here: it is of another version")
    # Constants are not needed to read messages, and not every value of theirs can be written as code.
    return {name: ([], fields) for name, (_, fields) in types.items()}


def _installed(kind: str) -> Types:
    path = _definition(kind)
    try:
        return get_types_from_msg(path.read_text(), kind)
    except (TypesysError, OSError, UnicodeDecodeError) as error:
        raise UnknownType(f"the definition of {kind} in {path} cannot be read: {error}") from error


def _used(types: Types) -> set[str]:
    members = [_member(form) for _, fields in types.values() for _, form in fields]
    return {what for node, what, _ in members if node == Nodetype.NAME}


def _member(form: Any) -> tuple[Nodetype, Any, int]:
    """What a field holds, and how often at least."""
    node, what = form
    if node == Nodetype.ARRAY:
        (node, what), length = what
        return node, what, length
    if node == Nodetype.SEQUENCE:
        node, what = what[0]
    return node, what, 1


def _count_values(kind: str, types: Mapping[str, Any], known: dict[str, int]) -> int:
    """Values in a message of ``kind``, each of a byte or more, so that the bytes limit what is made of them.

    Args:
        known: of other types; 0 while they are counted.

    Raises:
        UnknownType: there are too many.
    """
    if known.get(kind) == 0:
        raise UnknownType(f"{kind} contains itself")
    if kind not in known:
        known[kind] = total = 0
        for name, form in types[kind][1]:
            node, what, length = _member(form)
            if length < 1:
                raise UnknownType(f"{kind} has {name} of {length} values")
            if node == Nodetype.NAME:
                total += length * _count_values(what, types, known)
            else:
                total += length if what[0] == "string" else 1  # numbers of an array are read as one
        if total > MAX_VALUES:
            raise UnknownType(f"{kind} has more than {MAX_VALUES} values")
        known[kind] = max(total, 1)
    return known[kind]


def _definition(kind: str) -> Path:
    name = _NAME.fullmatch(kind)
    if not name:
        raise UnknownType(f"{plain(kind)!r} is no name of a message type")
    package, message = name.groups()
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    places = [Path(prefix) / "share" / package for prefix in prefixes]
    if package == PACKAGE:
        places.append(Path(__file__).parents[2])
    for place in places:
        if (path := place / "msg" / f"{message}.msg").is_file():
            return path
    raise UnknownType(f"nothing here defines {kind}; install or source the package {package}")
