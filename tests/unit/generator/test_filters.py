"""Whatever is drawn among the tokens that a filter allows, the text is what was asked for; and nothing is lost."""

import json
import random
import re
import sys

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polybit.errors import RequestError
from polybit.generator import SamplingParams
from polybit.generator.filters import OneOf
from polybit.generator.request import make_filter
from polybit.generator.sampling.mask import tokens_in
from polybit.generator.structured import vocabulary
from polybit.text import Tokenizer
from unit.text.folders import byte_level, sentencepiece

texts = st.lists(st.text("aéb the", min_size=1, max_size=6), min_size=1, max_size=3)


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=5)
    age: int = pydantic.Field(ge=0, le=150)


@pytest.fixture(scope="module", params=[byte_level, sentencepiece])
def tokenizer(request, tmp_path_factory):
    return Tokenizer.open(request.param(tmp_path_factory.mktemp("model")))


def filter_of(tokenizer, drops_space=False, **fields):
    params = SamplingParams(**fields)
    return make_filter(params, tokenizer, tokenizer.vocab_size, frozenset(tokenizer.eos_ids), drops_space)


def walk(tokenizer, wanted, seed, detour=False, most=200):
    """Tokens drawn among the allowed ones until the filter or an end token ends it. `detour`: some go, five times."""
    wishes, tokens, detours = random.Random(seed), [], 5 * detour
    while not wanted.is_done and len(tokens) < most:
        allowed = wanted.allowed()
        token = wishes.randrange(tokenizer.vocab_size) if allowed is None else wishes.choice(tokens_in(allowed))
        if token in tokenizer.eos_ids:
            break
        tokens.append(token)
        wanted.accept(token)
        if detours and wishes.random() < 0.3:
            detours -= 1
            back = wishes.randint(0, len(tokens))
            wanted.rewind(back)
            del tokens[len(tokens) - back :]
    return tokens


class TestChoices:
    def test_the_text_is_one_of_them(self, tokenizer):
        @given(texts, st.integers(0, 1000), st.booleans())
        def check(options, seed, detour):
            tokens = walk(tokenizer, filter_of(tokenizer, choices=tuple(options)), seed, detour)
            assert b"".join(tokenizer.pieces.of[token] for token in tokens).decode() in options

        check()

    def test_a_first_space_may_be_the_tokenizers_own(self, tmp_path):
        tokenizer = Tokenizer.open(sentencepiece(tmp_path))
        written = set()
        for seed in range(50):
            tokens = walk(tokenizer, filter_of(tokenizer, drops_space=True, choices=("the", "no")), seed)
            assert tokenizer.decode(tokens) in {"the", "no"}
            written.add(tokenizer.token_of(tokens[0]))
        assert {"▁the", "t", "▁"} <= written

    def test_the_text_may_end_where_one_choice_is_the_beginning_of_another(self, tokenizer):
        wanted = filter_of(tokenizer, choices=("a", "ab"))
        for token in tokens_in(wanted.allowed()):
            assert tokenizer.pieces.of[token] in {b"a", b"ab"}
        wanted.accept(next(t for t in tokens_in(wanted.allowed()) if tokenizer.pieces.of[t] == b"a"))
        assert not wanted.is_done
        assert set(tokenizer.eos_ids) < set(tokens_in(wanted.allowed()))

    def test_no_other_token_would_do(self, tokenizer):
        """Every token that keeps a choice possible is allowed."""

        @given(texts)
        def check(options):
            wanted = OneOf(options, tokenizer.piece_index, tokenizer.vocab_size)
            allowed = set(tokens_in(wanted.allowed()))
            for token, piece in tokenizer.piece_index.written.items():
                assert (token in allowed) == any(option.encode().startswith(piece) for option in options)

        check()


class TestStartsWith:
    def test_the_text_begins_with_one_of_them_and_goes_on(self, tokenizer):
        @given(texts, st.integers(0, 1000), st.booleans())
        def check(options, seed, detour):
            wanted = filter_of(tokenizer, starts_with=tuple(options))
            tokens = walk(tokenizer, wanted, seed, detour, most=30)
            text = b"".join(tokenizer.pieces.of[token] for token in tokens if token not in tokenizer.pieces.special)
            assert any(text.startswith(option.encode()) for option in options)
            assert wanted.allowed() is None
            assert not wanted.is_done

        check()

    def test_a_token_may_reach_beyond_the_beginning(self, tokenizer):
        allowed = tokens_in(filter_of(tokenizer, starts_with=" ").allowed())
        pieces = {tokenizer.pieces.of[token] for token in allowed}
        assert b" a" in pieces or b" the" in pieces


