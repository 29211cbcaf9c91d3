# SPDX-License-Identifier: Apache-2.0
"""Pins loading: what is saved comes back exactly, stock checkpoints load, what is unusable is refused."""

import json
import shutil

import pytest
import torch
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from memory_variants import CAMERA, STATE
from safetensors.torch import load_file, save_file

from smolvla_mem_ros.policy.checkpoint import CheckpointError, load_checkpoint, load_config
from smolvla_mem_ros.policy.configuration_smolvla_mem import MEMORY_UPDATES
from smolvla_mem_ros.policy.modeling_smolvla_mem import SmolVLAMemPolicy
from smolvla_mem_ros.policy.processor_smolvla_mem import make_smolvla_mem_pre_post_processors

STATS = {
    STATE: {"mean": torch.tensor([1.0, 2.0, 3.0]), "std": torch.tensor([2.0, 3.0, 4.0])},
    "action": {"mean": torch.tensor([10.0, 20.0, 30.0]), "std": torch.tensor([5.0, 6.0, 7.0])},
}


def save(folder, policy, make_processors):
    policy.save_pretrained(folder)
    for processor in make_processors(policy.config, STATS):
        processor.save_pretrained(folder)
    return folder


def raw_observation(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        CAMERA: torch.rand(3, 24, 24, generator=g),
        STATE: 5 * torch.randn(3, generator=g),
        "task": "reach the pad",
    }


def episode(policy, preprocess, noise_for, steps=3):
    """The chunks of some inferences, and the memory after the last."""
    memory, chunks = None, []
    for step in range(steps):
        noise, _ = noise_for(policy.config, 1, seed=step)
        actions, memory = policy.infer(preprocess(raw_observation(step)), memory, noise)
        chunks.append(actions)
    return torch.cat(chunks), memory


@pytest.fixture(scope="module")
def saved(make_policy, tmp_path_factory):
    """(policy, folder it was saved to); gated, four tokens."""
    policy = make_policy(mem_update="gated")
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    return policy, save(folder, policy, make_smolvla_mem_pre_post_processors)


@pytest.fixture(scope="module")
def stock(make_stock, tmp_path_factory):
    """(stock SmolVLA policy, folder that it was saved to by LeRobot's own code)."""
    policy = make_stock(seed=5)
    folder = tmp_path_factory.mktemp("stock") / "checkpoint"
    return policy, save(folder, policy, make_smolvla_pre_post_processors)


@pytest.fixture
def broken(saved, tmp_path):
    """A copy of a good checkpoint, to be damaged."""
    return shutil.copytree(saved[1], tmp_path / "checkpoint")


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def change_weights(folder, change):
    weights = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors")


# What is saved comes back -------------------------------------------------------------------------


@pytest.mark.parametrize("update", MEMORY_UPDATES)
@pytest.mark.parametrize("at_end", [True, False])
def test_a_saved_policy_acts_and_remembers_bit_for_bit(make_policy, noise_for, tmp_path, update, at_end):
    policy = make_policy(seed=3, mem_update=update, mem_at_end=at_end, num_mem_tokens=3)
    save(tmp_path, policy, make_smolvla_mem_pre_post_processors)
    pre, post = make_smolvla_mem_pre_post_processors(policy.config, STATS)

    loaded = load_checkpoint(tmp_path, "cpu")

    chunks, memory = episode(policy, pre, noise_for)
    loaded_chunks, loaded_memory = episode(loaded.policy, loaded.preprocessor, noise_for)
    assert torch.equal(chunks, loaded_chunks)
    assert torch.equal(memory.tokens, loaded_memory.tokens)
    assert torch.equal(post(chunks), loaded.postprocessor(loaded_chunks))
    assert (loaded.config.num_mem_tokens, loaded.config.mem_update, loaded.config.mem_at_end) == (
        3,
        update,
        at_end,
    )
    assert not loaded.policy.training


