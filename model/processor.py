"""Turns media into patches, a chat with its media into token ids, and ids into text.

One Processor holds all that a checkpoint folder says about its inputs. It needs no network weights
and no device; where the bytes come from and what becomes of the ids it does not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import MediaError, ModelError, PromptError
from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig, load_config
from mediamill.model.generation.stopping import before_stop
from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.layers.batch import PreparedPrompt, Side, collate
from mediamill.model.media import option_values
from mediamill.model.media.budgets import Budget
from mediamill.model.media.containers import recognise
from mediamill.model.media.content import MediaFile
from mediamill.model.media.frame_sampling import SAMPLING_KEYS, VideoRules
from mediamill.model.media.image_rules import PIXEL_KEYS, ImageRules
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.pixels import Frames, Picture
from mediamill.model.media.prepared import Receipt, prepare_frames, prepare_picture, prepare_video
from mediamill.model.media.probe_cache import ProbeCache
from mediamill.model.text.prompt import (
    IMAGE_PAD,
    VIDEO_PAD,
    ChatTemplate,
    Message,
    check_messages,
    media_kinds,
    texts,
    user_message,
    without_texts,
)
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.model.text.user_text import encode_texts_plainly

__all__ = ["MediaLimits", "Processor", "Receipt", "VideoRules"]

ControlStrings = Literal["refuse", "text"]
_PAD_TOKEN = "<|endoftext|>"  # what published checkpoints pad with


@dataclass(frozen=True)
class Processor:
    """All that a checkpoint says about its inputs; `load` makes one.

    image_rules, frame_rules: for the pixels of pictures and of frames. video_rules: which frames.
    max_context: tokens that the model takes, prompt and answer together.
    pad_id: pads the shorter prompts of a batch. known: the last files, from window to window.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    image_rules: ImageRules
    frame_rules: ImageRules
    video_rules: VideoRules
    limits: MediaLimits
    max_context: int
    image_pad_id: int
    video_pad_id: int
    pad_id: int
    known: ProbeCache = field(default_factory=ProbeCache, compare=False, repr=False)

    @classmethod
    def load(
        cls,
        folder: str | Path | Folder,
        image_min_pixels: int | None = None,
        image_max_pixels: int | None = None,
        video: VideoRules | None = None,
        limits: MediaLimits | None = None,
        *,
        image: Mapping[str, Any] | None = None,
        frames: Mapping[str, Any] | None = None,
    ) -> "Processor":
        """Reads tokenizer, chat template, preprocessor files and config.json of a folder.

        image, frames: options of the reference's picture and video processor over those of the
            checkpoint, by the reference's own names, such as {"do_resize": False}; frames also for
            sampling, such as {"num_frames": 8}. A key that there is not is an error.
        image_min_pixels, image_max_pixels: over `image`. video: over `frames`, as far as it says
            something. What nobody says comes from the checkpoint's file, then from the defaults:
            2 frames a second, at least 4, at most 768.
        Raises ModelError (a ValueError): the file or option, what was found, what was expected.
        """
        folder = Folder.of(folder)
        config = load_config(folder)
        tokenizer = Tokenizer.load(folder)
        limits = limits or MediaLimits()
        max_context = config.text.context_length
        if limits.max_visual_tokens is None or limits.max_visual_tokens > max_context:
            limits = replace(limits, max_visual_tokens=max_context)
        image_rules = ImageRules.from_checkpoint(folder)
        if image:
            image_rules = image_rules.with_overrides(image, "image")
        frame_rules, video_rules = _frame_rules(folder, frames or {}, video or VideoRules())
        _check_sizes(folder, image_rules, config)
        _check_sizes(folder, frame_rules, config)
        return cls(
            tokenizer=tokenizer,
            template=ChatTemplate.load(folder),
            image_rules=image_rules.with_limits(image_min_pixels, image_max_pixels),
            frame_rules=frame_rules,
            video_rules=video_rules,
            limits=limits,
            max_context=max_context,
            image_pad_id=_pad_id(folder, tokenizer, IMAGE_PAD, config.image_token_id),
            video_pad_id=_pad_id(folder, tokenizer, VIDEO_PAD, config.video_token_id),
            pad_id=_padding_id(folder, tokenizer),
        )

    @property
    def rules(self) -> dict[VisualKind, ImageRules]:
        """The rules that this processor's patches were made by, as the engine wants them."""
        return {"image": self.image_rules, "video": self.frame_rules}

    def prepare_media(
        self,
        data: bytes | memoryview | Path,
        kind: VisualKind | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> tuple[VisualInput, Receipt]:
        """The patches of one picture or video file, and the receipt.

        data: bytes, or a file, of which a video is read as it is decoded. kind: None = told from
            the bytes; a GIF is a picture then, unless a window is given.
        start_s, end_s: a window of a video, in seconds; only its frames are looked at.
        Raises MediaError, PromptError context_too_long for too many visual tokens, and OSError.
        """
        file = MediaFile.of(data)
        if kind is None:
            found = recognise(file)
            window = start_s is not None or end_s is not None
            kind = "video" if window and found.name == "GIF" else found.kind
        if kind == "image":
            if start_s is not None or end_s is not None:
                raise MediaError(
                    "decode_unsupported",
                    f"the file is a picture, but a window ({start_s} s to {end_s} s) is asked for",
                )
            return prepare_picture(file, self.image_rules, self.limits)
        rules = self.video_rules, self.frame_rules, self.limits
        return prepare_video(file, *rules, start_s, end_s, self.known)

    def prepare_picture(self, picture: Picture) -> tuple[VisualInput, Receipt]:
        """The patches of a picture that is decoded already, and the receipt.

        picture: of Pillow, in any mode; an array [H, W] or [H, W, 3] or a tensor [3, H, W], uint8.
        Pillow's follow the rules of files: EXIF applied, transparency over white.
        Raises MediaError, and PromptError context_too_long.
        """
        return prepare_picture(picture, self.image_rules, self.limits)

    def prepare_frames(
        self, frames: Frames, fps: float | None = None, video: VideoRules | None = None
    ) -> tuple[VisualInput, Receipt]:
        """The patches of a video whose frames are decoded already, and the receipt.

        frames: a list of pictures as `prepare_picture` takes them, all of one size; an array
            [T, H, W, 3] or a tensor [T, 3, H, W], uint8.
        fps: of these frames, in frames a second; with it they are sampled by this processor's rules
            (and by `video`, over them). None: all are looked at, unless num_frames is set.
        Raises MediaError, PromptError context_too_long, and ValueError for an fps that is no rate.
        """
        rules = self.video_rules if video is None else video.over(self.video_rules)
        return prepare_frames(frames, fps, rules, self.frame_rules, self.limits)

    def picture_tokens(self, height: int, width: int) -> int:
        """Visual tokens of a picture of this size in pixels. ValueError if it cannot be used."""
        return self.image_rules.tokens_of(self.image_rules.size_of(height, width))

    def video_tokens(self, frames: int, height: int, width: int) -> int:
        """Visual tokens of so many frames looked at, of this size. Raises as `Budget.tokens_of`."""
        budget = Budget(self.video_rules, self.frame_rules, self.limits)
        return budget.tokens_of((height, width), frames)

    def collate(
        self, prompts: Sequence[PreparedPrompt], padding_side: Side = "left"
    ) -> dict[str, torch.Tensor]:
        """Prompts with their media as the padded tensors of one forward pass: see `batch.collate`.

        prompts: anything with `input_ids` and `visuals`, such as the engine's Request.
        """
        return collate(prompts, self.rules, self.pad_id, padding_side)

    def build_prompt(
        self,
        messages: Sequence[Message],
        visuals: Sequence[VisualInput] = (),
        add_vision_id: bool = False,
        control_strings: ControlStrings = "refuse",
    ) -> list[int]:
        """Token ids of a chat, ready for the answer; each medium's pad is repeated once per token.

        visuals: the media in the order in which the messages mention them.
        control_strings: what to do with one, such as "<|im_end|>", in a text: "refuse" the prompt,
            or encode it as the plain "text" that it is. Texts never make a control token.
        Raises PromptError: prompt_invalid for a malformed chat, for a control string in a text and
        for media that do not match the messages; context_too_long.
        """
        if control_strings not in ("refuse", "text"):
            raise ValueError(f"control_strings is {control_strings!r}, expected refuse or text")
        check_messages(messages)
        wanted, given = media_kinds(messages), [visual.kind for visual in visuals]
        if wanted != given:
            raise PromptError(
                "prompt_invalid",
                f"the messages mention {_listed(wanted)}, but {_listed(given)} came with them",
            )
        if control_strings == "text":
            plain = encode_texts_plainly(self.tokenizer, self.template, messages, add_vision_id)
        else:
            text = self.template.render(messages, add_vision_id=add_vision_id)
            self._refuse_control_strings(messages, text, add_vision_id)
            plain = self.tokenizer.encode(text)
        ids = self._expand(plain, visuals)
        if len(ids) > self.max_context:
            tokens = sum(visual.tokens for visual in visuals)
            raise PromptError(
                "context_too_long",
                f"the prompt is {len(ids)} tokens long, {tokens} of them visual; the model takes "
                f"{self.max_context}: lower max_pixels or the number of frames, or cut the text",
            )
        return ids

    def user_message(
        self, prompt: str, kinds: Sequence[VisualKind], system: str | None = None
    ) -> list[Message]:
        """A chat of one turn: the media first, then the text; before it the system text, if any."""
        return user_message(prompt, kinds, system)

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of an answer: without control tokens and without blanks around it.

        stop: the text ends before the first of these strings that it holds.
        """
        return before_stop(self.tokenizer.decode(ids), stop).strip()

    def post_process(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Texts of answers without control tokens, blanks kept: post_process_image_text_to_text."""
        return [self.tokenizer.decode(ids) for ids in answers]

    def _refuse_control_strings(
        self, messages: Sequence[Message], text: str, add_vision_id: bool
    ) -> None:
        for one in texts(messages):
            if found := self.tokenizer.control_tokens_in(one):
                raise PromptError(
                    "prompt_invalid",
                    f"a text of the prompt holds the control string {found[0]}, which only the "
                    "chat template may write",
                )
        # Texts may also join up to one across the parts of a message.
        bare = self.template.render(without_texts(messages), add_vision_id=add_vision_id)
        for token in self.tokenizer.special:
            if text.count(token) != bare.count(token):
                raise PromptError(
                    "prompt_invalid",
                    f"the texts of the prompt together make the control string {token}, which only "
                    "the chat template may write",
                )

    def _expand(self, ids: list[int], visuals: Sequence[VisualInput]) -> list[int]:
        expanded: list[int] = []
        kinds: dict[int, VisualKind] = {self.image_pad_id: "image", self.video_pad_id: "video"}
        rest = iter(visuals)
        for token in ids:
            kind = kinds.get(token)
            if kind is None:
                expanded.append(token)
                continue
            visual = next(rest, None)
            if visual is None or visual.kind != kind or not visual.tokens:
                raise PromptError(
                    "prompt_invalid", f"the chat template asks for a {kind} that the messages lack"
                )
            expanded.extend([token] * visual.tokens)
        if next(rest, None) is not None:
            raise PromptError(
                "prompt_invalid", "the chat template leaves out a picture or video of the messages"
            )
        return expanded


def _frame_rules(
    folder: Folder, options: Mapping[str, Any], video: VideoRules
) -> tuple[ImageRules, VideoRules]:
    """Rules for the pixels of frames, and for which frames: `video` over options over the file."""
    option_values.refuse_unknown_keys(options, PIXEL_KEYS | SAMPLING_KEYS, "frames")
    pixels = ImageRules.from_checkpoint(folder, "video")
    own = {key: value for key, value in options.items() if key in PIXEL_KEYS}
    if own:
        pixels = pixels.with_overrides(own, "frames")
    rules = video.over(VideoRules.from_options(options, "frames"))
    rules = rules.over(VideoRules.from_checkpoint(folder))
    return pixels.with_limits(video.min_pixels, video.max_pixels), rules


def _check_sizes(folder: Folder, rules: ImageRules, config: Qwen2VLConfig) -> None:
    """The network's patches have to be those that pictures are cut into."""
    vision = config.vision
    for key, found, expected in (
        ("patch_size", rules.patch_size, vision.patch_size),
        ("temporal_patch_size", rules.temporal_patch_size, vision.temporal_patch_size),
        ("merge_size", rules.merge_size, vision.spatial_merge_size),
    ):
        if found != expected:
            raise ModelError(
                f"{folder}: {key} is {found} for pictures or videos, expected {expected} as in "
                "vision_config of config.json"
            )


def _padding_id(folder: Folder, tokenizer: Tokenizer) -> int:
    """Of pad_token in tokenizer_config.json, else of the token that published checkpoints have."""
    token = (folder.read_json("tokenizer_config.json") or {}).get("pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    found = tokenizer.special.get(token or _PAD_TOKEN)
    if found is None:
        raise ModelError(
            f"{folder}: pad_token is {token!r}, expected a control token of tokenizer.json"
        )
    return found


def _pad_id(folder: Folder, tokenizer: Tokenizer, pad: str, expected: int) -> int:
    found = tokenizer.special.get(pad)
    if found != expected:
        raise ModelError(
            f"{folder}: {pad} has the id {found} in tokenizer.json, expected {expected} "
            "as in config.json"
        )
    return expected


def _listed(kinds: Sequence[VisualKind]) -> str:
    if not kinds:
        return "no media"
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    words = " and ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items())
    return words if len(counts) == 1 else f"{words} (in the order {', '.join(kinds)})"
