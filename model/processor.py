"""The processor of a checkpoint: media to patches, chats to token ids, and token ids to text.

It needs no weights and no device.
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
from mediamill.model.media.containers import detect_format
from mediamill.model.media.frame_sampling import SAMPLING_KEYS, VideoRules
from mediamill.model.media.image_rules import PIXEL_KEYS, ImageRules
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile
from mediamill.model.media.pixel_budget import PixelBudget
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
)
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.model.text.user_text import encode_plainly, encode_refusing

__all__ = ["MediaLimits", "Processor", "Receipt", "VideoRules"]

ControlStrings = Literal["refuse", "text"]
_DEFAULT_PAD_TOKEN = "<|endoftext|>"  # the pad token of published checkpoints


@dataclass(frozen=True)
class Processor:
    """Prepares the inputs of a checkpoint; `load` makes one. Usage:

        processor = Processor.load(folder)
        visual, receipt = processor.prepare_media(Path("clip.mp4"))
        messages = processor.user_message("What happens?", [visual.kind])
        prompt_ids = processor.build_prompt(messages, [visual])
        ...
        text = processor.decode(answer_ids)

    image_rules, frame_rules: for the pixels of pictures and of frames.
    video_rules: which frames of a video are used.
    limits: on media; max_visual_tokens is at most max_context.
    max_context: tokens that the model takes, prompt and answer together.
    image_pad_id, video_pad_id: the token that stands for one visual token in a prompt.
    pad_id: pads the shorter prompts of a batch.
    probe_cache: spares a second reading of a file for its next window.
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
    probe_cache: ProbeCache = field(default_factory=ProbeCache, compare=False, repr=False)

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

        Arguments win over the checkpoint's files, which win over the defaults (2 frames a second,
        4 to 768 of them).

        image_min_pixels, image_max_pixels: win over `image`. video: wins over `frames`.
        limits: None = the defaults of MediaLimits.
        image, frames: options of the reference's image and video processor by its own names, such
            as {"do_resize": False}; `frames` also takes those for sampling, as {"num_frames": 8}.
        Raises ModelError (a ValueError) for unusable files and options, and for unknown keys.
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
            image_pad_id=_media_pad_id(folder, tokenizer, IMAGE_PAD, config.image_token_id),
            video_pad_id=_media_pad_id(folder, tokenizer, VIDEO_PAD, config.video_token_id),
            pad_id=_padding_id(folder, tokenizer),
        )

    @property
    def rules(self) -> dict[VisualKind, ImageRules]:
        """The pixel rules by kind of medium, which the engine needs to normalize the patches."""
        return {"image": self.image_rules, "video": self.frame_rules}

    def prepare_media(
        self,
        data: bytes | memoryview | Path,
        kind: VisualKind | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> tuple[VisualInput, Receipt]:
        """Returns the patches and the receipt of one picture or video file.

        data: bytes, or a path; a video at a path is read while it is decoded.
        kind: None = detected from the bytes; a GIF is then a picture, unless a window is given.
        start_s, end_s: a window of a video, in seconds; only its frames are sampled.
        Raises MediaError, PromptError context_too_long for too many visual tokens, and OSError.
        """
        file, has_window = MediaFile.of(data), start_s is not None or end_s is not None
        if kind is None:
            file_format = detect_format(file)
            kind = "video" if has_window and file_format.name == "GIF" else file_format.kind
        if kind == "image":
            if has_window:
                raise MediaError(
                    "decode_unsupported",
                    f"the file is a picture, but a window ({start_s} s to {end_s} s) is asked for",
                )
            return prepare_picture(file, self.image_rules, self.limits)
        rules = self.video_rules, self.frame_rules, self.limits
        return prepare_video(file, *rules, start_s, end_s, self.probe_cache)

    def shrunk(self, divisor: int) -> "Processor":
        """Returns a processor that gives pictures this part of the area, and videos of the frames.

        Limits on the least size do not hold for it.
        """
        return replace(
            self,
            image_rules=replace(self.image_rules, shrink=divisor),
            video_rules=replace(self.video_rules, shrink=divisor),
        )

    def prepare_picture(self, picture: Picture) -> tuple[VisualInput, Receipt]:
        """Returns the patches and the receipt of a decoded picture.

        picture: a Pillow picture, or a uint8 array [H, W] or [H, W, 3], or a tensor [3, H, W].
        Raises MediaError, and PromptError context_too_long.
        """
        return prepare_picture(picture, self.image_rules, self.limits)

    def prepare_frames(
        self, frames: Frames, fps: float | None = None, video: VideoRules | None = None
    ) -> tuple[VisualInput, Receipt]:
        """Returns the patches and the receipt of a video whose frames are decoded already.

        frames: a list of pictures as `prepare_picture` takes them, all of one size; a uint8 array
            [T, H, W, 3] or a tensor [T, 3, H, W].
        fps: of `frames`. None: unknown; all frames are used then, unless num_frames is set.
        video: sampling rules over this processor's.
        Raises MediaError, PromptError context_too_long, and ValueError for an fps out of range.
        """
        rules = self.video_rules if video is None else video.with_defaults(self.video_rules)
        return prepare_frames(frames, fps, rules, self.frame_rules, self.limits)

    def picture_tokens(self, height: int, width: int) -> int:
        """Returns the visual tokens of a picture of this size in pixels. Raises ValueError."""
        return self.image_rules.tokens_of(self.image_rules.size_of(height, width))

    def video_tokens(self, frames: int, height: int, width: int) -> int:
        """As `PixelBudget.visual_tokens`, of `frames` sampled frames of this size in pixels."""
        budget = PixelBudget(self.video_rules, self.frame_rules, self.limits)
        return budget.visual_tokens((height, width), frames)

    def collate(
        self, prompts: Sequence[PreparedPrompt], padding_side: Side = "left"
    ) -> dict[str, torch.Tensor]:
        """Pads prompts, such as Requests, to the tensors of one forward pass: `batch.collate`."""
        return collate(prompts, self.rules, self.pad_id, padding_side)

    def build_prompt(
        self,
        messages: Sequence[Message],
        visuals: Sequence[VisualInput] = (),
        add_vision_id: bool = False,
        control_strings: ControlStrings = "refuse",
    ) -> list[int]:
        """Returns the token ids of a chat, up to the beginning of the model's answer.

        A medium's pad token is repeated once for each of its visual tokens.

        visuals: the media, in the order in which the messages mention them.
        add_vision_id: numbers the media ("Picture 1: ").
        control_strings: for a control string such as "<|im_end|>" in a text: "refuse" raises,
            "text" encodes it as ordinary text. A text never makes a control token.
        Raises PromptError prompt_invalid for a malformed chat, a refused control string and media
        that do not match the messages; context_too_long for a prompt longer than the context.
        """
        if control_strings not in ("refuse", "text"):
            raise ValueError(f"control_strings is {control_strings!r}, expected refuse or text")
        check_messages(messages)
        mentioned, kinds = media_kinds(messages), [visual.kind for visual in visuals]
        if mentioned != kinds:
            raise PromptError(
                "prompt_invalid",
                f"the messages mention {_listed(mentioned)}, but {_listed(kinds)} came with them",
            )
        characters = sum(map(len, texts(messages)))
        if characters > self.max_context and characters > self.max_context * self.tokenizer.longest:
            raise PromptError(
                "context_too_long",
                f"the texts of the prompt have {characters} characters, more than the "
                f"{self.max_context} tokens that the model takes can hold: cut the text",
            )
        encode = encode_plainly if control_strings == "text" else encode_refusing
        unexpanded = encode(self.tokenizer, self.template, messages, add_vision_id)
        ids = self._expand(unexpanded, visuals)
        if len(ids) > self.max_context:
            tokens = sum(visual.tokens for visual in visuals)
            raise PromptError(
                "context_too_long",
                f"the prompt is {len(ids)} tokens long, {tokens} of them visual; the model takes "
                f"{self.max_context}: lower max_pixels or the number of frames, or cut the text",
            )
        return ids

    user_message = staticmethod(user_message)

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Returns the text of an answer, without control tokens and surrounding white space.

        stop: the text ends before the first of these strings in it.
        """
        return before_stop(self.tokenizer.decode(ids), stop).strip()

    def post_process(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Returns texts with surrounding white space, as post_process_image_text_to_text does."""
        return [self.tokenizer.decode(ids) for ids in answers]

    def _expand(self, ids: list[int], visuals: Sequence[VisualInput]) -> list[int]:
        """Repeats each pad token once for each visual token of its medium."""
        expanded: list[int] = []
        kinds: dict[int, VisualKind] = {self.image_pad_id: "image", self.video_pad_id: "video"}
        remaining = iter(visuals)
        for token in ids:
            kind = kinds.get(token)
            if kind is None:
                expanded.append(token)
                continue
            visual = next(remaining, None)
            if visual is None or visual.kind != kind or not visual.tokens:
                raise PromptError(
                    "prompt_invalid", f"the chat template asks for a {kind} that the messages lack"
                )
            expanded.extend([token] * visual.tokens)
        if next(remaining, None) is not None:
            raise PromptError(
                "prompt_invalid", "the chat template leaves out a picture or video of the messages"
            )
        return expanded


def _frame_rules(
    folder: Folder, options: Mapping[str, Any], video: VideoRules
) -> tuple[ImageRules, VideoRules]:
    """Returns the rules for pixels and for sampling: `video` over options over the checkpoint."""
    option_values.refuse_unknown_keys(options, PIXEL_KEYS | SAMPLING_KEYS, "frames")
    pixels = ImageRules.from_checkpoint(folder, "video")
    pixel_options = {key: value for key, value in options.items() if key in PIXEL_KEYS}
    if pixel_options:
        pixels = pixels.with_overrides(pixel_options, "frames")
    rules = video.with_defaults(VideoRules.from_options(options, "frames"))
    rules = rules.with_defaults(VideoRules.from_checkpoint(folder))
    return pixels.with_limits(video.min_pixels, video.max_pixels), rules


def _check_sizes(folder: Folder, rules: ImageRules, config: Qwen2VLConfig) -> None:
    """Raises ModelError if the patches of the preprocessor are not those of the network."""
    vision = config.vision
    for key, size, expected in (
        ("patch_size", rules.patch_size, vision.patch_size),
        ("temporal_patch_size", rules.temporal_patch_size, vision.temporal_patch_size),
        ("merge_size", rules.merge_size, vision.spatial_merge_size),
    ):
        if size != expected:
            raise ModelError(
                f"{folder}: {key} is {size} for pictures or videos, expected {expected} as in "
                "vision_config of config.json"
            )


def _padding_id(folder: Folder, tokenizer: Tokenizer) -> int:
    """Returns the id of pad_token in tokenizer_config.json, by default of _DEFAULT_PAD_TOKEN."""
    token = (folder.read_json("tokenizer_config.json") or {}).get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    token_id = tokenizer.special.get(token or _DEFAULT_PAD_TOKEN)
    if token_id is None:
        raise ModelError(
            f"{folder}: pad_token is {token!r}, expected a control token of tokenizer.json"
        )
    return token_id


def _media_pad_id(folder: Folder, tokenizer: Tokenizer, pad: str, expected: int) -> int:
    """Returns `expected`, the id by config.json; raises ModelError if the tokenizer has another."""
    token_id = tokenizer.special.get(pad)
    if token_id != expected:
        raise ModelError(
            f"{folder}: {pad} has the id {token_id} in tokenizer.json, expected {expected} "
            "as in config.json"
        )
    return expected


def _listed(kinds: Sequence[VisualKind]) -> str:
    if not kinds:
        return "no media"
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    words = " and ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts.items())
    return words if len(counts) == 1 else f"{words} (in the order {', '.join(kinds)})"
