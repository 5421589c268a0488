"""The two adapters, side by side: from patch features (B, N, D) to visual tokens (B, N, C).

    MLPAdapter   v = mlp(x)      ends in one LLM's width: another LLM needs another adapter
    LangBridge   v = W(x) @ E    one weight for each word; E holds the LLM's own embeddings of these
                                 words: another LLM needs another E, and W stays the same

The method is that of Liao et al. 2025, 'LangBridge' (arXiv 2503.19404).
"""
import hashlib
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import corpus
from data.files import load_weights, read_json, write_json, write_tensors

NOTHING = corpus.NOTHING.encode()  # the word that an untrained LangBridge says: 'nothing here'
COEFFICIENTS = ("softplus", "softmax", "relu", "linear")
BASES = ("words", "centered")


class MLPAdapter(nn.Module):
    """LLaVA's projector: Linear, GELU, Linear (Liu et al. 2024, arXiv 2310.03744, section 3.3).

    x (B, N, D) -> v (B, N, C);  hidden: the width between the two Linears, 0 for C
    """

    def __init__(self, D, C, hidden=0):
        super().__init__()
        hidden = hidden or C
        self.config = {"kind": "mlp", "D": D, "C": C, "hidden": hidden}
        self.net = nn.Sequential(nn.Linear(D, hidden), nn.GELU(), nn.Linear(hidden, C))

    def hidden_matrices(self):
        """The matrices, for Muon (data/loop.py)."""
        return [self.net[0].weight, self.net[2].weight]

    def set_basis(self, llm, encoding):
        """Only a check: an MLP is made for one LLM. Raises ValueError if the widths differ."""
        C = self.config["C"]
        if llm.config.C != C:
            raise ValueError(f"this MLP adapter was trained for an LLM of width {C} and cannot be "
                             f"used with one of width {llm.config.C}; retrain it, or use a "
                             "LangBridge")
        return self

    def forward(self, x):
        return self.net(x)  # (B, N, C)


