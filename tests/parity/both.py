"""Runs a case through this project and through the reference."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.families.qwen2_vl.config import load_config
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.inputs import VisualInput
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.processor import Processor
from mediamill.model.sampling import Sampling
from mediamill.model.weights import load_model
from tests import oracle
from tests.parity.cases import Case
from tests.parity.drawn import ReferenceVideo, reference_picture, reference_video

NEW_TOKENS = 10


@dataclass(frozen=True)
class Inputs:
    """One prompt. ids: token ids. pixels: the network's pixel and grid arguments by name."""

    ids: list[int]
    pixels: dict[str, torch.Tensor]

    @property
    def batch(self) -> dict[str, Any]:
        """Arguments of this project's forward pass."""
        return {"input_ids": torch.tensor([self.ids]), **self.pixels}


class Ours:
    """This project on a checkpoint folder, with the position rule of transformers 5.x."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine.load(folder, device="cpu", dtype="float32", mrope="hf5")

    def prepare(self, case: Case) -> tuple[Inputs, tuple[VisualInput, ...]]:
        low, high = case.limits or (None, None)
        video = VideoRules(**{"fps": None, **case.sampling}, min_pixels=low, max_pixels=high)
        processor = Processor.load(self.folder, low, high, video)
        visuals = tuple(
            processor.prepare_media(medium.data, medium.kind)[0] for medium in case.media
        )
        ids = processor.build_prompt(case.messages, visuals, case.add_vision_id)
        rules = {"image": processor.image_rules, "video": processor.frame_rules}
        pixels = {}
        for kind, values, grids in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            media = [visual for visual in visuals if visual.kind == kind]
            if media:
                patches = torch.cat([visual.patches for visual in media])
                pixels[values] = rules[kind].normalize(patches, kind)
                pixels[grids] = torch.tensor([visual.grid_thw for visual in media])
        return Inputs(ids, pixels), visuals

    def model(self, dtype: torch.dtype) -> Qwen2VL:
        return _our_model(self.folder, dtype)

    def answer(self, case: Case, inputs: Inputs, visuals: tuple[VisualInput, ...]) -> list[int]:
        sampling = Sampling(max_new_tokens=NEW_TOKENS, repetition_penalty=case.penalty)
        (completion,) = self.engine.generate([Request("case", inputs.ids, visuals, sampling)])
        return completion.output_ids


class Reference:
    """The reference on the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processor = oracle.load_processor(folder)

    def prepare(self, case: Case) -> Inputs:
        text = self.processor.apply_chat_template(
            case.messages,
            tokenize=False,
            add_generation_prompt=True,
            add_vision_id=case.add_vision_id,
        )
        pictures = [reference_picture(m.data) for m in case.media if m.kind == "image"]
        videos = [
            self._sample(reference_video(m.data), case.sampling)
            for m in case.media
            if m.kind == "video"
        ]
        size = {}
        if case.limits:
            size = {"size": dict(zip(("shortest_edge", "longest_edge"), case.limits, strict=True))}
        batch = self.processor(
            text=[text],
            images=pictures or None,
            videos=videos or None,
            images_kwargs=size,
            videos_kwargs={"do_sample_frames": False, "cap_pixels_per_frame": False, **size},
            return_tensors="pt",
        )
        pixels = {name: batch[name] for name in batch if "pixel" in name or "grid" in name}
        return Inputs(batch["input_ids"][0].tolist(), pixels)

    def _sample(self, video: ReferenceVideo, sampling: dict[str, Any]) -> torch.Tensor:
        """Returns the frames that the reference's own sampling takes.

        Where that fails (fewer frames than requested, or one index beyond the end), the documented
        repair is applied: as many pairs as there are, without the surplus index.
        """
        total = len(video.frames)
        metadata = oracle.VideoMetadata(total_num_frames=total, fps=video.fps)
        if total == 1:
            return video.frames
        arguments = dict(sampling)
        if "num_frames" in arguments:
            arguments["num_frames"] = max(2, min(arguments["num_frames"], total // 2 * 2))
        elif "max_frames" in arguments:
            arguments["min_frames"] = max(2, arguments.get("min_frames", 4))
        indices = self.processor.video_processor.sample_frames(metadata, **arguments)
        return video.frames[indices[indices < total].long()]

    def model(self, dtype: torch.dtype) -> Any:
        return _reference_model(self.folder, dtype)

    def arguments(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Arguments of the reference's forward pass."""
        ids = torch.tensor([inputs.ids])
        config = self.model(torch.float32).config
        types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": types,
            **inputs.pixels,
        }

    def answer(self, case: Case, inputs: Inputs) -> list[int]:
        output_ids = self.model(torch.float32).generate(
            **self.arguments(inputs),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            repetition_penalty=case.penalty,
        )
        return output_ids[0, len(inputs.ids) :].tolist()


@functools.lru_cache(maxsize=2)
def _our_model(folder: Path, dtype: torch.dtype) -> Qwen2VL:
    return load_model(folder, dtype, config=load_config(folder, "hf5"))


@functools.lru_cache(maxsize=2)
def _reference_model(folder: Path, dtype: torch.dtype) -> Any:
    return oracle.load_model(folder, dtype)
