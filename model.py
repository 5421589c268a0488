"""The language model, and the VLM that shows it pictures.

    GPT   a decoder-only transformer over embeddings, so that words and visual tokens are the same thing to it
    VLM   ViT -> adapter -> GPT: where a picture's tokens go, and how a question about it is answered

Letters, the same in every file: B batch, T text tokens, N visual tokens (patches), C LLM width, D vision width,
V an LLM's vocabulary, K shared vocabulary, H attention heads.
"""
import json
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from data.bpe import BOS, load_encoding, save_encoding


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


def rotary(length, c):
    """cos and sin (length, c/2) of the angle by which each position turns each channel pair (RoPE, arXiv 2104.09864)."""
    frequencies = 10000 ** -(torch.arange(0, c, 2) / c)
    angles = torch.arange(length)[:, None] * frequencies  # (length, c/2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def attention(q, k, v):
    """Causal attention written out: softmax(q k^T / sqrt(c)) v, where a query sees no later key.

    q (B, H, T, c), k and v (B, H, S, c) -> (B, H, T, c); the queries are the last T of the S positions, which is what
    generation with a cache needs. Training uses the fused kernel for T = S; a test holds the two equal.
    """
    T, S = q.size(-2), k.size(-2)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, S)
    seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ v  # (B, H, T, c)


class Taps(torch.autograd.Function):
    """y_t = sum_i w_i u_(t-i) over `width` inputs, channel by channel; u (B, width - 1 + T, C), w (width, C) -> (B, T, C)

    Six multiply-adds that autograd could derive by itself, but it would copy the sequence three times for each of them: by
    hand, forward and backward take 0.4 of the time, and a training step 0.85.
    """

    @staticmethod
    def forward(ctx, u, w):
        ctx.save_for_backward(u, w)
        T = u.size(1) - len(w) + 1
        y = u.new_zeros(len(u), T, u.size(2))
        for i in range(len(w)):
            start = len(w) - 1 - i
            y.addcmul_(u[:, start:start + T], w[i])
        return y

    @staticmethod
    def backward(ctx, dy):
        u, w = ctx.saved_tensors
        T, du, dw = dy.size(1), torch.zeros_like(u), []
        for i in range(len(w)):
            start = len(w) - 1 - i
            du[:, start:start + T].addcmul_(dy, w[i])
            if ctx.needs_input_grad[1]:  # not in a frozen LLM
                dw.append((dy * u[:, start:start + T]).sum((0, 1)))
        return du, torch.stack(dw) if dw else None


class ShortConv(nn.Module):
    """y_t = x_t + sum_i w_i x_(t-i), i = 0..5, channel by channel: a token sees its neighbours before attention does.

    This is what lets a tiny LLM look things up: 'the word after red' becomes a feature of one token, which attention can
    then search for or bring back (the Canon layer of Allen-Zhu 2025, 'Physics of Language Models 4.1'). It must not
    start at zero: at zero it is found too late to be used (README, 'How a tiny LLM learns to read').
    """
    width = 6

    def __init__(self, C):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(self.width, C).uniform_(-0.5, 0.5))

    def forward(self, x, cache=None):
        B, T, C = x.shape
        past = cache[self] if cache and self in cache else x.new_zeros(B, self.width - 1, C)
        window = torch.cat([past, x], dim=1)  # (B, width - 1 + T, C)
        if cache is not None:
            cache[self] = window[:, T:]  # (B, width - 1, C)
        return x + Taps.apply(window, self.weight.to(x.dtype))


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.H = config.H
        self.conv = ShortConv(config.C)
        self.qkv = nn.Linear(config.C, 3 * config.C, bias=False)
        self.out = nn.Linear(config.C, config.C, bias=False)
        cos, sin = rotary(config.context, config.C // config.H)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x, cache=None, last=None):
        """x (B, T, C) -> what the last positions have looked up, (B, last, C); by default all of them."""
        B, T, C = x.shape
        qkv = self.qkv(self.conv(x, cache))  # (B, T, 3C)
        q, k, v = qkv.view(B, T, 3, self.H, C // self.H).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, C/H)
        past = cache.get(self) if cache is not None else None
        start = past[0].size(2) if past else 0
        cos, sin = self.cos[start:start + T], self.sin[start:start + T]
        q, k = rotate(norm(q), cos, sin), rotate(norm(k), cos, sin)  # unit-size queries and keys: training stays calm
        if past:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)  # (B, H, S, C/H)
        if cache is not None:
            cache[self] = k, v
        q = q[:, :, -(last or T):]  # (B, H, last, C/H)
        y = attention(q, k, v) if q.size(2) < k.size(2) else F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, last, C)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.conv = ShortConv(config.C)
        self.up = nn.Linear(config.C, 4 * config.C, bias=False)
        self.down = nn.Linear(4 * config.C, config.C, bias=False)

    def forward(self, x, cache=None):
        return self.down(F.relu(self.up(self.conv(x, cache))).square())


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention, self.mlp = CausalSelfAttention(config), MLP(config)

    def forward(self, x, cache=None, last=None):
        y = self.attention(norm(x), cache, last)  # (B, last, C)
        x = x[:, -y.size(1):] + y
        return x + self.mlp(norm(x), cache)


