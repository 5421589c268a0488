"""The vision encoder: a ViT, and the contrastive pretraining that gives it something to say.

A ViT with random weights knows nothing about pictures. As CLIP does (Radford et al. 2021,
arXiv 2103.00020), we train it next to a small text tower on pairs of a picture and its alt text;
then the text tower is discarded and the ViT frozen. Neither tower ever meets the LLMs.
"""
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from data.files import load_module, save_module


@dataclass
class ViTConfig:
    size: int = 48  # picture side in pixels
    patch: int = 8  # patch side in pixels
    D: int = 128  # width
    H: int = 4  # attention heads
    layers: int = 3

    @property
    def grid(self):
        """Patches along a side: N = grid * grid."""
        return self.size // self.patch


class EncoderBlock(nn.Module):
    """A pre-norm transformer block in which every token sees every other; a mask hides padding."""

    def __init__(self, D, H):
        super().__init__()
        self.H = H
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x, mask=None):
        """x (B, N, D) -> (B, N, D); mask (B, 1, 1, N) is true where there is a token"""
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.H, -1))  # (B, N, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, H, N, D/H)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, N, D/H)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Pictures to patch features (Dosovitskiy et al. 2021, arXiv 2010.11929).

    pictures (B, size, size, 3) uint8 -> features (B, N, D), patches in raster order
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(4 * config.patch ** 2, config.D)
        self.position = nn.Parameter(torch.empty(config.grid ** 2, config.D).normal_(std=0.02))
        self.blocks = nn.ModuleList(EncoderBlock(config.D, config.H) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.D)

    def patches(self, pictures):
        """Cut pictures (B, size, size, 3) uint8 into patches -> (B, N, 4 p^2)

        The fourth channel, a pixel's distance from the picture's median colour, shows a shape
        whatever its colour. Without it, each shape is learned again in each colour.
        """
        B, g, p = len(pictures), self.config.grid, self.config.patch
        x = pictures.to(self.embed.weight.dtype) / 127.5 - 1  # (B, size, size, 3), from -1 to 1
        median = x.flatten(1, 2).median(dim=1).values[:, None, None]  # (B, 1, 1, 3)
        distance = (x - median).norm(dim=-1, keepdim=True)  # (B, size, size, 1)
        x = torch.cat([x, distance], dim=-1)  # (B, size, size, 4)
        x = x.view(B, g, p, g, p, 4)  # patch rows, rows within, patch columns, columns within
        x = x.transpose(2, 3)  # (B, g, g, p, p, 4)
        return x.reshape(B, g * g, p * p * 4)  # (B, N, 4 p^2)

    def forward(self, pictures):
        """pictures (B, size, size, 3) uint8 -> features (B, N, D)"""
        x = self.embed(self.patches(pictures)) + self.position  # (B, N, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # (B, N, D)


class TextTower(nn.Module):
    """One vector for each token of a text; it exists only to teach the ViT."""

    context = 128  # tokens

    def __init__(self, V, D, H):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.position = nn.Parameter(torch.empty(self.context, D).normal_(std=0.02))
        self.block = EncoderBlock(D, H)
        self.norm = nn.LayerNorm(D)
        self.project = nn.Linear(D, D, bias=False)

    def forward(self, ids, mask):
        """ids (B, T), mask (B, T) -> (B, T, D)"""
        x = self.embed(ids) + self.position[:ids.size(1)]  # (B, T, D)
        x = self.block(x, mask[:, None, None])  # the same mask for all heads and queries
        return self.project(self.norm(x))  # (B, T, D)


