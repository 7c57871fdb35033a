"""Chats and prompts of rows: which are asked, and which are the row's error."""

import base64
import json

import pytest

from mediamill.pipeline.tasks.chats import check_media, row_chat
from mediamill.schemas.errors import RowError

DATA = "data:image/png;base64," + base64.b64encode(b"picture" * 1000).decode()
TEXT = {"type": "text", "text": "What is this?"}


def checked(row, media, base="/base"):
    """The chat of a row with these URIs; what its error says, if it has one."""
    try:
        [chat] = check_media(row, [row_chat(row, "Describe it.", None)], media, base)
    except RowError as error:
        code, message = error.code.value, error.message
    else:
        return chat
    assert len(message.encode()) < 2000
    return code, message


def with_parts(*parts):
    return {"messages": json.dumps([{"role": "user", "content": [*parts, TEXT]}])}


def image(name, key="image"):
    return {"type": "image", key: name}


@pytest.mark.parametrize(
    ("named", "uri"),
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        ("/base/a.png", "a.png"),
        ("a.png", "/base/x/../a.png"),
        ("file:///base/a.png", "a.png"),
        ("file:///base/a%20b.png", "a b.png"),
        ("FILE://localhost/base/a.png", "/base/a.png"),
        ("https://a.test/b c.png", "https://A.test/b%20c.png#x"),
        ("HTTPS://a.test:443/b", "https://a.test/./b"),
        ("s3a://bucket/a::b", "S3://bucket/a::b"),
        (DATA, DATA.replace("image/png", "image/jpeg")),
        (DATA.replace("image/png", "IMAGE/PNG").replace("=", "%3D"), DATA),
        (None, "a.png"),
        ("", "a.png"),
    ],
    ids=lambda value: f"{value!s:.30}",
)
def test_a_part_may_name_the_medium_of_the_row(named, uri):
    for key in ("image", "path", "url", "image_url"):
        row = with_parts(image(named, key))
        assert "messages" in checked(row, [uri])
    assert "messages" in checked(with_parts({"image_url": {"url": named}}), [uri])
    assert "messages" in checked(with_parts({"type": "image_url", "image_url": named}), [uri])


@pytest.mark.parametrize(
    ("named", "uri"),
    [
        ("b.png", "a.png"),
        ("a.png", "sub/a.png"),
        ("A.png", "a.png"),
        ("/elsewhere/a.png", "a.png"),
        ("https://a.test/b?c=1", "https://a.test/b?c=2"),
        ("http://a.test/b", "https://a.test/b"),
        ("s3://bucket/a", "s3://bucket/a/"),
        ("gs://bucket/a", "s3://bucket/a"),
        (DATA, "a.png"),
        (DATA, DATA + "AAAA"),
        ("x" * 1_000_000, "a.png"),
        ("a.png", None),
        ("https://u:SECRET@a.test/x", "https://u:SECRET@a.test/y?SECRET"),
    ],
    ids=lambda value: f"{value!r:.30}",
)
def test_a_part_that_names_another_medium_is_the_rows_error(named, uri):
    code, message = checked(with_parts(image(named)), [uri])
    assert code == "prompt_invalid"
    assert message.startswith("messages[0].content[0]: found ")
    assert "SECRET" not in message


def test_media_are_named_in_the_order_of_the_row():
    parts = [image("a.png"), {"type": "text", "text": "and"}, {"type": "video", "video": "b.mp4"}]
    assert "messages" in checked(with_parts(*parts), ["a.png", "b.mp4"])
    for media in (["b.mp4", "a.png"], ["a.png"], ["a.png", "c.mp4"]):
        assert checked(with_parts(*parts), media)[0] == "prompt_invalid"
    # One that is not named stands for the medium at its place; the counts are compared later.
    assert "messages" in checked(with_parts({"type": "image"}, image("b.png")), ["a.png", "b.png"])
    assert "messages" in checked(with_parts(image("a.png")), ["a.png", "b.png"])
    history = [{"role": "user", "content": [image("a.png"), TEXT]}] * 2
    assert checked({"messages": json.dumps(history)}, ["a.png", "b.png"])[0] == "prompt_invalid"


@pytest.mark.parametrize("name", [5, ["f1.png", "f2.png"], True, 1.5, {"url": 5}])
def test_a_name_that_is_no_text_is_the_rows_error(name):
    assert checked(with_parts(image(name)), ["a.png"])[0] == "prompt_invalid"


def test_base64_in_a_chat():
    content = DATA.partition(",")[2]
    chat = checked(with_parts(image(content, "base64")), [DATA])
    assert chat["messages"][0]["content"] == [{"type": "image"}, TEXT]  # it is not carried along
    assert checked(with_parts(image(content, "base64")), ["a.png"])[0] == "prompt_invalid"
    assert checked(with_parts(image("no base64!", "base64")), [DATA])[0] == "prompt_invalid"


def test_a_prompt_about_media_needs_media():
    for media in (None, []):
        for row in ({}, with_parts({"type": "image"})):
            code, message = checked({"media": media, **row}, [])
            assert code == "media_empty"
            assert ("null" if media is None else "an empty list") in message
    assert checked({"media": None, "prompt": "Hm?"}, [])[0] == "media_empty"
    # A text of its own, where the row says that it has no media.
    assert checked({"media": [], "prompt": "Hm?"}, [])["prompt"] == "Hm?"
    for media in (None, []):
        assert "messages" in checked({"media": media, **with_parts()}, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ("{}", "a JSON object"),
        ('"text"', "a JSON text"),
        ("5", "a JSON number"),
        ("null", "a JSON"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" * 300 + "]" * 300, "nested more than 64 deep"),
        ('[{"a":' * 200 + "1" + "}]" * 200, "nested more than 64 deep"),
        ('[{"role": "user", "role": "system", "content": "x"}]', "found the key 'role' twice"),
        ('[{"' + "k" * 10**6 + '": 1, "' + "k" * 10**6 + '": 2}]', "' twice"),
        ('[{"\\ud800": 1, "\\ud800": 2}]', "twice"),
        ('[{"role": "user", "content": NaN}]', "no JSON (found NaN)"),
        ("[" + "9" * 10_000 + "]", "found a number of 10,000 digits, expected at most 4,000"),
        ("[1e999]", "beyond a double"),
        ("[-Infinity]", "no JSON (found -Infinity)"),
        ("[{'role': 'user'}]", "no JSON"),
        ("[]]", "no JSON"),
    ],
    ids=lambda value: f"{value!r:.24}",
)
def test_what_is_no_list_of_messages(text, words):
    code, message = checked({"messages": text}, ["a.png"])
    assert code == "prompt_invalid"
    assert words in message


@pytest.mark.parametrize(
    "chat",
    [[], [1], [None], ["x"], [{}], [{"role": "user"}], [{"role": 5, "content": [1, [], {}]}]],
)
def test_other_mistakes_are_left_to_the_chat_template(chat):
    """See tests/model/text/test_prompt.py."""
    assert checked({"messages": json.dumps(chat)}, ["a.png"]) == {"messages": chat}
