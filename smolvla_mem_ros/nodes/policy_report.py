# SPDX-License-Identifier: Apache-2.0
"""What the policy node tells about itself: memory state, status and diagnostics."""

from __future__ import annotations

from dataclasses import asdict

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from smolvla_mem_ros.msg import EpisodeEvent, MemoryState, PolicyStatus
from smolvla_mem_ros.nodes import messages
from smolvla_mem_ros.nodes.diagnostics import diagnostic_array
from smolvla_mem_ros.runtime.episode import Episode, Request
from smolvla_mem_ros.runtime.metrics import LatencyWindow, MemorySummary
from smolvla_mem_ros.runtime.observation import ObservationBuffer

# Who comes late, such as a recorder that was started at the same time, gets the latest ones at once.
KEPT = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class PolicyReport:
    """Publishers of a policy node's own topics, owned by it; latencies and trajectories are counted here."""

    def __init__(self, node: Node):
        self._node = node
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._memory_state = node.create_publisher(MemoryState, "~/memory_state", KEPT)
        self._event = node.create_publisher(EpisodeEvent, "~/episode", KEPT)
        self._status = node.create_publisher(PolicyStatus, "~/status", 10)
        self.clear()

    def clear(self) -> None:
        """Count from nothing again."""
        self.inference_latency = LatencyWindow()
        self.command_latency = LatencyWindow()
        self.trajectories = 0
        self._last = ("", False)

    def event(self, event: str, episode: Episode, seed: int) -> None:
        """Publish that an episode has just started, was reset, or was stopped."""
        message = EpisodeEvent(event=event, episode_id=episode.episode_id, task=episode.task, seed=seed)
        message.header.stamp = messages.to_time(episode.last_reset)
        self._event.publish(message)

    def memory(
        self,
        episode: Episode,
        summary: MemorySummary,
        committed: Request | None = None,
        with_tokens: bool = False,
    ) -> None:
        """Publish the memory, after ``committed`` or, with None, after a reset."""
        tokens, hidden = summary.tokens.shape
        message = MemoryState(
            episode_id=episode.episode_id,
            step=episode.step,
            num_mem_tokens=tokens,
            hidden_size=hidden,
            norm=summary.norm.tolist(),
            cosine_distance=summary.cosine_distance.tolist(),
            last_reset=messages.to_time(episode.last_reset),
        )
        message.header.stamp = message.last_reset
        if committed:
            observation = committed.observation
            message.header.stamp = messages.to_time(observation.stamp)
            message.requested = messages.to_time(committed.now)
            message.stream_names = list(observation.stamps)
            message.stream_stamps = [messages.to_time(stamp) for stamp in observation.stamps.values()]
        if with_tokens:
            message.tokens = summary.tokens.ravel().tolist()
        self._memory_state.publish(message)

    def on_change(
        self, state: str, reason: str, episode: Episode | None, buffer: ObservationBuffer | None
    ) -> None:
        """Publish the status if the state is another or a reason came or went.

        A reason that only tells a new age is not news.
        """
        if (state, bool(reason)) != self._last:
            self.status(state, reason, episode, buffer)

    def status(
        self, state: str, reason: str, episode: Episode | None, buffer: ObservationBuffer | None
    ) -> None:
        """Publish status and diagnostics."""
        self._last = (state, bool(reason))
        now = self._node.get_clock().now().nanoseconds
        message = PolicyStatus(state=state, reason=reason, trajectories=self.trajectories)
        message.header.stamp = messages.to_time(now)
        if episode is not None and buffer is not None:
            message.episode_id, message.task = episode.episode_id, episode.task
            message.images_received = buffer.images_received
            for name, value in asdict(episode.counters).items():
                setattr(message, name, value)
            ages = buffer.ages(now)
            message.stream_names, message.stream_ages = list(ages), list(ages.values())
        for name, window in (
            ("inference", self.inference_latency),
            ("stamp_to_command", self.command_latency),
        ):
            for percentile, seconds in asdict(window.percentiles()).items():
                setattr(message, f"{name}_latency_{percentile}", seconds)
        self._status.publish(message)

        values = {name: getattr(message, name) for name in message.get_fields_and_field_types()}
        for name in ("header", "state", "reason", "stream_names", "stream_ages"):
            del values[name]
        for stream, age in zip(message.stream_names, message.stream_ages, strict=True):
            values[f"age_{stream}"] = age
        healthy = state == "idle" or (state == "running" and not reason)
        level = DiagnosticStatus.OK if healthy else DiagnosticStatus.WARN
        name = self._node.get_fully_qualified_name().lstrip("/")
        self._diagnostics.publish(
            diagnostic_array(message.header.stamp, name, level, reason or state, values, "")
        )
