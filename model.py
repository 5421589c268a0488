"""The language models, and the VLM that shows them pictures.

    LLM     what they share: embeddings in, logits out, greedy answers with a cache
    GPT     our own: small, trained from nothing by train.py
    Llama   other people's: LLaMA, Qwen2, SmolLM .., read from a GGUF file (data/gguf.py)
    VLM     patch features -> adapter -> LLM: where a picture's tokens go, and how to ask about it

What is unusual about our GPT, for a reader who knows GPT-2:
    forward() takes embeddings, not token ids, so visual tokens need no special case
    a short convolution before attention and MLP, so that a token knows its neighbours at once
    norms have no gain; embeddings, queries and keys are normalised too: training stays stable
    rotary positions say how far apart two tokens are, learned ones where a token is
    squared ReLU, no biases, no dropout
    the outputs of blocks and the head start at zero, so the first loss is ln V

And what the Llama does instead:
    norms have a gain; embeddings, queries and keys are not normalised
    rotary positions only; no convolutions
    several queries share a key and a value, which makes the cache smaller
    SwiGLU: a second projection, passed through SiLU, opens and closes each channel of the MLP
    the head may be the embedding; Qwen2 adds biases to queries, keys and values

Letters, the same in every file: B batch, T text tokens, or everything an LLM reads, N visual tokens
(patches), C LLM width, D vision width, V an LLM's vocabulary, K words of a LangBridge, H attention
heads. In attention, S counts all tokens so far, cached ones included, c is the width of a head, and
G <= H heads have keys and values of their own.
"""
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from adapter import in_tiles, shown
from data.bpe import BOS, line_ends, load_encoding, save_encoding
from data.corpus import LIST_HEAD, PREFIX, list_place, prompt
from data.files import Refused, load_weights, read_json, read_tensors, write_json, write_tensors
from data.gguf import GGUF, STRETCH, read_encoding, read_weights, sizes_of


# ---- what all LLMs share ------------------------------------------------------------------------

@dataclass
class BlockCache:
    """What a block keeps of the S tokens read so far, so that the next one costs only itself."""
    keys: torch.Tensor = None  # (B, G, S, c)
    values: torch.Tensor = None  # (B, G, S, c)
    shared: tuple = None  # keys and values (G, P, c) of what comes before, the same in all rows

    def append(self, k, v):
        """Add those of new tokens, (B, G, T, c) each; returns all (B, G, S, c)."""
        if self.keys is not None:
            k = torch.cat([self.keys, k], dim=2)  # (B, G, S, c)
            v = torch.cat([self.values, v], dim=2)  # (B, G, S, c)
        self.keys, self.values = k, v
        return k, v

    def pick(self, rows):
        """The same for some rows of the batch (indices or mask)."""
        kept = {name: x[rows] for name, x in vars(self).items() if torch.is_tensor(x)}
        return type(self)(**kept, shared=self.shared)

    def share(self, B):
        """What one row has read becomes what B rows begin with; it is kept only once."""
        return type(self)(shared=(self.keys[0], self.values[0]))


@dataclass
class Cache:
    """What an LLM keeps of the tokens read so far."""
    blocks: list  # [BlockCache]

    @property
    def length(self):
        keys, shared = self.blocks[0].keys, self.blocks[0].shared
        own = 0 if keys is None else keys.size(2)
        return own if shared is None else own + shared[0].size(1)

    def pick(self, rows):
        """A cache for some rows of the batch; a row may be picked several times."""
        return Cache([block.pick(rows) for block in self.blocks])

    def share(self, B):
        """The cache of one row as the beginning of B rows."""
        return Cache([block.share(B) for block in self.blocks])


