"""The whole way from bytes and a chat to token ids and patches equals the reference's."""

import functools
import hashlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mediamill.model.errors import MediaError, ModelError, PromptError
from mediamill.model.inputs import VisualInput
from mediamill.model.media.patches import normalize
from mediamill.model.processor import MediaLimits, Processor, Receipt, VideoRules
from mediamill.model.tiny import CHECKPOINT
from tests import media, oracle


@functools.cache
def own() -> Processor:
    return Processor.load(CHECKPOINT)


@functools.cache
def reference():
    return oracle.load_processor(CHECKPOINT)


@functools.cache
def clip(count: int = 9) -> bytes:
    return media.video(media.numbered_frames(count))


def picture(height: int, width: int) -> bytes:
    return media.encode(Image.fromarray(media.draw(height, width, seed=height)), "PNG")


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


CHATS = {
    "picture": ([picture(80, 120)], [user(IMAGE, text("Describe the picture."))]),
    "clip": ([clip()], [user(VIDEO, text("What moves?"))]),
    "clip of one frame": ([clip(1)], [user(VIDEO)]),
    "text": ([], [{"role": "user", "content": "Hello."}]),
    "mixed, several turns": (
        [picture(100, 60), clip(), picture(33, 500), clip(5), media.jpeg()],
        [
            {"role": "system", "content": "Be brief."},
            user(IMAGE, text("And this?"), {"type": "video", "video": "a.mp4"}),
            {"role": "assistant", "content": "A large red circle."},
            user({"type": "image_url", "image_url": "b.png"}, VIDEO, text("é"), IMAGE),
        ],
    ),
}


def pictures_of(files: list[bytes], kinds: list[str]) -> list[Image.Image] | None:
    """What the reference takes for the pictures among the files; None if there are none."""
    pairs = zip(files, kinds, strict=True)
    return [Image.open(io.BytesIO(data)) for data, kind in pairs if kind == "image"] or None


def videos_of(files: list[bytes], receipts: list[Receipt]) -> list[torch.Tensor] | None:
    """The sampled frames of the videos, by a plain decode; None if there are none."""
    found = []
    for data, receipt in zip(files, receipts, strict=True):
        if receipt.kind == "video":
            frames = media.all_frames(data)
            stack = np.stack([frames[index] for index in receipt.frame_indices])
            found.append(torch.from_numpy(stack).permute(0, 3, 1, 2))
    return found or None


@pytest.mark.parametrize("vision_id", [False, True])
@pytest.mark.parametrize("name", CHATS)
def test_ids_and_pixels_equal_the_reference(name, vision_id):
    files, chat = CHATS[name]
    prepared = [own().prepare_media(data) for data in files]
    visuals = [visual for visual, _ in prepared]
    prompt = reference().apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True, add_vision_id=vision_id
    )
    expected = reference()(
        text=[prompt],
        images=pictures_of(files, [visual.kind for visual in visuals]),
        videos=videos_of(files, [receipt for _, receipt in prepared]),
        return_tensors="pt",
    )
    assert own().build_prompt(chat, visuals, vision_id) == expected["input_ids"][0].tolist()
    for kind, values, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        mine = [visual for visual in visuals if visual.kind == kind]
        if not mine:
            assert values not in expected
            continue
        assert torch.equal(torch.cat([normalize(v.patches) for v in mine]), expected[values])
        assert [list(v.grid_thw) for v in mine] == expected[grids].tolist()


def test_the_receipt_of_a_picture():
    data = media.jpeg(300, 200, orientation=6)
    visual, receipt = own().prepare_media(data)
    assert (receipt.kind, receipt.sha256) == ("image", hashlib.sha256(data).hexdigest())
    assert (receipt.source_height, receipt.source_width) == (200, 300)
    assert (receipt.height, receipt.width) == (56, 112)
    assert visual.grid_thw == (1, 4, 8)
    assert visual.patches.shape == (32, 588)
    assert visual.patches.is_contiguous()
    assert receipt.visual_tokens == visual.tokens == 8
    assert receipt.frame_times_s == receipt.frame_indices == ()
    assert receipt.notes == (
        "turned upright (EXIF orientation 6)",
        "resized from 200 x 300 to 56 x 112 by max_pixels 9800",
    )


def test_the_receipt_of_a_window():
    visual, receipt = own().prepare_media(clip(), "video", start_s=0.2, end_s=0.7)
    assert receipt.kind == "video"
    assert receipt.frame_indices == (2, 3, 4, 5)
    assert receipt.frame_times_s == pytest.approx((0.2, 0.3, 0.4, 0.5))
    assert visual.grid_thw[0] == 2
    assert visual.patches.shape == (np.prod(visual.grid_thw), 1176)
    assert visual.patches.is_contiguous()
    assert receipt.visual_tokens == visual.tokens == np.prod(visual.grid_thw) // 4


