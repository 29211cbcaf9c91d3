# SPDX-License-Identifier: Apache-2.0
"""An SO-100 or SO-101 on a serial port: follows joint trajectories, publishes joint states.

The executor's thread takes messages and service calls; the loop's thread alone touches the arm. What
passes between them is a queue of immutable values. See docs/so100.md for the interface.
"""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import fields
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from smolvla_mem_ros.nodes.diagnostics import diagnostic_array
from smolvla_mem_ros.nodes.parameters import declare
from smolvla_mem_ros.nodes.running import run_node, stop_asked
from smolvla_mem_ros.nodes.trajectory_action import (
    TrajectoryAction,
    declare_tolerances,
    follow_joint_trajectory,
)
from smolvla_mem_ros.nodes.trajectory_messages import from_trajectory
from smolvla_mem_ros.so100.arm import JOINTS, ArmConfig
from smolvla_mem_ros.so100.driver import ArmError, ArmState, So100Driver
from smolvla_mem_ros.so100.loop import LIMP, STOPPED, ArmLoop
from smolvla_mem_ros.so100.requests import (
    ClearEmergencyStop,
    EmergencyStop,
    Request,
    SpeedScaling,
    SwitchTorque,
)
from smolvla_mem_ros.units import NANOSECONDS

# Where LeRobot keeps the calibration of a follower with the id "so100".
DEFAULT_CALIBRATION = "~/.cache/huggingface/lerobot/calibration/robots/so_follower/so100.json"
# s that a thread may keep the interpreter from the loop's, which has a hundred periods a second; Python's own
# 5 ms would be half of one.
SWITCH_INTERVAL = 0.0005
ANSWER_TIMEOUT = 1.0  # s that a service call waits for the loop
NO_ANSWER = f"the arm's loop has not answered within {ANSWER_TIMEOUT:g} s"


