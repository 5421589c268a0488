"""The two adapters, side by side: from patch features (B, N, D) to visual tokens (B, N, C).

    MLPAdapter   v = mlp(x)      ends in one LLM's width: another LLM needs another adapter
    LangBridge   v = softmax(W(x)) @ E    one weight for each word; E holds the LLM's own embeddings
                 of these words: another LLM needs another E, and W stays the same

The method is that of Liao et al. 2025, 'LangBridge' (arXiv 2503.19404). Their released code
multiplies the raw outputs of W by the embeddings. Ours differs: a softmax makes the weights of a
patch sum to 1, and W has two layers, reads whitened features and starts at the empty word.
"""
import copy
import hashlib
from pathlib import Path

import torch
import torch.nn as nn

from data import corpus
from data.files import Refused, load_module, save_module
from data.words import says_something

EMPTY = corpus.EMPTY.encode()  # the empty word, ' .': an empty tile of the grids that LLMs read
START = {"softmax": 3.0, "linear": 1.0}  # W's output for the empty word before training


class MLPAdapter(nn.Module):
    """LLaVA's projector: Linear, GELU, Linear (Liu et al. 2024, arXiv 2310.03744, section 3.3).

    x (B, N, D) -> v (B, N, C)
    """

    def __init__(self, D, C, hidden=None):
        super().__init__()
        hidden = hidden or C
        self.config = {"kind": "mlp", "D": D, "C": C, "hidden": hidden}
        self.net = nn.Sequential(nn.Linear(D, hidden), nn.GELU(), nn.Linear(hidden, C))

    def set_basis(self, llm, encoding):
        """Only a check: an MLP is made for one LLM. Raises Refused if the widths differ."""
        C = self.config["C"]
        if llm.config.C != C:
            raise Refused(f"this MLP adapter was trained for an LLM of width {C} and cannot be "
                          f"used with one of width {llm.config.C}; retrain it, or use a LangBridge")
        return self

    def forward(self, x):
        return self.net(x)  # (B, N, C)


