# SPDX-License-Identifier: Apache-2.0
"""Servos on a pseudo-terminal whose joints are moved by hand: ``arm_in_hands.py PORT [ID...]``.

Reads one command a line, answers each with one line:
  move ID TICKS  a hand brings this servo's encoder there, and waits until that was read
  put ID TICKS   the same at once, read or not
  hold           torque goes on
  show           the servos' memory as JSON, by id: offset, min, max, torque
Ends when its standard input closes.
"""

import json
import os
import select
import sys
import time

from smolvla_mem_ros.sim.emulator import SerialLink
from smolvla_mem_ros.sim.servo import Measurement, Servo
from smolvla_mem_ros.sim.servo_bus import ServoBus

SPEED = 15000  # ticks/s
SHOWN = {"offset": "Homing_Offset", "min": "Min_Position_Limit", "max": "Max_Position_Limit"} | {
    "torque": "Torque_Enable"
}


class ArmInHands:
    def __init__(self, port, numbers):
        self.link = SerialLink(port)
        self.servos = {number: Servo(number) for number in numbers}
        self.encoder = dict.fromkeys(numbers, 1000.0)  # far from the middle, as servos are mounted
        self.bus = ServoBus(self.servos.values(), self.measure)

    def measure(self):
        for number, servo in self.servos.items():
            servo.measure(Measurement(self.encoder[number]))

    def serve(self, seconds=0.005):
        if select.select([self.link.fd], [], [], seconds)[0]:
            os.write(self.link.fd, self.bus.feed(os.read(self.link.fd, 4096)))

    def move(self, number, goal):
        if self.servos[number]["Torque_Enable"]:
            return "it is held"
        last = time.monotonic()
        while (way := goal - self.encoder[number]) != 0:
            self.serve()
            now = time.monotonic()
            step, last = SPEED * (now - last), now
            self.encoder[number] += min(max(way, -step), step)
        # Nobody sees an end that is left before the next reading. Two packets, since one may be half in.
        seen = self.bus.counters.packets + 2
        while self.bus.counters.packets < seen:
            self.serve()
        return "there"

    def obey(self, line):
        match line.split():
            case ["move", number, ticks]:
                return self.move(int(number), float(ticks))
            case ["put", number, ticks]:
                self.encoder[int(number)] = float(ticks)
                return "there"
            case ["hold"]:
                for servo in self.servos.values():
                    servo["Torque_Enable"] = 1
                return "held"
            case ["show"]:
                rows = {n: {k: s[r] for k, r in SHOWN.items()} for n, s in self.servos.items()}
                return json.dumps(rows)
            case _:
                return f"cannot {line}"

    def run(self):
        while True:
            self.serve()
            if select.select([0], [], [], 0)[0]:
                if not (line := os.read(0, 4096).decode()):
                    return
                print(self.obey(line), flush=True)


if __name__ == "__main__":
    arm = ArmInHands(sys.argv[1], [int(word) for word in sys.argv[2:]] or range(1, 7))
    print("ready", flush=True)
    try:
        arm.run()
    finally:
        arm.link.close()
