# SPDX-License-Identifier: Apache-2.0
"""Key/value diagnostics. Imports nothing heavy, so that every node can afford it."""

from __future__ import annotations

from collections.abc import Mapping

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue


def diagnostic_array(
    stamp: Time, name: str, level: bytes, message: str, values: Mapping[str, object], hardware_id: str
) -> DiagnosticArray:
    """One status in an array; ``values`` become text."""
    status = DiagnosticStatus(name=name, level=level, message=message, hardware_id=hardware_id)
    status.values = [KeyValue(key=key, value=as_text(value)) for key, value in values.items()]
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array


def as_text(value: object) -> str:
    """Numbers with four digits after the point, truth values in lower case."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4f}" if isinstance(value, float) else str(value)
