"""For each error code: what it means, and what to do. docs/render.py makes a page of it."""

from mediamill.schemas.errors import ErrorCode

ERROR_HELP: dict[ErrorCode, tuple[str, str]] = {
    ErrorCode.FETCH_NOT_FOUND: (
        "There is no such file or object, or the row's `uri` is empty.",
        "Put the file there, or take the row out of the manifest. A relative path is below the "
        "folder in which the job was started.",
    ),
    ErrorCode.FETCH_DENIED: (
        "No permission, a signature that has expired, or a scheme, host or folder that the job "
        "does not allow.",
        "The message says which. Give the account the permission, sign the URLs again, or allow "
        "the place: `fetch.roots`, `fetch.hosts`, `fetch.schemes`, `fetch.private_addresses` "
        "([addresses.md](addresses.md)).",
    ),
    ErrorCode.FETCH_TIMEOUT: (
        "One medium took longer than `limits.fetch_timeout_s`, all attempts together.",
        "Retry later, or with a higher `limits.fetch_timeout_s`. If there are many, ask fewer at "
        "once: `fetch.at_once`.",
    ),
    ErrorCode.FETCH_TOO_LARGE: (
        "The medium has more bytes than `limits.max_bytes`.",
        "Retry with a higher `limits.max_bytes` if it is what you want.",
    ),
    ErrorCode.FETCH_FAILED: (
        "It could not be read for another reason, after `fetch.tries` attempts: a server's error, "
        "a broken connection, a member of an archive that has changed.",
        "The message has the reason. Retry; if an archive has changed, make its manifest again.",
    ),
    ErrorCode.DECODE_CORRUPT: (
        "A picture or video of a known format that is broken or cut off.",
        "Replace the file, then retry: a newer file is noticed.",
    ),
    ErrorCode.DECODE_UNSUPPORTED: (
        "No picture or video that is read here. The message says what its first bytes are.",
        "Convert the file ([pictures.md](pictures.md), [video.md](video.md)), or leave such files "
        "out of the manifest.",
    ),
    ErrorCode.DECODE_TOO_LARGE: (
        "More pixels, frames, seconds, memory or windows than the job allows.",
        "The message names the key: `limits.max_image_pixels`, `limits.max_video_pixels`, "
        "`limits.max_frames_decoded`, `limits.max_duration_s`, `limits.decode_bytes`. "
        "Retry with a higher one. A higher `annotate.max_windows` needs a new output.",
    ),
    ErrorCode.DECODE_TIMEOUT: (
        "Decoding took longer than `limits.decode_timeout_s`.",
        "Retry when the machine is less busy, or with a higher value; cut long videos into windows "
        "with `annotate`.",
    ),
    ErrorCode.DECODE_CRASHED: (
        "The file crashed the process that decoded it. Nothing else was harmed.",
        "Retry once; if it happens again, convert or drop the file, and report it.",
    ),
    ErrorCode.MEDIA_EMPTY: (
        "No bytes, no frames, no visual tokens, or a row without media that needs some.",
        "Replace the file; check `start_s` and `end_s` of a part of a video.",
    ),
    ErrorCode.PROMPT_INVALID: (
        "The row's prompt, chat or text cannot be used: it has control strings of the chat "
        "template, is no valid list of messages, or names other media than the row has.",
        "The message says where. Correct it in the manifest and retry the row, chosen by "
        "`--where`; or retry with another `prompt`.",
    ),
    ErrorCode.CONTEXT_TOO_LONG: (
        "Prompt and visual tokens do not fit the model's context.",
        "Fewer pixels or frames for these rows, for example `mediamill retry captions/ "
        "video.max_tokens=16000` ([pixels.md](pixels.md)).",
    ),
    ErrorCode.ENGINE_OOM: (
        "The row alone did not fit the memory of the GPU or machine.",
        "Retry with fewer pixels or frames, with more GPUs a model "
        "(`resources.tensor_parallel`), or on a larger machine.",
    ),
    ErrorCode.ENGINE_FAILED: (
        "The model failed on this row, such as by numbers that overflow.",
        "Read the message; retry, with `resources.dtype=float32` if numbers overflow.",
    ),
    ErrorCode.PARSE_INVALID: (
        "The tokens of the answer are no text.",
        "Retry with another prompt, or with `generation.temperature=0.7`.",
    ),
    ErrorCode.JSON_INVALID: (
        "The answer does not fit `json_schema`, also after `json_answers.retries` attempts. `text` "
        "keeps it.",
        "Mostly it was cut off: retry with a higher `generation.max_new_tokens`, or limit lengths "
        "in the schema ([json.md](json.md)).",
    ),
    ErrorCode.POISON: (
        "The row crashed the processes that worked on it, also when it was processed alone.",
        "Look at the file; retry it with other keys or after an update, chosen by `--where`.",
    ),
}
