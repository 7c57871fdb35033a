"""Turns media bytes into patches, a chat with its media into token ids, and ids into text.

One Processor holds all that a checkpoint folder says about its inputs. It needs no network weights
and no device; where the bytes come from and what becomes of the ids it does not know.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.config import load_config
from model.containers import recognise
from model.errors import MediaError, ModelError, PromptError
from model.frame_sampling import VideoRules
from model.image_rules import ImageRules
from model.inputs import VisualInput, VisualKind
from model.limits import MediaLimits
from model.media import Receipt, prepare_picture, prepare_video
from model.prompt import (
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
from model.tokenizer import Tokenizer

__all__ = ["MediaLimits", "Processor", "Receipt", "VideoRules"]


@dataclass(frozen=True)
class Processor:
    """All that a checkpoint says about its inputs; `load` makes one.

    max_context: tokens that the model takes, prompt and answer together.
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

    @classmethod
    def load(
        cls,
        folder: str | Path,
        image_min_pixels: int | None = None,
        image_max_pixels: int | None = None,
        video: VideoRules | None = None,
        limits: MediaLimits | None = None,
    ) -> "Processor":
        """Reads tokenizer, chat template, preprocessor files and config.json of a folder.

        image_min_pixels, image_max_pixels, and those of `video`: None = the checkpoint's own.
        Raises ModelError, naming the file and what was expected of it.
        """
        folder = Path(folder)
        config = load_config(folder)
        tokenizer = Tokenizer.load(folder)
        video = video or VideoRules()
        limits = limits or MediaLimits()
        max_context = config.text.max_position_embeddings
        if limits.max_visual_tokens is None or limits.max_visual_tokens > max_context:
            limits = replace(limits, max_visual_tokens=max_context)
        return cls(
            tokenizer=tokenizer,
            template=ChatTemplate.load(folder),
            image_rules=ImageRules.from_checkpoint(folder).with_limits(
                image_min_pixels, image_max_pixels
            ),
            frame_rules=ImageRules.from_checkpoint(folder, "video").with_limits(
                video.min_pixels, video.max_pixels
            ),
            video_rules=video,
            limits=limits,
            max_context=max_context,
            image_pad_id=_pad_id(folder, tokenizer, IMAGE_PAD, config.image_token_id),
            video_pad_id=_pad_id(folder, tokenizer, VIDEO_PAD, config.video_token_id),
        )

    def prepare_media(
        self,
        data: bytes,
        kind: VisualKind | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> tuple[VisualInput, Receipt]:
        """The patches of one picture or video file, and the receipt.

        kind: None = told from the bytes; a GIF is a picture then, unless a window is given.
        start_s, end_s: a window of a video, in seconds; only its frames are looked at.
        Raises MediaError, and PromptError context_too_long if its visual tokens alone are too many.
        """
        if kind is None:
            found = recognise(data)
            window = start_s is not None or end_s is not None
            kind = "video" if window and found.name == "GIF" else found.kind
        if kind == "image":
            if start_s is not None or end_s is not None:
                raise MediaError(
                    "decode_unsupported",
                    f"the file is a picture, but a window ({start_s} s to {end_s} s) is asked for",
                )
            return prepare_picture(data, self.image_rules, self.limits)
        return prepare_video(data, self.video_rules, self.frame_rules, self.limits, start_s, end_s)

    def build_prompt(
        self,
        messages: Sequence[Message],
        visuals: Sequence[VisualInput] = (),
        add_vision_id: bool = False,
    ) -> list[int]:
        """Token ids of a chat, ready for the answer; each medium's pad is repeated once per token.

        visuals: the media in the order in which the messages mention them.
        Raises PromptError: prompt_invalid for a malformed chat, for a control string in a text and
        for media that do not match the messages; context_too_long.
        """
        check_messages(messages)
        wanted, given = media_kinds(messages), [visual.kind for visual in visuals]
        if wanted != given:
            raise PromptError(
                "prompt_invalid",
                f"the messages mention {_listed(wanted)}, but {_listed(given)} came with them",
            )
        text = self.template.render(messages, add_vision_id=add_vision_id)
        self._refuse_control_strings(messages, text, add_vision_id)
        ids = self._expand(self.tokenizer.encode(text), visuals)
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

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer: without control tokens and without blanks around it."""
        return self.tokenizer.decode(ids).strip()

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


def _pad_id(folder: Path, tokenizer: Tokenizer, pad: str, expected: int) -> int:
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
