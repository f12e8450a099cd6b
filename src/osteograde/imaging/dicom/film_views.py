"""From which side a radiograph was taken, and of what, as its tags say: ViewPosition, ViewCodeSequence, descriptions,
PatientOrientation, BodyPartExamined.

Joints are graded on frontal views (AP or PA). Whatever a tag calls lateral, axial, oblique or otherwise is told by a
code. Codes of views: PS3.16 CID 4010; orientation: PS3.3 C.7.6.1.1.1.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable

from pydicom.dataset import Dataset

from osteograde.imaging.dicom.tags import DAMAGE, text_of, texts_of

FRONTAL, LATERAL, OTHER, DOUBT = "frontal", "lateral", "other", "doubt"
CODES = {LATERAL: "lateral_view", OTHER: "other_view", DOUBT: "view_in_doubt"}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_FRONTAL = _set(
    "AP PA FRONTAL FRONT FACE FRENTE ROSENBERG SCHUSS LYON FF FIXEDFLEXION ANTEROPOSTERIOR POSTEROANTERIOR ANTERO "
    "CORONAL A-P P-A APWB PAWB APPA VARUS VALGUS SEMIFLEXED "
    "\u6b63\u4f4d \u6b63\u9762 \u041f\u0420\u042f\u041c\u0410\u042f"
)
_LATERAL = _set(
    "LAT LATERAL LATERALE LATERALES LL RL LLAT RLAT LATL LATR LLD RLD ML LM MEDIOLATERAL LATEROMEDIAL PROFIL PROFILE "
    "PERFIL SEITLICH SEITL HBL XTABLE CROSSTABLE TRANSLATERAL SAGITTAL LATS LATWB LATERALIS LATERO MEDIO "
    "\u5074\u4f4d \u4fa7\u4f4d \u5074\u9762 \u4fa7\u9762 "
    "\u0411\u041e\u041a\u041e\u0412\u0410\u042f \u0411\u041e\u041a\u041e\u0412\u041e\u0418"
)
_OTHER = _set(
    "SUNRISE SKYLINE TAN TANG TANGENTIAL TANGENTIELL MERCHANT MERCHANTS TUNNEL NOTCH OBLIQUE OBL OBLIQ OBLIQUA AXIAL "
    "AXIALE AX LAURIN SETTEGAST HUGHSTON INTERCONDYLAR CAMP COVENTRY CAMPCOVENTRY HOLMBLAD BECLERE FRIK DEFILE LLO RLO "
    "LAO RAO LPO RPO MLO LMO INFEROSUPERIOR SUPEROINFERIOR INFERO SUPERO SCHRAEG SCHRAG TUNEL CAUDOCRANIAL "
    "CRANIOCAUDAL PLANTODORSAL DORSOPLANTAR SWIMMERS"
)
_PATELLA, _A_VIEW = _set("PATELLA PATELLAR PATELLE PATELLAE ROTULA"), _set("VIEW VIEWS PROJECTION")
_LATERAL_PART = re.compile(r"\bLATERAL (?=(?:SIDE|COMPARTMENT|CONDYLE|PLATEAU|MENISCUS|JOINT ?SPACE|LIGAMENT)S?\b)")
_LIMBS = _set("LL RL")  # in BodyPartExamined the left and the right leg, elsewhere lateral views
_SIDEWAYS_DEGREES = (60.0, 120.0)  # of the beam against the front: between them the view is lateral
_NEUTRAL = _set(  # words beside a view that say nothing of it
    "JOINT LEG LEGS BILATERAL BILAT BIL BOTH LEFT RIGHT LT RT L R B STANDING STAND STEHEND WEIGHT BEARING WB "
    "WEIGHTBEARING ERECT SUPINE FLEX FLEXION FLEXED FIXED STRESS EXTENSION EXT UNSPECIFIED UNKNOWN UNK NONE "
    "NA N A OTHER VIEW VIEWS PROJECTION XR CR DX RG AND OF THE WITHOUT WITH LONG DEBOUT"
)
_OTHER_PARTS = re.compile(
    r"\b(?:CHEST|THORA\w*|LUNG|HAND\w*|FINGER\w*|WRIST|FOOT|FEET|TOE\w*|ANKLE\w*|HIP|HIPS|PELVI\w*|SHOULDER\w*|ELBOW\w*"
    r"|[CTL]?-?SPINE|SPINAL|SKULL|HEAD|ABDOM\w*|BREAST|JAW|NECK|HUEFT\w*|FUSS|BECKEN|SCHULTER|PIED|TORAX)\b"
)
_ANYTHING = frozenset(
    {"", "OTHER", "UNKNOWN", "UNK", "NONE", "UNDEFINED", "ARBITRARY", "WHOLEBODY", "BONE", "SKELETON"}
)
_FRONTAL_CODES = frozenset({"399348003", "272479007", "399033003", "R-10206", "R-40888", "R-10202", "R-10214"})
_LATERAL_CODES = frozenset(
    {"399067008", "399198007", "399173006", "399260004", "399352003", "30730003"}
    | {"R-102CD", "R-10232", "R-10236", "R-10224", "R-10228", "G-A145"}
)
_DESCRIPTIONS = (
    "SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription", "PerformedProcedureStepDescription",
    "AcquisitionProtocolDescription", "ImageComments", "DerivationDescription", "AcquisitionDeviceProcessingCode",
)  # fmt: skip
# Of a whole examination, which may have several views: they count where they name one view and it is not frontal.
_OF_EXAMINATION = ("StudyDescription", "RequestedProcedureDescription")
_CODES_OF_EXAMINATION = ("ProcedureCodeSequence", "PerformedProtocolCodeSequence", "SeriesDescriptionCodeSequence")


def film_codes(dataset: Dataset) -> list[str]:
    """Codes of what the tags say against a frontal view, none where nothing is said against it.

    "lateral_view"; "other_view" (axial, oblique, tunnel, or a word of ViewPosition that is not known to be frontal);
    "view_in_doubt" (descriptions that name frontal and other views at once, and nothing else that decides).
    """
    said = [_view_of_position(dataset), *_views_of_codes(dataset), _view_of_orientation(dataset)]
    said += [_view_of_words(text_of(dataset, keyword)) for keyword in _DESCRIPTIONS]
    part = [word for word in _tokens(text_of(dataset, "BodyPartExamined")) if word not in _LIMBS]
    said.append(_view_of_words(" ".join(part)))
    if FRONTAL not in said[:1]:  # some devices write RL or AXIAL into the type of a film that ViewPosition calls AP
        said.append(_view_of_words(" ".join(texts_of(dataset, "ImageType")[2:])))
    if FRONTAL not in said:  # of a tube that was turned towards a wall stand some devices write 90 degrees
        said.append(_view_of_angle(dataset))
    if not any(said):
        said += [view for view in _views_of_examination(dataset) if view != DOUBT]
    codes = [CODES[view] for view in (LATERAL, OTHER) if view in said]
    if not codes and DOUBT in said and FRONTAL not in said:
        codes.append(CODES[DOUBT])
    return codes


def body_parts_of(dataset: Dataset) -> tuple[str, ...]:
    """What the header calls the part of the body, in upper case: BodyPartExamined and AnatomicRegionSequence, else
    descriptions that name a part far from the limbs' middle joints; () where nothing is told."""
    told = [text_of(dataset, "BodyPartExamined").upper()]
    told += [text_of(item, "CodeMeaning").upper() for item in _items(dataset, "AnatomicRegionSequence")]
    if known := tuple(part for part in told if part not in _ANYTHING):
        return known
    texts = [" ".join(_tokens(text_of(dataset, keyword))) for keyword in (*_DESCRIPTIONS, "StudyDescription")]
    words = " ".join(filter(None, texts))
    return (words,) if _OTHER_PARTS.search(words) else ()


