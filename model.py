"""The language model, and the VLM that shows it pictures.

    GPT   a decoder-only transformer that reads embeddings
    VLM   patch features -> adapter -> GPT: where a picture's tokens go, and how to ask about it

What is unusual here, for a reader who knows GPT-2:
    forward() takes embeddings, not token ids, so visual tokens need no special case
    a short convolution before attention and MLP, so that a token knows its neighbours at once
    norms have no gain; embeddings, queries and keys are normalised too: training stays stable
    rotary positions say how far apart two tokens are, learned ones where a token is
    squared ReLU, no biases, no dropout
    the outputs of blocks and the head start at zero, so the first loss is ln V

Letters, the same in every file: B batch, T text tokens, or everything a GPT reads, N visual tokens
(patches), C LLM width, D vision width, V an LLM's vocabulary, K words of a LangBridge, H attention
heads. In attention, S counts all tokens so far, cached ones included, and c = C/H.
"""
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from data.bpe import BOS, load_encoding, save_encoding
from data.corpus import PREFIX, prompt
from data.files import Refused, read_json, read_tensors, write_json, write_tensors


@dataclass
class GPTConfig:
    V: int  # vocabulary
    C: int = 128  # width
    H: int = 4  # attention heads
    layers: int = 2
    context: int = 512  # longest sequence


def norm(x):
    """RMSNorm without a gain: x / sqrt(mean(x^2))"""
    return F.rms_norm(x, (x.size(-1),))


class ShortConv(nn.Module):
    """y_t = x_t + sum_i w_i x_(t-i), i = 0 .. width - 1, channel by channel.

    A token sees its neighbours before attention: 'the word after red' becomes a feature of one
    token, which attention can look up (the Canon layer of Allen-Zhu 2025, 'Physics of Language
    Models 4.1'). It starts random: from zero, training finds it too late to help.
    """
    width = 6  # long enough from 'left' back to 'red' in 'red circle at the top left'

    def __init__(self, C):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(self.width, C).uniform_(-0.5, 0.5))  # w_0, w_1, ..

    def forward(self, x, past=None):
        """x (B, T, C) -> y (B, T, C), and the last width - 1 inputs (B, width - 1, C).

        `past` is what an earlier call returned second; None means zeros.
        """
        if past is None:
            past = x.new_zeros(x.size(0), self.width - 1, x.size(2))
        window = torch.cat([past, x], dim=1)  # (B, width - 1 + T, C)
        kernel = self.weight.flip(0).T[:, None]  # (C, 1, width)
        y = F.conv1d(window.mT, kernel, groups=x.size(2)).mT  # (B, T, C)
        return x + y, window[:, x.size(1):]


@dataclass
class BlockCache:
    """What a block keeps of the S tokens read so far, so that the next one costs only itself."""
    keys: torch.Tensor  # (B, H, S, C/H)
    values: torch.Tensor  # (B, H, S, C/H)
    attention_past: torch.Tensor  # (B, width - 1, C): of the convolution before attention
    mlp_past: torch.Tensor  # (B, width - 1, C): of the convolution before the MLP

    def pick(self, rows):
        """The same for some rows of the batch (indices or mask)."""
        return BlockCache(self.keys[rows], self.values[rows],
                          self.attention_past[rows], self.mlp_past[rows])


@dataclass
class Cache:
    """What a GPT keeps of the tokens read so far."""
    blocks: list  # [BlockCache]

    @property
    def length(self):
        return self.blocks[0].keys.size(2)

    def pick(self, rows):
        """A cache for some rows of the batch; a row may be picked several times."""
        return Cache([block.pick(rows) for block in self.blocks])


def rotary(length, c):
    """Turns e^(i angle) for each position and pair of channels: (length, c/2), complex (RoPE,
    arXiv 2104.09864)."""
    frequencies = 10000 ** -(torch.arange(0, c, 2) / c)  # (c/2,)
    angles = torch.arange(length)[:, None] * frequencies  # (length, c/2)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x, turns):
    """Turn each pair of channels by the angle of its position: x (.., T, c) -> (.., T, c)"""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (.., T, c/2), complex
    return torch.view_as_real(pairs * turns).flatten(-2)


