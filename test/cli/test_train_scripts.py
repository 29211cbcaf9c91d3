# SPDX-License-Identifier: Apache-2.0
"""Pins the training scripts: what they ask of lerobot-train, and that it then trains and goes on."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from smolvla_mem_ros.cli import collect_demos
from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.training.jobs import last_step
from smolvla_mem_ros.training.recipe import RECIPE, ensure_backbone

SCRIPTS = Path(__file__).parents[2] / "scripts"
MEMORY, BASELINE = "train_smolvla_with_memory", "train_baseline_smolvla"

# Stands for lerobot-train and accelerate: says what it was called with.
STUB = """\
#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0")" "$@" "HF_USER=${HF_USER-unset}"
"""


@pytest.fixture
def told(tmp_path):
    """The arguments that a script hands on, where there is no environment of the project but a PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "src" / "scripts").mkdir(parents=True)
    for program in ("lerobot-train", "accelerate"):
        (tmp_path / "bin" / program).write_text(STUB)
        (tmp_path / "bin" / program).chmod(0o755)
    for script in (MEMORY, BASELINE):
        shutil.copy(SCRIPTS / f"{script}.sh", tmp_path / "src" / "scripts")

    def run(script, *arguments, code=0, path=None, **environment):
        mine = {k: v for k, v in os.environ.items() if k not in ("HF_USER", "GPUS", "TINY")}
        mine["PATH"] = path or f"{tmp_path / 'bin'}:{mine['PATH']}"
        done = subprocess.run(
            [tmp_path / "src" / "scripts" / f"{script}.sh", *arguments],
            cwd=tmp_path, env={**mine, **environment}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout.splitlines() if code == 0 else done.stderr

    return run


def begun(folder):
    """Makes ``folder`` look like a training that has a checkpoint."""
    step = folder / "checkpoints" / "000010"
    (step / "pretrained_model").mkdir(parents=True)
    (step / "pretrained_model" / "train_config.json").write_text("{}")
    (folder / "checkpoints" / "last").symlink_to("000010")


@pytest.mark.parametrize(("script", "policy"), [(MEMORY, "smolvla_mem"), (BASELINE, "smolvla")])
def test_a_training_starts_from_the_published_weights_and_pushes_nothing(told, script, policy):
    lines = told(script, "--dataset.repo_id=me/pick")
    assert lines[0] == "lerobot-train"
    assert {
        f"--policy.type={policy}",
        "--policy.pretrained_path=lerobot/smolvla_base",
        "--policy.push_to_hub=false",
        f"--output_dir=outputs/train/{policy}",
        "--dataset.repo_id=me/pick",
    } <= set(lines)
    plugins = [line for line in lines if "discover" in line]
    expected = ["--policy.discover_packages_path=smolvla_mem_ros.policy"] if script == MEMORY else []
    assert plugins == expected
    assert lines[-1] == "HF_USER=unset"


def test_both_scripts_ask_for_the_same_but_for_the_policy(told):
    one, other = (
        set(told(script, "--dataset.repo_id=me/pick", "--steps=9")) for script in (MEMORY, BASELINE)
    )
    assert {line.split("=")[0] for line in one ^ other} == {
        "--policy.type", "--policy.discover_packages_path", "--output_dir"
    }  # fmt: skip


def test_a_hf_user_is_used_and_left_alone(told, tmp_path):
    lines = told(MEMORY, "--output_dir=somewhere/pick", HF_USER="me")
    assert {"--policy.push_to_hub=true", "--policy.repo_id=me/pick", "HF_USER=me"} <= set(lines)
    begun(tmp_path / "somewhere" / "pick")
    assert "HF_USER=me" in told(BASELINE, "--output_dir=somewhere/pick", HF_USER="me")


def test_extra_options_come_last_and_so_win(told):
    extra = ["--policy.pretrained_path=mine", "--job_name=two words", "--steps=5"]
    lines = told(MEMORY, *extra)
    assert lines[-4:-1] == extra
    assert lines.index("--policy.pretrained_path=lerobot/smolvla_base") < lines.index(extra[0])


@pytest.mark.parametrize("form", [["--output_dir=out put"], ["--output_dir", "out put"]])
def test_it_goes_on_from_the_last_checkpoint_in_the_output_folder(told, tmp_path, form):
    begun(tmp_path / "out put")
    going_on = [
        "--config_path=out put/checkpoints/last/pretrained_model/train_config.json",
        "--resume=true",
        "--steps=20",
    ]
    plugin = "--policy.discover_packages_path=smolvla_mem_ros.policy"
    assert told(MEMORY, *form, "--steps=20")[1:-1] == [plugin, *going_on]
    assert told(BASELINE, *form, "--steps=20")[1:-1] == going_on


def test_several_gpus_go_through_accelerate(told):
    lines = told(MEMORY, "--steps=5", GPUS="2")
    launch = ["accelerate", "launch", "--multi_gpu", "--num_processes=2", "--module"]
    assert lines[:6] == [*launch, "lerobot.scripts.lerobot_train"]
    assert "--steps=5" in lines


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--policy.path=lerobot/smolvla_base"], {}, "--policy.pretrained_path instead"),
        (["--resume=true"], {}, "give the same --output_dir"),
        (["--output_dir"], {}, "--output_dir=FOLDER"),
        ([], {"GPUS": "all"}, "GPUS=all"),
        ([], {"path": "/usr/bin:/bin"}, "run make setup, or source the workspace"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(told, arguments, environment, words):
    error = told(MEMORY, *arguments, code=1, **environment)
    assert error.startswith(f"{MEMORY}: ")
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("script", [MEMORY, BASELINE])
def test_help_shows_examples_with_the_scripts_own_name(told, script):
    shown = "\n".join(told(script, "--help"))
    assert f"scripts/{script}.sh --tiny --dataset.repo_id=" in shown
    assert shown.count(f"{script}.sh") == 4
    assert "lerobot-train" in shown and "GPUS=" in shown and "HF_USER=" in shown


def test_the_tools_of_the_project_are_used_where_they_are(told, tmp_path):
    """scripts/env, when it works, runs everything."""
    env = tmp_path / "src" / "scripts" / "env"
    env.write_text('#!/usr/bin/env bash\n[[ $1 == true ]] || echo through-env\nexec "$@"\n')
    env.chmod(0o755)
    assert told(MEMORY)[:2] == ["through-env", "lerobot-train"]
    env.write_text("#!/usr/bin/env bash\nexit 1\n")
    assert told(MEMORY)[0] == "lerobot-train"


@pytest.mark.timeout(600)
def test_a_tiny_baseline_and_a_memory_from_it_train_and_go_on(tmp_path):
    demos = ["--task", "CueRecall2", "--episodes", "2", "--output", str(tmp_path / "demos")]
    assert collect_demos.main(demos) == 0
    # The script would make it; here that saves it the imports.
    ensure_backbone(tmp_path / "outputs" / "backbone")

    def train(script, output, steps, *options):
        command = [
            *(SCRIPTS / f"{script}.sh", "--tiny", "--dataset.repo_id=local/demos", "--dataset.root=demos"),
            *(f"--output_dir={output}", f"--steps={steps}", "--batch_size=2", *options),
        ]
        environment = {**os.environ, "HF_USER": "nobody"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stderr

    def config(output):
        file = tmp_path / output / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
        return json.loads(file.read_text())

    train(BASELINE, "base", 2)
    assert last_step(tmp_path / "base") == 2
    assert config("base")["policy"]["type"] == "smolvla"
    # A tiny policy is never pushed, whoever the user is.
    assert config("base")["policy"]["push_to_hub"] is False

    base = "base/checkpoints/last/pretrained_model"
    shown = train(MEMORY, "memory", 2, f"--policy.pretrained_path={base}", "--policy.mem_segments=2")
    assert "going on" not in shown
    assert last_step(tmp_path / "memory") == 2
    policy = config("memory")["policy"]
    assert (policy["type"], policy["mem_segments"], policy["pretrained_path"]) == ("smolvla_mem", 2, base)
    assert policy["num_mem_tokens"] == RECIPE.memory["num_mem_tokens"]

    shown = train(MEMORY, "memory", 4)
    assert "going on from" in shown and "000002" in shown
    assert last_step(tmp_path / "memory") == 4
    assert config("memory")["policy"]["mem_segments"] == 2

    before = Path.cwd()
    os.chdir(tmp_path)  # the backbone is named relative to it
    try:
        steps = [load_checkpoint(f"./memory/checkpoints/00000{n}/pretrained_model", "cpu") for n in (2, 4)]
    finally:
        os.chdir(before)
    first, second = (each.policy.model.mem_tokens for each in steps)
    assert not first.equal(second)
