"""Makes long videos with known contents: concatenated clips of synthetic scenes."""

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from mediamill.model.tiny.encode import CLIP_RATE, SUPERSAMPLE
from mediamill.model.tiny.scenes import draw_clip


@dataclass(frozen=True)
class Event:
    """A clip of a film, which is shown from start_s to end_s, and its caption."""

    start_s: float
    end_s: float
    caption: str


def film(
    seed: int, seconds: Sequence[int], side: int = 288, form: str = "mp4", **options: str
) -> tuple[bytes, list[Event]]:
    """Makes a video of square clips. Returns the file and its clips.

    seconds: length of each clip. options: of the container.
    """
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    # FFmpeg reads the file again to put its index first, so it has to be on disk.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film"
        with av.open(path, "w", format=form, options=options) as container:
            stream = container.add_stream("libx264", rate=CLIP_RATE)
            stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
            stream.options = {"crf": "18", "preset": "veryfast", "threads": "1", "g": "24"}
            for length in seconds:
                scene = draw_clip(rng, side, side, length * CLIP_RATE, SUPERSAMPLE)
                for pixels in scene.frames:
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                    container.mux(stream.encode(frame))
                at = events[-1].end_s if events else 0.0
                events.append(Event(at, at + length, scene.caption))
            container.mux(stream.encode())
        return path.read_bytes(), events


def repeated(data: bytes, times: int, path: Path) -> None:
    """Writes an MP4 file that shows a video `times` times, without encoding it again."""
    with av.open(str(path), "w", format="mp4") as container:
        stream, at = None, 0
        for _ in range(times):
            with av.open(io.BytesIO(data)) as source:
                template = source.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(template)
                end = at
                for packet in source.demux(template):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + at, packet.dts + at
                    end = max(end, packet.pts + packet.duration)
                    packet.stream = stream
                    container.mux(packet)
                at = end
