"""The claim of the method, on tiny models: the adapter knows words, and only its basis knows the
LLM."""
import doctest

import pytest
import torch
import torch.nn as nn
from conftest import WORDS, make_llm

import adapter as adapter_module
from adapter import (
    COEFFICIENTS, NOTHING, Edited, LangBridge, MLPAdapter, Voted, Written, fingerprint, from_tiles,
    in_tiles, load_adapter, read_as_words, readable, save_adapter)
from data.bpe import PATTERNS, make_encoding
from data.world import patches_of
from model import GPT


@pytest.fixture(scope="module")
def source():
    return make_llm("source", 32)


@pytest.fixture(scope="module")
def target():
    return make_llm("target", 48)


def bridge(coefficients="softplus", **arguments):
    """A LangBridge whose last layer is large, as if it were trained."""
    torch.manual_seed(2)
    adapter = LangBridge(16, WORDS, 24, coefficients, **arguments)
    nn.init.normal_(adapter.W[-1].weight)
    return adapter


def some_features(pictures=1):
    return torch.randn(pictures, 36, 16)


def embeddings_of_words(llm, encoding):
    ids = [encoding.encode_single_token(t) for t in WORDS]
    return llm.embed(torch.tensor(ids)).detach()


def test_the_examples_of_the_docstrings_are_true():
    result = doctest.testmod(adapter_module)
    assert result.failed == 0 and result.attempted > 0


# ---- weights and words ---------------------------------------------------------------------------

@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_every_visual_token_lies_in_the_span_of_the_basis(source, coefficients):
    adapter = bridge(coefficients).set_basis(*source)
    v = adapter(some_features(2)).flatten(0, 1)  # (72, 32)
    E = embeddings_of_words(*source)
    residual = v.T - E.T @ torch.linalg.lstsq(E.T, v.T).solution
    assert residual.norm() < 1e-4 * v.norm()


def test_a_visual_token_is_the_mean_of_words_by_their_weights(source):
    adapter, x = bridge().set_basis(*source), some_features()
    expected = torch.zeros(36, 32)
    for k, e in enumerate(embeddings_of_words(*source)):
        expected += adapter.weights(x)[0, :, k, None] * e
    assert torch.allclose(adapter(x)[0], expected, atol=1e-5)


def test_a_centered_basis_is_words_without_their_mean(source):
    adapter = LangBridge(16, WORDS + [b" xyzzy"], 24, basis="centered").set_basis(*source)
    E = embeddings_of_words(*source)
    assert adapter.missing == [b" xyzzy"]
    assert torch.allclose(adapter.E[:-1], E - E.mean(0))
    assert not adapter.E[-1].any()


@pytest.mark.parametrize("coefficients", ["softplus", "softmax"])
def test_weights_sum_to_one(source, coefficients):
    weights = bridge(coefficients).set_basis(*source).weights(some_features(2))
    assert torch.allclose(weights.sum(-1), torch.ones(2, 36))
    assert (weights >= 0).all()


def test_relu_weights_are_not_negative_and_linear_ones_may_be(source):
    x = some_features(2)
    assert (bridge("relu").set_basis(*source).weights(x) >= 0).all()
    assert (bridge("linear").set_basis(*source).weights(x) < 0).any()


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_an_untrained_bridge_says_nothing_here(source, coefficients):
    adapter = LangBridge(16, WORDS, 24, coefficients).set_basis(*source)
    weights = adapter.weights(some_features())
    assert (weights.argmax(-1) == WORDS.index(NOTHING)).all()


def test_only_whole_words_are_readable():
    tokens = [b" .", b"\n", b" red", b"ed", b" a", b"\xe4", b" circle"]
    assert readable(tokens) == ["red", "circle"]


def test_a_word_for_another_moves_its_weight(source):
    adapter, x = bridge().set_basis(*source), some_features(2)
    edited = Edited(adapter, {"red": "blue"})(x)
    weights = adapter.weights(x).clone()
    weights[..., WORDS.index(b" blue")] += weights[..., WORDS.index(b" red")]
    weights[..., WORDS.index(b" red")] = 0
    assert torch.allclose(edited, weights @ adapter.E)
    assert not torch.allclose(edited, adapter(x))


def test_two_words_can_change_places(source):
    adapter, x = bridge().set_basis(*source), some_features()
    both = Edited(adapter, {"red": "blue", "blue": "red"}).weights(x)
    red, blue = WORDS.index(b" red"), WORDS.index(b" blue")
    before = adapter.weights(x)
    assert torch.allclose(both[..., red], before[..., blue])
    assert torch.allclose(both[..., blue], before[..., red])


# ---- whitened features ---------------------------------------------------------------------------

def test_whitened_features_differ_as_much_in_every_direction():
    x = torch.randn(5000, 16) * torch.logspace(0, 1, 16) + 3.0  # from 1 to 10 in spread
    adapter = bridge().whiten(x, floor=1e-4)
    white = (x - adapter.mean) @ adapter.scale
    assert torch.allclose(white.T.cov(), torch.eye(16), atol=0.02)
    assert torch.allclose(white.mean(0), torch.zeros(16), atol=1e-3)