class LangBridge(nn.Module):
    """Each patch as a mixture of words: v = W(x) @ E.

    x (B, N, D) -> v (B, N, C);  W: Linear(D, hidden), GELU, Linear(hidden, hidden),
    Linear(hidden, K); two Linears in a row, as in the paper; it reads whitened features

    tokens        the K words as byte strings: the adapter knows words, not ids, and looks up
                  their ids in the tokenizer at hand
    coefficients  how the outputs l of W become weights:
                      softplus  ln(1 + e^l) / their sum
                      softmax   e^l / their sum; it soon puts all weight on one word, and how
                                sure the patch was is lost
                      relu      max(l, 0)
                      linear    l, as in the paper's code
    basis         'words', or 'centered': the words minus their mean
    drawn         in training, this share of the patches says one word, sampled with its weight
                  as probability, instead of a mixture. A private code of many small weights
                  does not survive that; words do, so another LLM can understand them. Needs
                  weights that sum to 1
    """

    def __init__(self, D, tokens, hidden=256, coefficients="softplus", basis="words", drawn=0.0):
        super().__init__()
        if coefficients not in COEFFICIENTS:
            raise ValueError(f"coefficients must be one of {', '.join(COEFFICIENTS)}, "
                             f"not {coefficients!r}")
        if basis not in BASES:
            raise ValueError(f"basis must be one of {', '.join(BASES)}, not {basis!r}")
        if drawn and coefficients not in ("softplus", "softmax"):
            raise ValueError(f"words can be drawn by their weights only where these sum to 1 "
                             f"(softplus, softmax), not with {coefficients!r}: drawn must be 0")
        self.D, self.hidden = D, hidden
        self.coefficients, self.basis, self.drawn = coefficients, basis, drawn
        self.tokens = list(tokens)
        self.missing = []  # the words that the LLM lacks
        K = len(self.tokens)
        self.W = nn.Sequential(nn.Linear(D, hidden), nn.GELU(), nn.Linear(hidden, hidden),
                               nn.Linear(hidden, K))
        self.register_buffer("mean", torch.zeros(D))  # from whiten
        self.register_buffer("scale", torch.eye(D))  # (D, D), from whiten
        self.register_buffer("E", None, persistent=False)  # (K, C), from set_basis
        self.register_buffer("present", None, persistent=False)  # (K,) bool, from set_basis
        self.init_weights()

    def init_weights(self):
        """Start close to 'nothing here', which is true of most patches.

        Equal weights would not learn: their mixture is the mean of all words, the same for every
        patch and unlike any text.
        """
        K = len(self.tokens)
        everything, nothing = {  # the bias of each word, and of 'nothing here'
            "softplus": (-math.log(K), 4.0),  # all K together weigh about 1, 'nothing here' about 4
            "softmax": (0.0, 3.0),  # K - 1 together, against 20
            "relu": (0.0, 1.0),
            "linear": (0.0, 1.0),
        }[self.coefficients]
        nn.init.normal_(self.W[-1].weight, std=0.02)
        nn.init.constant_(self.W[-1].bias, everything)
        if NOTHING in self.tokens:
            nn.init.constant_(self.W[-1].bias[self.tokens.index(NOTHING)], nothing)

    def whiten(self, x, floor=0.1):
        """Let W read (x - mean) S^(-1/2), S the covariance of features x (n, D), no labels needed.

        Features differ far more in some directions than in others; without this, answers after
        stage 1 are worse (results/tries.py, 'plain'). `floor`, times the mean eigenvalue, keeps
        noise from being blown up. Returns the adapter.
        """
        self.mean.copy_(x.mean(0))
        eigenvalues, Q = torch.linalg.eigh((x - self.mean).T.cov(correction=0))  # (D,), (D, D)
        self.scale.copy_(Q * (eigenvalues + floor * eigenvalues.mean()).rsqrt() @ Q.T)
        return self

    @property
    def config(self):
        """What save_adapter stores and load_adapter rebuilds from."""
        tokens = [t.decode("latin-1") for t in self.tokens]
        return {"kind": "langbridge", "D": self.D, "tokens": tokens, "hidden": self.hidden,
                "coefficients": self.coefficients, "basis": self.basis, "drawn": self.drawn}

    def hidden_matrices(self):
        """The matrices, for Muon (data/loop.py)."""
        return [self.W[0].weight, self.W[2].weight, self.W[3].weight]

    def set_basis(self, llm, encoding):
        """From now on, speak to this LLM: E becomes its embeddings of the words; W is untouched.

        Changes the adapter in place and returns it. Words that are not tokens of this LLM get no
        weight; `missing` lists them. Raises ValueError if more than half are missing: the rest
        would be a different adapter.
        """
        vocabulary = set(encoding.token_byte_values())
        present = [t in vocabulary for t in self.tokens]
        self.missing = [t for t in self.tokens if t not in vocabulary]
        if len(self.missing) > len(self.tokens) / 2:
            raise ValueError(f"the tokenizer {encoding.name!r} has only {sum(present)} of this "
                             f"adapter's {len(present)} tokens (it lacks {self.missing[:5]} ...): "
                             "the vocabularies share too little")
        device = llm.embedding.weight.device
        ids = [encoding.encode_single_token(t) if t in vocabulary else 0 for t in self.tokens]
        E = llm.embed(torch.tensor(ids, device=device)).detach().clone()  # (K, C)
        self.present = torch.tensor(present, device=device)  # (K,)
        if self.basis == "centered":
            E -= E[self.present].mean(0)
        self.E = E * self.present[:, None]  # (K, C)
        return self

    def weights(self, x):
        """The weight of each word in each patch: x (B, N, D) -> (B, N, K)"""
        if self.E is None:
            raise RuntimeError("this LangBridge has no LLM to speak to: call "
                               "set_basis(llm, encoding) before it is used")
        logits = self.W((x - self.mean) @ self.scale).float()  # (B, N, K)
        if self.coefficients == "softmax":
            return logits.masked_fill(~self.present, -torch.inf).softmax(-1)  # (B, N, K)
        if self.coefficients == "softplus":
            w = F.softplus(logits) * self.present  # (B, N, K)
            return w / w.sum(-1, keepdim=True)
        if self.coefficients == "relu":
            return F.relu(logits) * self.present
        return logits * self.present

    def forward(self, x):
        """x (B, N, D) -> v (B, N, C)"""
        beta = self.weights(x)  # (B, N, K)
        if self.training and self.drawn > 0:
            beta = self.draw(beta)  # (B, N, K)
        return beta @ self.E  # (B, N, C)

    def draw(self, beta):
        """A share of the patches says one word, sampled by weight: beta (B, N, K) -> (B, N, K)

        The value is the word's; the gradient is the mixture's (straight-through).
        """
        B, N, K = beta.shape
        word = torch.multinomial(beta.detach().flatten(0, 1), 1).view(B, N)
        alone = torch.rand(B, N, 1, device=beta.device) < self.drawn  # the patches that draw
        one_word = F.one_hot(word, K).to(beta.dtype)  # (B, N, K)
        return beta + (alone * (one_word - beta)).detach()