class GPT(nn.Module):
    """embeddings (B, T, C) -> logits (B, T, V). `embed` turns token ids into embeddings; visual tokens come as they are."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.V, config.C)
        # Rotary positions say how far apart two tokens are, these say where one is: which tile of a raster, for example.
        self.position = nn.Parameter(torch.zeros(config.context, config.C))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Linear(config.C, config.V, bias=False)
        for name, p in self.named_parameters():
            if name.endswith(("out.weight", "down.weight", "head.weight")):
                nn.init.zeros_(p)  # each block starts as the identity, and the first loss is ln V
            elif name.endswith(("qkv.weight", "up.weight")):
                nn.init.uniform_(p, -math.sqrt(3 / config.C), math.sqrt(3 / config.C))  # outputs of variance 1

    def embed(self, ids):
        """Input embeddings of token ids, all of one size: (..., T) -> (..., T, C)"""
        return norm(self.embedding(ids))

    def forward(self, x, cache=None):
        """x (B, T, C) -> logits (B, T, V)"""
        return self.head(self.hidden(x, cache))

    def hidden(self, x, cache=None, last=None):
        """What the head reads, of the last positions: (B, T, C) -> (B, last, C); by default of all.

        Who trains on answers about pictures needs the logits of few tokens, and nothing after the last attention of the others:
        that is a sixth of a step's work. With a cache, x goes on where the cache ends, and the cache grows. Raises ValueError if
        the context is too short.
        """
        start = cache.get("length", 0) if cache is not None else 0
        if start + x.size(1) > self.config.context:
            raise ValueError(f"{start + x.size(1)} tokens do not fit into this LLM's context of {self.config.context}")
        if cache is not None:
            cache["length"] = start + x.size(1)
        x = x + self.position[start:start + x.size(1)]
        for block in self.blocks[:-1]:
            x = block(x, cache)
        last = last or x.size(1)
        x = self.blocks[-1](x, cache, last + ShortConv.width - 1)  # the convolution of the last MLP looks back
        return norm(x[:, -last:])

    @torch.no_grad()
    def generate(self, x, stop, max_tokens=60, cache=None):
        """Greedy continuation of the prompts x (B, T, C), all of one length; returns B lists of token ids, without `stop`.

        The cache keeps what each layer needs of the past (keys, values, the convolutions' last inputs), so a step costs
        one token and not the whole sequence. One that is given holds what comes before the prompts.
        """
        cache = {} if cache is None else cache
        out, rows = [[] for _ in x], torch.arange(len(x), device=x.device)  # the prompts whose answers have not ended yet
        for _ in range(min(max_tokens, self.config.context - cache.get("length", 0) - x.size(1))):
            ids = self.head(self.hidden(x, cache, last=1)[:, 0]).argmax(-1)  # (rows,)
            going = ids != stop
            if not going.all():
                cache, rows, ids = pick(cache, going), rows[going], ids[going]
            if not len(rows):
                break
            for row, id in zip(rows.tolist(), ids.tolist()):
                out[row].append(id)
            x = self.embed(ids[:, None])  # (rows, 1, C)
        return out


def pick(cache, rows):
    """The cache of these rows of the batch, by index, a row perhaps several times, or by mask."""
    of = lambda part: part if isinstance(part, int) else tuple(x[rows] for x in part) if isinstance(part, tuple) else part[rows]
    return {layer: of(part) for layer, part in cache.items()}


def same_length(ids, batch=200):
    """Sort token lists into batches of equal length, so that generation needs no padding: yields (indices, (B, T) ids)."""
    by_length = {}
    for i, tokens in enumerate(ids):
        by_length.setdefault(len(tokens), []).append(i)
    for group in by_length.values():
        for start in range(0, len(group), batch):
            rows = group[start:start + batch]
            yield rows, torch.tensor([ids[i] for i in rows])


def save_llm(llm, encoding, folder):
    """Write llm.pt, llm.json and tokenizer.json into the folder."""
    torch.save(llm.state_dict(), folder / "llm.pt")
    (folder / "llm.json").write_text(json.dumps(asdict(llm.config), indent=1), encoding="utf-8")
    save_encoding(encoding, folder / "tokenizer.json")


def load_llm(folder):
    """(GPT, tiktoken.Encoding), as save_llm wrote them."""
    llm = GPT(GPTConfig(**json.loads((folder / "llm.json").read_text(encoding="utf-8"))))
    llm.load_state_dict(torch.load(folder / "llm.pt", map_location="cpu", weights_only=True))
    return llm, load_encoding(folder / "tokenizer.json")


class VLM(nn.Module):
    """A picture's patches, through the adapter, as tokens between ordinary text:

        <|bos|>scene:\\n  [row of patches] \\n  [row of patches] \\n ...  question: what color is the circle? red\\n

    After each row comes the LLM's own newline embedding, so that the picture is laid out like the rasters of words that
    the LLM has read. Without an adapter there is no picture: that is the blind baseline.
    """

    def __init__(self, adapter, llm, encoding):
        super().__init__()
        self.adapter, self.llm, self.encoding = adapter, llm, encoding
        self.newline = encoding.encode_single_token(b"\n")
        self.prefix = encoding.encode(f"{BOS}scene:\n", allowed_special={BOS})

    def picture(self, features):
        """What comes before the text: features (B, N, D) -> (B, prefix + N + rows, C)"""
        B, device = len(features), self.llm.embedding.weight.device
        parts = [self.llm.embed(torch.tensor([self.prefix], device=device)).expand(B, -1, -1)]  # (B, prefix, C)
        if self.adapter is not None:
            v = self.adapter(features)  # (B, N, C)
            side = math.isqrt(v.size(1))
            newline = self.llm.embed(torch.tensor([self.newline], device=device)).expand(B, side, 1, -1)  # (B, side, 1, C)
            rows = torch.cat([v.view(B, side, side, -1), newline.to(v.dtype)], dim=2)  # (B, side, side + 1, C)
            parts.append(rows.flatten(1, 2))
        return torch.cat(parts, dim=1)

    def forward(self, features, ids, wanted):
        """Logits (n, V) that predict those n of the text ids (B, T) that are `wanted` (B, T; bool), each from the picture and the text
        before it."""
        x = torch.cat([self.picture(features), self.llm.embed(ids)], dim=1)[:, :-1]
        return self.llm.head(self.llm.hidden(x, last=ids.size(1))[wanted])  # (n, V)

    @torch.no_grad()
    def answer(self, features, asked, batch=200):
        """Greedy answers (strings) to questions about pictures; features (B, N, D), asked: [(picture's index, question), ..].

        Each picture is read once, whatever is asked about it: every question goes on from a copy of the picture's cache.
        """
        ids = [self.encoding.encode(f"question: {question}") for _, question in asked]
        answers = [""] * len(asked)
        for start in range(0, len(features), batch):
            about = [k for k, (i, _) in enumerate(asked) if start <= i < start + batch]
            cache = {}
            self.llm.hidden(self.picture(features[start:start + batch]), cache, last=1)
            for rows, text in same_length([ids[k] for k in about]):
                rows = [about[row] for row in rows]
                own = pick(cache, [asked[k][0] - start for k in rows])
                text = self.llm.embed(text.to(features.device))  # (questions, T, C)
                for k, tokens in zip(rows, self.llm.generate(text, self.newline, cache=own)):
                    answers[k] = self.encoding.decode(tokens).strip()
        return answers