class CLIP(nn.Module):
    """The two towers and their loss, with FILIP's late interaction (Yao et al. 2021, 2111.07783).

    CLIP compares one vector of the picture with one of the text. Here each word looks for its own
    patches, and the score of a pair is the mean over its words:

        s = scale * mean_t [mean of the `top` largest cos(v_n, w_t) over the patches n]

    so 'circle' must be found where the circle is, in all patches of an object (four, by default).
    """

    def __init__(self, config, V):
        super().__init__()
        self.top = (config.grid // 3) ** 2
        self.vit = ViT(config)
        self.text = TextTower(V, config.D, config.H)
        self.project = nn.Linear(config.D, config.D, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(40.0).log())

    def forward(self, pictures, ids, mask):
        """The score of each picture with each text.

        pictures (B, size, size, 3), ids (B, T), mask (B, T) -> (B, B)
        """
        B, T = ids.shape
        v = F.normalize(self.project(self.vit(pictures)), dim=-1)  # (B, N, D)
        w = F.normalize(self.text(ids, mask), dim=-1)  # (B, T, D)
        cos = v.flatten(0, 1) @ w.flatten(0, 1).T  # (B N, B T)
        cos = cos.view(B, -1, B, T)  # (pictures, N, texts, T)
        found = cos.topk(self.top, dim=1).values.mean(1)  # (pictures, texts, T)
        s = (found * mask).sum(-1) / mask.sum(-1)  # (pictures, texts)
        return self.log_scale.exp().clamp(max=300) * s

    def loss(self, pictures, ids, mask):
        """Each picture finds its text in the batch, and each text its picture (InfoNCE, van den
        Oord et al. 2018, arXiv 1807.03748): -> ()

            -1/(2B) sum_i [log softmax_j(s_ij) + log softmax_j(s_ji)] at j = i
        """
        s = self(pictures, ids, mask)  # (B, B)
        own = torch.arange(len(s), device=s.device)
        return (F.cross_entropy(s, own) + F.cross_entropy(s.T, own)) / 2


def save_vit(vit, folder):
    """Write vit.pt and vit.json into the folder."""
    save_module(vit, asdict(vit.config), folder / "vit")


def load_vit(folder):
    """The ViT that save_vit wrote."""
    return load_module(lambda config: ViT(ViTConfig(**config)), folder / "vit")


@torch.no_grad()
def encode_pictures(vit, data, split):
    """The frozen features of a split's pictures, computed once: (n, N, D) in half precision."""
    features = []
    for start in range(0, data.count(split), 100):
        indices = range(start, min(start + 100, data.count(split)))
        pictures = torch.from_numpy(data.pictures(split, indices)).to(vit.position.device)
        features.append(vit(pictures).half().cpu())  # (100, N, D)
    return torch.cat(features)


# ---- probing features ---------------------------------------------------------------------------

def ridge(x, y, strength=1e-3):
    """The w with the least |x w - y|^2 + strength tr(x^T x) / width |w|^2, for x (n, width)."""
    gram = x.T @ x  # (width, width)
    gram.diagonal().add_(strength * gram.diagonal().mean())
    return torch.linalg.solve(gram, x.T @ y)


def probe(features, data, train_pictures=3000):
    """Linear probes: can an object's colour, and its shape, be read off its patches, concatenated?
    A probe is ridge regression to one-hot targets.

    features: {split: (pictures, N, D)}; returns {split: {"probe_" + kind: accuracy}} for the splits
    other than train. In 'comp' the objects are those of unseen pairs.
    """
    def labelled(split, pictures, kind):
        seen = list(data.seen(split, features[split][:pictures]))
        x = torch.stack([patches.flatten() for _, patches in seen])  # (objects, its patches * D)
        y = torch.tensor([data.kinds[kind].index(its.words[kind]) for its, _ in seen])
        return F.pad(x.double(), (0, 1), value=1.0), y  # a 1 at the end: the map has an offset

    accuracy = {split: {} for split in features if split != "train"}
    for kind, words in data.kinds.items():
        x, y = labelled("train", train_pictures, kind)
        weights = ridge(x, F.one_hot(y, len(words)).double())  # (its patches * D + 1, words)
        for split, of_split in accuracy.items():
            x_test, y_test = labelled(split, None, kind)
            right = (x_test @ weights).argmax(1) == y_test
            of_split[f"probe_{kind}"] = right.double().mean().item()
    return accuracy
