#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Trains SmolVLA with memory on a LeRobot dataset, with stock lerobot-train; --help shows examples.
# train_baseline_smolvla.sh calls it for the same training without memory.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)

policy=smolvla_mem
name=train_smolvla_with_memory
if [[ ${1:-} == --baseline ]]; then
  policy=smolvla
  name=train_baseline_smolvla
  shift
fi

usage() {
  cat <<EOF
usage: scripts/$name.sh --dataset.repo_id=NAME [OPTION...]

Trains $policy, by default from lerobot/smolvla_base, and writes to outputs/train/$policy. When there are
checkpoints in the output folder it goes on from the last one. Options are those of lerobot-train and win over
what this script sets.

  --tiny                   a model of 1 M weights from random ones, on one CPU thread, for trying things and
                           for the simulated tasks; never pushed to the hub. Also: TINY=1
  --policy.pretrained_path=CHECKPOINT
                           start from this folder or hub name instead
  --output_dir=FOLDER      where to write, and to look for checkpoints
  GPUS=N                   (environment) train on N GPUs of this machine with accelerate
  HF_USER=ME               (environment) when set, the policy is pushed to the hub as ME/NAME_OF_THE_FOLDER

examples:
  scripts/$name.sh --dataset.repo_id=lerobot/svla_so101_pickplace --batch_size=32 --steps=20000
  HF_USER=me GPUS=2 scripts/$name.sh --dataset.repo_id=me/pick --output_dir=outputs/train/pick
  scripts/$name.sh --tiny --dataset.repo_id=local/demos --dataset.root=outputs/demos --steps=500

All options of lerobot-train: scripts/env lerobot-train --policy.type=smolvla --help
EOF
}

die() {
  printf '%s: %s\n' "$name" "$*" >&2
  exit 1
}

tiny=${TINY:-}
gpus=${GPUS:-1}
output=outputs/train/$policy
extra=()
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --tiny) tiny=1 ;;
    --output_dir=*) output=${1#*=} ;;
    --output_dir)
      (($# > 1)) || die "--output_dir needs a folder; write --output_dir=FOLDER"
      output=$2
      shift
      ;;
    --policy.path | --policy.path=*) die "give --policy.pretrained_path instead; LeRobot takes no --policy.path beside the --policy.type that is set here" ;;
    --config_path | --config_path=* | --resume | --resume=*) die "to go on, give the same --output_dir; the last checkpoint in it is found" ;;
    *) extra+=("$1") ;;
  esac
  shift
done
[[ $gpus =~ ^[1-9][0-9]*$ ]] || die "GPUS=$gpus is no number of GPUs"
[[ $tiny == 0 ]] && tiny=

# The environment that scripts/setup made, or the one this shell is in, such as a sourced ROS workspace.
run=()
if "$here/env" true 2>/dev/null; then
  run=("$here/env")
elif ! command -v lerobot-train >/dev/null; then
  die "there is no lerobot-train on PATH; run make setup, or source the workspace and its venv"
fi

train=(lerobot-train)
if ((gpus > 1)); then
  train=(accelerate launch --multi_gpu "--num_processes=$gpus" --module lerobot.scripts.lerobot_train)
fi

plugins=()
[[ $policy == smolvla ]] || plugins+=(--policy.discover_packages_path=smolvla_mem_ros.policy)
if [[ $tiny ]]; then
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # for a model this small one thread is faster than two
  # Keeps small pictures decoded in memory. Not for real data: each data loader would hold a copy.
  plugins+=(--dataset.discover_packages_path=smolvla_mem_ros.training)
fi

last=$output/checkpoints/last
if [[ -f $last/pretrained_model/train_config.json ]]; then
  printf '%s: going on from %s\n' "$name" "$(readlink -f "$last")" >&2
  exec "${run[@]}" "${train[@]}" "${plugins[@]}" \
    "--config_path=$last/pretrained_model/train_config.json" --resume=true "${extra[@]}"
fi

options=("--policy.type=$policy" "--output_dir=$output")
if [[ $tiny ]]; then
  settings=$("${run[@]}" python3 -m smolvla_mem_ros.training.recipe "$policy" --backbone outputs/backbone)
  mapfile -t settings <<<"$settings"
  options+=("${settings[@]}")
else
  options+=(--policy.pretrained_path=lerobot/smolvla_base)
  if [[ ${HF_USER:-} ]]; then
    options+=(--policy.push_to_hub=true "--policy.repo_id=$HF_USER/$(basename "$output")")
  else
    options+=(--policy.push_to_hub=false)
  fi
fi
exec "${run[@]}" "${train[@]}" "${plugins[@]}" "${options[@]}" "${extra[@]}"
