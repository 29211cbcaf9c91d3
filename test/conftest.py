# SPDX-License-Identifier: Apache-2.0
"""The surroundings of every test process: set before anything imports ROS, torch or MuJoCo."""

import faulthandler
import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

LONGEST_RUN = 3600  # s

# ROS uses UDP ports counted from the domain; above 101 they meet Linux's ephemeral ports.
DOMAINS = range(1, 102)


def claim_domain():
    """Takes a ROS domain that no other test process on this machine has; freed when the file closes."""
    folder = Path(tempfile.gettempdir()) / f"smolvla_mem_ros_domains_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for domain in DOMAINS:
        lock = (folder / str(domain)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return domain, lock, folder
    raise RuntimeError(f"all ROS domains are taken by test processes; look at the locks in {folder}")


domain, domain_lock, domain_folder = claim_domain()
os.environ["ROS_DOMAIN_ID"] = str(domain)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"  # nor does another machine's test run get in
os.environ["ROS_LOG_DIR"] = str(domain_folder / f"log_{domain}")
os.environ["HF_HUB_OFFLINE"] = "1"
# One thread each: two workers share the cores, and one thread is the faster for tiny models.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("MUJOCO_GL", "egl")


def pytest_configure(config):
    """A run that stands still ends, and says where it stood; in a worker each test sets this clock anew."""
    faulthandler.dump_traceback_later(LONGEST_RUN, exit=True)
    if not hasattr(config, "workerinput"):
        helper = [sys.executable, "-S", str(Path(__file__).with_name("half_made_ports.py")), "/dev/shm"]
        config.half_made_ports = subprocess.Popen(helper, stdin=subprocess.PIPE)  # ends with this process


@pytest.fixture
def make_probe():
    """``make(namespace)``: nodes of this process that talk to others, see ``helpers.Probe``."""
    import rclpy
    from helpers import Probe

    context = rclpy.Context()
    rclpy.init(context=context)
    probes = []

    def make(namespace=""):
        probes.append(Probe(context, namespace))
        return probes[-1]

    yield make
    for probe in probes:
        probe._executor.shutdown()
        probe.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def probe(make_probe):
    return make_probe()