@pytest.mark.parametrize("at_end", [True, False])
def test_a_saved_policy_reads_from_its_cache_bit_for_bit(make_policy, noise_for, tmp_path, at_end):
    policy = make_policy(seed=3, mem_update="gated", mem_at_end=at_end, read_mem_from_cache=True)
    save(tmp_path, policy, make_smolvla_mem_pre_post_processors)
    pre, _ = make_smolvla_mem_pre_post_processors(policy.config, STATS)
    loaded = load_checkpoint(tmp_path, "cpu")
    chunks, memory = episode(policy, pre, noise_for)
    loaded_chunks, loaded_memory = episode(loaded.policy, loaded.preprocessor, noise_for)
    assert torch.equal(chunks, loaded_chunks)
    assert torch.equal(memory.cache, loaded_memory.cache)

    # No weights belong to the path: the same checkpoint runs without it, and remembers something else.
    configure(tmp_path, read_mem_from_cache=False)
    plain = load_checkpoint(tmp_path, "cpu")
    _, plain_memory = episode(plain.policy, plain.preprocessor, noise_for)
    assert plain_memory.cache is None
    assert not torch.equal(memory.tokens, plain_memory.tokens)


def test_the_steps_of_a_curriculum_are_saved(make_policy, noise_for, tmp_path):
    policy = make_policy(mem_segments=3, mem_curriculum_steps=4)
    for _ in range(2):
        policy.update()
    save(tmp_path, policy, make_smolvla_mem_pre_post_processors)
    assert SmolVLAMemPolicy.from_pretrained(tmp_path).mem_steps.item() == 2
    loaded = load_checkpoint(tmp_path, "cpu")
    assert loaded.policy.segments == 2
    loaded.policy.update()
    assert loaded.policy.mem_steps.item() == 3

    # It is no weight: without a curriculum, or without memory, nobody misses or minds it.
    assert load_checkpoint(tmp_path, "cpu", num_mem_tokens=0).config.num_mem_tokens == 0
    configure(tmp_path, mem_curriculum_steps=0)
    plain = load_checkpoint(tmp_path, "cpu").policy
    assert plain.segments == 3
    assert plain.state_dict().keys() == policy.state_dict().keys() - {"mem_steps"}


def test_a_checkpoint_from_before_the_curriculum_starts_it(broken):
    configure(broken, mem_segments=3, mem_curriculum_steps=10)
    policy = load_checkpoint(broken, "cpu").policy
    assert (policy.mem_steps.item(), policy.segments) == (0, 1)


def test_a_checkpoint_from_before_the_newer_fields_loads(broken):
    config = json.loads((broken / "config.json").read_text())
    for field in ("mem_curriculum_steps", "read_mem_from_cache"):
        config.pop(field)
    (broken / "config.json").write_text(json.dumps(config))
    checkpoint = load_checkpoint(broken, "cpu")
    assert checkpoint.policy.segments == checkpoint.config.mem_segments
    assert checkpoint.policy.model.empty_memory(1).cache is None


def test_a_stock_checkpoint_is_a_start_for_a_curriculum(stock, make_config):
    started = SmolVLAMemPolicy.from_pretrained(
        stock[1], config=make_config(mem_segments=3, mem_curriculum_steps=10)
    )
    assert (started.mem_steps.item(), started.segments) == (0, 1)


def test_processors_normalise_with_the_saved_statistics(saved):
    checkpoint = load_checkpoint(saved[1], "cpu")
    raw = raw_observation()
    state = checkpoint.preprocessor(raw)[STATE]
    torch.testing.assert_close(state, ((raw[STATE] - STATS[STATE]["mean"]) / STATS[STATE]["std"])[None])
    actions = checkpoint.postprocessor(torch.ones(1, 2, 3))
    expected = STATS["action"]["mean"] + STATS["action"]["std"]
    torch.testing.assert_close(actions, expected.expand(1, 2, 3))


def test_configuration_is_read_without_the_weights(saved, broken):
    (broken / "model.safetensors").write_bytes(b"")
    assert load_config(broken).num_mem_tokens == 4


