"""Shapes by name: they are the published ones, and a wrong name is one line."""

from pathlib import Path

import pytest

from polybit import arch
from polybit.bench.shapes import SHAPES, read_wish
from polybit.errors import ConfigError, UnsupportedModel
from polybit.spec import Model
from unit.bench.subjects import write_config


def num_weights(model: Model) -> int:
    """Matrices and embedding, the embedding counted once where the head is tied to it."""
    linears = (*model.linears, *(() if model.head.tied else (model.head.linear,)))
    return sum(n.in_features * n.out_features for n in linears) + model.embedding.num_rows * model.embedding.width


@pytest.mark.parametrize(
    ("name", "published"),  # millions of parameters, as the model cards say
    [
        ("smollm2-135m", 135),
        ("qwen-0.5b", 494),
        ("llama-1b", 1236),
        ("llama-3b", 3213),
        ("qwen-7b", 7616),
        ("llama-8b", 8030),
        ("qwen-14b", 14770),
        ("qwen-32b", 32764),
        ("mixtral-8x7b", 46703),
        ("llama-70b", 70554),
    ],
)
def test_shapes_have_as_many_weights_as_the_models(name: str, published: float) -> None:
    model = arch.read_model(SHAPES[name], name)
    assert num_weights(model) / 1e6 == pytest.approx(published, rel=0.005)


def test_every_shape_is_compared_with_its_model() -> None:
    (mark,) = test_shapes_have_as_many_weights_as_the_models.pytestmark
    assert [name for name, _ in mark.args[1]] == list(SHAPES)


def test_a_wish_is_a_name_and_bits() -> None:
    wish = read_wish("llama-70b@2.4")
    assert (wish.name, wish.bits) == ("llama-70b", 2.4)
    assert (wish.model.hidden_size, len(wish.model.blocks), wish.model.head.linear.out_features) == (8192, 80, 128256)
    attn = wish.model.blocks[0].attn
    assert (attn.num_heads, attn.num_kv_heads, attn.head_dim) == (64, 8, 128)


def test_a_wish_may_name_a_config_file(tmp_path: Path) -> None:
    wish = read_wish(f"{write_config(tmp_path)}@3")
    assert (wish.name, wish.bits, wish.model.hidden_size) == ("small", 3.0, 128)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("llama-8x@4.0", "did you mean llama-8b?"),
        ("llama-8b", "write it as llama-8b@4.0"),
        ("llama-8b@four", "write it as llama-8b@4.0"),
        ("4.0", "write it as"),
        ("nowhere.json@4.0", "there is no nowhere.json"),
    ],
)
def test_what_is_no_wish_is_one_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_wish(text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_config_file_is_read_as_strictly_as_a_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="telepathy"):
        read_wish(f"{write_config(tmp_path, telepathy=True)}@3")
