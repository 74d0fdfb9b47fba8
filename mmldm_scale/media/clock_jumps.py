"""Recordings whose clock jumps: two programmes in one file, or one that was interrupted.

In formats that allow it (MPEG transport and programme streams, Ogg) the timestamps may start anew on the way. Then
neither length nor time mean anything, and seeking goes astray. :func:`check_clock` refuses such a file.
"""

from pathlib import Path

import av
from av.container import InputContainer

from mmldm_scale.media.clip import MediaError
from mmldm_scale.media.track import MAX_GAP, clock_may_jump, find_stream, open_container, to_seconds

MAX_RETURN = 0.5  # seconds that the clock of a stream may go back; what is then presented twice is shown once
CHECKED_BYTES = 4 << 30  # of a file, from its beginning, whose packets are looked at


def check_clock(path: Path) -> None:
    """Raise MediaError (clock_jumps) if time in the file ``path`` jumps ahead by MAX_GAP or back by MAX_RETURN.

    Reads the packets of picture and sound without decoding them, and only in formats whose clock may jump.
    """
    with open_container(path) as container:
        if clock_may_jump(container):
            try:
                _check_packets(path, container)
            except (av.FFmpegError, IndexError):
                return  # what cannot be read is found to be damaged when it is decoded


def _check_packets(path: Path, container: InputContainer) -> None:
    streams = [s for s in (find_stream(container, "video"), find_stream(container, "audio")) if s is not None]
    last: dict[int, float] = {}  # time of each stream's last packet, in seconds
    for packet in container.demux(*streams):
        ticks = packet.pts if packet.dts is None else packet.dts
        if ticks is None:
            continue
        now, before = to_seconds(ticks, packet.time_base), last.get(packet.stream_index)
        if before is not None and (now > max(last.values()) + MAX_GAP or now < before - MAX_RETURN):
            text = f"{path}: the clock jumps from {before:.3f} to {now:.3f} s; cut the file there"
            raise MediaError("clock_jumps", text)
        last[packet.stream_index] = now
        if packet.pos is not None and packet.pos > CHECKED_BYTES:
            return
