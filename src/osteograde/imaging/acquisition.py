"""How a scanner made an image, as its header tells it: series, echo, contrast, part of the complex signal.

Two images belong into one stack only where these agree; and what kind of series it is (T1, T2, STIR) is told by them
where no table names it. Values only; where they stand in a DICOM file is known to ``dicom.read``.
"""

from __future__ import annotations

from dataclasses import dataclass

MAGNITUDE, PHASE, REAL, IMAGINARY = "magnitude", "phase", "real", "imaginary"
_COMPONENTS = {  # words of ImageType (0008,0008) and of ComplexImageComponent (0008,9208), which vendors share
    "M": MAGNITUDE, "MAGNITUDE": MAGNITUDE, "M_FFE": MAGNITUDE, "M_SE": MAGNITUDE, "M_IR": MAGNITUDE,
    "M_PCA": MAGNITUDE,
    "P": PHASE, "PHASE": PHASE, "PHASE MAP": PHASE, "PHASE_MAP": PHASE, "P_FFE": PHASE, "P_SE": PHASE, "P_IR": PHASE,
    "P_PCA": PHASE, "VELOCITY": PHASE, "VELOCITY MAP": PHASE,
    "R": REAL, "REAL": REAL, "R_FFE": REAL, "R_SE": REAL, "R_IR": REAL,
    "I": IMAGINARY, "IMAGINARY": IMAGINARY, "I_FFE": IMAGINARY, "I_SE": IMAGINARY, "I_IR": IMAGINARY,
}  # fmt: skip
_ROLES = {  # further words of ImageType (PS3.3 C.8.3.1.1.1, C.8.13.3.1.1) and what they say the image is
    "LOCALIZER": "localizer", "SCOUT": "localizer",
    "PROJECTION IMAGE": "projection", "MIP": "projection", "MINIP": "projection", "MAX_IP": "projection",
    "MIN_IP": "projection", "PROJECTION": "projection", "VOLUME_RENDER": "projection",
    "MPR": "reformatted", "REFORMATTED": "reformatted", "CSA MPR": "reformatted",
    "ADC": "map", "FA": "map", "TRACEW": "map", "ADC_MAP": "map", "T1 MAP": "map", "T2 MAP": "map",
    "T2_STAR MAP": "map",     "R2 MAP": "map", "EADC": "map", "FIELD_MAP": "map", "MEAN_DIFFUSION": "map",
    "SUB": "subtraction", "SUBTRACTION": "subtraction", "SUBTRACT": "subtraction",
    "MOSAIC": "mosaic",
    "W": "water", "WATER": "water", "F": "fat", "FAT": "fat", "IP": "in phase", "IN_PHASE": "in phase",
    "OP": "out of phase", "OUT_PHASE": "out of phase", "OPP_PHASE": "out of phase", "FAT_FRACTION": "map",
}  # fmt: skip
DERIVED = frozenset({"localizer", "projection", "map", "subtraction", "mosaic"})  # no anatomy as it was measured


@dataclass(frozen=True)
class Acquisition:
    """What the header of an image says of how it was made; "", () and None where it does not say.

    series: SeriesInstanceUID. description, protocol, sequence_name: as written. scanning: ScanningSequence, for example
    ("SE", "IR"). options: ScanOptions. times in ms, flip angle in degrees, b-value in s/mm2. image_type: ImageType in
    upper case. component: "magnitude", "phase", "real" or "imaginary". agent: a contrast agent was given. contrast:
    AcquisitionContrast (0008,9209) of enhanced objects. dimensions: indices that tell frames of one place apart.
    """

    series: str = ""
    series_number: int | None = None
    description: str = ""
    protocol: str = ""
    sequence_name: str = ""
    scanning: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    repetition_ms: float | None = None
    echo_ms: float | None = None
    inversion_ms: float | None = None
    echo_number: int | None = None
    echo_train: int | None = None
    flip_degrees: float | None = None
    b_value: float | None = None
    image_type: tuple[str, ...] = ()
    component: str = ""
    contrast: str = ""
    agent: bool = False
    dimensions: tuple[int, ...] = ()

    @property
    def role(self) -> str:
        """What ImageType says the image is beside a plain one: "localizer", "map", "water", ...; "" where nothing."""
        return next((_ROLES[word] for word in self.image_type[2:] if word in _ROLES), "")


UNKNOWN = Acquisition()  # of an image that says nothing


def component_of(image_type: tuple[str, ...], told: str = "") -> str:
    """The part of the complex signal that an image shows; ``told``: ComplexImageComponent, which comes first.

    >>> component_of(("ORIGINAL", "PRIMARY", "P", "SE")), component_of(("ORIGINAL", "PRIMARY"), "REAL")
    ('phase', 'real')
    """
    if told in _COMPONENTS:
        return _COMPONENTS[told]
    return next((_COMPONENTS[word] for word in image_type[2:] if word in _COMPONENTS), "")
