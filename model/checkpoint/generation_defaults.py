"""Reads a checkpoint's generation_config.json: the defaults of its requests.

Every key that changes the text is applied or refused. Unknown keys and keys that change only speed
or what a call returns are ignored.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.json_reader import JsonReader, is_number, is_whole
from mediamill.model.errors import ModelError

_FILE = "generation_config.json"

# Keys of the reference that change the text, and the values with which they do not.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "num_return_sequences": (1,),
    "constraints": ([],),
    "force_words_ids": ([],),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "guidance_scale": (1,),
    "typical_p": (1,),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "sequence_bias": ([], {}),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
    "max_time": (),
    "token_healing": (False,),
    "watermarking_config": (),
}


@dataclass(frozen=True)
class GenerationDefaults:
    """The checkpoint's generation settings; where it has none, the defaults of the reference.

    temperature, top_k, top_p, min_p: as in `Sampling`; used when tokens are sampled.
    do_sample: whether tokens are sampled when a request does not say.
    max_new_tokens: of an answer.
    max_length: tokens of prompt and answer, used only where neither the request nor the file has
        max_new_tokens. Without either, an answer has up to 20 tokens.
    """

    eos_token_ids: tuple[int, ...]
    repetition_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    min_new_tokens: int = 0
    max_new_tokens: int | None = None
    max_length: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: str | Path | Folder) -> "GenerationDefaults":
        """Reads generation_config.json, and config.json for an end token that it lacks.

        Raises ModelError when neither names an end token, when a value is malformed, and for
        settings that are not supported: beams, biases, forced and forbidden tokens.
        """
        folder = Folder.of(folder)
        raw = JsonReader(folder.read_json(_FILE) or {}, folder.path(_FILE))
        for key, ignorable in _UNSUPPORTED.items():
            value = raw.get(key)
            if value is not None and value not in ignorable:
                raw.refuse(key, f"{ignorable[0]!r} or nothing" if ignorable else "nothing")
        do_sample = raw.get("do_sample") or False
        if not isinstance(do_sample, bool):
            raw.refuse("do_sample", "true or false")
        return cls(
            eos_token_ids=_end_tokens(folder, raw),
            repetition_penalty=raw.number("repetition_penalty", 1.0),
            do_sample=do_sample,
            temperature=_number(raw, "temperature", 1.0, math.inf, "a number of at least 0"),
            top_k=raw.whole("top_k", 50, 0),
            top_p=_number(raw, "top_p", 1.0, 1, "a number from 0 to 1"),
            min_p=_number(raw, "min_p", 0.0, 1, "a number from 0 to 1"),
            min_new_tokens=raw.whole("min_new_tokens", 0, 0),
            max_new_tokens=raw.whole_or_none("max_new_tokens", 1),
            max_length=raw.whole_or_none("max_length", 1),
            stop=_stop_strings(raw),
        )


def _end_tokens(folder: Folder, raw: JsonReader) -> tuple[int, ...]:
    eos = raw.get("eos_token_id")
    if eos is None:
        config = folder.read_json("config.json") or {}
        text = config.get("text_config")
        eos = config.get("eos_token_id")
        if eos is None and isinstance(text, dict):
            eos = text.get("eos_token_id")
    ids = tuple(eos) if isinstance(eos, list) else (eos,)
    if not ids or not all(map(is_whole, ids)):
        raise ModelError(
            f"{raw.where}: eos_token_id is {eos!r}, expected a token id or a list of them"
        )
    return ids


def _stop_strings(raw: JsonReader) -> tuple[str, ...]:
    value = raw.get("stop_strings")
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raw.refuse("stop_strings", "a text or a list of texts")
    return tuple(texts)


def _number(raw: JsonReader, key: str, default: float, highest: float, expected: str) -> float:
    value = raw.get(key)
    if value is None:
        return default
    if not is_number(value) or not 0 <= value <= highest:
        raw.refuse(key, expected)
    return float(value)