class Quoted(nn.Module):
    """An adapter whose words are passed on with other weights; each of these has its own `weights`,
    x (B, N, D) -> (B, N, K)."""

    def __init__(self, adapter):
        super().__init__()
        self.adapter, self.tokens, self.E = adapter, adapter.tokens, adapter.E

    def forward(self, x):
        return self.weights(x) @ self.E  # (B, N, C)


class Edited(Quoted):
    """A LangBridge that says one word for another: {'red': 'blue'} moves the weight of red."""

    def __init__(self, adapter, swaps):
        super().__init__(adapter)
        self.swaps = [(adapter.tokens.index(token(old)), adapter.tokens.index(token(new)))
                      for old, new in swaps.items()]

    def weights(self, x):
        """x (B, N, D) -> (B, N, K)"""
        before = self.adapter.weights(x)  # (B, N, K)
        after = before.clone()
        for old, new in self.swaps:
            after[..., old] -= before[..., old]
            after[..., new] += before[..., old]
        return after


def read_as_words(mlp, llm, encoding, tokens, temperature):
    """An MLP as a LangBridge: each visual token says the words that it is nearest to.

        beta = softmax_k(v . e_k / (C temperature)),  v = mlp(x)

    That is linear in v, so it is one more layer of W: the MLP's own two, then a third that holds
    the embeddings of the words. From then on its basis can be swapped, and it can be trained.
    (Embeddings have |e|^2 = C, so v . e / C is a cosine times the length of v in words.) The LLM is
    the one that the MLP was trained with.
    """
    C = llm.config.C
    if mlp.config["hidden"] != C:
        raise ValueError(f"only an MLP whose hidden width is {C}, its LLM's, can be read as words")
    bridge = LangBridge(mlp.config["D"], tokens, hidden=C, coefficients="softmax")
    bridge.set_basis(llm, encoding).to(bridge.E.device)
    bridge.W[0].load_state_dict(mlp.net[0].state_dict())
    bridge.W[2].load_state_dict(mlp.net[2].state_dict())
    with torch.no_grad():
        bridge.W[3].weight.copy_(bridge.E / (C * temperature))
        bridge.W[3].bias.zero_()
    return bridge


