"""Defines every column name once, so that a misspelled name is an import error."""

# Manifest: columns that the user writes.
ID = "id"
URI = "uri"
MEDIA = "media"
PROMPT = "prompt"
SYSTEM = "system"
MESSAGES = "messages"

# Fields of one element of `media`.
MEDIA_TYPE = "type"
MEDIA_URI = "uri"
MEDIA_START_S = "start_s"
MEDIA_END_S = "end_s"

# In flight: columns between stages, never in the result.
ROW = "row"
INPUT_IDS = "input_ids"
CONTINUATIONS = "continuations"
PATCHES = "patches"
GRID_THW = "grid_thw"
MEDIA_KINDS = "media_kinds"
TENSOR_CHECKSUM = "tensor_seal"
MEDIA_BYTES = "media_bytes"

# In flight, of windows: the error by which their video could not be split; see annotate/.
SPLIT_CODE = "split_error_code"

# Result: columns that Mediamill writes.
TEXT = "text"
STATUS = "status"
ERROR_CODE = "error_code"
ERROR_MESSAGE = "error_message"
ATTEMPT = "attempt"
ATTEMPT_HISTORY = "attempt_history"
FINISH_REASON = "finish_reason"
PROMPT_TOKENS = "prompt_tokens"
VISUAL_TOKENS = "visual_tokens"
OUTPUT_TOKENS = "output_tokens"
MEAN_LOGPROB = "mean_logprob"
SHA256 = "sha256"
HEIGHT = "height"
WIDTH = "width"
FRAME_TIMES_S = "frame_times_s"
RECEIPT = "receipt"
MODEL = "model"
FINGERPRINT = "fingerprint"
RUN_ID = "run_id"

# Result of some tasks only, see task.py.
DUPLICATE_OF = "duplicate_of"
CONTENT_HASH = "content_hash"
EMBEDDING = "embedding"
SCORES = "scores"
PROBABILITY = "probability"

STATUS_OK = "ok"
STATUS_ERROR = "error"

MANIFEST_COLUMNS = (ID, URI, MEDIA, PROMPT, SYSTEM, MESSAGES)
IN_FLIGHT_COLUMNS = (
    ROW,
    INPUT_IDS,
    CONTINUATIONS,
    PATCHES,
    GRID_THW,
    MEDIA_KINDS,
    TENSOR_CHECKSUM,
)
RESULT_COLUMNS = (
    TEXT,
    STATUS,
    ERROR_CODE,
    ERROR_MESSAGE,
    ATTEMPT,
    FINISH_REASON,
    PROMPT_TOKENS,
    VISUAL_TOKENS,
    OUTPUT_TOKENS,
    MEAN_LOGPROB,
    SHA256,
    HEIGHT,
    WIDTH,
    FRAME_TIMES_S,
    RECEIPT,
    MODEL,
    FINGERPRINT,
    RUN_ID,
    ATTEMPT_HISTORY,
)
