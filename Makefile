# SPDX-License-Identifier: Apache-2.0
.PHONY: help setup demo test lint clean

help:
	@echo "make demo    set up if needed, then run the simulated arm with the policy, headless"
	@echo "             (EPISODES=20 for more of them, RECORD=outputs/bag for a rosbag2 of it)"
	@echo "make test    set up if needed, then run all checks and tests (ARGS='-k name' to choose)"
	@echo "make setup   make .venv and install/; does nothing when nothing changed"
	@echo "make lint    style and import checks only"
	@echo "make clean   remove what was built (.venv stays; remove it by hand to download all again)"

setup:
	@scripts/setup

demo: setup
	@scripts/env python -m smolvla_mem_ros.start cli.demo $(if $(EPISODES),--episodes $(EPISODES)) $(if $(RECORD),--record $(RECORD)) $(ARGS)

lint: setup
	@scripts/env ruff check .
	@scripts/env lint-imports

test: setup
	@scripts/env ruff check .
	@# The arm's tests keep real time on cores they share; one that missed it gets a second try, and says so.
	@scripts/env python -m pytest -n 2 --reruns 1 --durations=15 $(ARGS)

clean:
	rm -rf build install log outputs
