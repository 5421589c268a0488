"""The language model, and the VLM that shows it pictures.

    GPT     small, trained from nothing by train.py: embeddings in, logits out
    VLM     patch features -> adapter -> LLM: where a picture's tokens go, and how to ask about it

What is unusual about our GPT, for a reader who knows GPT-2:
    forward() takes embeddings, not token ids, so visual tokens need no special case
    a short convolution begins each block, so that a token knows its neighbours at once
    norms have no gain; embeddings, queries and keys are normalised too: training stays stable
    rotary positions say how far apart two tokens are, learned ones where a token is
    squared ReLU, no biases, no dropout
    the outputs of blocks and the head start at zero, so the first loss is ln V

Letters, the same in every file: B batch, T text tokens, or everything an LLM reads, N visual tokens
(patches), C LLM width, D vision width, V an LLM's vocabulary, K words of a LangBridge, H attention
heads. In attention, S counts all tokens so far, cached ones included, and c = C / H is the width of
a head.
"""
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from data.bpe import line_ends, load_encoding, save_encoding
from data.corpus import PREFIX, encode, prompt
from data.files import Refused, load_module, save_module


# ---- the language model -------------------------------------------------------------------------

@dataclass
class GPTConfig:
    V: int  # vocabulary
    C: int = 128  # width
    H: int = 4  # attention heads
    layers: int = 2
    context: int = 512  # longest sequence


def norm(x):
    """RMSNorm without a gain: x / sqrt(mean(x^2))"""
    return F.rms_norm(x, x.shape[-1:])


def rotate(x, turns):
    """Turn each pair of channels by the angle of its position (RoPE, arXiv 2104.09864).

    x (.., T, c), turns (T, c/2), complex: e^(i angle) -> (.., T, c)
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (.., T, c/2), complex
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


def attention(q, k, v):
    """Causal attention written out: softmax(q k^T / sqrt(c)) v, where no query sees a later key.

    q (B, H, T, c), k and v (B, H, S, c) -> (B, H, T, c). The queries are the last T of the S
    positions, as cached generation needs. Where T = S, a fused kernel does the same; a test checks
    that the two agree.
    """
    T, S = q.size(2), k.size(2)
    scores = q @ k.mT / math.sqrt(q.size(-1))  # (B, H, T, S)
    seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ v  # (B, H, T, c)


class ShortConv(nn.Module):
    """y_t = x_t + sum_i w_i x_(t-i), i = 0 .. width - 1, channel by channel.

    A token sees its neighbours without attention: 'the word after red' becomes a feature of one
    token, which attention can look up (the Canon layer of Allen-Zhu 2025, 'Physics of Language
    Models 4.1'). It starts random: from zero, training finds it too late to help.
    """
    width = 6  # long enough from 'left' back to 'red' in 'red circle at the top left'

    def __init__(self, C):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(self.width, C).uniform_(-0.5, 0.5))  # w_0, w_1, ..

    def forward(self, x, cache):
        """x (B, T, C) -> (B, T, C); a cache (a dict, or None) keeps the inputs that the next
        token's window needs."""
        past = cache["inputs"] if cache else x.new_zeros(x.size(0), self.width - 1, x.size(2))
        window = torch.cat([past, x], dim=1)  # (B, width - 1 + T, C)
        if cache is not None:
            cache["inputs"] = window[:, x.size(1):]  # (B, width - 1, C)
        kernel = self.weight.flip(0).T[:, None]  # (C, 1, width)
        return x + F.conv1d(window.mT, kernel, groups=x.size(2)).mT  # (B, T, C)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.H = config.H
        self.qkv = nn.Linear(config.C, 3 * config.C, bias=False)
        self.out = nn.Linear(config.C, config.C, bias=False)

    def forward(self, x, turns, cache):
        qkv = self.qkv(x).unflatten(2, (3, self.H, -1))  # (B, T, 3, H, c)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, c)
        q, k = rotate(norm(qkv[:2]), turns)  # 2 x (B, H, T, c)
        v = qkv[2]
        if cache is not None:
            if "keys" in cache:
                k = torch.cat([cache["keys"], k], dim=2)  # (B, H, S, c)
                v = torch.cat([cache["values"], v], dim=2)  # (B, H, S, c)
            cache["keys"], cache["values"] = k, v
        if q.size(2) == k.size(2):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, c)
        else:
            y = attention(q, k, v)  # (B, H, T, c)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.C, 4 * config.C, bias=False)
        self.down = nn.Linear(4 * config.C, config.C, bias=False)

    def forward(self, x):
        return self.down(F.relu(self.up(x)).square())  # (B, T, C)


