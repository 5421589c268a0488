"""The net: a tiny world in which everything really learns, and broken variants that must fail.

A picture has 3 x 3 tiles; one of them holds a colour. Two tiny LLMs with different vocabularies
learn to read grids of words, a ViT learns to see, and a LangBridge that was aligned on one LLM is
used on the other. In a grid the word may stand in several tiles: a ViT lets all patches know what
one of them shows, so visual tokens repeat it.
"""
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from adapter import LangBridge, load_adapter
from data.bpe import BOS
from data.corpus import EMPTY, in_scene, turn
from data.files import Stage
from data.world import PAINTS, rgb
from evaluate import held_out
from model import VLM, load_llm
from train import Settings, pretrain_llm, pretrain_vit, train_vlm
from transfer import shuffle_words, swap_embeddings

WORDS = [*PAINTS]  # its colours
REQUESTS = {"source": "what is this?", "target": "name the thing."}


class Tiny:
    """The data of this world, as data/dataset.py describes them."""
    SPLITS, EXAM = ("train", "val", "test"), ("val", "test")
    kinds, sums, alt_V, sampled, request = {}, {}, 280, 50, REQUESTS["source"]

    def config(self):
        return {}

    def count(self, split):
        return 400 if split == "train" else 40

    def scene(self, split, i):
        """(a word, its tile)"""
        rng = random.Random(f"{split}/{i}")
        return rng.choice(WORDS), rng.randrange(9)

    def pictures(self, split, indices):
        return np.stack([self.draw(*self.scene(split, i)) for i in indices])

    def draw(self, word, tile):
        hue, saturation, value = PAINTS[word]
        tiles = np.zeros((3, 6, 3, 6, 3), dtype=np.uint8)  # row, y, column, x, channel
        tiles[tile // 3, :, tile % 3] = rgb(hue / 360, saturation, value)
        return tiles.reshape(18, 18, 3)

    def alt_texts(self, seed, n):
        return [f" {word}" for word in WORDS]

    def pairs(self, seed, step, n):
        words = random.Random(step).sample(WORDS, n)
        return (np.stack([self.draw(word, (step + k) % 9) for k, word in enumerate(words)]),
                [f" {word}" for word in words])

    def test_pairs(self, split):
        return self.pairs(0, 0, len(WORDS))

    def document(self, dialect, seed, i, *_):
        word, tile = self.scene(f"{dialect}/{seed}", i)
        tiles = random.Random(i).choices([EMPTY, f" {word}"], k=9)
        tiles[tile] = f" {word}"
        raster = "".join("".join(tiles[k:k + 3]) + "\n" for k in (0, 3, 6))
        return in_scene(raster) + turn(REQUESTS[dialect], word)

    def texts(self, dialect, seed):
        return ["".join(text for text, _ in self.document(dialect, seed, i)).replace(BOS, "")
                for i in range(200)]

    def description(self, i, rng, *_, turns=1):
        return turn(self.request, self.scene("train", i)[0])

    def example_questions(self):
        return [self.request]

    def nothing(self, *_):
        return {}

    conversation, examine, examine_reading, score = description, nothing, nothing, nothing


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Settings of a folder that holds two LLMs, a ViT, and a LangBridge aligned on the source."""
    torch.set_num_threads(1)
    s = Settings(
        out=str(tmp_path_factory.mktemp("learning")), device="cpu", precision="fp32",
        llm_source_V=340, llm_source_C=32, llm_source_layers=1, llm_source_steps=150,
        llm_target_V=360, llm_target_C=32, llm_target_layers=2, llm_target_steps=200, llm_batch=16,
        H=2, vit_size=18, vit_patch=6, vit_D=32, vit_layers=1, vit_steps=150,
        vit_batch=8, align_hidden=64, align_steps=200, align_batch=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "dataset", Tiny())
        for name, make in (("llm_source", pretrain_llm), ("llm_target", pretrain_llm),
                           ("vit", pretrain_vit)):
            make(s, Stage(s.out, name, {}))
        train_vlm(s, Stage(s.out, "langbridge_align", {}), "align", "langbridge")
        yield s


def named(s, llm, make, start="langbridge_align"):
    """The share of test pictures that an LLM names with an adapter that was made for it."""
    source, other = (load_llm(f"{s.out}/{name}") for name in ("llm_source", llm))
    vlm = VLM(make(s, load_adapter(Path(s.out) / start), source, other), *other).eval()
    features, request = held_out(s.out, data=Tiny())["test"], REQUESTS[llm.removeprefix("llm_")]
    answers = vlm.answer(features, [(i, request) for i in range(len(features))])
    return np.mean([answer == Tiny().scene("test", i)[0] for i, answer in enumerate(answers)])


def do_not_swap(s, adapter, source, target):
    return adapter.set_basis(*source)


def test_an_adapter_learns_to_name_things_in_an_llms_words(world):
    assert named(world, "llm_source", swap_embeddings) >= 0.9


def test_swapped_embeddings_let_another_llm_name_them(world):
    assert named(world, "llm_target", swap_embeddings) >= 0.9


@pytest.mark.parametrize("broken", [shuffle_words, do_not_swap])
def test_with_words_shuffled_or_without_the_swap_it_fails(world, broken):
    assert named(world, "llm_target", broken) <= 0.5


def test_without_a_gradient_for_w_it_fails(world, monkeypatch):
    weights = LangBridge.weights
    monkeypatch.setattr(LangBridge, "weights",
                        lambda self, x: weights(self, x).detach() + 0 * weights(self, x))
    train_vlm(world, Stage(world.out, "broken/langbridge_align", {}), "align", "langbridge")
    assert named(world, "llm_source", swap_embeddings, "broken/langbridge_align") <= 0.5
