# SPDX-License-Identifier: Apache-2.0
"""SmolVLA with recurrent memory tokens.

The prefix is ``[read n | images | language | state | write n]``, the suffix holds the noisy actions.

* Read tokens carry the memory of the previous segment; images, language, state and actions see them.
  At the start of an episode nobody sees them and they shift no position: the model is then stock SmolVLA.
* Write tokens see the whole prefix; nothing sees them. Their outputs become the next memory.
* Memory never sees actions.
* With ``read_mem_from_cache`` memory rows, and only they, also see the keys and values that the previous
  segment's write tokens had at each VLM layer.

With ``num_mem_tokens=0`` the model is LeRobot's own class and nothing here runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from lerobot.configs import PreTrainedConfig
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, VLAFlowMatching
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from lerobot.policies.utils import log_model_loading_keys
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from lerobot.utils.device_utils import resolve_safetensors_device
from safetensors.torch import load_model
from torch import Tensor, nn

from smolvla_mem_ros.policy.configuration_smolvla_mem import SmolVLAMemConfig
from smolvla_mem_ros.policy.memory import Memory, make_memory_update

# What LeRobot's own embed_prefix returns: embeddings (B, L, H), padding (B, L), attention blocks (B, L).
Body = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class CachedWrites:
    """Keys and values of write tokens in one pass: of the previous segment, and for the next.

    Args:
        previous: (B, layers, 2, n, kv_heads, head_dim), the cache of the memory before the segment.
        readers: (B, P) bool, the rows of the prefix that see them.
        writers: the rows of the prefix whose own keys and values are kept.
        kept: (B, 2, n, kv_heads, head_dim) for each layer that has run.
    """

    previous: Tensor
    readers: Tensor
    writers: slice
    kept: list[Tensor] = field(default_factory=list)


class SmolVLMWithCachedWrites(SmolVLMWithExpertModel):
    """LeRobot's VLM and action expert for one pass in which some rows of the VLM also see cached ones.

    A view: it shares all layers with ``vlm``, which stays as it is.
    """

    def __init__(self, vlm: SmolVLMWithExpertModel, writes: CachedWrites):
        # Not nn.Module's, which would start without layers.
        self.__dict__.update(vlm.__dict__)
        self.writes = writes

    def get_attention_interface(self):
        """LeRobot asks for it once in each layer, to call it for the VLM and then, it may be, the expert."""
        attend, writes = super().get_attention_interface(), self.writes
        layer = len(writes.kept)

        def attend_with_cache(attention, batch, head_dim, queries, keys, values):
            if len(writes.kept) > layer:
                return attend(attention, batch, head_dim, queries, keys, values)
            # Keys keep the rotation they were used with. The block that writes stands at the same place in
            # every segment (n further on once there is a memory), so what it wrote before is to it as near
            # as its own.
            own = torch.stack([keys[:, writes.writers], values[:, writes.writers]], dim=1)
            writes.kept.append(own.float())
            cached_keys, cached_values = writes.previous[:, layer].to(keys.dtype).unbind(1)
            # Rows beyond the prefix are actions.
            sees = F.pad(writes.readers, (0, queries.shape[1] - writes.readers.shape[1]))
            return attend(
                torch.cat([attention, sees[:, :, None].expand(-1, -1, cached_keys.shape[1])], dim=2),
                batch,
                head_dim,
                queries,
                torch.cat([keys, cached_keys], dim=1),
                torch.cat([values, cached_values], dim=1),
            )

        return attend_with_cache


@dataclass(frozen=True)
class MemoryPrefix:
    """A prefix with its memory blocks.

    Args:
        embs: (B, P, H) embeddings, P = 2n + L, or n + L with ``mem_at_end=False``.
        attention: (B, P, P) bool, [b, q, k] True where query q sees key k.
        positions: (B, P) int64, rotary positions.
        visible: (B, P) bool, what the action suffix sees.
        writes: what memory rows see of the previous segment; None without ``read_mem_from_cache``.
    """

    embs: Tensor
    attention: Tensor
    positions: Tensor
    visible: Tensor
    writes: CachedWrites | None


class MemoryFlowMatching(VLAFlowMatching):
    """LeRobot's flow-matching model with a memory that is handed in and handed back."""

    def __init__(self, config: SmolVLAMemConfig, rtc_processor=None):
        super().__init__(config, rtc_processor=rtc_processor)
        # After the stock layers, so that the same seed gives them the same start.
        self.init_mem_tokens()
        self.mem_update = make_memory_update(config, self.hidden_size)
        self._train_write_path()

    @property
    def hidden_size(self) -> int:
        return self.vlm_with_expert.config.text_config.hidden_size

    def init_mem_tokens(self) -> None:
        """n learned tokens (n, H), each drawn on its own at the scale of the words in the vocabulary."""
        words = self.vlm_with_expert.get_vlm_model().text_model.get_input_embeddings().weight
        tokens = torch.randn(self.config.num_mem_tokens, self.hidden_size, device=words.device)
        self.mem_tokens = nn.Parameter(tokens * words.detach().float().std())

    def _train_write_path(self) -> None:
        """Train the last VLM layer and the final norm where the VLM is trained at all.

        LeRobot freezes them because stock actions never use their outputs; memory writes do.
        """
        if self.config.train_expert_only:
            return
        text_model = self.vlm_with_expert.get_vlm_model().text_model
        for module in (*text_model.layers[-2:], text_model.norm):
            module.requires_grad_(True)

    def empty_memory(self, batch: int) -> Memory:
        n, cache_shape = self.config.num_mem_tokens, None
        if self.config.read_mem_from_cache:
            vlm, text = self.vlm_with_expert, self.vlm_with_expert.config.text_config
            cache_shape = (vlm.num_vlm_layers, 2, n, text.num_key_value_heads, text.head_dim)
        return Memory.empty(batch, n, self.hidden_size, self.mem_tokens.device, cache_shape)

    def add_memory(self, body: Body, memory: Memory) -> MemoryPrefix:
        """Put the memory blocks around a stock prefix ``body``; ``memory`` has one row per row of it.

        Raises:
            ValueError: ``memory`` lacks the cache that ``read_mem_from_cache`` reads.
        """
        embs, pad, blocks = body
        n, batch, device = self.config.num_mem_tokens, embs.shape[0], embs.device
        filled = memory.filled
        learned = self.mem_tokens.expand(batch, -1, -1)
        read = memory.tokens
        if not self.config.mem_at_end:
            read = torch.where(filled[:, None, None], read, learned)
        parts = [read, learned] if self.config.mem_at_end else [read]
        parts = [(part * math.sqrt(self.hidden_size)).to(embs.dtype) for part in parts]

        ones = torch.ones(batch, n, dtype=torch.bool, device=device)
        same_block = torch.zeros_like(ones)
        new_block = same_block.clone()
        new_block[:, 0] = True

        embs = torch.cat([parts[0], embs, *parts[1:]], dim=1)
        tail = len(parts) - 1
        attention = make_att_2d_masks(
            torch.cat([ones, pad] + [ones] * tail, dim=1),
            torch.cat([same_block, blocks] + [new_block] * tail, dim=1),
        )
        if not self.config.mem_at_end:
            # The read block is then also what writes: it sees the whole body, the state included.
            attention[:, :n, n:] = pad[:, None, :]
        attention[:, n:, :n] &= filled[:, None, None]

        count = torch.arange(n, device=device).expand(batch, -1)
        shift = filled[:, None] * n
        end = shift + pad.sum(1, keepdim=True)
        positions = torch.cat([count, shift + pad.cumsum(1) - 1] + [end + count] * tail, dim=1)
        visible = torch.cat([filled[:, None].expand(-1, n), pad] + [same_block] * tail, dim=1)
        writes = None
        if self.config.read_mem_from_cache:
            if memory.cache is None:
                raise ValueError("read_mem_from_cache: this memory has no cache; hand in what infer returned")
            own = torch.cat([ones, torch.zeros_like(pad)] + [ones] * tail, dim=1)
            writes = CachedWrites(memory.cache, own & filled[:, None], self._written_rows(embs.shape[1]))
        return MemoryPrefix(embs, attention, positions, visible, writes)

    def _written_rows(self, length: int) -> slice:
        """The rows of a prefix of ``length`` whose outputs become the next memory."""
        n = self.config.num_mem_tokens
        return slice(length - n, length) if self.config.mem_at_end else slice(0, n)

    def update_memory(self, memory: Memory, prefix: MemoryPrefix, prefix_out: Tensor) -> Memory:
        """The memory after a segment, from the prefix that was run and its outputs (B, P, H)."""
        written = prefix_out[:, self._written_rows(prefix_out.shape[1])]
        after = self.mem_update(memory, written.float())
        return after if prefix.writes is None else replace(after, cache=torch.stack(prefix.writes.kept, 1))

    def _vlm(self, prefix: MemoryPrefix) -> SmolVLMWithExpertModel:
        """What runs the prefix, alone or with actions."""
        if prefix.writes is None:
            return self.vlm_with_expert
        return SmolVLMWithCachedWrites(self.vlm_with_expert, prefix.writes)

    def prefill(self, prefix: MemoryPrefix):
        """Run the prefix alone. Returns its outputs (B, P, H) and the key-value cache."""
        (prefix_out, _), cache = self._vlm(prefix).forward(
            attention_mask=prefix.attention,
            position_ids=prefix.positions,
            past_key_values=None,
            inputs_embeds=[prefix.embs, None],
            use_cache=True,
        )
        return prefix_out, cache

    def write(self, body: Body, memory: Memory) -> Memory:
        """The memory after a segment of which no action is wanted."""
        prefix = self.add_memory(body, memory)
        return self.update_memory(memory, prefix, self.prefill(prefix)[0])

    def forward(
        self, body: Body, actions: Tensor, memory: Memory, noise: Tensor, time: Tensor
    ) -> tuple[Tensor, Memory]:
        """One training segment.

        Args:
            body: from ``embed_prefix``.
            actions: (B, chunk, max_action_dim) normalised actions.
            memory: before the segment.
            noise, time: as in stock SmolVLA, (B, chunk, max_action_dim) and (B,).

        Returns:
            Flow-matching losses (B, chunk, max_action_dim), and the memory after the segment.
        """
        t = time[:, None, None]
        x_t, u_t = t * noise + (1 - t) * actions, noise - actions

        prefix = self.add_memory(body, memory)
        suffix, suffix_pad, suffix_blocks = self.embed_suffix(x_t, time)
        horizon = suffix.shape[1]
        attention = torch.cat(
            [
                F.pad(prefix.attention, (0, horizon)),
                torch.cat(
                    [
                        prefix.visible[:, None].expand(-1, horizon, -1),
                        make_att_2d_masks(suffix_pad, suffix_blocks),
                    ],
                    dim=2,
                ),
            ],
            dim=1,
        )
        offset = prefix.visible.sum(1, keepdim=True)
        positions = torch.cat([prefix.positions, offset + suffix_pad.cumsum(1) - 1], dim=1)
        (prefix_out, suffix_out), _ = self._vlm(prefix).forward(
            attention_mask=attention,
            position_ids=positions,
            past_key_values=None,
            inputs_embeds=[prefix.embs, suffix],
            use_cache=False,
        )
        v_t = self.action_out_proj(suffix_out[:, -self.config.chunk_size :].float())
        return F.mse_loss(u_t, v_t, reduction="none"), self.update_memory(memory, prefix, prefix_out)

    def sample_actions(
        self,
        images,
        img_masks,
        lang_tokens,
        lang_masks,
        state,
        noise=None,
        memory: Memory | None = None,
        **kwargs,
    ) -> tuple[Tensor, Memory]:
        """Denoise a chunk (B, chunk, max_action_dim) with ``memory`` in view; return it and the next memory.

        ``kwargs`` are those of LeRobot's real-time chunking.
        """
        batch = state.shape[0]
        if noise is None:
            noise = self.sample_noise(
                (batch, self.config.chunk_size, self.config.max_action_dim), state.device
            )
        memory = self.empty_memory(batch) if memory is None else memory
        prefix = self.add_memory(
            self.embed_prefix(images, img_masks, lang_tokens, lang_masks, state=state), memory
        )
        prefix_out, cache = self.prefill(prefix)
        actions = euler_integrate(
            lambda x_t, timestep: self.denoise_step(prefix.visible, cache, x_t, timestep),
            noise,
            self.config.num_steps,
            rtc_processor=self.rtc_processor,
            rtc_enabled=self._rtc_enabled(),
            **{k: kwargs.get(k) for k in ("inference_delay", "prev_chunk_left_over", "execution_horizon")},
        )
        return actions, self.update_memory(memory, prefix, prefix_out)