def test_what_whitens_the_features_is_saved(source, tmp_path):
    adapter, x = bridge().whiten(torch.randn(100, 16) + 1).set_basis(*source), some_features()
    save_adapter(adapter, tmp_path)
    assert torch.equal(load_adapter(tmp_path).set_basis(*source)(x), adapter(x))
    assert not torch.allclose(bridge().set_basis(*source)(x), adapter(x))


# ---- words that are read and written -------------------------------------------------------------

def test_an_mlp_read_as_words_says_the_words_that_it_is_nearest_to(source):
    torch.manual_seed(0)
    mlp, x, E = MLPAdapter(16, 32), some_features(2), embeddings_of_words(*source)
    with torch.no_grad():
        mlp.net[2].weight.mul_(30)  # tokens as long as words
    read = read_as_words(mlp, *source, WORDS, temperature=0.1)
    expected = (mlp(x) @ E.T / (32 * 0.1)).softmax(-1)
    assert torch.allclose(read.weights(x), expected, atol=1e-5)
    with torch.no_grad():  # an MLP that says one word
        mlp.net[2].weight.zero_()
        mlp.net[2].bias.copy_(E[3])
    said = read_as_words(mlp, *source, WORDS, temperature=0.1).weights(x)
    assert (said.argmax(-1) == 3).all()


def test_an_mlp_read_as_words_can_be_moved(source, target):
    read = read_as_words(MLPAdapter(16, 32), *source, WORDS, temperature=0.1)
    x = some_features()
    before = read.weights(x)
    assert read.set_basis(*target)(x).shape == (1, 36, 48)
    assert torch.equal(read.weights(x), before)


def test_a_wide_mlp_is_not_read_as_words(source):
    with pytest.raises(ValueError, match="hidden width is 32"):
        read_as_words(MLPAdapter(16, 32, 64), *source, WORDS, temperature=0.1)


def test_tiles_are_the_patches_of_places():
    tiles = in_tiles(torch.arange(36)[None])[0]
    assert tiles.tolist() == [patches_of(place, 6) for place in range(9)]
    x = torch.randn(2, 36, 5)
    assert torch.equal(from_tiles(in_tiles(x)), x)


def says(source, beta):
    """A LangBridge whose weights are these."""
    adapter = bridge().set_basis(*source)

    def weights(x):
        return beta.clone()

    adapter.weights = weights
    return adapter


def test_written_without_relaying_each_patch_says_its_top_word(source):
    beta = torch.rand(2, 36, 6)
    adapter = says(source, beta)
    assert torch.equal(Written(adapter, relaid=False)(None), adapter.E[beta.argmax(-1)])


def test_written_a_tile_says_its_two_top_words_in_both_rows_or_nothing(source):
    nothing, red, circle = (WORDS.index(word) for word in (NOTHING, b" red", b" circle"))
    beta = torch.zeros(1, 36, 6)
    beta[..., nothing] = 0.5
    patches = patches_of(4, 6)
    beta[0, patches[0], red], beta[0, patches[3], red] = 1.0, 1.2  # two patches say red,
    beta[0, patches[1], circle] = 2.1  # one says circle, louder than all say nothing
    words = Written(says(source, beta)).weights(None).argmax(-1)[0]
    assert words[patches].tolist() == [red, circle, red, circle]
    assert (words == nothing).sum() == 32
    beta[0, patches[1], circle] = 1.9  # 'nothing' is louder now, though not than both together
    beta[0, patches[0], red] = 0.5
    assert (Written(says(source, beta)).weights(None).argmax(-1) == nothing).all()


def test_patches_of_a_tile_that_voted_say_the_mean_of_their_weights(source):
    beta = torch.rand(2, 36, 6)
    voted = Voted(says(source, beta)).weights(None)
    for place in range(9):
        patches = patches_of(place, 6)
        mean = beta[:, patches].mean(1, keepdim=True)
        assert torch.allclose(voted[:, patches], mean.expand(-1, 4, -1))


# ---- the swap ------------------------------------------------------------------------------------

def test_a_swap_changes_the_basis_and_nothing_else(source, target):
    adapter, x = bridge().set_basis(*source), some_features()
    state = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    weights = adapter.weights(x)
    adapter.set_basis(*target)
    assert adapter(x).shape == (1, 36, 48)
    assert torch.equal(adapter.weights(x), weights)
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_there_and_back_again_is_bit_equal(source, target):
    adapter, x = bridge().set_basis(*source), some_features()
    before = adapter(x)
    adapter.set_basis(*target)
    assert torch.equal(adapter.set_basis(*source)(x), before)


def test_two_adapters_on_two_llms_do_not_touch_each_other(source, target):
    adapter, x = bridge().set_basis(*source), some_features()
    before = adapter(x)
    bridge().set_basis(*target)
    assert torch.equal(adapter(x), before)


