"""Reads the sliding-window settings of a config.json: one window per layer."""

from mediamill.model.checkpoint.json_reader import JsonReader
from mediamill.model.errors import ModelError

# The defaults of the reference's configuration class.
DEFAULT_WINDOW = 4096
DEFAULT_MAX_WINDOW_LAYERS = 80
LAYER_TYPES = {"full_attention", "sliding_attention"}


def layer_windows(raw: JsonReader, layers: int) -> tuple[int | None, ...]:
    """Returns the window of each layer in tokens, None for full attention.

    The result is empty when no layer has a window. `raw` holds the decoder's settings. Raises
    ModelError for `layer_types` of another length, an unknown type of layer, and a sliding layer
    without a window.
    """
    # An absent key means the default, null no window.
    absent = "sliding_window" not in raw.raw
    window = DEFAULT_WINDOW if absent else raw.whole_or_none("sliding_window", 1)
    window = window if raw.flag("use_sliding_window", False) else None
    first = raw.whole("max_window_layers", DEFAULT_MAX_WINDOW_LAYERS, 0)
    kinds = raw.get("layer_types")
    if kinds is None:
        if window and raw.raw.get("max_window_layers", first) is None:
            raw.refuse("max_window_layers", "the number of layers without a sliding window")
        kinds = ["sliding_attention" if window and i >= first else "" for i in range(layers)]
    elif not isinstance(kinds, list) or not set(map(str, kinds)) <= LAYER_TYPES:
        raw.refuse("layer_types", "a list of 'full_attention' and 'sliding_attention'")
    if len(kinds) != layers:
        raise ModelError(
            f"{raw.where}: layer_types has {len(kinds)} entries, expected one for each of the "
            f"{layers} layers"
        )
    if "sliding_attention" not in kinds:
        return ()
    if window is None:
        raise ModelError(
            f"{raw.where}: layer_types names sliding layers, but there is no window: "
            "use_sliding_window is false or sliding_window null"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