def rotate(x, turns):
    """Turn each pair of channels by the angle of its position (RoPE, arXiv 2104.09864).

    x (.., T, c), turns (T, c/2), complex: e^(i angle) -> (.., T, c)
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (.., T, c/2), complex
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


def attention(q, k, v, shared=None):
    """Causal attention written out: softmax(q k^T / sqrt(c)) v, where no query sees a later key.

    q (B, H, T, c), k and v (B, G, S, c) -> (B, H, T, c); H/G queries share a key. The queries are
    the last T of the S positions, as cached generation needs. Where T = S, a fused kernel does the
    same; a test checks that the two agree. `shared` holds keys and values (G, P, c) that all rows
    begin with.
    """
    B, T, S = q.size(0), q.size(2), k.size(2)
    q = q.unflatten(1, (k.size(1), -1)).flatten(2, 3) / math.sqrt(q.size(-1))  # (B, G, H/G T, c)
    scores = q @ k.mT  # (B, G, H/G T, S)
    if T > 1:
        causal = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        scores = scores.unflatten(2, (-1, T)).masked_fill(~causal, -math.inf).flatten(2, 3)
    if shared is None:
        y = scores.softmax(-1) @ v  # (B, G, H/G T, c)
    else:  # all rows at once: a large product instead of B small ones
        keys, values = shared
        before = rows_apart(rows_together(q) @ keys.mT, B)  # (B, G, H/G T, P)
        weights = torch.cat([before, scores], dim=-1).softmax(-1)  # (B, G, H/G T, P + S)
        before, own = weights.split([keys.size(1), S], dim=-1)
        y = rows_apart(rows_together(before) @ values, B) + own @ v  # (B, G, H/G T, c)
    return y.unflatten(2, (-1, T)).flatten(1, 2)  # (B, H, T, c)


def rows_together(x):
    """(B, G, n, ..) -> (G, B n, ..)"""
    return x.transpose(0, 1).flatten(1, 2)


def rows_apart(x, B):
    """The way back: (G, B n, ..) -> (B, G, n, ..)"""
    return x.unflatten(1, (B, -1)).transpose(0, 1)


def attend(q, k, v, cache=None):
    """Attention to all tokens so far, which a cache keeps.

    q (B, H, T, c), k and v (B, G, T, c) -> (B, T, H c)
    """
    if cache:
        k, v = cache.append(k, v)  # (B, G, S, c)
    shared = cache.shared if cache else None
    if q.size(2) == k.size(2) and shared is None:
        grouped = q.size(1) != k.size(1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    else:
        y = attention(q, k, v, shared)
    return y.transpose(1, 2).flatten(2)  # (B, T, H c)


class Block(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(x))"""

    def __init__(self, attention, mlp, attention_norm, mlp_norm):
        super().__init__()
        self.attention, self.attention_norm = attention, attention_norm
        self.mlp, self.mlp_norm = mlp, mlp_norm

    def forward(self, x, turns, cache=None, last=None):
        """x (B, T, C) -> (B, T, C), or of the `last` positions only (B, last, C)"""
        x = x + self.attention(self.attention_norm(x), turns, cache)
        if last is not None:
            x = x[:, -last:]
        return x + self.mlp(self.mlp_norm(x), cache)