def test_the_basis_stays_fixed_while_the_llm_is_tuned():
    llm, encoding = make_llm("source", 32)
    adapter, x = bridge().set_basis(llm, encoding), some_features()
    before = adapter(x)
    with torch.no_grad():
        llm.embedding.weight.mul_(-1)
    assert torch.equal(adapter(x), before)


def test_other_ids_give_the_same_words(source):
    """The same LLM with its vocabulary renumbered: other ids, the same visual tokens."""
    llm, encoding = source
    n = encoding.n_vocab - 1  # the last one is <|bos|>
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    tokens = [encoding.decode_single_token_bytes(i) for i in order]
    renumbered = make_encoding("renumbered", PATTERNS["source"], tokens)
    other = GPT(llm.config)
    with torch.no_grad():
        other.embedding.weight.copy_(llm.embedding.weight[order + [n]])
    adapter, x = bridge().set_basis(llm, encoding), some_features()
    before = adapter(x)
    assert torch.equal(adapter.set_basis(other, renumbered)(x), before)


def test_missing_tokens_are_listed_and_get_no_weight(source):
    adapter = LangBridge(16, WORDS + [b" zeppelin"], 24).set_basis(*source)
    assert adapter.missing == [b" zeppelin"]
    assert (adapter.weights(some_features())[..., -1] == 0).all()


def test_too_few_shared_tokens_are_refused(source):
    with pytest.raises(ValueError, match="only 1 of this adapter's 3 tokens"):
        LangBridge(16, [b" .", b" zeppelin", b" quark"], 24).set_basis(*source)


def test_an_adapter_without_a_basis_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"set_basis\(llm, encoding\)"):
        bridge()(some_features())


def test_an_mlp_refuses_an_llm_of_another_width(source, target):
    adapter = MLPAdapter(16, 32).set_basis(*source)
    with pytest.raises(ValueError, match="width 32"):
        adapter.set_basis(*target)


# ---- words that are drawn ------------------------------------------------------------------------

def test_words_are_drawn_by_their_weights(source):
    adapter, x = bridge(drawn=1.0).set_basis(*source), some_features()
    expected = adapter.eval()(x)
    adapter.train()
    distance = torch.cdist(adapter(x)[0], adapter.E)  # (36, K)
    assert (distance.min(-1).values < 1e-2).all()  # each patch is exactly one word
    mean = torch.stack([adapter(x) for _ in range(2000)]).mean(0)
    assert (mean - expected).abs().mean() < 0.05 * expected.abs().mean() + 0.02


def test_nothing_is_drawn_when_nothing_is_trained(source):
    adapter, x = bridge(drawn=1.0).set_basis(*source).eval(), some_features()
    assert torch.equal(adapter(x), adapter.weights(x) @ adapter.E)


def test_the_share_of_patches_that_draw_is_as_asked(source):
    adapter, x = bridge(drawn=0.25).set_basis(*source), some_features(100)
    mixtures = adapter.eval()(x)
    spoken = adapter.train()(x)
    share = (spoken != mixtures).any(-1).float().mean()
    assert 0.22 < share < 0.28


def test_drawing_lets_the_gradient_through(source):
    adapter = bridge(drawn=1.0).set_basis(*source)
    adapter(some_features()).sum().backward()
    for p in adapter.parameters():
        assert p.grad is not None and p.grad.isfinite().all()
        assert p.grad.any()


# ---- arguments and files -------------------------------------------------------------------------

@pytest.mark.parametrize("arguments, says", [
    (dict(coefficients="sigmoid"), "softplus, softmax, relu, linear"),
    (dict(basis="whitened"), "words, centered"),
    (dict(coefficients="relu", drawn=0.25), "drawn must be 0"),
    (dict(coefficients="linear", drawn=0.25), "drawn must be 0"),
])
def test_an_argument_without_a_meaning_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        LangBridge(16, WORDS, 24, **arguments)


@pytest.mark.parametrize("make", [lambda: bridge("relu"), lambda: MLPAdapter(16, 32),
                                  lambda: MLPAdapter(16, 32, 64)])
def test_a_saved_adapter_is_the_same_adapter(source, tmp_path, make):
    adapter, x = make(), some_features()
    save_adapter(adapter, tmp_path)
    loaded = load_adapter(tmp_path)
    assert torch.equal(loaded.set_basis(*source)(x), adapter.set_basis(*source)(x))


def test_all_that_a_bridge_is_made_from_is_saved_with_it(tmp_path):
    adapter = bridge("softmax", basis="centered", drawn=0.25)
    save_adapter(adapter, tmp_path)
    assert load_adapter(tmp_path).config == adapter.config
    assert load_adapter(tmp_path).drawn == 0.25


def test_a_fingerprint_sees_all_that_is_saved_but_not_the_basis(source, target):
    adapter = bridge()
    before = fingerprint(adapter)
    for llm in (source, target):
        assert fingerprint(adapter.set_basis(*llm)) == before
    for p in (*adapter.parameters(), adapter.mean, adapter.scale):
        with torch.no_grad():
            p.view(-1)[0] += 1e-3
        assert fingerprint(adapter) != before
        before = fingerprint(adapter)