class SmolVLAMemPolicy(SmolVLAPolicy):
    """LeRobot policy over :meth:`infer`, a pure function from observation and memory to chunk and memory."""

    config_class = SmolVLAMemConfig
    name = "smolvla_mem"

    def __init__(self, config: SmolVLAMemConfig, **kwargs):
        # Past SmolVLAPolicy.__init__, which would build the stock model first.
        super(SmolVLAPolicy, self).__init__(config)
        config.validate_features()
        self.init_rtc_processor()
        model_class = MemoryFlowMatching if config.num_mem_tokens else VLAFlowMatching
        self.model = model_class(config, rtc_processor=self.rtc_processor)
        # Optimizer steps done, for the curriculum: in the checkpoint, so that a resumed run goes on with it.
        counted = config.num_mem_tokens and config.mem_curriculum_steps
        self.register_buffer("mem_steps", torch.zeros((), dtype=torch.int64) if counted else None)
        self.reset()

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path, *, config=None, **kwargs) -> SmolVLAMemPolicy:
        """Load a ``smolvla_mem`` or a stock ``smolvla`` checkpoint, a folder or a hub name.

        A stock checkpoint becomes ``num_mem_tokens=0`` unless ``config`` asks for memory. A
        ``vlm_model_name`` that is a folder inside the checkpoint is taken from there.
        """
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **kwargs)
        if not isinstance(config, SmolVLAMemConfig):
            config = SmolVLAMemConfig.from_stock(config)
        config.vlm_model_name = resolve_vlm(config.vlm_model_name, pretrained_name_or_path)
        return super().from_pretrained(pretrained_name_or_path, config=config, **kwargs)

    @classmethod
    def _load_as_safetensor(cls, model, model_file, map_location, strict):
        """Load weights that belong to this model, or raise ValueError.

        Weights without any memory are a start for a model with one, unless ``strict``. Memory weights are
        ignored where the memory is switched off. The steps of the curriculum are no weight: where they are
        missing they start at 0, where there is no curriculum they are ignored.
        """
        device = resolve_safetensors_device(map_location)
        loaded = load_model(model, model_file, strict=False, device=device)
        missing, unexpected = (set(keys) - {"mem_steps"} for keys in loaded)
        memory = {key for key in model.state_dict() if key.startswith("model.mem_")}
        if not strict and memory <= missing:
            missing -= memory
        strange = {key for key in unexpected if key.startswith("model.mem_")}
        log_model_loading_keys([], sorted(unexpected - strange))
        strange = strange if memory else set()
        if missing or strange:
            raise ValueError(
                f"{model_file} does not fit its configuration: "
                + "; ".join(
                    f"{len(keys)} weights {what}, such as {min(keys)}"
                    for what, keys in (("are missing", missing), ("are of another memory", strange))
                    if keys
                )
            )
        return model

    # LeRobot's protocol -------------------------------------------------------------------------

    def reset(self, rows: Tensor | None = None) -> None:
        """Forget the memory and the actions in hand; of the given rows (B,) bool of the batch, or of all."""
        if rows is None:
            super().reset()
            self._memory: Memory | None = None
            self._chunk: Tensor | None = None
            self._cursor: Tensor | None = None
            return
        if self._memory is not None:
            self._memory = self._memory.cleared(torch.as_tensor(rows, device=self._memory.filled.device))
        if self._cursor is not None:
            rows = torch.as_tensor(rows, device=self._cursor.device)
            self._cursor = torch.where(rows, self.config.n_action_steps, self._cursor)

    @torch.no_grad()
    def infer(
        self, batch: dict[str, Tensor], memory: Memory | None = None, noise: Tensor | None = None, **kwargs
    ) -> tuple[Tensor, Memory | None]:
        """The policy as a pure function; changes neither the module nor its arguments.

        Args:
            batch: preprocessed observation, first dimension B.
            memory: one row per row of the batch; None at the start of an episode.
            noise: (B, chunk, max_action_dim) for a repeatable result; drawn when None.

        Returns:
            Normalised actions (B, chunk, A), and the memory to hand in next (None when ``num_mem_tokens=0``).
        """
        batch = {k: v.clone() if k == OBS_STATE else v for k, v in batch.items()}
        return self._infer(self._prepare_batch(batch), memory, noise, **kwargs)

    def _infer(self, batch, memory, noise, **kwargs) -> tuple[Tensor, Memory | None]:
        if not self.config.num_mem_tokens:
            return super()._get_action_chunk(batch, noise, **kwargs), None
        images, img_masks = self.prepare_images(batch)
        actions, memory = self.model.sample_actions(
            images,
            img_masks,
            batch[OBS_LANGUAGE_TOKENS],
            batch[OBS_LANGUAGE_ATTENTION_MASK],
            self.prepare_state(batch),
            noise=noise,
            memory=memory,
            **kwargs,
        )
        actions = actions[:, :, : self.config.action_feature.shape[0]]
        return (self._pi_aloha_encode_actions(actions) if self.config.adapt_to_pi_aloha else actions), memory

    def _get_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs) -> Tensor:
        """Infer with the memory kept here and commit it: every call is one memory write."""
        actions, self._memory = self._infer(batch, self._memory, noise, **kwargs)
        return actions

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs) -> Tensor:
        """One action (B, A). Each row infers when its own ``n_action_steps`` are used up.

        A row that :meth:`reset` cleared infers at once; the memory clock of the others does not move.
        """
        assert not self._rtc_enabled(), "RTC is not supported for select_action, use predict_action_chunk"
        self.eval()
        batch = self._prepare_batch(batch)
        steps = self.config.n_action_steps
        if self._cursor is None:
            size, device = batch[OBS_STATE].shape[0], batch[OBS_STATE].device
            self._cursor = torch.full((size,), steps, device=device)
            self._chunk = torch.zeros(size, steps, self.config.action_feature.shape[0], device=device)
        due = self._cursor >= steps
        if due.all():
            self._chunk = self._get_action_chunk(batch, noise, **kwargs)[:, :steps]
        elif due.any():
            some = {k: v[due] if isinstance(v, Tensor) else v for k, v in batch.items()}
            memory = self._memory.rows(due) if self._memory is not None else None
            actions, memory = self._infer(some, memory, None if noise is None else noise[due], **kwargs)
            self._chunk = self._chunk.index_put((due,), actions[:, :steps])
            if memory is not None:
                self._memory = self._memory.with_rows(due, memory)
        self._cursor = torch.where(due, 0, self._cursor)
        action = self._chunk[torch.arange(len(due), device=due.device), self._cursor]
        self._cursor = self._cursor + 1
        return action

    # Training through time ----------------------------------------------------------------------

    @property
    def segments(self) -> int:
        """Segments that :meth:`forward` unrolls now."""
        return self.config.segments_at(0 if self.mem_steps is None else int(self.mem_steps))

    def update(self) -> None:
        """LeRobot's hook after each optimizer step: counts it, where there is a curriculum."""
        if self.mem_steps is not None:
            self.mem_steps += 1

    def forward(self, batch: dict[str, Tensor], noise=None, time=None, reduction: str = "mean"):
        """Loss over the newest :attr:`segments` of one episode, the memory flowing through them.

        Args:
            batch: preprocessed sample with the time dimensions that the configuration's delta indices ask
                for: observations (B, [anchor +] S, ...), actions (B, 1 + (S - 1) * stride + chunk, A).
            noise: (B, S, chunk, max_action_dim) or None; as time, of which the newest are used.
            time: (B, S) or None.
            reduction: "mean", or "none" for one loss per sample (B,).

        Returns:
            The loss, and a dictionary of numbers to log.

        Raises:
            ValueError: the time dimensions do not fit the configuration.

        The gradient crosses the last ``mem_backprop_depth`` segment boundaries, as in RMT's own training;
        slots that are skipped do not count.
        State kept for ``select_action`` is never used.
        """
        if not self.config.num_mem_tokens:
            return super().forward(batch, noise=noise, time=time, reduction=reduction)
        config, model = self.config, self.model
        samples = self._unroll(batch)
        size, slots = samples.valid.shape
        depth = slots if config.mem_backprop_depth is None else config.mem_backprop_depth
        # The gradient enters a segment from the one before if at most `depth` are left, itself included.
        crossed = samples.valid.flip(1).cumsum(1).flip(1) <= depth
        segments = slots - config.mem_anchor
        noise, time = self._draw(size, segments, samples.actions.device, noise, time)
        memory = model.empty_memory(size)
        paused, pause = self._pause(slots)
        disturb = self._disturbance(size, slots + pause)
        total = torch.zeros(size, device=samples.actions.device)
        count = torch.zeros_like(total)
        for slot, body in enumerate(samples.bodies):
            # Only the rows that have this slot. The others keep what they remember.
            rows = samples.valid[:, slot].nonzero()[:, 0]
            if not len(rows):
                continue
            mine, entered = memory.rows(rows), crossed[rows, slot]
            before = mine.where(entered, mine.detach()) if entered.any() else mine.detach()
            segment = slot - config.mem_anchor
            if segment < 0:
                after = model.write(body, before)
            else:
                start = 1 + segment * config.stride
                window = slice(start, start + config.chunk_size)
                newest = segment - segments  # of those that were handed in
                losses, after = model(
                    body, samples.actions[rows, window], before, noise[rows, newest], time[rows, newest]
                )
                use = ~samples.action_is_pad[rows, window]
                losses = losses[:, :, : config.action_feature.shape[0]] * use[:, :, None]
                total = total.index_add(0, rows, losses.sum(dim=(1, 2)))
                count = count.index_add(0, rows, use.sum(1) * float(losses.shape[2]))
            after = disturb(after, rows)
            for _ in range(pause if slot == paused else 0):
                after = disturb(model.write(body, after), rows)
            memory = memory.with_rows(rows, after)
        rms = memory.tokens.detach().pow(2).mean().sqrt().item()
        log = {"memory_rms": rms, "memory_segments": segments}
        if reduction == "none":
            loss = total / count.clamp_min(1)
            return loss, {**log, "loss": loss.mean().item()}
        loss = total.sum() / count.sum().clamp_min(1)
        return loss, {**log, "loss": loss.item()}

    def _disturbance(self, size: int, writes: int) -> Callable[[Memory, Tensor], Memory]:
        """What disturbs a memory after each of so many ``writes``, of some rows of the batch.

        How much is drawn for each sample, up to ``mem_noise``: what must be told apart in the memory is
        learned from samples with little, what must last from those with much. Only in training.
        """
        config, tokens = self.config, self.model.mem_tokens
        if not (self.training and config.mem_noise):
            return lambda memory, rows: memory
        largest = config.mem_noise * config.mem_token_scale
        # All at once, so that processes draw alike, whichever rows each of them has.
        level = own_share(lambda rows: torch.rand(rows, 1, 1, 1, device=tokens.device), size)
        noise = own_share(lambda rows: torch.randn(rows, writes, *tokens.shape, device=tokens.device), size)
        in_turn = iter((largest * level * noise).transpose(0, 1))
        return lambda memory, rows: replace(memory, tokens=memory.tokens + next(in_turn)[rows])

    def _pause(self, slots: int) -> tuple[int, int]:
        """The slot whose frame is written again, and how often: drawn, and never without one to read it.

        (0, 0) but in training. One draw for the whole batch; processes that share one draw the same, as
        lerobot-train seeds them alike, and so none waits for another.
        """
        if not (self.training and self.config.mem_pause and slots > 1):
            return 0, 0
        return int(torch.randint(slots - 1, ())), int(torch.randint(self.config.mem_pause + 1, ()))

    def _draw(self, size: int, segments: int, device, noise, time) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` was handed, or drawn: (B, S, chunk, max_action_dim) and (B, S)."""
        shape = (segments, self.config.chunk_size, self.config.max_action_dim)
        model = self.model
        if noise is None:
            noise = own_share(lambda rows: model.sample_noise((rows, *shape), device), size)
        if time is None:
            time = own_share(lambda rows: model.sample_time(rows * segments, device).view(rows, -1), size)
        return noise, time

    @dataclass(frozen=True)
    class _Samples:
        bodies: list[Body]  # one a slot, of the rows that are valid there: (rows, L, H), (rows, L), (rows, L)
        valid: Tensor  # (B, slots): False where there is nothing
        actions: Tensor  # (B, 1 + (segments - 1) * stride + chunk, max_action_dim)
        action_is_pad: Tensor  # the same without its last dimension

    def _unroll(self, batch: dict[str, Tensor]) -> _Samples:
        """Embed all images of all segments in one go; only the memory has to wait for its turn.

        What lies before an episode's beginning is left out: in short episodes that is half of everything.
        """
        config = self.config
        state, actions = batch[OBS_STATE], batch[ACTION]
        slots = len(config.observation_delta_indices)
        length = len(config.action_delta_indices)
        if state.ndim != 3 or state.shape[1] != slots or actions.shape[1] != length:
            raise ValueError(
                f"smolvla_mem trains on {slots} frames of observations and {length} of actions (mem_segments="
                f"{config.mem_segments}, stride {config.stride}, mem_anchor={config.mem_anchor}, chunk_size="
                f"{config.chunk_size}), but the batch holds observation.state {tuple(state.shape)} and "
                f"action {tuple(actions.shape)}: load the dataset with this policy's delta indices"
            )
        batch = self._newest(batch, self.segments)
        state, actions = batch[OBS_STATE], self.prepare_action(batch)
        (size, slots), length = state.shape[:2], actions.shape[1]
        if config.adapt_to_pi_aloha:
            actions = self._pi_aloha_encode_actions_inv(actions)
        no_pad = torch.zeros(size, length, dtype=torch.bool, device=state.device)
        action_is_pad = batch.get(f"{ACTION}_is_pad", no_pad)
        valid = ~batch.get(f"{OBS_STATE}_is_pad", no_pad[:, :slots])
        if config.mem_anchor:
            # A real segment is the first frame when the action before it does not exist.
            nothing_before = action_is_pad[:, : length - config.chunk_size : config.stride]
            is_first = valid[:, 1:] & nothing_before
            valid = torch.cat([~is_first.any(1, keepdim=True), valid[:, 1:]], dim=1)
        slot, row = valid.T.nonzero(as_tuple=True)
        seen = {k: v[row, slot] for k, v in batch.items() if k == OBS_STATE or k in config.image_features}
        if config.adapt_to_pi_aloha:
            seen[OBS_STATE] = self._pi_aloha_decode_state(seen[OBS_STATE])
        body = self.model.embed_prefix(
            *self.prepare_images(seen),
            batch[OBS_LANGUAGE_TOKENS][row],
            batch[OBS_LANGUAGE_ATTENTION_MASK][row],
            state=self.prepare_state(seen),
        )
        counts = valid.sum(0).tolist()
        bodies = list(zip(*(part.split(counts) for part in body), strict=True))
        return self._Samples(bodies, valid, actions, action_is_pad)

    def _newest(self, batch: dict[str, Tensor], segments: int) -> dict[str, Tensor]:
        """The sample as ``mem_segments=segments`` would have asked for it, from the one that was loaded."""
        config = self.config
        older = config.mem_segments - segments
        if not older:
            return batch
        slots = [0] * config.mem_anchor + list(range(-segments, 0))
        observed = {OBS_STATE, f"{OBS_STATE}_is_pad", *config.image_features} & batch.keys()
        acted = {ACTION, f"{ACTION}_is_pad"} & batch.keys()
        return {
            **batch,
            **{key: batch[key][:, slots] for key in observed},
            **{key: batch[key][:, older * config.stride :] for key in acted},
        }


def own_share(draw: Callable[[int], Tensor], size: int) -> Tensor:
    """``size`` rows that ``draw`` makes; where processes share a batch, other rows in each.

    lerobot-train seeds all of them alike, so that each would draw the same. Each draws for all and takes its
    part: together they have what a single process would draw.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return draw(size)
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return draw(size * processes)[rank * size : (rank + 1) * size]


def resolve_vlm(name: str, checkpoint: str | os.PathLike) -> str:
    """The backbone folder inside ``checkpoint`` if ``name`` is one, else ``name`` as it stands."""
    inside = Path(checkpoint) / name
    return str(inside) if inside.is_dir() else name