class LangBridge(nn.Module):
    """Each patch as a mixture of words: v = softmax(W(x)) @ E.

    x (B, N, D) -> v (B, N, C);  W: Linear(D, hidden), GELU, Linear(hidden, K)

    tokens        the K words as byte strings: the adapter knows words, not ids, and looks up
                  their ids in the tokenizer at hand
    coefficients  how W's outputs become weights beta: softmax, or linear, beta = W(x), as in the
                  paper's code
    E             the basis: an LLM's embeddings of the words, from set_basis
    """

    def __init__(self, D, tokens, hidden=256, coefficients="softmax"):
        super().__init__()
        self.D, self.hidden, self.coefficients = D, hidden, coefficients
        self.tokens, self.missing = list(tokens), []  # missing: those that the LLM lacks
        self.W = nn.Sequential(nn.Linear(D, hidden), nn.GELU(), nn.Linear(hidden, len(tokens)))
        self.register_buffer("mean", torch.zeros(D))  # from whiten
        self.register_buffer("scale", torch.eye(D))  # (D, D), from whiten
        self.register_buffer("E", None, persistent=False)  # (K, C), from set_basis
        self.register_buffer("present", None, persistent=False)  # (K,) bool, from set_basis
        self.init_weights()

    def init_weights(self):
        """Start close to the empty word, which is right for most patches.

        Equal weights would not learn: their mixture is the mean of all words, the same for every
        patch and unlike any text.
        """
        nn.init.normal_(self.W[-1].weight, std=0.02)
        nn.init.zeros_(self.W[-1].bias)
        start = START[self.coefficients]
        if EMPTY in self.tokens:
            nn.init.constant_(self.W[-1].bias[self.tokens.index(EMPTY)], start)

    def whiten(self, x, floor=0.1):
        """Let W read (x - mean) S^(-1/2), S the covariance of features x (n, D), no labels needed.

        Features differ far more in some directions than in others; without this, answers on another
        LLM are worse. `floor`, times the mean eigenvalue, keeps noise from being blown up.
        Returns the adapter.
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
                "coefficients": self.coefficients}

    def set_basis(self, llm, encoding):
        """Use this LLM from now on: E becomes its embeddings of the words; W is untouched.

        Changes the adapter in place and returns it. Words that are not tokens of this LLM get no
        weight; `missing` lists them. Raises Refused if more than half are missing: the rest would
        be a different adapter.
        """
        vocabulary = set(encoding.token_byte_values())
        present = [t in vocabulary for t in self.tokens]
        self.missing = [t for t in self.tokens if t not in vocabulary]
        if len(self.missing) > len(self.tokens) / 2:
            raise Refused(f"the tokenizer {encoding.name!r} lacks {len(self.missing)} of this "
                          f"adapter's {len(present)} words ({[*map(written, self.missing[:5])]} "
                          "..): the vocabularies share too little; texts with more words in common "
                          "would help, or one public vocabulary for both LLMs")
        ids = [encoding.encode_single_token(t) if t in vocabulary else 0 for t in self.tokens]
        E = llm.embed(torch.tensor(ids)).detach().clone()  # (K, C)
        self.present = torch.tensor(present, device=E.device)  # (K,)
        self.E = E * self.present[:, None]  # (K, C)
        return self

    def moved_to(self, llm, encoding):
        """A copy of this adapter for another LLM: the same W, that LLM's E."""
        return copy.deepcopy(self).set_basis(llm, encoding)

    def weights(self, x):
        """beta, the weight of each word in each patch: x (B, N, D) -> (B, N, K)"""
        if self.E is None:
            raise RuntimeError("this LangBridge has no LLM yet: call set_basis(llm, encoding)")
        logits = self.W((x - self.mean) @ self.scale).float()  # (B, N, K)
        if self.coefficients == "softmax":
            return logits.masked_fill(~self.present, -torch.inf).softmax(-1)  # (B, N, K)
        return logits * self.present

    def spoken(self, x):
        """What the patches of a picture say together, for the word loss: x (B, N, D) -> p (B, K)

            m = sum over patches of beta, 0 for the empty word;  p = m / (1 + sum over words of m)

        The 1 stands for saying nothing: few weights in all give every word a small p.
        """
        m = self.weights(x).sum(1)  # (B, K)
        m = m * torch.tensor([t != EMPTY for t in self.tokens], device=m.device)
        return m / (1 + m.sum(-1, keepdim=True))

    def said_in(self, encoding, answers):
        """Which words stand in answers, given as lists of ids; stop words and signs do not count:
        (B, K), 1 or 0"""
        said = [{*map(encoding.decode_single_token_bytes, ids)} for ids in answers]
        content = [says_something(written(t)) for t in self.tokens]
        return torch.tensor([[t in its and counts for t, counts in zip(self.tokens, content)]
                             for its in said], dtype=torch.float)

    def forward(self, x):
        """x (B, N, D) -> v (B, N, C)"""
        beta = self.weights(x)  # (B, N, K)
        return beta @ self.E  # (B, N, C)


def token(word):
    """The bytes of a word's token within a text: 'red' -> b' red'"""
    return f" {word}".encode()


def written(token):
    """A token as people write it: b' red' -> 'red'"""
    return token.decode("utf-8", "replace").strip()


def fingerprint(adapter):
    """A hash of an adapter's trained parameters: swapping E must not change it."""
    state = {} if adapter is None else adapter.state_dict()
    raw = b"".join(tensor.cpu().numpy().tobytes() for tensor in state.values())
    return hashlib.sha256(raw).hexdigest()[:16]


def save_adapter(adapter, folder):
    """Write adapter.pt (the trained weights) and adapter.json (its config, words included)."""
    save_module(adapter, adapter.config, folder / "adapter")


def load_adapter(folder):
    """The adapter that save_adapter wrote; a LangBridge must then be given a basis by set_basis."""
    def make(config):
        kind = {"mlp": MLPAdapter, "langbridge": LangBridge}[config.pop("kind")]
        if "tokens" in config:
            config["tokens"] = [t.encode("latin-1") for t in config["tokens"]]
        return kind(**config)

    return load_module(make, Path(folder) / "adapter")