def test_memory_can_be_switched_off(saved, noise_for):
    policy, folder = saved
    off = load_checkpoint(folder, "cpu", num_mem_tokens=0)
    assert off.config.num_mem_tokens == 0
    noise, _ = noise_for(policy.config, 1)
    batch = off.preprocessor(raw_observation())
    actions, memory = off.policy.infer(batch, None, noise)
    assert memory is None
    torch.testing.assert_close(actions, policy.infer(batch, None, noise)[0], rtol=0, atol=1e-5)


def test_asking_for_the_number_of_tokens_it_has_is_no_override(saved):
    assert load_checkpoint(saved[1], "cpu", num_mem_tokens=4).config.num_mem_tokens == 4


def test_no_weights_are_fetched_for_the_backbone(broken):
    """A model fine-tuned from the published backbone says load_vlm_weights; its own weights replace them."""
    configure(broken, load_vlm_weights=True)
    load_checkpoint(broken, "cpu")


# Stock SmolVLA ------------------------------------------------------------------------------------


def test_a_stock_checkpoint_loads_as_the_stock_model(stock, noise_for):
    policy, folder = stock
    loaded = load_checkpoint(folder, "cpu")
    assert type(loaded.policy) is SmolVLAMemPolicy
    assert loaded.config.num_mem_tokens == 0
    noise, _ = noise_for(policy.config, 1)
    batch = loaded.preprocessor(raw_observation())
    assert torch.equal(
        loaded.policy.predict_action_chunk(batch, noise), policy.predict_action_chunk(batch, noise)
    )


def test_a_stock_checkpoint_is_a_start_for_a_model_with_memory(stock, make_config, noise_for):
    policy, folder = stock
    started = SmolVLAMemPolicy.from_pretrained(
        folder, config=make_config(num_mem_tokens=4, mem_update="gated")
    )
    weights = started.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in policy.state_dict().items())
    assert started.model.mem_tokens.norm(dim=1).min() > 0

    noise, _ = noise_for(policy.config, 1)
    pre, _ = make_smolvla_pre_post_processors(policy.config, STATS)
    batch = pre(raw_observation())
    actions, memory = started.infer(batch, None, noise)
    torch.testing.assert_close(actions, policy.predict_action_chunk(batch, noise), rtol=0, atol=1e-5)
    assert memory.filled.all()


def test_a_stock_checkpoint_cannot_be_given_memory_when_loaded_to_run(stock):
    with pytest.raises(CheckpointError, match=r"only be overridden to 0.*trained with 0"):
        load_checkpoint(stock[1], "cpu", num_mem_tokens=4)


def test_a_memory_of_another_kind_is_no_start(saved, make_config):
    with pytest.raises(ValueError, match=r"of another memory, such as model\.mem_update"):
        SmolVLAMemPolicy.from_pretrained(saved[1], config=make_config(mem_update="rmt"))


# What cannot be used ------------------------------------------------------------------------------