def _views_of_examination(dataset: Dataset) -> list[str]:
    texts = [text_of(dataset, keyword) for keyword in _OF_EXAMINATION]
    texts += [text_of(one, "CodeMeaning") for keyword in _CODES_OF_EXAMINATION for one in _items(dataset, keyword)]
    return [_view_of_words(text) for text in texts]


def _tokens(text: str) -> list[str]:
    """Words in upper case without accents; A.P. is AP, and JointLateral is two words."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    plain = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", plain)
    plain = re.sub(r"\b([AP])\.\s?([AP])\b\.?", r"\1\2", plain.upper())
    plain = re.sub(r"X-TABLE|HORIZONTAL BEAM", "XTABLE", plain)
    return [word for word in re.split(r"[^\w-]+|_", plain) if word]


def _view_of_words(text: str) -> str:
    """The view that a free text names, "doubt" where it names a frontal and another one, "" where it names none."""
    tokens = _tokens(_LATERAL_PART.sub("", " ".join(_tokens(text))))
    words = {part for word in tokens for part in (word, *word.split("-"))}
    found = [view for view, known in ((LATERAL, _LATERAL), (OTHER, _OTHER)) if words & known]
    # "patella view" is the skyline view; a patella alone, or in "AP view of joint and patella", is what is shown
    is_skyline = any(one in _PATELLA and two in _A_VIEW for one, two in itertools.pairwise(tokens))
    if is_skyline or (words & _PATELLA and words & _A_VIEW and not words & _FRONTAL):
        found.append(OTHER)
    if found and words & _FRONTAL:
        return DOUBT
    return found[0] if found else FRONTAL if words & _FRONTAL else ""


def _view_of_position(dataset: Dataset) -> str:
    """ViewPosition holds a view and nothing else, so a word that is not known counts as another view."""
    text = text_of(dataset, "ViewPosition")
    words = set(_tokens(text)) - _NEUTRAL
    found = _view_of_words(text)
    return OTHER if words and not found else LATERAL if found == DOUBT and words & _LATERAL else found


def _views_of_codes(dataset: Dataset) -> list[str]:
    """Views of ViewCodeSequence and of the eponyms of projections, by code, else by meaning."""
    found = []
    for keyword in ("ViewCodeSequence", "ProjectionEponymousNameCodeSequence"):
        for item in _items(dataset, keyword):
            code = text_of(item, "CodeValue").upper()
            meaning = _view_of_words(text_of(item, "CodeMeaning")) or _view_of_words(code)
            if code in _LATERAL_CODES or code in _FRONTAL_CODES:
                found.append(LATERAL if code in _LATERAL_CODES else FRONTAL)
            elif meaning or code:
                found.append(meaning or OTHER)
            found += [_view_of_words(text_of(one, "CodeMeaning")) for one in _items(item, "ViewModifierCodeSequence")]
    return found


def _view_of_orientation(dataset: Dataset) -> str:
    """Rows that run to the front or back make a lateral view, columns that do an axial one."""
    along_row, down_column = [*texts_of(dataset, "PatientOrientation"), "", ""][:2]
    if along_row[:1] in ("A", "P") and down_column[:1] in ("F", "H"):
        return LATERAL
    if along_row[:1] in ("F", "H") and down_column[:1] in ("A", "P"):
        return LATERAL
    return OTHER if along_row[:1] in ("L", "R") and down_column[:1] in ("A", "P") else ""


def _view_of_angle(dataset: Dataset) -> str:
    """A beam that comes from the side (PositionerPrimaryAngle, PS3.3 C.8.7.5) makes a lateral view; 0 tells nothing,
    since it is written where nobody measured."""
    try:
        degrees = abs(float(dataset.get("PositionerPrimaryAngle") or 0.0))
    except (*DAMAGE, TypeError):
        return ""
    return LATERAL if _SIDEWAYS_DEGREES[0] <= degrees <= _SIDEWAYS_DEGREES[1] else ""


def _items(dataset: Dataset, keyword: str) -> Iterable[Dataset]:
    try:
        return list(dataset.get(keyword) or ())
    except DAMAGE:
        return ()
