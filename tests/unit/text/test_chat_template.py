import time

import pytest

from polybit.errors import ConfigError, RequestError
from polybit.text import ChatTemplate
from unit.text.folders import write

USER = {"role": "user", "content": "Hello"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def template(source, **names):
    return ChatTemplate(source, names, "here")


def test_a_conversation_becomes_a_prompt():
    chatml = template(CHATML)
    assert chatml.render([USER]) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert chatml.render([USER], add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_special_tokens_and_variables_reach_the_template_by_name():
    source = "{{ bos_token }}{{ tools | length }}{{ enable_thinking }}"
    assert template(source, bos_token="<s>").render([USER], tools=[{}], enable_thinking=False) == "<s>1False"


def test_blocks_leave_no_blank_lines():
    assert template("  {% if true %}\nyes\n  {% endif %}\n").render([USER]) == "yes\n"


def test_tojson_is_plain_json():
    assert template("{{ messages | tojson }}").render([{"role": "user", "content": "<é'&>"}]) == (
        '[{"role": "user", "content": "<é\'&>"}]'
    )
    assert (
        template("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}").render([USER])
        == '{\n "a": 2,\n "b": 1\n}'
    )


def test_loop_controls_and_generation_blocks():
    body = "{% if loop.index == 2 %}{% break %}{% endif %}{% generation %}{{ m.content }}{% endgeneration %}"
    source = "{% for m in messages %}" + body + "{% endfor %}"
    assert template(source).render([USER, USER]) == "Hello"


def test_the_date_is_today():
    assert template("{{ strftime_now('%Y-%m') }}").render([USER]) == time.strftime("%Y-%m")


def test_the_templates_own_refusal_is_one_line():
    with pytest.raises(RequestError, match="refused the messages: no system role, please"):
        template("{{ raise_exception('no system role,\n please') }}").render([USER])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content.x }}",
        "{{ 'a' + 1 }}",
        "{{ range(999999999) | list }}",
        "{{ undefined_function() }}",
    ],
)
def test_no_template_reaches_out_of_its_sandbox(source):
    with pytest.raises(RequestError, match="refused the messages"):
        template(source).render([USER])


def test_a_variable_cannot_stand_for_the_messages():
    with pytest.raises(RequestError, match="multiple values for keyword argument 'messages'"):
        template(CHATML).render([USER], messages="others")


def test_bad_jinja_is_a_config_error():
    with pytest.raises(ConfigError, match=r"here: the chat template's line 2 is not valid Jinja"):
        template("fine\n{% endif %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
        "{% for m in messages %}" * 30 + "{% endfor %}" * 30,
    ],
)
def test_a_template_too_deep_to_compile_is_a_config_error(source):
    with pytest.raises(ConfigError, match="here: the chat template cannot be compiled"):
        template(source)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "not empty"),
        ("Hello", "must be a list"),
        (USER, "must be a list"),
        (["Hello"], r"messages\[0\] must be a mapping"),
        ([USER, {"content": "x"}], r"messages\[1\] must be a mapping"),
        ([{"role": "user"}], 'has no "content"'),
    ],
)
def test_bad_messages_are_named(messages, reason):
    with pytest.raises(RequestError, match=reason):
        template(CHATML).render(messages)


class TestOpen:
    def test_its_own_file_wins(self, tmp_path):
        write(tmp_path, "tokenizer_config.json", {"chat_template": "config"})
        assert ChatTemplate.open(tmp_path, {}).render([USER]) == "config"
        (tmp_path / "chat_template.jinja").write_text("file")
        assert ChatTemplate.open(tmp_path, {}).render([USER]) == "file"

    def test_the_default_of_named_templates(self, tmp_path):
        named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "default"}]
        write(tmp_path, "tokenizer_config.json", {"chat_template": named})
        assert ChatTemplate.open(tmp_path, {}).render([USER]) == "default"

    @pytest.mark.parametrize("entry", [None, 5, [], [{"name": ["default"], "template": "x"}], ["default"]])
    def test_none_is_said(self, tmp_path, entry):
        write(tmp_path, "tokenizer_config.json", {"chat_template": entry})
        with pytest.raises(ConfigError, match="has no chat template"):
            ChatTemplate.open(tmp_path, {})
