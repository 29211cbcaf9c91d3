# SPDX-License-Identifier: Apache-2.0
"""The policy as a lifecycle node: cameras and joint states in, joint trajectories out.

Everything but inference runs on the executor's one thread, so a reset is atomic against a running
inference without a lock: a result is taken on that thread too, and ``Episode`` drops it if it is old.
"""

from __future__ import annotations

import secrets
from queue import SimpleQueue
from typing import NoReturn

from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from smolvla_mem_ros.nodes import messages
from smolvla_mem_ros.nodes.parameters import declare
from smolvla_mem_ros.nodes.policy_report import PolicyReport
from smolvla_mem_ros.nodes.running import ended_at_once_by_signals, run_node
from smolvla_mem_ros.policy.checkpoint import CheckpointError, load_checkpoint, load_config
from smolvla_mem_ros.policy.memory import Memory
from smolvla_mem_ros.runtime.contract import Contract, ContractError, load_contract
from smolvla_mem_ros.runtime.engine import Engine
from smolvla_mem_ros.runtime.episode import Episode, Request, Result
from smolvla_mem_ros.runtime.metrics import MemorySummary
from smolvla_mem_ros.runtime.observation import ObservationBuffer, Skip
from smolvla_mem_ros.runtime.stamps import from_time, header_stamp
from smolvla_mem_ros.runtime.trajectory import TrajectorySegment
from smolvla_mem_ros.runtime.worker import InferenceWorker
from smolvla_mem_ros.share import share_path
from smolvla_mem_ros.srv import StartEpisode
from smolvla_mem_ros.units import NANOSECONDS