class TestGrammars:
    @pytest.mark.parametrize("regex", ["ab+c?", "[a-e]{3}", "(the|of) capital", "é中?x"])
    @pytest.mark.parametrize("detour", [False, True])
    def test_regex(self, tokenizer, regex, detour):
        for seed in range(20):
            tokens = walk(tokenizer, filter_of(tokenizer, regex=regex), seed, detour)
            assert re.fullmatch(regex, b"".join(tokenizer.pieces.of[t] for t in tokens).decode())

    def test_lark(self, tokenizer):
        grammar = 'start: "a" item*\nitem: "b" | "(" start ")"'
        for seed in range(20):
            tokens = walk(tokenizer, filter_of(tokenizer, lark=grammar), seed)
            if len(tokens) < 200:
                text = tokenizer.decode(tokens)
                assert text.count("(") == text.count(")")
                assert set(text) <= set("ab()")

    @pytest.mark.parametrize("schema", [Person, Person.model_json_schema(), json.dumps(Person.model_json_schema())])
    def test_json_schema_in_each_form(self, tokenizer, schema):
        whole = 0
        for seed in range(10):
            tokens = walk(tokenizer, filter_of(tokenizer, json_schema=schema), seed, detour=True, most=2000)
            if len(tokens) < 2000:
                Person.model_validate_json(b"".join(tokenizer.pieces.of[t] for t in tokens))
                whole += 1
        assert whole >= 5

    def test_a_pydantic_model_gets_no_further_properties_unless_it_allows_them(self):
        class Open(pydantic.BaseModel):
            model_config = pydantic.ConfigDict(extra="allow")
            type: str

        class Outer(pydantic.BaseModel):
            people: list[Person]
            properties: Open

        schema = json.loads(SamplingParams(json_schema=Outer).json_schema)
        assert schema["additionalProperties"] is schema["$defs"]["Person"]["additionalProperties"] is False
        assert schema["$defs"]["Open"]["additionalProperties"] is True
        assert set(schema["properties"]) == {"people", "properties"}
        given = Person.model_json_schema()
        assert json.loads(SamplingParams(json_schema=given).json_schema) == given

    def test_it_ends_by_itself_where_nothing_may_follow(self, tokenizer):
        wanted = filter_of(tokenizer, regex="a")
        wanted.accept(tokens_in(wanted.allowed())[0])
        assert wanted.is_done

    def test_a_token_that_is_not_allowed_is_an_error(self, tokenizer):
        wanted = filter_of(tokenizer, regex="a")
        with pytest.raises(RequestError, match=r"regex cannot be followed: .*grammar"):
            wanted.accept(next(t for t, piece in tokenizer.pieces.of.items() if piece == b"b"))

    def test_tokens_beyond_the_models_rows_are_never_allowed(self, tokenizer):
        params = SamplingParams(regex="(?s:.)*")
        wanted = make_filter(params, tokenizer, 70, frozenset(), drops_space=False)
        assert len(wanted.allowed()) == 3
        choices = make_filter(SamplingParams(choices="a"), tokenizer, 70, frozenset(), drops_space=False)
        assert len(choices.allowed()) == 3

    def test_text_becomes_tokens_as_in_the_middle_of_a_text(self, tokenizer):
        import llguidance

        known = vocabulary(llguidance, tokenizer)

        @given(st.text("the capital of中é{}: "))
        @settings(max_examples=50)
        def check(text):
            assert known.decode_bytes(known.tokenize_str(text)) == text.encode()

        check()
        assert vocabulary(llguidance, tokenizer) is known


class TestWhatCannotBe:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"json_schema": {"type": "nonsense"}}, "json_schema cannot be compiled: Invalid type: nonsense"),
            ({"json_schema": {"type": "array", "uniqueItems": True}}, "json_schema cannot be compiled: .*uniqueItems"),
            ({"json_schema": {"$ref": "#/nope"}}, "json_schema cannot be compiled: .*nope"),
            ({"regex": "(ab"}, r"regex cannot be compiled: .*unclosed group"),
            ({"regex": "a(?=b)"}, r"regex cannot be compiled: .*look-around"),
            ({"lark": "start: foo"}, 'lark cannot be compiled: .*unknown name: "foo"'),
        ],
    )
    def test_be_compiled_is_an_error(self, tokenizer, fields, message):
        with pytest.raises(RequestError, match=message):
            filter_of(tokenizer, **fields)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"json_schema": "{"}, "json_schema is '{', which is not JSON"),
            ({"json_schema": "[1]"}, "json_schema is .*, expected a JSON object"),
            ({"json_schema": {1, 2}}, "json_schema is .*, which cannot be written as JSON"),
            ({"json_schema": int}, "json_schema is .*, which cannot be written as JSON"),
            ({"regex": ""}, "regex is '', expected text that is not empty"),
            ({"lark": 5}, "lark is 5, expected text"),
            ({"choices": [""]}, "choices is .*, expected texts that are not empty"),
            ({"choices": "a", "regex": "b"}, "regex is given beside choices, expected at most one of"),
            ({"choices": "a", "token_healing": True}, "token_healing is True beside choices"),
        ],
    )
    def test_be_read_is_an_error(self, fields, message):
        with pytest.raises(RequestError, match=message):
            SamplingParams(**fields)

    def test_be_done_without_the_library_says_how_to_get_it(self, tokenizer, monkeypatch):
        monkeypatch.setitem(sys.modules, "llguidance", None)
        with pytest.raises(
            RequestError, match=r"regex needs the library llguidance: pip install 'polybit\[structured\]'"
        ):
            filter_of(tokenizer, regex="a")