class LLM(nn.Module):
    """Embeddings (B, T, C) -> logits (B, T, V). A subclass has config, embedding, blocks, norm and
    head, calls set_rotary, and may add to what follows."""
    look_back = 0  # positions before the last ones that the last MLP reads, too
    cache_of_block = BlockCache

    def set_rotary(self, c, base, stretch=1.0):
        """Pair j of a head's channels turns by base^(-2j/c) / stretch per position."""
        pairs = torch.arange(0, c, 2, device="cpu")  # there even if weights are shapes alone
        frequencies = base ** -(pairs / c) / stretch  # (c/2,)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def turns(self, start, T):
        """e^(i angle) for T positions and each pair of channels: (T, c/2), complex"""
        positions = torch.arange(start, start + T, device=self.frequencies.device)
        angles = positions[:, None] * self.frequencies  # (T, c/2)
        return torch.polar(torch.ones_like(angles), angles)

    def embed(self, ids):
        """Input embeddings of token ids, all of one size: (..., T) -> (..., T, C)"""
        return self.embedding(ids)

    def place(self, x, start):
        """What says where the tokens x (B, T, C) are; rotary positions say it in attention."""
        return x

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
        x, turns = self.place(x, start), self.turns(start, T)
        past = cache.blocks if cache else [None] * len(self.blocks)
        for block, its_past in zip(self.blocks[:-1], past):
            x = block(x, turns, its_past)
        if last is None:
            return self.norm(self.blocks[-1](x, turns, past[-1]))  # (B, T, C)
        x = self.blocks[-1](x, turns, last=last + self.look_back)
        return self.norm(x[:, -last:])  # (B, last, C)

    def new_cache(self):
        """A cache in which nothing has been read."""
        return Cache([self.cache_of_block() for _ in self.blocks])

    @torch.no_grad()
    def generate(self, x, stops, max_tokens=60, cache=None):
        """Greedy continuations of the prompts x (B, T, C): B lists of token ids, up to the first of
        `stops` (ids) and without it.

        All prompts have the same length. A given cache holds what precedes them.
        """
        cache = cache or self.new_cache()
        room = self.config.context - cache.length - x.size(1)
        answers = [[] for _ in x]
        rows = torch.arange(len(x), device=x.device)  # the prompts still being answered
        stops = torch.tensor(stops, device=x.device)
        for _ in range(min(max_tokens, room)):
            logits = self.head(self.hidden(x, cache)[:, -1])  # (rows, V)
            ids = logits.argmax(-1)  # (rows,)
            going = torch.isin(ids, stops, invert=True)
            if not going.all():
                cache, rows, ids = cache.pick(going), rows[going], ids[going]
            if len(rows) == 0:
                break
            for row, id in zip(rows.tolist(), ids.tolist()):
                answers[row].append(id)
            x = self.embed(ids[:, None])  # (rows, 1, C)
        return answers


# ---- our own ------------------------------------------------------------------------------------

@dataclass
class GPTConfig:
    V: int  # vocabulary
    C: int = 128  # width
    H: int = 4  # attention heads
    layers: int = 2
    context: int = 512  # longest sequence


class Norm(nn.Module):
    """RMSNorm without a gain: x / sqrt(mean(x^2))"""

    def forward(self, x):
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
class ConvCache(BlockCache):
    attention_past: torch.Tensor = None  # (B, width - 1, C): of the convolution before attention
    mlp_past: torch.Tensor = None  # (B, width - 1, C): of the convolution before the MLP

    def share(self, B):
        begun = super().share(B)
        begun.attention_past = self.attention_past.expand(B, -1, -1)
        begun.mlp_past = self.mlp_past.expand(B, -1, -1)
        return begun


class GPTAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.H, self.norm = config.H, Norm()
        self.conv = ShortConv(config.C)
        self.qkv = nn.Linear(config.C, 3 * config.C, bias=False)
        self.out = nn.Linear(config.C, config.C, bias=False)

    def forward(self, x, turns, cache=None):
        x, past = self.conv(x, cache.attention_past if cache else None)
        if cache:
            cache.attention_past = past
        qkv = self.qkv(x).unflatten(2, (3, self.H, -1))  # (B, T, 3, H, c)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, c)
        q, k = rotate(self.norm(qkv[:2]), turns)  # 2 x (B, H, T, c)
        return self.out(attend(q, k, qkv[2], cache))  # (B, T, C)


class GPTMLP(nn.Module):
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


