"""Chats in the reference's own form: every way to give a medium, batches, and clear errors."""

import base64
import io

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from mediamill.model.chat import Chat, ChatError
from mediamill.model.errors import ModelError
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.media_source import SourceRules
from mediamill.model.sampling import Sampling
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.model.tiny.encode import clip_bytes, picture_bytes
from mediamill.model.tiny.scenes import draw_clip, draw_picture
from tests import oracle

SHORT = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def chat():
    return Chat.load(CHECKPOINT, device="cpu")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A picture and a clip as scenes and as files."""
    rng = np.random.default_rng(1)
    picture = draw_picture(rng, "one", 400, 300, supersample=2)
    clip = draw_clip(rng, 288, 288, 24, 2)
    folder = tmp_path_factory.mktemp("media")
    (folder / "a.png").write_bytes(picture_bytes(picture.frames[0], "png"))
    (folder / "b.mp4").write_bytes(clip_bytes(clip.frames))
    return picture, clip, folder


def ask(*parts, text=CAPTION_PROMPT):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_every_way_to_give_a_picture(chat, media, s3):
    scene, _, folder = media
    path = folder / "a.png"
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    fsspec.filesystem("s3").pipe_file(f"{s3}/chat/a.png", data)
    decoded = Image.open(io.BytesIO(data))
    parts = [
        {"type": "image", "image": str(path)},
        {"type": "image", "image": path},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": path.as_uri()},
        {"type": "image", "image": f"{s3}/chat/a.png"},
        {"type": "image", "url": f"data:image/png;base64,{text}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
        {"type": "image_url", "image_url": str(path)},
        {"type": "image", "base64": text},
        {"type": "image", "image": data},
        {"type": "image", "image": decoded, "text": None},
        {"image": np.asarray(decoded)},
    ]
    answers = chat.answer([ask(part) for part in parts])
    assert [answer.text for answer in answers] == [scene.caption] * len(parts)
    assert len({answer.receipts[0].sha256 for answer in answers[:10]}) == 1
    assert all(answer.prompt_ids == answers[0].prompt_ids for answer in answers)
    assert answers[0].error is None
    assert answers[0].completion.finish_reason == "stop"


def test_every_way_to_give_a_video(chat, media):
    _, scene, folder = media
    path = folder / "b.mp4"
    frames = list(scene.frames)
    pictures = [Image.fromarray(frame) for frame in frames]
    files = []
    for number, frame in enumerate(frames[:4]):
        files.append(folder / f"{number}.png")
        files[-1].write_bytes(picture_bytes(frame, "png"))
    same = [
        {"type": "video", "video": str(path)},
        {"type": "video", "path": path},
        {"type": "video", "url": f"file://{path}"},
        {"type": "video", "video": path.read_bytes()},
        {"type": "video", "video": pictures, "frame_rate": 12.0},
        {"type": "video", "video": np.stack(frames), "frame_rate": 12.0},
        {"type": "video", "video": torch.from_numpy(np.stack(frames)).movedim(3, 1),
         "frame_rate": 12.0},
    ]  # fmt: skip
    answers = chat.answer([ask(part) for part in same])
    assert [answer.text for answer in answers] == [scene.caption] * len(same)
    assert {answer.receipts[0].frame_indices for answer in answers} == {(0, 6, 12, 18)}
    for listed in (files, [file.read_bytes() for file in files], [str(file) for file in files]):
        answer = chat.answer(ask({"type": "video", "video": listed}), SHORT)
        assert answer.receipts[0].frame_indices == (0, 1, 2, 3)


def test_options_of_a_part_and_of_a_call(chat, media):
    folder = media[2]
    video = {"type": "video", "video": folder / "b.mp4"}
    parts = [
        {**video, "fps": 4.0},
        {**video, "num_frames": 6},
        {**video, "start_s": 1.0, "end_s": 2.0},
        {**video, "max_pixels": 28 * 28 * 4, "min_pixels": 28 * 28},
        {"type": "image", "image": folder / "a.png", "min_pixels": 784, "max_pixels": 3136},
        video,
    ]
    receipts = [answer.receipts[0] for answer in chat.answer([ask(part) for part in parts], SHORT)]
    assert [len(receipt.frame_indices) for receipt in receipts] == [8, 6, 4, 4, 0, 4]
    assert receipts[2].frame_times_s[0] >= 1.0
    assert receipts[3].height * receipts[3].width <= 3136
    assert receipts[4].height * receipts[4].width <= 3136
    few = chat.answer(ask(video), SHORT, video=VideoRules(num_frames=2))
    assert len(few.receipts[0].frame_indices) == 2
    mine = chat.answer(ask({**video, "fps": 4.0}), SHORT, video=VideoRules(num_frames=2))
    assert len(mine.receipts[0].frame_indices) == 8


def test_load_takes_limits(media):
    small = Chat.load(CHECKPOINT, "cpu", min_pixels=784, max_pixels=3136,
                      video=VideoRules(num_frames=2, max_pixels=3136, min_pixels=784))  # fmt: skip
    folder = media[2]
    parts = [
        {"type": "image", "path": folder / "a.png"},
        {"type": "video", "path": folder / "b.mp4"},
    ]
    receipts = small.answer(ask(*parts), SHORT).receipts
    assert [receipt.height * receipt.width <= 3136 for receipt in receipts] == [True, True]
    assert len(receipts[1].frame_indices) == 2


def test_prompts_and_answers_equal_the_reference(chat, media):
    """apply_chat_template, generate and batch_decode, on a chat of several turns and media."""
    image = {"type": "image", "image": Image.open(media[2] / "a.png")}
    messages = [
        {"role": "system", "content": "Be brief."},
        *ask(image),
        {"role": "assistant", "content": [{"type": "text", "text": "A red circle."}]},
        *ask(image, image, text="And these?"),
    ]
    processor, model = oracle.load_processor(CHECKPOINT), oracle.load_model(CHECKPOINT)
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        add_vision_id=True,
    )  # fmt: skip
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[
        :, inputs.input_ids.shape[1] :
    ]
    expected = processor.batch_decode(ids, skip_special_tokens=True)
    answer = chat.answer(messages, Sampling(max_new_tokens=12), add_vision_id=True)
    assert answer.prompt_ids == inputs.input_ids[0].tolist()
    assert answer.completion.output_ids == ids[0].tolist()
    assert answer.text == expected[0].strip()


def test_a_batch_of_mixed_chats_equals_each_alone(chat, media):
    picture, clip, folder = media
    chats = [
        ask({"type": "image", "image": folder / "a.png"}),
        [{"role": "user", "content": "Hello."}],
        ask({"type": "video", "video": folder / "b.mp4"}),
    ]
    together = chat.answer(chats, Sampling(max_new_tokens=24))
    assert [together[0].text, together[2].text] == [picture.caption, clip.caption]
    for answer, messages in zip(together, chats, strict=True):
        alone = chat.answer(messages, Sampling(max_new_tokens=24))
        assert (alone.text, alone.prompt_ids) == (answer.text, answer.prompt_ids)
    assert [len(answer.receipts) for answer in together] == [1, 0, 1]
    assert chat.answer([]) == []


def test_a_stop_string_ends_the_text(chat, media):
    picture, _, folder = media
    word = picture.caption.split()[2]
    asked = ask({"type": "image", "image": folder / "a.png"})
    answer = chat.answer(asked, Sampling(stop=(word,)))
    assert answer.text == picture.caption.partition(word)[0].strip()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image"}, "found a picture under 0 keys, expected it under one of image, path"),
        ({"type": "image", "image": None}, "found a picture under 0 keys"),
        ({"type": "image", "image": "a", "url": "b"}, "found a picture under 2 keys"),
        ({"type": "image", "image": "/none.png"}, r"/none\.png: found no such file"),
        ({"type": "image", "image": b"not a picture"}, "no known picture or video"),
        ({"type": "image", "path": b"abc"}, "path is b'abc', expected a text"),
        ({"type": "image", "image": 3}, "found a int"),
        ({"type": "image", "image": "a.png", "size": 3}, "size is no key of a picture"),
        ({"type": "image", "base64": "!"}, "found no base64"),
        ({"type": "image_url", "image_url": {}}, "image_url is None, expected a text"),
        ({"type": "video", "video": []}, "no frames"),
        ({"type": "video", "video": b"x", "frame_rate": 2.0}, "frame_rate is of a list of frames"),
        ({"type": "video", "video": [b"x"], "fps": 2.0}, "fps needs the frame_rate"),
        ({"type": "video", "video": [b"x"], "start_s": 2.0}, "start_s and end_s are of a file"),
        ({"type": "video", "video": b"x", "fps": 2.0, "num_frames": 2}, "both fps"),
        ({"type": "video", "video": b"x", "fps": "fast"}, "fps is 'fast', expected a number above"),
        ({"type": "video", "video": b"x", "fps": float("nan")}, "fps is nan"),
        (
            {"type": "video", "video": b"x", "num_frames": 2.5},
            "num_frames is 2.5, expected a whole",
        ),
        ({"type": "video", "video": b"x", "start_s": -1}, "expected a number of at least 0"),
        ({"type": "image", "image": b"x", "max_pixels": "many"}, "max_pixels is 'many'"),
        ({"type": "image", "image": b"x", "min_pixels": True}, "min_pixels is True"),
    ],
)
def test_a_wrong_medium_is_named(chat, part, words):
    good = [{"role": "user", "content": "Hello."}]
    with pytest.raises(ChatError, match=rf"^messages\[0\]\.content\[0\]: .*({words})"):
        chat.answer(ask(part))
    with pytest.raises(ChatError, match=r"^conversation 1: messages\[0\]\.content\[0\]: "):
        chat.answer([good, ask(part)])
    answers = chat.answer([good, ask(part), good], SHORT, errors="return")
    assert answers[1].error.startswith("messages[0].content[0]: ")
    assert (answers[1].text, answers[1].completion) == ("", None)
    assert answers[0].error is None
    assert answers[0].text == answers[2].text


@pytest.mark.parametrize("chats", [[[]], [["hello"]], [[{"role": "user"}]], [3], ["hello"]])
def test_what_is_no_conversation_is_named(chat, chats):
    with pytest.raises(ChatError, match=r"^conversation 0: messages"):
        chat.answer(chats)


def test_control_strings_and_long_prompts_are_refused(chat):
    with pytest.raises(ChatError, match="control string"):
        chat.answer([{"role": "user", "content": "<|im_end|>"}])
    assert chat.answer([{"role": "user", "content": "<|im_end|>"}], SHORT, control_strings="text")
    with pytest.raises(ChatError, match=r"the prompt is \d+ tokens long"):
        chat.answer([{"role": "user", "content": "a red circle " * 2000}])
    with pytest.raises(ValueError, match="errors is 'ignore'"):
        chat.answer([], errors="ignore")


def test_only_allowed_sources_are_read(media):
    closed = Chat.load(CHECKPOINT, "cpu", sources=SourceRules(schemes=("data",), max_bytes=100))
    with pytest.raises(ChatError, match="the scheme file is not allowed"):
        closed.answer(ask({"type": "image", "image": media[2] / "a.png"}))
    with pytest.raises(ChatError, match=r"found \d+ bytes, expected at most 100"):
        closed.answer(ask({"type": "image", "image": bytes(101)}))


def test_a_folder_on_s3_answers_as_on_disk(chat, media, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for file in CHECKPOINT.iterdir():
        fs.pipe_file(f"{s3}/tiny/{file.name}", file.read_bytes())
    scene, _, folder = media
    answer = Chat.load(f"{s3}/tiny", "cpu").answer(ask({"type": "image", "path": folder / "a.png"}))
    assert answer.text == scene.caption
    with pytest.raises(ModelError, match=f"{s3}/none"):
        Chat.load(f"{s3}/none", "cpu")
