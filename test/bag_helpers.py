# SPDX-License-Identifier: Apache-2.0
"""Serialised messages of a few topics."""

import numpy as np

from smolvla_mem_ros.bags.types import ensure_type, new_typestore

JOINT_STATES, IMAGES, EVENTS = "/joint_states", "/camera/front/image_raw", "/policy/episode"
KINDS = {
    JOINT_STATES: "sensor_msgs/msg/JointState",
    IMAGES: "sensor_msgs/msg/Image",
    EVENTS: "smolvla_mem_ros/msg/EpisodeEvent",
}


class Maker:
    """Makes serialised messages."""

    def __init__(self):
        self.store = new_typestore()
        for kind in KINDS.values():
            ensure_type(self.store, kind)

    def header(self, stamp):
        time = self.store.types["builtin_interfaces/msg/Time"](*divmod(stamp, 10**9))
        return self.store.types["std_msgs/msg/Header"](time, "")

    def raw(self, topic, stamp, number=0):
        types, header, empty = self.store.types, self.header(stamp), np.zeros(0)
        if topic == JOINT_STATES:
            message = types[KINDS[topic]](header, ["a", "b"], np.array([number, 2.0]), empty, empty)
        elif topic == IMAGES:
            pixels = np.full(4 * 6 * 3, number % 256, np.uint8)
            message = types[KINDS[topic]](header, 4, 6, "rgb8", 0, 18, pixels)
        else:
            message = types[KINDS[topic]](header, "start", number, "press the pad", 7)
        return bytes(self.store.serialize_cdr(message, KINDS[topic]))
