"""Feature extractors, one file for each network, in the table :data:`EXTRACTORS` by name.

``extractor.py`` has the contract. To add an extractor, write its module here and add a line to the table.
"""

import importlib

from mmldm_scale.evaluation.extractors.extractor import Extractor

# Name → "module:class". A module is imported when its extractor is used: several need packages of an extra.
EXTRACTORS: dict[str, str] = {
    "audioclip": "audioclip:AudioClip",
    "av_align": "alignment:AVAlign",
    "clap": "clap:Clap",
    "cnn14": "cnn14:Cnn14",
    "efficientnet_lite0": "efficientnet_lite0:EfficientNetLite0",
    "i3d": "i3d:I3D",
    "imagebind_av": "imagebind_av:ImageBindAV",
    "imagebind_audio": "imagebind:ImageBindAudio",
    "imagebind_video": "imagebind:ImageBindVideo",
    "onset_offset": "alignment:OnsetOffset",
    "openwakeword": "openwakeword_embedding:OpenWakeWord",
    "synthetic": "alignment:SyntheticHits",
    "transnetv2": "transnetv2:TransNetV2",
    "vggish": "vggish:Vggish",
    "videomae": "videomae:VideoMAE",
}


def extractor_class(name: str) -> type[Extractor]:
    """Return the class of the extractor ``name``, a key of :data:`EXTRACTORS`."""
    module, _, attribute = EXTRACTORS[name].partition(":")
    found: type[Extractor] = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return found
