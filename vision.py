"""The vision encoder: a ViT, and the contrastive pretraining that gives it something to say.

A randomly initialised ViT knows nothing about pictures. As CLIP does (Radford et al. 2021, arXiv 2103.00020), we train it
next to a small text tower on pairs of picture and caption, with words and patches compared one by one; afterwards the
text tower is thrown away and the ViT is frozen. Neither has ever met the LLMs.
"""
import json
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class ViTConfig:
    size: int = 48  # picture side in pixels
    patch: int = 8  # patch side in pixels
    D: int = 128  # width
    H: int = 4  # attention heads
    layers: int = 4

    @property
    def grid(self):  # patches a side
        return self.size // self.patch


class EncoderBlock(nn.Module):
    """A pre-norm transformer block in which every token sees every other; `mask` (B, T) hides padding."""

    def __init__(self, D, H):
        super().__init__()
        self.H = H
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x, mask=None):
        B, N, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, N, 3, self.H, D // self.H).permute(2, 0, 3, 1, 4)  # 3 x (B, H, N, D/H)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
        x = x + self.out(y.transpose(1, 2).reshape(B, N, D))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Pictures to patch features: cut into patches, embed each, add its place, let them talk (Dosovitskiy et al. 2021).

    pictures: (B, size, size, 3) uint8 -> features (B, N, D), N = grid * grid in raster order

    To red, green and blue comes a fourth channel: how far a pixel is from the picture's median colour. It shows shapes
    whatever their colour; without it, each shape is learned anew in each colour, and a red circle is not recognised by
    who has seen circles and red things (README, 'How the ViT learns to see shapes').
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(4 * config.patch ** 2, config.D)
        self.position = nn.Parameter(0.02 * torch.randn(config.grid ** 2, config.D))
        self.blocks = nn.ModuleList(EncoderBlock(config.D, config.H) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.D)

    def forward(self, pictures):
        B, p, g = len(pictures), self.config.patch, self.config.grid
        x = pictures.to(self.embed.weight.dtype) / 127.5 - 1  # (B, size, size, 3)
        background = x.flatten(1, 2).median(dim=1).values[:, None, None, :]  # (B, 1, 1, 3)
        x = torch.cat([x, (x - background).norm(dim=-1, keepdim=True)], dim=-1)  # (B, size, size, 4)
        x = x.view(B, g, p, g, p, 4).transpose(2, 3).reshape(B, g * g, p * p * 4)  # (B, N, 4 p^2)
        x = self.embed(x) + self.position  # (B, N, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TextTower(nn.Module):
    """Captions to one vector for each token; it exists only to teach the ViT.  ids (B, T), mask (B, T) -> (B, T, D)"""

    def __init__(self, V, D, H, layers=1, context=128):
        super().__init__()
        self.embed, self.position = nn.Embedding(V, D), nn.Parameter(0.02 * torch.randn(context, D))
        self.blocks = nn.ModuleList(EncoderBlock(D, H) for _ in range(layers))
        self.norm, self.project = nn.LayerNorm(D), nn.Linear(D, D, bias=False)

    def forward(self, ids, mask):
        x = self.embed(ids) + self.position[:ids.size(1)]  # (B, T, D)
        for block in self.blocks:
            x = block(x, mask)
        return self.project(self.norm(x))


class CLIP(nn.Module):
    """The two towers and their loss, with FILIP's late interaction (Yao et al. 2021, arXiv 2111.07783).

    CLIP compares one pooled vector of the picture with one of the caption. Here each word looks for its own patches:

        s(picture, caption) = scale * mean over words t of [mean of the `top` largest cos(v_n, w_t) over patches n]

    which teaches patches rather than pictures: 'circle' must be found where the circle is. An object covers about four
    patches, so each of these has to know, not only the best one.
    """
    top = 4

    def __init__(self, config, V):
        super().__init__()
        self.vit, self.text = ViT(config), TextTower(V, config.D, config.H)
        self.project = nn.Linear(config.D, config.D, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(40.0).log())

    def forward(self, pictures, ids, mask):
        """Similarity of each picture with each caption: (B, size, size, 3), (B, T), (B, T) -> (B, B)"""
        v = F.normalize(self.project(self.vit(pictures)), dim=-1)  # (B, N, D)
        w = F.normalize(self.text(ids, mask), dim=-1)  # (B, T, D)
        cos = (v.flatten(0, 1) @ w.flatten(0, 1).T).view(*v.shape[:2], *w.shape[:2])  # (B, N, B, T)
        found = cos.topk(self.top, dim=1).values.mean(1)  # (B, B, T)
        s = (found * mask).sum(-1) / mask.sum(-1)  # (B, B)
        return self.log_scale.exp().clamp(max=300) * s

    def loss(self, pictures, ids, mask):
        """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748): each picture finds its caption in the batch, and vice versa.

        -1/2B sum_i [log softmax_j(s_ij) + log softmax_j(s_ji)] at j = i. Not the sigmoid loss of SigLIP: its gain is that
        large batches need not be compared all at once; in a small batch the softmax weighs the hardest negatives most.
        """
        s = self(pictures, ids, mask)
        target = torch.arange(len(s), device=s.device)
        return (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2


def save_vit(vit, folder):
    """Write vit.pt and vit.json into the folder."""
    torch.save(vit.state_dict(), folder / "vit.pt")
    (folder / "vit.json").write_text(json.dumps(asdict(vit.config), indent=1), encoding="utf-8")


def load_vit(folder):
    vit = ViT(ViTConfig(**json.loads((folder / "vit.json").read_text(encoding="utf-8"))))
    vit.load_state_dict(torch.load(folder / "vit.pt", map_location="cpu", weights_only=True))
    return vit