def test_one_frame_is_repeated_and_told():
    visual, receipt = own().prepare_media(clip(1))
    assert visual.grid_thw[0] == 1
    assert receipt.frame_indices == (0,)
    assert "last frame repeated" in " ".join(receipt.notes)
    slices = visual.patches.view(-1, 3, 2, 196)
    assert torch.equal(slices[:, :, 0], slices[:, :, 1])


def test_the_kind_is_told_from_the_bytes():
    assert own().prepare_media(picture(60, 60))[0].kind == "image"
    assert own().prepare_media(clip())[0].kind == "video"
    assert own().prepare_media(media.animation(6))[0].kind == "image"
    assert own().prepare_media(media.animation(6), "video")[0].kind == "video"
    assert own().prepare_media(media.animation(6), end_s=0.4)[0].kind == "video"


@pytest.mark.parametrize(
    ("data", "kind", "window", "code"),
    [
        (b"", None, {}, "media_empty"),
        (b"only a text", None, {}, "decode_unsupported"),
        (b"only a text", "image", {}, "decode_unsupported"),
        (clip(), "image", {}, "decode_unsupported"),
        (picture(60, 60), "video", {}, "decode_unsupported"),
        (picture(60, 60), None, {"start_s": 1.0}, "decode_unsupported"),
        (picture(2, 402), None, {}, "decode_unsupported"),
        (media.cut(media.jpeg()), None, {}, "decode_corrupt"),
        (media.cut(clip()), None, {}, "decode_corrupt"),
    ],
)
def test_media_that_cannot_be_prepared(data, kind, window, code):
    with pytest.raises(MediaError) as caught:
        own().prepare_media(data, kind, **window)
    assert caught.value.code == code


def test_limits_of_the_job_replace_those_of_the_checkpoint():
    rules = VideoRules(fps=None, num_frames=2, max_pixels=7056)
    processor = Processor.load(CHECKPOINT, image_min_pixels=784, image_max_pixels=1600, video=rules)
    assert processor.prepare_media(picture(300, 300))[1].height == 28
    assert processor.prepare_media(picture(10, 10))[1].height == 28
    _, receipt = processor.prepare_media(clip())
    assert receipt.height * receipt.width <= 7056
    assert len(receipt.frame_indices) == 2


@pytest.mark.parametrize("size", [(80, 120), (1, 1), (28, 5600), (999, 333), (45, 44)])
def test_tokens_are_told_from_sizes_alone(size):
    count = reference()._get_num_multimodal_tokens([size], [(9, *size)])
    assert [own().picture_tokens(*size)] == count["num_image_tokens"]
    assert [own().video_tokens(9, *size)] == count["num_video_tokens"]
    if size == (80, 120):
        assert own().picture_tokens(*size) == own().prepare_media(picture(*size))[0].tokens


def test_limits_of_the_job():
    limits = MediaLimits(max_image_pixels=3000, max_frames_decoded=5)
    processor = Processor.load(CHECKPOINT, limits=limits)
    for data in (picture(60, 60), clip()):
        with pytest.raises(MediaError) as caught:
            processor.prepare_media(data)
        assert caught.value.code == "decode_too_large"


# --- prompts


def refused(
    chat: list, visuals: list[VisualInput] = (), processor: Processor | None = None
) -> PromptError:
    with pytest.raises(PromptError) as caught:
        (processor or own()).build_prompt(chat, visuals)
    return caught.value


@pytest.mark.parametrize(
    "token", ["<|image_pad|>", "<|im_end|>", "<|vision_start|>", "<|endoftext|>"]
)
def test_control_strings_in_texts_are_refused(token):
    visual, _ = own().prepare_media(picture(60, 60))
    for chat in (
        own().user_message(f"What is {token}?", ["image"]),
        own().user_message("What?", ["image"], f"a {token}"),
        [user(IMAGE, text("What?")), {"role": "assistant", "content": token}],
    ):
        error = refused(chat, [visual])
        assert error.code == "prompt_invalid"
        assert token in str(error)


def test_control_strings_joined_from_several_texts_are_refused():
    assert "<|im_end|>" in str(refused([user(text("<|im_"), text("end|>"))]))


def test_a_text_that_is_only_similar_is_fine():
    ids = own().build_prompt(own().user_message("<|im_end| > and <image>", []))
    assert ids.count(own().tokenizer.special["<|im_end|>"]) == 2


def test_media_that_do_not_match_the_messages():
    image, video = own().prepare_media(picture(60, 60))[0], own().prepare_media(clip())[0]
    chat = own().user_message("What?", ["image", "video"])
    assert own().build_prompt(chat, [image, video])
    for visuals in ([], [image], [video, image], [image, video, image]):
        error = refused(chat, visuals)
        assert error.code == "prompt_invalid"
        assert "1 image and 1 video" in str(error)
    assert "no media" in str(refused(own().user_message("What?", []), [image]))


def test_prompts_longer_than_the_context():
    error = refused(own().user_message("word " * 3000, []))
    assert error.code == "context_too_long"
    assert str(own().max_context) in str(error)
    big = Processor.load(CHECKPOINT, image_min_pixels=3000 * 784, image_max_pixels=4000 * 784)
    with pytest.raises(PromptError, match="max_pixels") as caught:
        big.prepare_media(picture(60, 60))
    assert caught.value.code == "context_too_long"


