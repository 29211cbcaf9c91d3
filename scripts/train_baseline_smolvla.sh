#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Trains stock SmolVLA, to compare with: the same as train_smolvla_with_memory.sh but for the memory.
set -euo pipefail
exec "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/train_smolvla_with_memory.sh" --baseline "$@"