def refusal(path, *args):
    """The message: one line that names the checkpoint or the device."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, *(args or ("cpu",)))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def test_no_checkpoint_given():
    assert "set the parameter checkpoint" in refusal("")


def test_a_missing_folder(tmp_path):
    message = refusal(tmp_path / "nothing")
    assert f"{tmp_path / 'nothing'} does not exist" in message
    assert "make_tiny_checkpoint" in message


def test_a_name_that_is_neither_a_folder_nor_on_the_hub():
    message = refusal("nobody/nothing")
    assert "nobody/nothing is no folder here" in message
    assert "check the name and the connection" in message


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(broken, file):
    (broken / file).unlink()
    message = refusal(broken)
    assert f"{broken} has no {file}" in message
    assert "pretrained_model" in message


def test_an_empty_folder(tmp_path):
    assert "has no config.json and no model.safetensors" in refusal(tmp_path)


def test_the_folder_around_the_checkpoint(broken):
    outer = broken.parent / "000100"
    outer.mkdir()
    broken.rename(outer / "pretrained_model")
    assert f"did you mean {outer / 'pretrained_model'}?" in refusal(outer)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
def test_a_pickle_is_never_opened(broken, name):
    (broken / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (open, (str(broken / "opened"), "w"))

    torch.save(Bomb(), broken / name)
    message = refusal(broken)
    assert f"{name} is a pickle and is never opened, save it as safetensors" in message
    assert not (broken / "opened").exists()


def test_missing_statistics(broken):
    (broken / "policy_preprocessor.json").unlink()
    message = refusal(broken)
    assert "has no policy_preprocessor.json, so how to normalise is unknown" in message
    assert "migrate_policy_normalization" in message


def test_a_missing_postprocessor(broken):
    (broken / "policy_postprocessor.json").unlink()
    assert "policy_postprocessor.json" in refusal(broken)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_configuration_that_is_none(broken, text):
    (broken / "config.json").write_text(text)
    assert f"{broken / 'config.json'} is not the configuration of a policy" in refusal(broken)


def test_a_policy_of_another_type(broken, saved):
    config = saved[0].config
    features = dict(input_features=config.input_features, output_features=config.output_features)
    ACTConfig(device="cpu", **features).save_pretrained(broken)
    assert "holds a policy of type act; use one of type smolvla_mem or smolvla" in refusal(broken)


def test_a_policy_type_that_nobody_knows(broken):
    configure(broken, type="wonder")
    assert "holds a policy of type wonder" in refusal(broken)


def test_a_configuration_out_of_range_says_which_field(broken):
    configure(broken, mem_update="lstm", mem_segments=0)
    message = refusal(broken)
    assert "mem_update='lstm' must be one of rmt, gated, ema" in message
    assert "mem_segments=0 must be 1 or more" in message


def test_a_checkpoint_without_cameras(broken):
    configure(broken, input_features={STATE: {"type": "STATE", "shape": [3]}})
    assert "names no cameras" in refusal(broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["model.state_proj.weight", "model.mem_tokens"])
def test_weights_that_are_not_finite(broken, key, value):
    change_weights(broken, lambda weights: weights[key].view(-1)[:1].fill_(value))
    message = refusal(broken)
    assert f"holds NaN or infinity in {key}" in message
    assert "train it again" in message


@pytest.mark.parametrize(
    "key", ["model.state_proj.weight", "model.mem_tokens", "model.mem_update.gates.weight"]
)
def test_missing_weights_are_named(broken, key):
    change_weights(broken, lambda weights: weights.pop(key))
    message = refusal(broken)
    assert f"1 weights are missing, such as {key}" in message
    assert "copy it again" in message


def test_a_model_with_memory_needs_the_memory_weights(broken):
    """To train from stock weights is one thing; to run an arm with a random memory is another."""

    def forget(weights):
        for key in [key for key in weights if key.startswith("model.mem_")]:
            weights.pop(key)

    change_weights(broken, forget)
    assert "7 weights are missing, such as model.mem_" in refusal(broken)


def test_weights_of_another_size_are_named(broken):
    configure(broken, num_mem_tokens=8)
    assert "size mismatch for model.mem_tokens" in refusal(broken)


def test_a_truncated_file(broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in refusal(broken)


def test_a_missing_backbone_is_named(broken):
    configure(broken, vlm_model_name="elsewhere")
    assert "its backbone elsewhere is no folder here" in refusal(broken)


@pytest.mark.parametrize("device", ["cuda:99", "banana"])
def test_a_device_that_is_not_there(saved, device):
    message = refusal(saved[1], device)
    assert f"device {device} is not usable here" in message
    assert message.endswith("try cpu")


@pytest.mark.parametrize("n", [1, 8, -1])
def test_only_switching_off_is_an_override(saved, n):
    message = refusal(saved[1], "cpu", n)
    assert f"num_mem_tokens can only be overridden to 0 (memory off): checkpoint {saved[1]}" in message
    assert f"was trained with 4 and has no weights for {n}" in message