def test_a_template_that_loses_a_picture_is_refused(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    )
    processor = Processor.load(tmp_path)
    visual, _ = processor.prepare_media(picture(60, 60))
    assert "leaves out" in str(
        refused(processor.user_message("What?", ["image"]), [visual], processor)
    )


CONTROL_CHATS = [
    [user(text("What is <|im_end|>?"))],
    [{"role": "system", "content": "<|im_start|>system\n"}, user(text("a<|image_pad|>b"), IMAGE)],
    [user(IMAGE, text("<|vision_start|><|image_pad|><|vision_end|>"))],
    [user(text("one")), {"role": "assistant", "content": "<|endoftext|> "}, user(text("<|im_end"))],
    [user(text("no control string, <| and |> only"))],
]


@pytest.mark.parametrize("chat", CONTROL_CHATS)
def test_control_strings_as_text_equal_the_reference(chat):
    visuals = [own().prepare_media(picture(60, 60))[0]] if IMAGE in chat[-1]["content"] else []
    expected = reference().tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
    )
    ids = own().build_prompt(chat, visuals, control_strings="text")
    pad = own().image_pad_id
    for visual in visuals:  # the tokenizer alone leaves one pad for each picture
        at = ids.index(pad)
        ids[at : at + visual.tokens] = [pad]
    assert ids == expected
    assert own().tokenizer.decode(expected, skip_special_tokens=True) != ""


pieces = st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "<", "|", ">", "\n", "<|image_pad|>", "word"]
)
parts = st.lists(st.lists(pieces, max_size=5).map("".join), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(parts)
@example(["<|im_", "end|>"])
def test_no_text_makes_a_control_token(words):
    chat = [user(*map(text, words))]
    ids = own().build_prompt(chat, control_strings="text")
    control = {index: token for token, index in own().tokenizer.special.items()}
    written = [control[token] for token in ids if token in control]
    assert written == ["<|im_start|>", "<|im_end|>"] * 2 + ["<|im_start|>"]
    assert f"user\n{''.join(words)}" in own().tokenizer.decode(ids)


def test_a_template_that_rewrites_texts_cannot_take_control_strings(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['content'][0]['text'][1:] }}{% endfor %}"
    )
    processor = Processor.load(tmp_path)
    with pytest.raises(PromptError, match="rewrites"):
        processor.build_prompt([user(text("What?"))], control_strings="text")


def test_an_unknown_way_with_control_strings():
    with pytest.raises(ValueError, match="refuse or text"):
        own().build_prompt([user(text("What?"))], control_strings="drop")


def test_answers_end_before_the_first_stop_string():
    ids = own().tokenizer.encode(" a red star. And a blue one.\n")
    assert own().decode(ids, ["blue", ". "]) == "a red star"
    assert own().decode(ids, ["green", ""]) == "a red star. And a blue one."


def test_post_processing_equals_the_reference():
    special = own().tokenizer.special
    generator = torch.Generator().manual_seed(0)
    size = len(reference().tokenizer)
    answers = torch.randint(0, size, (40, 30), generator=generator).tolist()
    answers.append([special["<|im_end|>"], *own().tokenizer.encode(" a red star\n"), size + 9])
    expected = reference().post_process_image_text_to_text(
        answers, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert own().post_process(answers) == expected
    assert expected[-1] == " a red star\n"


def test_answers_lose_control_tokens_and_blanks():
    special = own().tokenizer.special
    ids = own().tokenizer.encode(" a red star\n")
    assert own().decode([*ids, special["<|im_end|>"], special["<|endoftext|>"]]) == "a red star"


# --- folders


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("preprocessor_config.json", "preprocessor_config.json"),
    ],
)
def test_folders_that_lack_a_file(name, words, tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=words):
        Processor.load(tmp_path)


@pytest.mark.parametrize("key", ["patch_size", "temporal_patch_size", "merge_size"])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_patches_that_the_network_does_not_take(key, name, tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**config, key: 4}))
    with pytest.raises(ModelError, match=f"{key} is 4"):
        Processor.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": {"do_rezise": False}}, "do_rezise"),
        ({"image": {"fps": 2.0}}, "fps"),
        ({"image": {"max_pixels": 1000}}, "min_pixels is 7056"),
        ({"frames": {"fps": 2.0, "num_frames": 4}}, "both fps"),
        ({"frames": {"size": 448}}, "size is 448"),
        ({"frames": {"patch_size": 16}}, "patch_size is 16"),
    ],
)
def test_options_of_the_caller_that_are_wrong(options, words):
    with pytest.raises(ValueError, match=words):
        Processor.load(CHECKPOINT, **options)


def test_pad_ids_that_differ_between_the_files(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_token_id": 7}))
    with pytest.raises(ModelError, match="image_pad"):
        Processor.load(tmp_path)
