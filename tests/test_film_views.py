"""A film that is no frontal view of a knee says so in one of many tags; each of them is told by a code."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from osteograde.imaging.dicom.film_views import film_codes
from osteograde.imaging.dicom.radiograph import read_film
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Series, Study
from tests.dicom_files import dataset, write

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR CS")


def codes(tmp_path, **tags) -> set[str]:
    made = dataset(np.arange(200, dtype=np.uint16).reshape(20, 10), **tags)
    return set(read_film(write(tmp_path / "a.dcm", made)).codes)


def coded(value="", meaning="", scheme="SCT"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return Sequence([item])


FRONTAL = ["AP", "PA", "ap", "AP STANDING", "PA FLEXION", "Frontal", "BILATERAL AP", "AP WB", "", "UNKNOWN",
           "ROSENBERG", "BILATERAL", "AP/PA", "A-P", "A.P.", "FIXED FLEXION", "VALGUS STRESS"]  # fmt: skip
LATERAL = ["LAT", "LL", "RL", "LATERAL", "lateral", "ML", "LM", "LAT L", "Medio-Lateral", "PROFIL", "SEITLICH",
           "CROSSTABLE", "LATERAL WB", "X-TABLE LAT", "L LAT"]  # fmt: skip
OTHER = ["LLO", "RLO", "SUNRISE", "SKYLINE", "TAN", "MERCHANT", "Merchant 45", "TUNNEL", "NOTCH", "OBLIQUE", "AXIAL",
         "PATELLA AXIAL", "LAO", "RPO", "INTERNAL OBL", "YL", "XX", "Laurin", "Tangential", "MLO"]  # fmt: skip


@pytest.mark.parametrize("word", FRONTAL)
def test_frontal_views_have_no_code(tmp_path, word):
    assert codes(tmp_path, ViewPosition=word) == set()


@pytest.mark.parametrize(("word", "code"), [(w, "lateral_view") for w in LATERAL] + [(w, "other_view") for w in OTHER])
def test_view_position_tells_other_views(tmp_path, word, code):
    assert codes(tmp_path, ViewPosition=word) == {code}


@pytest.mark.parametrize(
    ("value", "meaning", "expected"),
    [
        ("399067008", "lateral projection", {"lateral_view"}),
        ("399067008", "", {"lateral_view"}),
        ("R-102CD", "lateral", {"lateral_view"}),
        ("R-10232", "right lateral", {"lateral_view"}),
        ("399260004", "medial-lateral", {"lateral_view"}),
        ("399061009", "axial", {"other_view"}),
        ("399182000", "oblique", {"other_view"}),
        ("R-102C2", "tangential", {"other_view"}),
        ("399110001", "", {"other_view"}),
        ("", "Skyline", {"other_view"}),
        ("399348003", "antero-posterior", set()),
        ("R-10206", "", set()),
        ("272479007", "postero-anterior", set()),
        ("399033003", "frontal", set()),
    ],
)
def test_view_codes_tell_the_view(tmp_path, value, meaning, expected):
    assert codes(tmp_path, ViewCodeSequence=coded(value, meaning)) == expected


def test_the_name_of_a_projection_tells_it(tmp_path):
    assert codes(tmp_path, ProjectionEponymousNameCodeSequence=coded("A", "Merchant")) == {"other_view"}
    assert codes(tmp_path, ProjectionEponymousNameCodeSequence=coded("A", "Rosenberg")) == set()


@pytest.mark.parametrize(
    "keyword", ["SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription", "ImageComments"]
)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("KNEE LATERAL", {"lateral_view"}),
        ("Knie seitlich links", {"lateral_view"}),
        ("genou profil", {"lateral_view"}),
        ("L KNEE LAT", {"lateral_view"}),
        ("knee_skyline", {"other_view"}),
        ("Patella axial", {"other_view"}),
        ("PATELLA VIEW", {"other_view"}),
        ("PATELLA", set()),
        ("KNEE AP", set()),
        ("BILATERAL KNEES STANDING", set()),
        ("Knee AP and lateral", {"view_in_doubt"}),
        ("", set()),
    ],
)
def test_descriptions_tell_the_view(tmp_path, keyword, text, expected):
    assert codes(tmp_path, **{keyword: text}) == expected


def test_a_view_position_decides_where_a_description_names_several(tmp_path):
    assert codes(tmp_path, ViewPosition="AP", SeriesDescription="KNEE AP LAT") == set()


@pytest.mark.parametrize(
    ("tags", "expected"),
    [({"BodyPartExamined": "KNEE LAT"}, {"lateral_view"}),
     ({"ImageType": ["ORIGINAL", "PRIMARY", "LATERAL"]}, {"lateral_view"}),
     ({"ImageType": ["ORIGINAL", "PRIMARY", ""]}, set()),
     ({"ImageType": ["DERIVED", "PRIMARY", "RL"]}, {"lateral_view"}),
     ({"ImageType": ["DERIVED", "PRIMARY", "RL"], "ViewPosition": "AP"}, set()),
     ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "ViewPosition": "PA"}, set()),
     ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "ViewPosition": "LAT"}, {"lateral_view", "other_view"}),
     ({"PositionerPrimaryAngle": "-90"}, {"lateral_view"}),
     ({"PositionerPrimaryAngle": "0"}, set()),
     ({"PositionerPrimaryAngle": "5"}, set()),
     ({"PositionerPrimaryAngle": "-90", "ViewPosition": "AP"}, set()),
     ({"ImageType": ["ORIGINAL", "PRIMARY", "LATERALITY"]}, set()),
     ({"ImageType": ["DERIVED", "PRIMARY", "BILATERAL"]}, set()),
     ({"BodyPartExamined": "KNEE LATERAL SIDE"}, set()),
     ({"BodyPartExamined": "LL"}, set()),
     ({"BodyPartExamined": "KNEE RL", "ViewPosition": "PA"}, set()),
     ({"SeriesDescription": "AP view, knee and patella"}, set()),
     ({"SeriesDescription": "AP and patella view"}, {"view_in_doubt"}),
     ({"SeriesDescription": "View of the patella"}, {"other_view"})],
)  # fmt: skip
def test_tags_that_are_seldom_asked_tell_the_view_too(tmp_path, tags, expected):
    assert codes(tmp_path, **tags) == expected


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(["A", "F"], {"lateral_view"}), (["P", "F"], {"lateral_view"}), (["AR", "FL"], {"lateral_view"}),
     (["L", "A"], {"other_view"}), (["L", "F"], set()), (["LA", "F"], set())],
)  # fmt: skip
def test_the_orientation_tells_the_view(tmp_path, orientation, expected):
    assert codes(tmp_path, PatientOrientation=orientation) == expected


@pytest.mark.parametrize(
    ("tags", "is_other"),
    [
        ({"BodyPartExamined": "CHEST"}, True),
        ({"BodyPartExamined": "HAND"}, True),
        ({"BodyPartExamined": "FOOT"}, True),
        ({"BodyPartExamined": "LSPINE"}, True),
        ({"BodyPartExamined": "KNEE"}, False),
        ({"BodyPartExamined": "LOWER EXTREMITY"}, False),
        ({"BodyPartExamined": "LEG"}, False),
        ({"BodyPartExamined": ""}, False),
        ({"BodyPartExamined": "OTHER"}, False),
        ({"AnatomicRegionSequence": coded("T-D8300", "Shoulder")}, True),
        ({"AnatomicRegionSequence": coded("T-D9200", "Knee joint")}, False),
        ({"SeriesDescription": "Chest PA"}, True),
        ({"StudyDescription": "XR hip 2 views"}, True),
        ({"SeriesDescription": "hip to knee"}, False),
    ],
    ids=str,
)
def test_another_part_of_the_body_is_told(tmp_path, tags, is_other):
    codes(tmp_path, **tags)
    series = Series("a", "film", tmp_path, (tmp_path / "a.dcm",), side="right")
    loaded = load_study(Study("a", "a", (series,), targets=("right",)), TASKS["knee-xray"])
    assert loaded.faults["film:other_body_part"] == is_other


def test_nonsense_in_these_tags_costs_nothing(tmp_path):
    assert codes(tmp_path, ViewCodeSequence=Sequence([]), PatientOrientation=["", ""], ViewPosition=None) == set()


@pytest.mark.parametrize(
    "text",
    ["KneeLateral", "Patella d\u00e9fil\u00e9", "Knee Horizontal Beam", "Knie schr\u00e4g", "\u819d \u5074\u4f4d"],
)
def test_descriptions_tell_views_in_other_spellings(text):
    made = Dataset()
    made.SpecificCharacterSet, made.SeriesDescription = "ISO_IR 192", text
    assert set(film_codes(made)) & {"lateral_view", "other_view"}


@pytest.mark.parametrize("tag", ["StudyDescription", "RequestedProcedureDescription", "ProcedureCodeSequence"])
def test_an_examination_tells_the_view_where_it_names_one_alone_and_the_film_none(tag):
    def film(text, view=""):
        made = Dataset()
        made.ViewPosition = view
        setattr(made, tag, coded("1", text) if tag.endswith("Sequence") else text)
        return film_codes(made)

    assert film("KNEE LATERAL") == ["lateral_view"]
    assert film("KNEE AP AND LATERAL") == film("KNEE LATERAL", "AP") == film("KNEE 2 VIEWS") == []