class GPT(LLM):
    """The LLM that train.py trains from nothing."""
    look_back = ShortConv.width - 1  # the last MLP's convolution
    cache_of_block = ConvCache

    def __init__(self, config):
        super().__init__()
        self.config, self.norm = config, Norm()
        self.embedding = nn.Embedding(config.V, config.C)
        self.position = nn.Parameter(torch.zeros(config.context, config.C))
        self.blocks = nn.ModuleList(Block(GPTAttention(config), GPTMLP(config), Norm(), Norm())
                                    for _ in range(config.layers))
        self.head = nn.Linear(config.C, config.V, bias=False)
        self.set_rotary(config.C // config.H, base=10000)
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
        return self.norm(self.embedding(ids))

    def place(self, x, start):
        return x + self.position[start:start + x.size(1)]


# ---- other people's -----------------------------------------------------------------------------

@dataclass
class LlamaConfig:
    V: int  # vocabulary
    C: int  # width
    H: int  # attention heads
    G: int  # heads of keys and values
    c: int  # width of a head
    F: int  # width of the MLP
    layers: int
    context: int  # longest sequence
    base: float  # of the rotary positions
    eps: float  # of the norms
    tied: bool  # whether the head is the embedding
    biased: bool  # whether queries, keys and values have biases
    file: str  # the GGUF file, where its vocabulary is


class LlamaAttention(nn.Module):
    """H queries in G groups; each group shares a key and a value (arXiv 2305.13245)."""

    def __init__(self, config):
        super().__init__()
        self.heads = [config.H, config.G, config.G]  # of q, k and v
        self.qkv = nn.Linear(config.C, sum(self.heads) * config.c, bias=config.biased)
        self.out = nn.Linear(config.H * config.c, config.C, bias=False)

    def forward(self, x, turns, cache=None):
        qkv = self.qkv(x).unflatten(2, (sum(self.heads), -1))  # (B, T, H + 2 G, c)
        q, k, v = qkv.transpose(1, 2).split(self.heads, dim=1)  # (B, H or G, T, c)
        return self.out(attend(rotate(q, turns), rotate(k, turns), v, cache))  # (B, T, C)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)"""

    def __init__(self, config):
        super().__init__()
        self.gate_up = nn.Linear(config.C, 2 * config.F, bias=False)
        self.down = nn.Linear(config.F, config.C, bias=False)

    def forward(self, x, cache=None):
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, F) each
        return self.down(F.silu(gate) * up)  # (B, T, C)