class Block(nn.Module):
    """x + conv(x), then + attention(norm(x)), then + mlp(norm(x))"""

    def __init__(self, config):
        super().__init__()
        self.conv, self.attention, self.mlp = ShortConv(config.C), Attention(config), MLP(config)

    def forward(self, x, turns, cache=None, last=None):
        """x (B, T, C) -> (B, T, C), or of the `last` positions only (B, last, C)"""
        x = self.conv(x, cache)
        x = x + self.attention(norm(x), turns, cache)
        if last:
            x = x[:, -last:]  # (B, last, C)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    """Embeddings (B, T, C) -> logits (B, T, V)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.V, config.C)
        self.position = nn.Parameter(torch.zeros(config.context, config.C))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Linear(config.C, config.V, bias=False)
        pairs = torch.arange(0, config.C // config.H, 2)
        frequencies = 10000.0 ** -(pairs / (config.C // config.H))  # (c/2,)
        self.register_buffer("frequencies", frequencies, persistent=False)
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

    def embed(self, ids):
        """Input embeddings of token ids, all of one size: (..., T) -> (..., T, C)"""
        return norm(self.embedding(ids.to(self.embedding.weight.device)))

    def forward(self, x, cache=None):
        """x (B, T, C) -> logits (B, T, V)"""
        return self.head(self.hidden(x, cache))  # (B, T, V)

    def hidden(self, x, cache=None, last=None):
        """What the head reads: x (B, T, C) -> (B, T, C), or of the `last` positions (B, last, C).

        With a cache, x continues the cached text, and the cache grows. `last` spares the last MLP
        a picture's tokens, whose logits nobody needs. Raises Refused if the context is too short.
        """
        start = length(cache)
        end = start + x.size(1)
        if end > self.config.context:
            raise Refused(f"{end} tokens do not fit into this LLM's context of "
                          f"{self.config.context}")
        x = x + self.position[start:end]
        angles = torch.arange(start, end, device=x.device)[:, None] * self.frequencies  # (T, c/2)
        turns = torch.polar(torch.ones_like(angles), angles)  # (T, c/2), complex
        for i, block in enumerate(self.blocks):
            is_last = i == len(self.blocks) - 1
            x = block(x, turns, cache[i] if cache else None, last if is_last else None)
        return norm(x)  # (B, T, C), (B, last, C) if that is given

    def new_cache(self):
        """What an LLM keeps of the tokens read so far, so that the next one costs only itself: a
        dict of tensors (B, ..) for each block, at first an empty one."""
        return [{} for _ in self.blocks]

    @torch.no_grad()
    def generate(self, x, stops, max_tokens=60, cache=None):
        """Greedy continuations of the prompts x (B, T, C): B lists of token ids, up to the first of
        `stops` (ids) and without it.

        All prompts have the same length. A given cache holds what precedes them. Raises Refused if
        there is no room for an answer.
        """
        cache = cache or self.new_cache()
        room = self.config.context - length(cache) - x.size(1)
        if room < 1:
            raise Refused(f"a question of {x.size(1)} tokens does not fit into this LLM's context; "
                          f"at most {x.size(1) + room - 1} do")
        answers = [[] for _ in x]
        rows = torch.arange(len(x), device=x.device)  # the prompts still being answered
        stops = torch.tensor(stops, device=x.device)
        for _ in range(min(max_tokens, room)):
            logits = self.head(self.hidden(x, cache)[:, -1])  # (rows, V)
            ids = logits.argmax(-1)  # (rows,)
            going = torch.isin(ids, stops, invert=True)
            if not going.all():
                cache, rows, ids = pick(cache, going), rows[going], ids[going]
            if len(rows) == 0:
                break
            for row, id in zip(rows.tolist(), ids.tolist()):
                answers[row].append(id)
            x = self.embed(ids[:, None])  # (rows, 1, C)
        return answers


def length(cache):
    """How many tokens a cache holds."""
    return cache[0]["keys"].size(2) if cache and cache[0] else 0


def pick(cache, rows):
    """A cache for some rows of the batch; a row may be picked several times."""
    return [{name: x[rows] for name, x in block.items()} for block in cache]


def same_length(prompts, batch=200):
    """Batches of prompts of equal length, so nothing is padded: {key: ids} -> yields (keys, ids
    (B, T))."""
    by_length = {}
    for key, ids in prompts.items():
        by_length.setdefault(len(ids), []).append(key)
    for keys in by_length.values():
        for start in range(0, len(keys), batch):
            some = keys[start:start + batch]
            yield some, torch.tensor([prompts[key] for key in some])


def save_llm(llm, encoding, folder):
    """Write llm.pt, llm.json and tokenizer.json into the folder."""
    save_module(llm, asdict(llm.config), folder / "llm")
    save_encoding(encoding, folder / "tokenizer.json")


def load_llm(folder):
    """What save_llm wrote: (GPT, tiktoken.Encoding)"""
    llm = load_module(lambda config: GPT(GPTConfig(**config)), Path(folder) / "llm")
    return llm, load_encoding(Path(folder) / "tokenizer.json")


# ---- the vision-language model ------------------------------------------------------------------

class VLM(nn.Module):
    """A picture's patches, passed through the adapter and placed as tokens inside ordinary text:

        <|bos|>scene:\\n
        [patch] [patch] [patch] [patch] [patch] [patch] \\n      six such rows
        question: what color is the circle? red\\n

    Each row of patches ends with the LLM's own newline, so a picture is laid out like the grids of
    words that the LLM has read. Without an adapter the model is blind: the baseline.
    """
    batch = 200  # pictures, or questions, that are answered at a time

    def __init__(self, adapter, llm, encoding):
        super().__init__()
        self.adapter, self.llm, self.encoding = adapter, llm, encoding
        self.newline = encoding.encode_single_token(b"\n")
        self.stops = line_ends(encoding)
        self.prefix, _ = encode(encoding, PREFIX)

    def embed(self, ids):
        """The LLM's embeddings of a list of ids, for a batch of one: (1, T, C)"""
        return self.llm.embed(torch.tensor([ids]))

    def room(self, N):
        """How many tokens of text the context holds after a picture of N patches."""
        rows = 0 if self.adapter is None else N + math.isqrt(N)
        return self.llm.config.context - len(self.prefix) - rows

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

    def forward(self, features, ids):
        """What the head reads to predict each text token from everything before it.

        features (B, N, D), ids (B, T) -> (B, T, C)
        """
        picture = self.picture(features)  # (B, prefix + N + rows, C)
        x = torch.cat([picture, self.llm.embed(ids)], dim=1)[:, :-1]  # (B, prefix + .. + T - 1, C)
        return self.llm.hidden(x, last=ids.size(1))  # (B, T, C)

    def read(self, features):
        """The LLM reads pictures, a batch at a time: yields (their indices, the cache)."""
        for start in range(0, len(features), self.batch):
            cache = self.llm.new_cache()
            picture = self.picture(features[start:start + self.batch])
            self.llm.hidden(picture, cache)
            yield range(start, start + len(picture)), cache

    @torch.no_grad()
    def answer(self, features, asked):
        """Greedy answers (strings) to questions about pictures; one for each in `asked`.

        features (B, N, D), asked: [(picture's index, question), ..]. A picture is read once,
        however many questions it gets: each continues from a copy of its cache.
        """
        prompts = [self.encoding.encode_ordinary(prompt(question)) for _, question in asked]
        answers = [""] * len(asked)
        for pictures, cache in self.read(features):
            row = {i: row for row, i in enumerate(pictures)}
            about = {k: prompts[k] for k, (i, _) in enumerate(asked) if i in row}
            for ks, ids in same_length(about, self.batch):
                begun = pick(cache, [row[asked[k][0]] for k in ks])
                text = self.llm.embed(ids)  # (n, T, C)
                for k, tokens in zip(ks, self.llm.generate(text, self.stops, cache=begun)):
                    answers[k] = self.encoding.decode(tokens).strip()
        return answers