class So100Node(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("so100")
        self._declare_parameters()
        tolerances = declare_tolerances(self)
        parameter = {name: self.get_parameter(name).value for name in self._parameters}
        self._port = parameter["port"]
        self._joint_states = self.create_publisher(JointState, "joint_states", 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._loop = ArmLoop(
            So100Driver(self._port, Path(parameter["calibration"])),
            self._config(parameter),
            rate=parameter["rate"],
            command_timeout=parameter["command_timeout"],
            torque_off_at_end=parameter["disable_torque_on_shutdown"],
            dry_run=parameter["dry_run"],
            on_state=self._publish_state,
            on_event=self._log,
            stop_asked=stop_asked,
            realtime_priority=parameter["realtime_priority"],
            cpu=parameter["cpu"] if parameter["cpu"] >= 0 else None,
        )
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.create_subscription(JointTrajectory, "so100/joint_trajectory", self._on_trajectory, 10)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/emergency_stop", self._on_emergency_stop)
        self.create_service(Trigger, "~/clear_emergency_stop", self._on_clear_emergency_stop)
        self._action = None
        if action_type := follow_joint_trajectory():
            self._action = TrajectoryAction(self, self._loop, tolerances, action_type)
        else:
            self.get_logger().debug("control_msgs is not installed: there is no FollowJointTrajectory action")
        self.create_timer(1.0, self._report)
        self._loop.start()

    def close(self) -> bool:
        """Ends the loop: the arm is let go of, or held, as the parameter says."""
        closed = self._loop.stop()
        if self._action is not None:
            self._action.close()
        self._report()
        return closed

    # Parameters ---------------------------------------------------------------------------------

    def _declare_parameters(self) -> None:
        declare(self, "port", "/dev/ttyACM0", "serial device of the arm; lerobot-find-port finds it")
        declare(self, "calibration", DEFAULT_CALIBRATION, "JSON file that so100_calibrate wrote for this arm")
        declare(self, "rate", 100.0, "Hz at which the arm is read and commanded", (10.0, 500.0))
        declare(
            self,
            "command_timeout",
            1.0,
            "s after a trajectory's end without another, until the measured position is held; 0: never",
            (0.0, 3600.0),
        )
        declare(
            self,
            "disable_torque_on_shutdown",
            True,
            "let go of the arm at the end, so that it sinks; false: it stays held until its power goes",
        )
        declare(
            self,
            "allow_partial_joints_goal",
            False,
            "take trajectories that leave joints out; these stay put",
        )
        declare(self, "dry_run", False, "read the arm and check trajectories, but never move it")
        declare(
            self, "blend_time", ArmConfig().blend_time, "s for a new trajectory to take over", (0.01, 5.0)
        )
        declare(
            self,
            "speed_scaling",
            1.0,
            "share of the velocity limits that is used; may be changed while the node runs",
            (0.01, 1.0),
            read_only=False,
        )
        declare(
            self, "realtime_priority", 0, "SCHED_FIFO priority of the loop; 0: as the system likes", (0, 99)
        )
        declare(self, "cpu", -1, "number of the processor that the loop keeps to; -1: any", (-1, 4095))
        limits = ArmConfig()
        for number, joint in enumerate(JOINTS):
            for kind, (field, description, bounds) in _LIMITS.items():
                default = float(getattr(limits, field)[number])
                declare(self, f"limits.{joint}.{kind}", default, description, bounds)

    def _config(self, parameter: dict) -> ArmConfig:
        limits = {
            field: [parameter[f"limits.{joint}.{kind}"] for joint in JOINTS]
            for kind, (field, _, _) in _LIMITS.items()
        }
        try:
            return ArmConfig(
                **limits,
                allow_partial=parameter["allow_partial_joints_goal"],
                blend_time=parameter["blend_time"],
                speed_scaling=parameter["speed_scaling"],
            )
        except ValueError as error:
            raise ParameterException(f"{error}; correct these parameters", "limits") from error

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        """Only what is not read-only gets here, with a value in its range."""
        for change in changes:
            if change.name == "speed_scaling":
                taken = self._loop.request(SpeedScaling(change.value))
                try:
                    taken.result(ANSWER_TIMEOUT)
                except TimeoutError:
                    # Else it would come into force after all, and the parameter would say otherwise.
                    taken.cancel()
                    return SetParametersResult(reason=f"{NO_ANSWER}; try again")
        return SetParametersResult(successful=True)

    # To and from the loop -----------------------------------------------------------------------

    def _on_trajectory(self, message: JointTrajectory) -> None:
        self._loop.submit(from_trajectory(message, self.get_clock()))

    def _publish_state(self, state: ArmState) -> None:
        # The clocks are read side by side: what comes between would be taken for age.
        now, age = self.get_clock().now(), time.monotonic() - state.time
        message = JointState(name=JOINTS, position=state.position.tolist(), velocity=state.velocity.tolist())
        message.header.stamp = (now - Duration(nanoseconds=round(age * NANOSECONDS))).to_msg()
        self._joint_states.publish(message)

    def _log(self, level: str, text: str) -> None:
        # One call each: rclpy does not let one line of code log at different levels.
        logger = self.get_logger()
        if level == "error":
            logger.error(text)
        elif level == "warn":
            logger.warning(text)
        else:
            logger.info(text)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        return self._ask("enable" if request.data else "disable", SwitchTorque(request.data), response)

    def _on_emergency_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._ask("stop", EmergencyStop(), response)

    def _on_clear_emergency_stop(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        return self._ask("clear", ClearEmergencyStop(), response)

    def _ask(self, word: str, request: Request, response):
        try:
            response.message = self._loop.request(request).result(ANSWER_TIMEOUT)
            response.success = True
        except (ArmError, TimeoutError) as error:
            response.message = str(error) or NO_ANSWER
            response.success = False
        self.get_logger().info(f"{word}: {response.message}")
        return response

    def _report(self) -> None:
        status = self._loop.status
        if not status.connected:
            level, text = DiagnosticStatus.ERROR, status.last_error or "not connected yet"
        else:
            careful = status.problems or status.state in (STOPPED, LIMP)
            level = DiagnosticStatus.WARN if careful else DiagnosticStatus.OK
            text = "; ".join([status.state, *status.problems])
        values = {"connected": status.connected} | {
            field.name: getattr(status, field.name)
            for field in fields(status)
            if field.name not in ("servos", "problems")
        }
        if status.servos:
            values |= status.servos.values()
        stamp = self.get_clock().now().to_msg()
        name = self.get_fully_qualified_name().lstrip("/")
        self._diagnostics.publish(diagnostic_array(stamp, name, level, text, values, self._port))


# kind -> (field of ArmConfig, description, least and greatest value)
_LIMITS = {
    "lower": ("lower", "rad, least position", (-6.3, 6.3)),
    "upper": ("upper", "rad, greatest position", (-6.3, 6.3)),
    "velocity": ("max_velocity", "rad/s, greatest velocity", (0.01, 10.0)),
    "acceleration": ("max_acceleration", "rad/s^2, greatest acceleration", (0.1, 1000.0)),
}


def main(args: list[str] | None = None) -> int:
    sys.setswitchinterval(SWITCH_INTERVAL)
    # Else a collection now and then walks all that LeRobot brought, and the loop stands still for 100 ms.
    gc.freeze()
    return run_node(So100Node, args)


if __name__ == "__main__":
    sys.exit(main())
