# SPDX-License-Identifier: Apache-2.0
"""Pins the packed checkpoint: it acts as before, wherever it is moved, and tells how it was made."""

import json
import shutil

import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from smolvla_mem_ros.cli import pack_checkpoint
from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.policy.modeling_smolvla_mem import SmolVLAMemPolicy
from smolvla_mem_ros.policy.processor_smolvla_mem import make_smolvla_mem_pre_post_processors
from smolvla_mem_ros.policy.tiny import CAMERAS, make_backbone, tiny_config
from smolvla_mem_ros.training.ablations import plan, record
from smolvla_mem_ros.training.packing import PackError, pack
from smolvla_mem_ros.training.recipe import RECIPE

RUN = plan(RECIPE)["main"]["memory", tuple(RECIPE.all.tasks), 0]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder as lerobot-train leaves it, which names its backbone relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    make_backbone("outputs/backbone")
    torch.manual_seed(0)
    config = tiny_config("outputs/backbone", mem_curriculum_steps=5)
    config.pretrained_path = "outputs/base/pretrained_model"
    folder = tmp_path / "pretrained_model"
    policy = SmolVLAMemPolicy(config)
    policy.update()
    policy.save_pretrained(folder)
    moments = {"mean": torch.arange(6.0), "std": torch.ones(6) * 3}
    stats = {"observation.state": moments, "action": moments}
    for processor in make_smolvla_mem_pre_post_processors(config, stats):
        processor.save_pretrained(folder)
    # Two processes shared a batch of 32.
    training = {"steps": RECIPE.all_tasks.steps, "batch_size": 16, "seed": 0}
    data = {"repo_id": "local/demos_all", "root": str(tmp_path / "outputs/demos_all")}
    told = {**training, "policy": {"type": "smolvla_mem"}, "dataset": data, "output_dir": str(folder)}
    (folder / "train_config.json").write_text(json.dumps(told))
    return folder


def act(folder):
    """Two inferences, the second with the memory that the first wrote."""
    checkpoint = load_checkpoint(folder, "cpu")
    g = torch.Generator().manual_seed(1)
    images = {key: torch.rand(3, 480, 640, generator=g) for key in CAMERAS}
    observation = {**images, "observation.state": torch.arange(6.0), "task": RUN.training.name}
    noise, memory = torch.randn(1, 20, 6, generator=g), None
    for _ in range(2):
        chunk, memory = checkpoint.policy.infer(checkpoint.preprocessor(observation), memory, noise)
    return checkpoint.postprocessor(chunk), memory.tokens


def result():
    scores = [
        {"task": task, "mode": mode, "delay": delay, "n": 100, "successes": 87, "interval": [0.79, 0.92],
         "mean_reward": 0.9}
        for task, mode, delay in RUN.cells
    ]  # fmt: skip
    return record(RUN, RECIPE, 100, scores, 3600.0, 900.0, processes=2)


def test_it_acts_as_before_wherever_it_is_moved(trained, tmp_path, monkeypatch, capsys):
    before = act(trained)
    assert pack_checkpoint.main([str(trained), str(tmp_path / "packed")]) == 0
    assert capsys.readouterr().out.endswith(" MiB\n")
    shutil.rmtree(trained)
    shutil.rmtree(tmp_path / "outputs")
    (tmp_path / "packed").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    after = act("../moved")
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not (tmp_path / "packed.partial").exists()


def test_no_file_names_the_place_it_was_made_in(trained, tmp_path):
    packed = pack(trained, tmp_path / "packed", result())
    files = [path for path in packed.rglob("*") if path.suffix in (".json", ".md")]
    assert len(files) > 5
    for path in files:
        text = path.read_text()
        assert str(tmp_path) not in text, path
        assert "partial" not in text, path
        # Nor one relative to where it was trained; the card's commands name those on purpose.
        assert path.suffix == ".md" or "outputs" not in text, path
    assert json.loads((packed / "config.json").read_text())["vlm_model_name"] == "backbone"
    assert '"tokenizer_name": "backbone"' in (packed / "policy_preprocessor.json").read_text()
    assert not (packed / "train_config.json").exists()


def test_the_card_tells_how_it_was_made_and_how_good_it_is(trained, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(result()))
    options = ["--results", str(tmp_path / "result.json")]
    assert pack_checkpoint.main([str(trained), str(tmp_path / "packed"), *options]) == 0
    card = (tmp_path / "packed" / "README.md").read_text()
    for words in (
        "| LateCue2 | on | 87/100 | 79 to 92 % |",
        "| seed | 0 |",
        f"| steps | {RECIPE.all_tasks.steps}, batch size 32 |",
        "| training time | 60 minutes, after 15 of the base |",
        "lerobot 0.6.1",
        "--output_dir=outputs/runs/memory-all-seed0",
        "collect_demos --task",
        "`train_memory_tasks --seed 0 --jobs 2` does all of this",
    ):
        assert words in card


def test_a_card_without_results_says_that_nothing_was_measured(trained, tmp_path):
    card = (pack(trained, tmp_path / "packed") / "README.md").read_text()
    assert "Not measured." in card
    assert "local/demos_all" in card


def test_results_of_another_training_are_refused(trained, tmp_path):
    other = result() | {"seed": 3}
    with pytest.raises(PackError, match="another training"):
        pack(trained, tmp_path / "packed", other)


def test_a_checkpoint_that_is_too_large_is_refused_and_nothing_is_left(trained, tmp_path):
    with pytest.raises(PackError, match=r"packs to 4\.\d MiB and 1 MiB are allowed"):
        pack(trained, tmp_path / "packed", max_bytes=2**20)
    assert not list(tmp_path.glob("packed*"))


def test_an_older_packed_checkpoint_is_replaced_and_anything_else_is_not(trained, tmp_path, capsys):
    pack(trained, tmp_path / "packed")
    (tmp_path / "packed" / "old").touch()
    pack(trained, tmp_path / "packed")
    assert not (tmp_path / "packed" / "old").exists()

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").touch()
    assert pack_checkpoint.main([str(trained), str(tmp_path / "thesis")]) == 1
    assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter1").exists()


def test_a_backbone_that_is_not_here_is_named_with_the_cure(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pack_checkpoint.main([str(trained), "packed"]) == 1
    error = capsys.readouterr().err
    assert "outputs/backbone" in error
    assert error.count("\n") == 1


def test_the_baseline_can_be_packed_too(trained, tmp_path):
    """A stock smolvla checkpoint becomes one without memory."""
    config = load_checkpoint(trained, "cpu").config
    stock = SmolVLAPolicy.config_class(
        **{name: getattr(config, name) for name in (
            "input_features", "output_features", "vlm_model_name", "load_vlm_weights", "num_vlm_layers",
            "resize_imgs_with_padding", "max_state_dim", "max_action_dim", "chunk_size", "n_action_steps",
            "expert_width_multiplier", "device", "push_to_hub")}
    )  # fmt: skip
    SmolVLAPolicy(stock).save_pretrained(trained)
    (trained / "train_config.json").unlink()
    packed = load_checkpoint(pack(trained, tmp_path / "packed"), "cpu")
    assert packed.config.num_mem_tokens == 0