class Written(Quoted):
    """What an adapter's patches say, as text: whole words instead of mixtures.

    If `relaid`, the 2 x 2 patches of a tile vote: a tile whose top word is 'nothing here' says so
    four times; any other writes its two top words in both rows, as rasters do. Else each patch says
    its own top word. What is known is the form of a raster, not which words are colours or shapes.
    """

    def __init__(self, adapter, relaid=True):
        super().__init__(adapter)
        self.relaid = relaid

    def weights(self, x):
        """x (B, N, D) -> one word per patch (B, N, K)"""
        beta = self.adapter.weights(x)  # (B, N, K)
        words = beta.argmax(-1)  # (B, N)
        if self.relaid:
            nothing, votes = self.tokens.index(NOTHING), in_tiles(beta).sum(2)  # (B, tiles, K)
            empty = votes.argmax(-1, keepdim=True) == nothing  # (B, tiles, 1)
            votes[..., nothing] = -torch.inf
            pair = votes.topk(2).indices.masked_fill(empty, nothing)  # (B, tiles, 2)
            words = from_tiles(torch.cat([pair, pair], dim=-1))  # (B, N)
        return F.one_hot(words, beta.size(-1)).to(beta.dtype)  # (B, N, K)


class Placed(Quoted):
    """An adapter without words, and another one that tells where there is something."""

    def __init__(self, adapter, sees):
        super().__init__(sees)
        self.speaks = adapter

    def weights(self, x):
        """x (B, N, D) -> (B, N, K)"""
        return self.adapter.weights(x)

    def forward(self, x):
        return self.speaks(x)  # (B, N, C)


class Voted(Quoted):
    """Between an adapter and Written: the patches of a tile agree, but they still say mixtures, the
    mean of their weights."""

    def weights(self, x):
        """x (B, N, D) -> (B, N, K)"""
        votes = in_tiles(self.adapter.weights(x)).mean(2, keepdim=True)  # (B, tiles, 1, K)
        return from_tiles(votes.expand(-1, -1, 4, -1))  # (B, N, K)


def shown(adapter, x):
    """Where an adapter sees something: the tiles whose top word is not 'nothing here'.

    x (B, N, D) -> (B, tiles), bool
    """
    votes = in_tiles(adapter.weights(x)).sum(2)  # (B, tiles, K)
    return votes.argmax(-1) != adapter.tokens.index(NOTHING)  # (B, tiles)


def in_tiles(x):
    """Patches in tiles of 2 x 2: (B, N, ..) -> (B, N / 4, 4, ..), each in raster order"""
    g = math.isqrt(x.size(1)) // 2
    x = x.unflatten(1, (g, 2, g, 2)).transpose(2, 3)  # (B, g, g, 2, 2, ..)
    return x.flatten(3, 4).flatten(1, 2)


def from_tiles(x):
    """The way back: (B, N / 4, 4, ..) -> (B, N, ..)"""
    g = math.isqrt(x.size(1))
    x = x.unflatten(1, (g, g)).unflatten(3, (2, 2)).transpose(2, 3)  # (B, g, 2, g, 2, ..)
    return x.flatten(1, 4)


def token(word):
    """The bytes of a word's token within a text: 'red' -> b' red'"""
    return f" {word}".encode()


def readable(tokens):
    """The tokens that are a word of three letters or more: no bytes, punctuation, word endings.

    >>> readable([b" red", b"ed", b" a", b" .", b"\\xff"])
    ['red']
    """
    return [t[1:].decode() for t in tokens if t[:1] == b" " and len(t) > 3 and t[1:].isalpha()]


def fingerprint(adapter):
    """A hash of all that is saved with an adapter: swapping the basis must not change it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(adapter.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_adapter(adapter, folder):
    """Write adapter.pt (the trained weights) and adapter.json (its config, words included)."""
    write_tensors(folder / "adapter.pt", adapter.state_dict())
    write_json(folder / "adapter.json", adapter.config)


def load_adapter(folder):
    """The adapter that save_adapter wrote; a LangBridge must then be given a basis by set_basis."""
    config = read_json(folder / "adapter.json")
    if "tokens" in config:
        config["tokens"] = [t.encode("latin-1") for t in config["tokens"]]
    kinds, kind = {"mlp": MLPAdapter, "langbridge": LangBridge}, config.pop("kind")
    return load_weights(lambda: kinds[kind](**config), folder / "adapter.pt")