def attention(q, k, v):
    """Causal attention written out: softmax(q k^T / sqrt(c)) v, where no query sees a later key.

    q (B, H, T, c), k and v (B, H, S, c) -> (B, H, T, c). The queries are the last T of the S
    positions, as cached generation needs. Where T = S, a fused kernel does the same; a test checks
    that the two agree.
    """
    T, S = q.size(-2), k.size(-2)
    scores = q @ k.mT / math.sqrt(q.size(-1))  # (B, H, T, S)
    causal = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return scores.masked_fill(~causal, -math.inf).softmax(-1) @ v  # (B, H, T, c)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.H = config.H
        self.conv = ShortConv(config.C)
        self.qkv = nn.Linear(config.C, 3 * config.C, bias=False)
        self.out = nn.Linear(config.C, config.C, bias=False)
        turns = rotary(config.context, config.C // config.H)
        self.register_buffer("turns", turns, persistent=False)

    def forward(self, x, cache=None):
        B, T, C = x.shape
        x, past = self.conv(x, cache.attention_past if cache else None)
        qkv = self.qkv(x).view(B, T, 3, self.H, C // self.H)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, C/H)
        start, v = cache.keys.size(2) if cache else 0, qkv[2]
        q, k = rotate(norm(qkv[:2]), self.turns[start:start + T]).type_as(v)  # 2 x (B, H, T, C/H)
        if cache:
            k = torch.cat([cache.keys, k], dim=2)  # (B, H, S, C/H)
            v = torch.cat([cache.values, v], dim=2)  # (B, H, S, C/H)
            cache.keys, cache.values, cache.attention_past = k, v, past
        if T == k.size(2):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.conv = ShortConv(config.C)
        self.up = nn.Linear(config.C, 4 * config.C, bias=False)
        self.down = nn.Linear(4 * config.C, config.C, bias=False)

    def forward(self, x, cache=None):
        x, past = self.conv(x, cache.mlp_past if cache else None)
        if cache:
            cache.mlp_past = past
        return self.down(F.relu(self.up(x)).square())  # (B, T, C)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention = CausalSelfAttention(config)
        self.mlp = MLP(config)

    def forward(self, x, cache=None, last=None):
        """x (B, T, C) -> (B, T, C), or of the `last` positions only (B, last, C)"""
        x = x + self.attention(norm(x), cache)
        if last is not None:
            x = x[:, -last:]
        return x + self.mlp(norm(x), cache)


class GPT(nn.Module):
    """Embeddings (B, T, C) -> logits (B, T, V). `embed` makes embeddings of token ids."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.V, config.C)
        self.position = nn.Parameter(torch.zeros(config.context, config.C))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Linear(config.C, config.V, bias=False)
        self.init_weights()

    def init_weights(self):
        """A block's inputs are projected at variance 1; its outputs, and the logits, start at zero.

        Embeddings keep PyTorch's normal init, convolutions ShortConv's.
        """
        bound = math.sqrt(3 / self.config.C)  # variance 1/C
        for block in self.blocks:
            nn.init.uniform_(block.attention.qkv.weight, -bound, bound)
            nn.init.zeros_(block.attention.out.weight)
            nn.init.uniform_(block.mlp.up.weight, -bound, bound)
            nn.init.zeros_(block.mlp.down.weight)
        nn.init.zeros_(self.head.weight)

    def hidden_matrices(self):
        """The matrices between embedding and head, for Muon (data/loop.py)."""
        matrices = []
        for block in self.blocks:
            matrices += [block.attention.qkv.weight, block.attention.out.weight]
            matrices += [block.mlp.up.weight, block.mlp.down.weight]
        return matrices

    def embed(self, ids):
        """Input embeddings of token ids, all of one size: (..., T) -> (..., T, C)"""
        return norm(self.embedding(ids))

    def forward(self, x, cache=None):
        """x (B, T, C) -> logits (B, T, V)"""
        return self.head(self.hidden(x, cache))  # (B, T, V)

    def hidden(self, x, cache=None, last=None):
        """What the head reads: x (B, T, C) -> (B, T, C), or of the `last` positions (B, last, C).

        With a cache, x continues the cached text, and the cache grows. `last` is for training only,
        without a cache: it spares the last MLP the picture's tokens, whose logits nobody needs.
        Raises Refused if the context is too short.
        """
        T, start = x.size(1), cache.length if cache else 0
        if start + T > self.config.context:
            raise Refused(f"{start + T} tokens do not fit into this LLM's context of "
                          f"{self.config.context}")
        x = x + self.position[start:start + T]
        past = cache.blocks if cache else [None] * len(self.blocks)
        for block, its_past in zip(self.blocks[:-1], past):
            x = block(x, its_past)
        if last is None:
            return norm(self.blocks[-1](x, past[-1]))  # (B, T, C)
        x = self.blocks[-1](x, last=last + ShortConv.width - 1)  # its convolution looks back
        return norm(x[:, -last:])  # (B, last, C)

    def new_cache(self, B):
        """An empty cache for B sequences."""
        C, H = self.config.C, self.config.H
        none = self.position.new_zeros(B, H, 0, C // H)
        past = self.position.new_zeros(B, ShortConv.width - 1, C)
        return Cache([BlockCache(none, none, past, past) for _ in self.blocks])

    @torch.no_grad()
    def generate(self, x, stop, max_tokens=60, cache=None):
        """Greedy continuations of the prompts x (B, T, C): B lists of token ids, without `stop`.

        All prompts have the same length. A given cache holds what precedes them.
        """
        cache = cache or self.new_cache(len(x))
        room = self.config.context - cache.length - x.size(1)
        answers = [[] for _ in x]
        rows = torch.arange(len(x), device=x.device)  # the prompts still being answered
        for _ in range(min(max_tokens, room)):
            logits = self.head(self.hidden(x, cache)[:, -1])  # (rows, V)
            ids = logits.argmax(-1)  # (rows,)
            going = ids != stop
            if not going.all():
                cache, rows, ids = cache.pick(going), rows[going], ids[going]
            if len(rows) == 0:
                break
            for row, id in zip(rows.tolist(), ids.tolist()):
                answers[row].append(id)
            x = self.embed(ids[:, None])  # (rows, 1, C)
        return answers


def same_length(prompts, batch=200):
    """Batches of prompts of equal length, so nothing is padded: {key: ids} -> yields (keys, ids
    (B, T))."""
    by_length = {}
    for key, ids in prompts.items():
        by_length.setdefault(len(ids), []).append(key)
    for group in by_length.values():
        for start in range(0, len(group), batch):
            keys = group[start:start + batch]
            yield keys, torch.tensor([prompts[key] for key in keys])


def save_llm(llm, encoding, folder):
    """Write llm.pt, llm.json and tokenizer.json into the folder."""
    write_tensors(folder / "llm.pt", llm.state_dict())
    write_json(folder / "llm.json", asdict(llm.config))
    save_encoding(encoding, folder / "tokenizer.json")


def load_llm(folder):
    """(GPT, tiktoken.Encoding), as save_llm wrote them."""
    folder = Path(folder)
    llm = GPT(GPTConfig(**read_json(folder / "llm.json")))
    llm.load_state_dict(read_tensors(folder / "llm.pt"))
    return llm, load_encoding(folder / "tokenizer.json")


class VLM(nn.Module):
    """A picture's patches, passed through the adapter and placed as tokens inside ordinary text:

        <|bos|>scene:\\n
        [patch] [patch] [patch] [patch] [patch] [patch] \\n      six such rows
        question: what color is the circle? red\\n

    Each row of patches ends with the LLM's own newline, so a picture is laid out like the grids of
    words that the LLM has read. Without an adapter the model is blind: the baseline.
    """

    def __init__(self, adapter, llm, encoding):
        super().__init__()
        self.adapter = adapter
        self.llm = llm
        self.encoding = encoding
        self.newline = encoding.encode_single_token(b"\n")
        self.prefix = encoding.encode(PREFIX, allowed_special={BOS})

    def embed(self, ids):
        """The LLM's embeddings of a list of ids, for a batch of one: (1, T, C)"""
        return self.llm.embed(torch.tensor([ids], device=self.llm.embedding.weight.device))

    def picture(self, features):
        """What comes before the text: features (B, N, D) -> (B, prefix + N + rows, C)"""
        B, N, _ = features.shape
        prefix = self.embed(self.prefix).expand(B, -1, -1)  # (B, prefix, C)
        if self.adapter is None:
            return prefix
        v = self.adapter(features)  # (B, N, C)
        side = math.isqrt(N)
        v = v.view(B, side, side, -1)  # (B, rows, columns, C)
        newline = self.embed([self.newline]).to(v.dtype).expand(B, side, 1, -1)  # (B, rows, 1, C)
        rows = torch.cat([v, newline], dim=2)  # (B, rows, columns + 1, C)
        return torch.cat([prefix, rows.flatten(1, 2)], dim=1)  # (B, prefix + N + rows, C)

    def forward(self, features, ids, wanted):
        """Logits (n, V) for the n text ids that are `wanted`, each from everything before it.

        Only the wanted ones go through the head, the largest matrix of a small LLM.
        features (B, N, D), ids (B, T), wanted (n,): indices into the B T ids
        """
        picture = self.picture(features)  # (B, prefix + N + rows, C)
        x = torch.cat([picture, self.llm.embed(ids)], dim=1)[:, :-1]
        hidden = self.llm.hidden(x, last=ids.size(1))  # (B, T, C)
        return self.llm.head(hidden.flatten(0, 1)[wanted])  # (n, V)

    @torch.no_grad()
    def answer(self, features, asked, batch=200):
        """Greedy answers (strings) to questions about pictures; one for each in `asked`.

        features (B, N, D), asked: [(picture's index, question), ..]. A picture is read once,
        however many questions it gets: each continues from a copy of its cache. Raises Refused
        if a question leaves no room for an answer.
        """
        prompts = [self.encoding.encode(prompt(question)) for _, question in asked]
        answers = [""] * len(asked)
        for start in range(0, len(features), batch):
            part = features[start:start + batch]
            pictures = self.llm.new_cache(len(part))
            self.llm.hidden(self.picture(part), pictures)
            about = {k: prompts[k] for k, (i, _) in enumerate(asked)
                     if start <= i < start + len(part)}
            for ks, ids in same_length(about):
                room = self.llm.config.context - pictures.length - ids.size(1)
                if room < 1:
                    raise Refused(f"a question of {ids.size(1)} tokens does not fit into this "
                                  f"LLM's context; at most {ids.size(1) + room - 1} do")
                cache = pictures.pick([asked[k][0] - start for k in ks])
                text = self.llm.embed(ids.to(features.device))  # (questions, T, C)
                for k, tokens in zip(ks, self.llm.generate(text, self.newline, cache=cache)):
                    answers[k] = self.encoding.decode(tokens).strip()
        return answers
