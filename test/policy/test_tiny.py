# SPDX-License-Identifier: Apache-2.0
"""Pins the tiny checkpoint: self-contained, movable, repeatable, never over somebody's files."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor

from smolvla_mem_ros.policy.checkpoint import load_checkpoint
from smolvla_mem_ros.policy.tiny import BACKBONE, CAMERAS, make_backbone, make_tiny_checkpoint

HOME = (1, -20, 30, 60, -90, 25)
SPREAD = (25, 10, 15, 20, 30, 12)


def observation(task="sway gently"):
    g = torch.Generator().manual_seed(0)
    images = {key: torch.rand(3, 480, 640, generator=g) for key in CAMERAS}
    return {**images, "observation.state": torch.tensor(HOME, dtype=torch.float32), "task": task}


def act(checkpoint, steps=2):
    noise = torch.randn(1, 20, 6, generator=torch.Generator().manual_seed(1))
    memory = None
    for _ in range(steps):
        chunk, memory = checkpoint.policy.infer(checkpoint.preprocessor(observation()), memory, noise)
    return checkpoint.postprocessor(chunk), memory


@pytest.mark.parametrize("steps", [0, 2])
def test_a_checkpoint_works_wherever_it_is_moved(tmp_path, steps, monkeypatch):
    made = make_tiny_checkpoint(tmp_path / "made", steps=steps)
    before = act(load_checkpoint(made, "cpu"))
    moved = made.rename(tmp_path / "moved")
    # A folder of the same name in the working directory must not be taken for it.
    (tmp_path / BACKBONE).mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (moved, "./moved"):
        after = act(load_checkpoint(path, "cpu"))
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1].tokens, after[1].tokens)


def test_no_file_names_the_place_it_was_made_in(tmp_path):
    made = make_tiny_checkpoint(tmp_path / "made", steps=0)
    text = "".join(path.read_text() for path in made.rglob("*.json"))
    assert str(tmp_path) not in text
    assert "partial" not in text


def test_actions_lie_about_the_home_pose_in_its_units(tmp_path):
    made = make_tiny_checkpoint(tmp_path / "made", steps=0, home=HOME, spread=SPREAD)
    checkpoint = load_checkpoint(made, "cpu")
    mean = checkpoint.postprocessor(torch.zeros(1, 1, 6))[0, 0]
    torch.testing.assert_close(mean, torch.tensor(HOME, dtype=torch.float32))
    spread = checkpoint.postprocessor(torch.ones(1, 1, 6))[0, 0] - mean
    torch.testing.assert_close(spread, torch.tensor(SPREAD, dtype=torch.float32))


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_randomness(tmp_path):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    weights = [
        load_file(make_tiny_checkpoint(tmp_path / name, seed=seed, steps=1) / "model.safetensors")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert torch.equal(torch.rand(3), expected)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["model.mem_tokens"], weights[2]["model.mem_tokens"])


def test_changes_reach_the_configuration(tmp_path):
    made = make_tiny_checkpoint(tmp_path / "made", steps=0, num_mem_tokens=2, mem_update="ema")
    checkpoint = load_checkpoint(made, "cpu")
    assert (checkpoint.config.num_mem_tokens, checkpoint.config.mem_update) == (2, "ema")
    assert json.loads((made / "tiny.json").read_text()) == {"seed": 0, "steps": 0}


def test_without_memory_it_is_a_stock_model(tmp_path):
    """Trained too, as its sample has other time dimensions."""
    checkpoint = load_checkpoint(make_tiny_checkpoint(tmp_path / "made", steps=1, num_mem_tokens=0), "cpu")
    assert checkpoint.config.num_mem_tokens == 0
    assert torch.isfinite(act(checkpoint)[0]).all()


def test_training_lowers_the_loss_and_reports_each_step(tmp_path):
    seen = []
    make_tiny_checkpoint(
        tmp_path / "made", steps=25, mem_segments=1, progress=lambda *report: seen.append(report)
    )
    assert [(step, steps) for step, steps, _ in seen] == [(i + 1, 25) for i in range(25)]
    losses = [loss for _, _, loss in seen]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_an_older_tiny_checkpoint_is_replaced(tmp_path):
    made = make_tiny_checkpoint(tmp_path / "made", steps=0)
    (made / "left_over").touch()
    make_tiny_checkpoint(made, steps=0, seed=4)
    assert not (made / "left_over").exists()
    assert json.loads((made / "tiny.json").read_text())["seed"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and not a tiny checkpoint; name another folder"):
        make_tiny_checkpoint(tmp_path, steps=0)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_may_be_used(tmp_path):
    assert make_tiny_checkpoint(tmp_path / "made", steps=0).is_dir()
    (tmp_path / "empty").mkdir()
    assert (make_tiny_checkpoint(tmp_path / "empty", steps=0) / "config.json").is_file()


def test_the_tokenizer_knows_every_letter_and_the_special_tokens(backbone):
    processor = AutoProcessor.from_pretrained(backbone)
    tokenizer = processor.tokenizer
    text = "Press the green Button, 3 times!\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    vocabulary = AutoConfig.from_pretrained(backbone).text_config.vocab_size
    assert max(tokenizer.get_vocab().values()) < vocabulary
    special = {tokenizer.fake_image_token_id, tokenizer.global_image_token_id, tokenizer.image_token_id}
    assert len(special) == 3 and None not in special


def test_the_full_size_backbone_has_the_published_sizes(tmp_path):
    config = AutoConfig.from_pretrained(make_backbone(tmp_path, full_size=True))
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (960, 32, 49280)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size) == (768, 12, 512)
    assert not list(tmp_path.glob("*.safetensors"))