class Llama(LLM):
    """The LLM of most open weights (LLaMA, arXiv 2302.13971): pretrained by others, on the web."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.V, config.C)
        self.blocks = nn.ModuleList(
            Block(LlamaAttention(config), SwiGLU(config), nn.RMSNorm(config.C, config.eps),
                  nn.RMSNorm(config.C, config.eps)) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.C, config.eps)
        self.head = nn.Linear(config.C, config.V, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        self.set_rotary(config.c, config.base)

    def hidden_matrices(self):
        """None for Muon: weights that AdamW has trained are tuned with AdamW."""
        return []


# ---- files --------------------------------------------------------------------------------------

def same_length(prompts, batch=200):
    """Batches of prompts of equal length, so nothing is padded: {key: ids} -> yields (keys, ids
    (B, T))."""
    for keys in batches_of_one_length(prompts, batch):
        yield keys, torch.tensor([prompts[key] for key in keys])


def batches_of_one_length(texts, batch):
    """{key: text} -> yields lists of keys, whose texts (ids or embeddings) are equally long"""
    by_length = {}
    for key, text in texts.items():
        by_length.setdefault(len(text), []).append(key)
    for group in by_length.values():
        for start in range(0, len(group), batch):
            yield group[start:start + batch]


def save_llm(llm, encoding, folder):
    """Write llm.pt, llm.json and tokenizer.json into the folder; a Llama's vocabulary stays in its
    GGUF file."""
    write_tensors(folder / "llm.pt", llm.state_dict())
    write_json(folder / "llm.json", asdict(llm.config))
    if isinstance(llm, GPT):
        save_encoding(encoding, folder / "tokenizer.json")


def load_llm(path):
    """(LLM, tiktoken.Encoding): what save_llm wrote into a folder, or those of a GGUF file."""
    path = Path(path)
    if path.suffix == ".gguf" or path.is_file():
        return load_gguf(path)
    config = read_json(path / "llm.json")
    if "file" in config:  # tuned here
        llm, encoding = load_gguf(config["file"])
        llm.load_state_dict(read_tensors(path / "llm.pt"))
    else:
        encoding = load_encoding(path / "tokenizer.json")
        llm = load_weights(lambda: GPT(GPTConfig(**config)), path / "llm.pt")
    return llm, encoding


def load_gguf(path):
    """(Llama, tiktoken.Encoding). Raises Refused for a file that is damaged or not known."""
    file = GGUF(Path(path).resolve())
    config, encoding = LlamaConfig(**sizes_of(file), file=str(file.path)), read_encoding(file)
    with torch.device("meta"):  # shapes alone: nothing is allocated before the file's are compared
        llm = Llama(config)
    shapes = {name: w.shape for name, w in llm.named_parameters()}  # a tied head is there once
    weights = read_weights(file, shapes, config.c)
    state = {name: torch.from_numpy(w) for name, w in weights.items()}
    if config.tied:
        state["head.weight"] = state["embedding.weight"]
    llm.load_state_dict(state, assign=True)
    if config.tied:
        llm.head.weight = llm.embedding.weight
    stretch = torch.from_numpy(file.read(STRETCH)) if STRETCH in file.tensors else 1.0
    llm.set_rotary(config.c, config.base, stretch)
    return llm, encoding


def encode_prefix(encoding):
    """The ids of what comes before a scene; most tokenizers do not have our BOS."""
    known = BOS in encoding.special_tokens_set
    return encoding.encode(PREFIX if known else PREFIX.removeprefix(BOS), allowed_special="all")


class VLM(nn.Module):
    """A picture's patches, passed through the adapter and placed as tokens inside ordinary text:

        <|bos|>scene:\\n
        [patch] [patch] [patch] [patch] [patch] [patch] \\n      six such rows
        question: what color is the circle? red\\n

    Each row of patches ends with the LLM's own newline, so a picture is laid out like the grids of
    words that the LLM has read. Without an adapter the model is blind: the baseline.
    """

    batch = 200  # pictures, or questions, that are answered at a time
    layout = "A newline ends each row."

    def __init__(self, adapter, llm, encoding):
        super().__init__()
        self.adapter = adapter
        self.llm = llm
        self.encoding = encoding
        self.newline = encoding.encode_single_token(b"\n")
        self.stops = line_ends(encoding)
        self.prefix = encode_prefix(encoding)

    def embed(self, ids):
        """The LLM's embeddings of a list of ids, for a batch of one: (1, T, C)"""
        return self.llm.embed(torch.tensor([ids], device=self.llm.embedding.weight.device))

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

    def forward(self, features, ids, wanted):
        """Logits (n, V) for the n text ids that are `wanted`, each from everything before it.

        Only the wanted ones go through the head, the largest matrix of a small LLM.
        features (B, N, D), ids (B, T), wanted (n,): indices into the B T ids
        """
        picture = self.picture(features)  # (B, prefix + N + rows, C)
        x = torch.cat([picture, self.llm.embed(ids)], dim=1)[:, :-1]
        hidden = self.llm.hidden(x, last=ids.size(1))  # (B, T, C)
        return self.llm.head(hidden.flatten(0, 1)[wanted])  # (n, V)

    def read(self, features):
        """The LLM reads pictures: yields ([index], cache) for those that have one length."""
        for start in range(0, len(features), self.batch):
            picture = self.picture(features[start:start + self.batch])
            cache = self.llm.new_cache()
            self.llm.hidden(picture, cache)
            yield range(start, start + len(picture)), cache

    @torch.no_grad()
    def answer(self, features, asked):
        """Greedy answers (strings) to questions about pictures; one for each in `asked`.

        features (B, N, D), asked: [(picture's index, question), ..]. A picture is read once,
        however many questions it gets: each continues from a copy of its cache. Raises Refused
        if a question leaves no room for an answer, or has no tokens.
        """
        prompts = [self.encoding.encode(prompt(question)) for _, question in asked]
        if max(map(max, prompts)) >= self.llm.config.V:
            raise Refused("a question has a byte that is no token of this LLM: leave it out")
        answers = [""] * len(asked)
        for pictures, cache in self.read(features):
            row = {i: row for row, i in enumerate(pictures)}
            about = {k: prompts[k] for k, (i, _) in enumerate(asked) if i in row}
            for ks, ids in same_length(about, self.batch):
                room = self.llm.config.context - cache.length - ids.size(1)
                if room < 1:
                    raise Refused(f"a question of {ids.size(1)} tokens does not fit into this "
                                  f"LLM's context; at most {ids.size(1) + room - 1} do")
                begun = cache.pick([row[asked[k][0]] for k in ks])
                text = self.llm.embed(ids.to(self.llm.embedding.weight.device))  # (n, T, C)
                for k, tokens in zip(ks, self.llm.generate(text, self.stops, cache=begun)):
                    answers[k] = self.encoding.decode(tokens).strip()
        return answers

    @torch.no_grad()
    def find(self, features, asked):
        """Which picture is an answer most likely about? For each in `asked`, the picture's index.

            argmax_i sum_t ln p(a_t | picture i, question, a_1 .. a_(t-1))

        features (B, N, D), asked: [(pictures' indices, question, answer), ..]. The answer is the
        same for all pictures, so how usual it is does not matter. To a blind model they are alike.
        """
        found, read = [], None
        for pictures, question, answer in asked:
            if pictures != read:  # others than for the answer before
                read, cache = pictures, self.llm.new_cache()
                self.llm.hidden(self.picture(features[list(pictures)]), cache)
            before = self.encoding.encode(prompt(question))
            room = self.llm.config.context - cache.length - len(before)
            ids = before + self.encoding.encode(f" {answer}\n")[:room]
            x = self.embed(ids[:-1]).expand(len(pictures), -1, -1)  # (B, T - 1, C)
            hidden = self.llm.hidden(x, cache.pick(slice(None)))[:, len(before) - 1:]
            ln_p = self.llm.head(hidden).float().log_softmax(-1)  # (B, answer, V)
            said = torch.tensor(ids[len(before):], device=ln_p.device)  # (answer,)
            own = ln_p.gather(2, said.expand(len(pictures), -1)[..., None])  # (B, answer, 1)
            found.append(pictures[own.sum((1, 2)).argmax().item()])
        return found


