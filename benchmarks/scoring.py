"""How surprised is a language model by an answer? Exact: float32 on the weights that the embedded engine runs.

The GGUF file's weights are dequantised into transformers' Llama. An engine's own log-probabilities would not do: they
are of its samples, not of a text that is given, and its kernels round the activations.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["Scorer"]

_CONTROL = 3  # GGUF's token type of <|im_start|> and its like
_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Scorer:
    """Bits of given answers after a given chat, by a Llama in a GGUF file with a GPT-2 vocabulary (SmolLM2)."""

    def __init__(self, path: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        reader = gguf.GGUFReader(path)
        self._tokenizer = _tokenizer(reader)
        self._model = _model(reader)
        self._prefix: list[int] = []
        self._prefix_state: Any = None

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, control tokens included."""
        return [int(token) for token in self._tokenizer.encode(text).ids]

    def chat(self, messages: Sequence[dict[str, str]], start: str) -> list[int]:
        """Token ids of a chat in ChatML whose next turn, the assistant's, begins with `start`."""
        turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
        return self.tokens(f"{turns}<|im_start|>assistant\n{start}")

    @torch.inference_mode()
    def bits(self, prompt: list[int], answers: Sequence[list[int]]) -> list[float]:
        """-log2 p(answer | prompt) of each answer; the prompt is computed once for all of them."""
        state, size = self._known(prompt)
        run = self._model(torch.tensor([prompt[size:]]), past_key_values=state, use_cache=True, logits_to_keep=1)
        first = _log2(run.logits[0, -1])
        total = [-float(first[answer[0]]) for answer in answers]
        longest = max(map(len, answers))
        if longest > 1:
            # shorter answers are filled up on the right, where a causal model does not look
            batch = torch.tensor([answer + [0] * (longest - len(answer)) for answer in answers])
            run.past_key_values.batch_repeat_interleave(len(answers))
            rest = _log2(self._model(batch[:, :-1], past_key_values=run.past_key_values).logits)
            told = rest.gather(2, batch[:, 1:, None])[..., 0]
            total = [
                bits - float(row[: len(answer) - 1].sum())
                for bits, row, answer in zip(total, told, answers, strict=True)
            ]
        return total

    def _known(self, prompt: list[int]) -> tuple[Any, int]:
        """A copy of the state after the first turn, the system's, which prompts share, and its length."""
        size = prompt.index(self.tokens("<|im_end|>")[0]) + 1
        if self._prefix != prompt[:size]:
            self._prefix = prompt[:size]
            run = self._model(torch.tensor([self._prefix]), use_cache=True, logits_to_keep=1)
            self._prefix_state = run.past_key_values
        return copy.deepcopy(self._prefix_state), size


def _log2(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1) / math.log(2)


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def _model(reader: Any) -> LlamaForCausalLM:
    heads, kv_heads = _field(reader, "llama.attention.head_count"), _field(reader, "llama.attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=_field(reader, "llama.vocab_size"),
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=_field(reader, "llama.context_length"),
        rms_norm_eps=_field(reader, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": _field(reader, "llama.rope.freq_base")},
        tie_word_embeddings=True,
    )
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32))
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                values = _unpermuted(values, heads if parts[2] == "attn_q" else kv_heads)
            state[f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight"] = values
        else:
            state[{"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]] = values
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(state)
    return model


def _unpermuted(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp turns neighbouring rows of a head together, transformers its halves."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _tokenizer(reader: Any) -> Tokenizer:
    words, kinds = _field(reader, "tokenizer.ggml.tokens"), _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=merges))
    # llama.cpp's "smollm": every digit by itself, else as GPT-2
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in control])
    return tokenizer
