"""The two adapters, side by side: from patch features (B, N, D) to visual tokens of an LLM (B, N, C).

    MLPAdapter   v = mlp(x)         ends in one LLM's width: another LLM needs another adapter
    LangBridge   v = W(x) @ E       one coefficient per word; E are the LLM's own embeddings of these words, so another
                                    LLM needs only another E (Liao et al. 2025, arXiv 2503.19404)
"""
import hashlib
import json
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

NOTHING = b" ."  # the word that an untrained LangBridge says everywhere: 'nothing here'
COEFFICIENTS = ("softplus", "softmax", "relu", "linear")
BASES = ("words", "centered")


class MLPAdapter(nn.Module):
    """LLaVA's projector: Linear, GELU, Linear (Liu et al. 2024, arXiv 2310.03744, section 3.3).

    x (B, N, D) -> v (B, N, C)
    """

    def __init__(self, D, C):
        super().__init__()
        self.config = {"kind": "mlp", "D": D, "C": C}
        self.net = nn.Sequential(nn.Linear(D, C), nn.GELU(), nn.Linear(C, C))

    def forward(self, x):
        return self.net(x)  # (B, N, C)

    def set_basis(self, llm, encoding):
        """Nothing to set: the words of the LLM are baked into the weights. Raises ValueError if its width differs."""
        C = self.config["C"]
        if llm.config.C != C:
            raise ValueError(f"this MLP adapter was trained for an LLM of width {C} and cannot be used with one of width "
                             f"{llm.config.C}; retrain it, or use a LangBridge")
        return self


class LangBridge(nn.Module):
    """Each patch as a combination of words: v = W(x) @ E.

    x (B, N, D) -> v (B, N, C);  W: Linear(D, hidden), GELU, Linear(hidden, hidden), Linear(hidden, K), as in the paper

    tokens:        the K shared tokens, as byte strings: the adapter knows words, not ids, and looks their ids up in
                   whichever tokenizer it meets
    coefficients:  how W's outputs l become weights. 'softplus': w / sum(w) with w = ln(1 + e^l), 'softmax': the same with w = e^l;
                   both >= 0 and of sum 1. 'relu': max(l, 0). 'linear': l, as in the paper's released code. Softmax soon says
                   one word with all its weight, and how sure a patch is gets lost; softplus keeps it (README, 'Which coefficients')
    basis:         'words', or 'centered': their differences from their mean, which the patches then lack
    Set `drawn` for stage 1: while training, this share of the patches says one word, drawn by its weight, instead of the
    mixture. A private code of many small weights does not survive that, words do: it is what makes an adapter speak to an LLM
    that it was not trained with (README, 'What makes it transfer'). It needs weights that sum to 1: softplus or softmax.
    """
    drawn = 0.0

    def __init__(self, D, tokens, hidden=256, coefficients="softplus", basis="words"):
        super().__init__()
        for value, known, what in ((coefficients, COEFFICIENTS, "coefficients"), (basis, BASES, "basis")):
            if value not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}, not {value!r}")
        self.tokens = [bytes(t) for t in tokens]
        self.config = {"kind": "langbridge", "D": D, "hidden": hidden, "coefficients": coefficients, "basis": basis,
                       "tokens": [t.decode("latin-1") for t in self.tokens]}
        self.W = nn.Sequential(nn.Linear(D, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.Linear(hidden, len(tokens)))
        # Where a mixture starts decides whether it learns: uniform weights are the mean of all words, the same for every
        # patch and far from any text. So it starts near one word, 'nothing here', as most of a picture is background.
        nn.init.normal_(self.W[-1].weight, std=0.02)
        nn.init.constant_(self.W[-1].bias, -math.log(len(tokens)) if coefficients == "softplus" else 0.0)  # all together about 1
        if NOTHING in self.tokens:
            nn.init.constant_(self.W[-1].bias[self.tokens.index(NOTHING)], {"softplus": 4.0, "softmax": 3.0}.get(coefficients, 1.0))

    def set_basis(self, llm, encoding):
        """Speak to this LLM from now on: E becomes its embeddings of the shared tokens; W is untouched.

        Tokens that this tokenizer lacks can not be said and get no weight; `missing` lists them. Raises ValueError if
        fewer than half are left, for then it would be another adapter.
        """
        vocabulary = set(encoding.token_byte_values())
        present = torch.tensor([t in vocabulary for t in self.tokens])
        self.missing = [t for t in self.tokens if t not in vocabulary]
        if len(self.missing) > len(self.tokens) / 2:
            raise ValueError(f"the tokenizer {encoding.name!r} has only {present.sum()} of this adapter's {len(present)} tokens "
                             f"(it lacks {self.missing[:5]} ...): they do not share enough of a vocabulary")
        device = llm.embedding.weight.device
        ids = [encoding.encode_single_token(t) if ok else 0 for t, ok in zip(self.tokens, present)]
        E = llm.embed(torch.tensor(ids, device=device)).detach().clone()  # (K, C)
        if self.config["basis"] == "centered":
            E -= E[present.to(device)].mean(0)
        self.register_buffer("E", E * present[:, None].to(device), persistent=False)
        self.register_buffer("present", present.to(device), persistent=False)
        return self

    def weights(self, x):
        """The coefficients: what each patch says, in words.  x (B, N, D) -> (B, N, K)"""
        logits, kind = self.W(x).float(), self.config["coefficients"]  # (B, N, K)
        if kind == "softmax":
            return logits.masked_fill(~self.present, -torch.inf).softmax(-1)
        w = {"softplus": F.softplus, "relu": F.relu, "linear": lambda l: l}[kind](logits) * self.present
        return w / w.sum(-1, keepdim=True) if kind == "softplus" else w

    def forward(self, x):
        beta = self.weights(x)  # (B, N, K)
        if self.training and self.drawn > 0 and self.config["coefficients"] in ("softplus", "softmax"):
            word = torch.multinomial(beta.detach().flatten(0, 1), 1).view(*beta.shape[:2])  # (B, N)
            alone = torch.rand(*beta.shape[:2], 1, device=beta.device) < self.drawn  # (B, N, 1)
            one = F.one_hot(word, beta.size(-1)).to(beta.dtype)  # (B, N, K)
            beta = beta + (alone * (one - beta)).detach()  # the word's value, the mixture's gradient ('straight through')
        return beta @ self.E  # (B, N, C)


def fingerprint(adapter):
    """A hash of the trained parameters: a swap of the basis must not change it."""
    digest = hashlib.sha256()
    for name, p in sorted(adapter.named_parameters()):
        digest.update(name.encode() + p.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_adapter(adapter, folder):
    """Write adapter.pt (the trained weights) and adapter.json (what it is, its words included) into the folder."""
    torch.save(adapter.state_dict(), folder / "adapter.pt")
    (folder / "adapter.json").write_text(json.dumps(adapter.config, indent=1), encoding="utf-8")


def load_adapter(folder):
    """The adapter that save_adapter wrote; a LangBridge has no basis until set_basis gives it one."""
    config = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    kind = config.pop("kind")
    if kind == "langbridge":
        config["tokens"] = [t.encode("latin-1") for t in config["tokens"]]
    adapter = {"mlp": MLPAdapter, "langbridge": LangBridge}[kind](**config)
    adapter.load_state_dict(torch.load(folder / "adapter.pt", map_location="cpu", weights_only=True))
    return adapter
