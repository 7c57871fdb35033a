"""Prompts as padded batches, for our network and for the reference."""

import torch

from mediamill.model.families.qwen2_vl.config import load_config
from mediamill.model.weights import load_model
from tests.model.prompts import IMAGE, VIDEO, pixels, token_types


def ours(folder, mrope="hf5", dtype=torch.float32):
    return load_model(folder, dtype, config=load_config(folder, mrope))


def grids(prompts, kind):
    return [v.grid_thw for p in prompts for v in p.visuals if v.kind == kind]


def batch_of(prompts, side="right"):
    """Padded ids and their mask."""
    width = max(len(p.ids) for p in prompts)

    def padded(row, fill):
        rest = [fill] * (width - len(row))
        return row + rest if side == "right" else rest + row

    ids = torch.tensor([padded(p.ids, 0) for p in prompts])
    mask = torch.tensor([padded([1] * len(p.ids), 0) for p in prompts])
    return ids, mask


def labels_of(ids, mask):
    return ids.masked_fill((mask == 0) | (ids == IMAGE) | (ids == VIDEO), -100)


def our_inputs(prompts):
    images, videos = pixels(prompts, "image"), pixels(prompts, "video")
    return {
        "pixel_values": images.get("pixel_values"),
        "image_grid_thw": grids(prompts, "image"),
        "pixel_values_videos": videos.get("pixel_values_videos"),
        "video_grid_thw": grids(prompts, "video"),
    }


def reference_inputs(prompts, ids, mask):
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": token_types(ids),
        **pixels(prompts, "image"),
        **pixels(prompts, "video"),
    }
