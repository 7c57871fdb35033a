"""Prompts equal the reference's over a family of chats; templates stay in their sandbox."""

import functools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mediamill.model.errors import ModelError, PromptError
from mediamill.model.text.prompt import (
    ChatTemplate,
    check_messages,
    media_kinds,
    replace_texts,
    texts,
    user_message,
)
from mediamill.model.tiny import CHECKPOINT
from tests import oracle


@functools.cache
def own() -> ChatTemplate:
    return ChatTemplate.load(CHECKPOINT)


@functools.cache
def reference():
    return oracle.load_processor(CHECKPOINT)


words = st.sampled_from(
    ["Describe it.", " ", "", "two\nlines\n", "{{ 1 + 1 }}", "<b>&amp;'\"", "日本"]
)
parts = st.one_of(
    words.map(lambda text: {"type": "text", "text": text}),
    words.map(lambda text: {"text": text, "type": "other"}),
    st.just({"type": "image"}),
    st.just({"type": "image", "image": "a.jpg", "min_pixels": 3136}),
    st.just({"type": "image_url", "image_url": {"url": "a.jpg"}}),
    st.just({"type": "video"}),
    st.just({"type": "video", "video": "a.mp4", "fps": 2.0}),
)
contents = words | st.lists(parts, max_size=5)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": contents}),
    min_size=1,
    max_size=5,
)
systems = st.none() | contents.map(lambda content: {"role": "system", "content": content})


@settings(max_examples=300, deadline=None)
@given(systems, messages, st.booleans(), st.booleans())
@example(None, [{"role": "user", "content": [{"type": "image"}, {"type": "video"}]}], True, True)
def test_prompts_equal_the_reference(system, chat, generation, vision_id):
    chat = [system, *chat] if system else chat
    check_messages(chat)
    expected = reference().apply_chat_template(
        chat, tokenize=False, add_generation_prompt=generation, add_vision_id=vision_id
    )
    assert own().render(chat, generation, vision_id) == expected
    pads = [kind for kind in ("image", "video") for _ in range(expected.count(f"<|{kind}_pad|>"))]
    assert sorted(media_kinds(chat)) == pads


def test_the_documented_prompts():
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hello?"}]},
        {"role": "assistant", "content": "I'm doing well, thank you for asking."},
        {"role": "user", "content": [{"type": "text", "text": "And these?"}, {"type": "image"},
                                     {"type": "image"}, {"type": "video"}]},
    ]  # fmt: skip
    assert own().render(chat, add_vision_id=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>"
        "Hello?<|im_end|>\n"
        "<|im_start|>assistant\nI'm doing well, thank you for asking.<|im_end|>\n"
        "<|im_start|>user\nAnd these?Picture 2: <|vision_start|><|image_pad|><|vision_end|>"
        "Picture 3: <|vision_start|><|image_pad|><|vision_end|>"
        "Video 1: <|vision_start|><|video_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_one_turn_chats_have_the_media_first():
    assert user_message("What?", ["video", "image"], "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "What?"}],
        },
    ]
    assert [message["role"] for message in user_message("What?", [])] == ["user"]


def test_texts_and_what_is_left_without_them():
    chat = user_message("What?", ["image"], "Be brief.")
    assert sorted(texts(chat)) == ["Be brief.", "What?"]
    assert list(texts(replace_texts(chat))) == ["x", "x"]
    assert media_kinds(replace_texts(chat)) == ["image"]


# --- where the template stands

SOURCE = "{% for message in messages %}{{ message['content'] }}{% endfor %}{{ eos_token }}"
TOKENS = {"eos_token": {"content": "<|im_end|>", "special": True}, "bos_token": None}


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": SOURCE, "chat_template.json": {"chat_template": "other"}},
        {"chat_template.json": {"chat_template": SOURCE}},
        {"tokenizer_config.json": {"chat_template": SOURCE}},
        {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "tools", "template": "other"},
                    {"name": "default", "template": SOURCE},
                ]
            }
        },
    ],
)
def test_places_of_the_template(files, tmp_path):
    files = {**files, "tokenizer_config.json": {**TOKENS, **files.get("tokenizer_config.json", {})}}
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    template = ChatTemplate.load(tmp_path)
    assert template.source == SOURCE
    assert template.render([{"role": "user", "content": "hello"}]) == "hello<|im_end|>"


def test_folders_without_a_template(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        ChatTemplate.load(tmp_path)


def test_a_template_that_cannot_be_read():
    with pytest.raises(ModelError, match="template"):
        ChatTemplate("{% for %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no system role') }}",
        "{{ messages[0]['content'] + 1 }}",
        "{% include 'chat_template.jinja' %}",
    ],
)
def test_what_a_template_must_not_do_is_a_prompt_error(source):
    with pytest.raises(PromptError) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "hello"}])
    assert caught.value.code == "prompt_invalid"


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], r"messages\[0\]"),
        ([{"content": "hello"}], "role"),
        ([{"role": "user\n<|im_end|>", "content": "hello"}], "role"),
        ([{"role": "user", "content": None}], "content"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], r"content\[0\]"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": ["b"]}],
            r"\[1\].content\[0\]",
        ),
    ],
)
def test_malformed_chats_say_where(chat, words):
    with pytest.raises(PromptError, match=words) as caught:
        check_messages(chat)
    assert caught.value.code == "prompt_invalid"