_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class PolicyNode(LifecycleNode):
    """Runs one policy on one robot. See docs/policy_node.md for its interface."""

    def __init__(self, **options) -> None:
        super().__init__("policy", **options)
        declare(
            self, "checkpoint", "", "folder or hub name of a smolvla_mem or smolvla checkpoint", None, False
        )
        declare(
            self, "contract", "", "YAML contract of topics, joints and units; empty: config/contract.yaml"
        )
        declare(self, "device", "auto", "auto, cpu, cuda, cuda:0, mps")
        declare(self, "dtype", "float32", "of the weights; SmolVLA runs in float32 only")
        declare(self, "num_mem_tokens", -1, "-1: as trained; 0: memory off, for comparison", (-1, 0))
        declare(self, "task", "", "instruction; if given, an episode starts on activation", None, False)
        declare(self, "autostart", False, "configure and activate without being asked")
        declare(self, "dry_run", False, "infer, but publish no trajectory", None, False)
        declare(self, "seed", -1, "of the action noise; -1: a new one each start", (-1, 2**31 - 1))
        declare(self, "publish_memory_tokens", False, "put the tokens into MemoryState", None, False)

        self._episode: Episode | None = None
        self._buffer: ObservationBuffer | None = None
        self._active = False
        self._worker: InferenceWorker | None = None
        self._report = PolicyReport(self)
        self.create_service(StartEpisode, "~/start_episode", self._on_start_episode)
        self.create_service(Trigger, "~/reset_memory", self._on_reset_memory)
        self.create_service(Trigger, "~/stop_episode", self._on_stop_episode)
        backwards = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False
        )
        self._jumps = self.get_clock().create_jump_callback(backwards, post_callback=self._on_clock_went_back)
        self._report_timer = self.create_timer(1.0, self._report_status)
        if self.get_parameter("autostart").value:
            self._autostart_timer = self.create_timer(0.0, self._autostart)

    # Life cycle ---------------------------------------------------------------------------------

    def _autostart(self) -> None:
        self.destroy_timer(self._autostart_timer)
        if self.trigger_configure() == _SUCCESS:
            self.trigger_activate()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load checkpoint and contract. Refuses and names every problem when anything does not fit."""
        problems: list[str] = []
        with ended_at_once_by_signals():
            loaded = self._load(problems)
        if problems:
            self.get_logger().error("cannot configure: " + "; ".join(problems))
            return _FAILURE
        contract, engine = loaded
        self._contract, self._engine = contract, engine
        self._episode, self._buffer = (
            Episode(contract),
            ObservationBuffer(contract, messages.decode_raw_image),
        )
        self._report.clear()

        self._results: SimpleQueue[Result] = SimpleQueue()
        self._result_arrived = self.create_guard_condition(self._take_results)
        self._worker = InferenceWorker(engine.infer, self._on_result)
        self._command = self.create_lifecycle_publisher(JointTrajectory, contract.command_topic, 10)
        self._subscribe(contract)
        self._timer = self.create_timer(contract.control_period / NANOSECONDS, self._tick, autostart=False)
        return _SUCCESS

    def _load(self, problems: list[str]) -> tuple[Contract, Engine] | None:
        parameter = {name: self.get_parameter(name).value for name in self._parameters}
        if parameter["dtype"] != "float32":
            problems.append(f"dtype {parameter['dtype']} is not supported: SmolVLA runs in float32 only")
        contract = None
        try:
            path = parameter["contract"] or share_path("config/contract.yaml")
            contract = load_contract(path, load_config(parameter["checkpoint"]))
        except (CheckpointError, ContractError, FileNotFoundError) as error:
            problems.append(str(error))
        try:
            tokens = parameter["num_mem_tokens"]
            # Loading takes seconds; with a broken contract only the device is still worth a look.
            checkpoint = load_checkpoint(
                parameter["checkpoint"], parameter["device"], None if tokens < 0 else tokens
            )
        except CheckpointError as error:
            if str(error) not in problems:
                problems.append(str(error))
        if problems:
            return None
        seed = parameter["seed"] if parameter["seed"] >= 0 else secrets.randbelow(2**31)
        engine = Engine(checkpoint, contract, seed)
        engine.warm_up()
        n, hidden = engine.memory_shape
        self.get_logger().info(
            f"loaded {parameter['checkpoint']} on {checkpoint.config.device}: {n} memory tokens of {hidden}, "
            f"{contract.n_action_steps} of {contract.chunk_size} actions per chunk at {contract.fps:g} Hz, "
            f"seed {seed}"
        )
        return contract, engine

    def _subscribe(self, contract: Contract) -> None:
        overridable = QoSOverridingOptions.with_default_policies()
        for camera in contract.cameras:
            kind = CompressedImage if camera.compressed else Image
            # Raw bytes: of some sixty images a second only those that are inferred on get deserialised.
            self.create_subscription(
                kind,
                camera.topic,
                lambda raw, name=camera.name, kind=kind: self._on_image(name, kind, raw),
                qos_profile_sensor_data,
                qos_overriding_options=overridable,
                raw=True,
            )
        self.create_subscription(
            JointState,
            contract.state_topic,
            self._on_joint_state,
            qos_profile_sensor_data,
            qos_overriding_options=overridable,
        )

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        self._active = True
        self._timer.reset()
        if task := self.get_parameter("task").value:
            self._begin_epoch("start", self._episode.start(task, self._now()))
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end_work()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._worker.close()
        self._worker = self._episode = self._buffer = None
        self.destroy_timer(self._timer)
        self.destroy_guard_condition(self._result_arrived)
        self.destroy_lifecycle_publisher(self._command)
        for subscription in list(self.subscriptions):
            if subscription.topic_name != "/clock":
                self.destroy_subscription(subscription)
        return _SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return _SUCCESS

    def close(self) -> None:
        """Stop the motion and let the inference thread end."""
        self._end_work()
        if self._worker:
            self._worker.close()
            self._worker = None

    def _end_work(self) -> None:
        if not self._active:
            return
        self._timer.cancel()
        running = self._episode.running
        stopping = self._episode.stop(self._now())
        if running:
            self._begin_epoch("stop", stopping)
        self._active = False
        self._report_status()

    # Inputs -------------------------------------------------------------------------------------

    def _on_image(self, camera: str, kind: type, raw: bytes) -> None:
        try:
            stamp = header_stamp(raw)
        except ValueError as error:
            self.get_logger().error(f"camera {camera}: {error}", throttle_duration_sec=2.0)
            return
        self._buffer.put_image(camera, stamp or self._now(), (kind, raw))

    def _on_joint_state(self, message: JointState) -> None:
        stamp = from_time(message.header.stamp) or self._now()
        if problem := self._buffer.put_joint_state(stamp, message.name, message.position):
            self.get_logger().error(f"joint state not used: {problem}", throttle_duration_sec=2.0)

    # The control clock --------------------------------------------------------------------------

    def _on_clock_went_back(self, jump: TimeJump) -> None:
        """A replay begins again: what is remembered was observed in a future."""
        if not self._active:
            return
        self._buffer.clear()
        self.get_logger().warning(f"the clock went back by {-jump.delta.nanoseconds / NANOSECONDS:.2f} s")
        if task := self.get_parameter("task").value:
            self._begin_epoch("start", self._episode.start(task, self._now()))
        elif self._episode.running:
            self._begin_epoch("stop", self._episode.stop(self._now()))
        self._report_change()

    def _tick(self) -> None:
        due = self._episode.tick(self._now(), self._buffer)
        if isinstance(due, Request):
            self._worker.submit(due)
        elif isinstance(due, Skip):
            self.get_logger().warning(f"no command: {due.reason}", throttle_duration_sec=2.0)
        self._report_change()

    def _on_result(self, result: Result) -> None:
        """In the inference thread: hand the result over, nothing else."""
        self._results.put(result)
        self._result_arrived.trigger()

    def _take_results(self) -> None:
        while not self._results.empty():
            result = self._results.get()
            now = self._now()
            before = self._episode.memory
            segment = self._episode.accept(result, now)
            self._report.inference_latency.add(result.duration)
            if segment is not None:
                self._publish_command(segment)
                observation = result.request.observation
                self._report.command_latency.add((self._now() - observation.oldest) / NANOSECONDS)
                self._publish_memory(before, result.request)
            elif result.error:
                self.get_logger().error(result.error, throttle_duration_sec=2.0)
            self._report_change()

    # Services -----------------------------------------------------------------------------------

    def _on_start_episode(self, request: StartEpisode.Request, response: StartEpisode.Response):
        task = request.task or self.get_parameter("task").value
        if problem := self._not_active():
            response.message = problem
        elif not task:
            response.message = "task is empty: say what to do, as in the training data"
        else:
            self._begin_epoch("start", self._episode.start(task, self._now()))
            response.success, response.message = True, f"episode {self._episode.episode_id} started: {task}"
            response.episode_id = self._episode.episode_id
            response.stamp = messages.to_time(self._episode.last_reset)
            self.get_logger().info(response.message)
        return response

    def _on_reset_memory(self, _: Trigger.Request, response: Trigger.Response):
        return self._command_episode(response, "reset_memory", "memory cleared")

    def _on_stop_episode(self, _: Trigger.Request, response: Trigger.Response):
        return self._command_episode(response, "stop", "episode stopped, the arm holds")

    def _command_episode(self, response: Trigger.Response, command: str, done: str) -> Trigger.Response:
        if problem := self._not_active():
            response.message = problem
            return response
        self._begin_epoch(command, getattr(self._episode, command)(self._now()))
        self._report_change()
        response.success, response.message = True, done
        self.get_logger().info(done)
        return response

    def _not_active(self) -> str:
        if self._active:
            return ""
        return "the policy is not active: configure and activate it, or start it with autostart:=true"

    # Outputs ------------------------------------------------------------------------------------

    def _publish_command(self, segment: TrajectorySegment | None) -> None:
        if segment is None or self.get_parameter("dry_run").value:
            return
        self._command.publish(messages.to_trajectory(segment))
        self._report.trajectories += 1

    def _begin_epoch(self, event: str, stopping: TrajectorySegment | None) -> None:
        """Command what stops the motion under way, and tell what has happened."""
        self._publish_command(stopping)
        self._report.event(event, self._episode, self._engine.seed)
        self._publish_memory()

    def _publish_memory(self, before: Memory | None = None, committed: Request | None = None) -> None:
        """After a commit, with the memory before it; without, after a reset."""
        summary = MemorySummary.of(self._episode.memory, before, self._engine.memory_shape)
        with_tokens = self.get_parameter("publish_memory_tokens").value
        self._report.memory(self._episode, summary, committed, with_tokens)

    def _state(self) -> tuple[str, str]:
        """One word and the reason."""
        if self._episode is None:
            return "unconfigured", "configure the node; its log says why if it refuses"
        if not self._active:
            return "inactive", "activate the node"
        episode = self._episode
        return ("running" if episode.running else "idle"), episode.reason

    def _report_change(self) -> None:
        self._report.on_change(*self._state(), self._episode, self._buffer)

    def _report_status(self) -> None:
        self._report.status(*self._state(), self._episode, self._buffer)

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds


def main(args: list[str] | None = None) -> NoReturn:
    run_node(PolicyNode, args)


if __name__ == "__main__":
    main()
