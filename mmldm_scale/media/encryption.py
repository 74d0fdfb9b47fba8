"""Encrypted media: streams that only a licence's key opens, which without it look like damage.

MP4 and fragmented MP4 mark each packet (Common Encryption: ``encv``, ``sinf``), Matroska and WebM the track.
"""

from typing import Any

import av
from av.stream import Stream


def is_encrypted(stream: Stream) -> bool:
    """Return whether the header of ``stream`` says that its packets are encrypted."""
    return "enc_key_id" in stream.metadata


def is_encrypted_packet(packet: "av.Packet[Any]") -> bool:
    """Return whether ``packet`` comes with what its decryption needs, and so is of no use without the key."""
    return packet.has_sidedata("encryption_info")