class Prompted(VLM):
    """A VLM whose LLM was never trained to see: first it is given solved examples, as text.

        scene:
        place | object
        top left | red circle
        question: which shape does the red object have? circle
        ..
        scene:
        place | object
        bottom right | [visual token] [visual token]
        question: what color is the star? blue

    A picture is told in a line for each place where the adapter sees something: the place, then two
    visual tokens, each the mean over the two rows of its four patches.
    """
    batch = 64
    layout = "A line for each place where there is something; examples come before."

    def __init__(self, adapter, llm, encoding, examples):
        super().__init__(adapter, llm, encoding)
        self.prefix = encoding.encode(examples) + self.prefix
        self.begun = None  # the cache in which the examples have been read

    def told(self, features):
        """What the LLM reads of each picture: [(T, C), ..]"""
        v = in_tiles(self.adapter(features))  # (B, tiles, 4, C)
        v = v.unflatten(2, (2, 2)).mean(2)  # (B, tiles, 2, C)
        (head,) = self.embed(self.encoding.encode(LIST_HEAD))  # (T, C)
        (newline,) = self.embed([self.newline])  # (1, C)
        told = []
        for tokens, places in zip(v, shown(self.adapter, features)):
            pieces = [head]
            for place in places.nonzero()[:, 0].tolist():
                (line,) = self.embed(self.encoding.encode(list_place(place)))  # (T, C)
                pieces += [line, tokens[place], newline]
            told.append(torch.cat(pieces))  # (T, C)
        return told

    def picture(self, features):
        """What comes before the text, for a single picture: (1, prefix + lines, C)"""
        (told,) = self.told(features)  # (T, C)
        return torch.cat([self.embed(self.prefix), told[None]], dim=1)  # (B, prefix + lines, C)

    def read(self, features):
        if self.begun is None:
            self.begun = self.llm.new_cache()
            self.llm.hidden(self.embed(self.prefix), self.begun)
        told = dict(enumerate(self.told(features)))
        for pictures in batches_of_one_length(told, self.batch):
            x = torch.stack([told[i] for i in pictures])  # (B, T, C)
            cache = self.begun.share(len(pictures))
            if x.size(1):
                self.llm.hidden(x, cache)
            yield pictures, cache


class Reader(Prompted):
    """The same LLM with the same examples, but without pictures: it reads texts, strings that stand
    where features did. What it cannot read, it cannot see."""

    def __init__(self, llm, encoding, examples):
        super().__init__(None, llm, encoding, examples)

    def told(self, texts):
        return [self.embed(self.encoding.encode(text))[0] if text else
                self.llm.embedding.weight[:0] for text in texts]
