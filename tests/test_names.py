"""Sides and patients in the names of files, as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.tasks.names import patient_of_id, read_name, side_and_patient

TOLD = {  # name: side, patient
    "9001695L": ("left", "9001695"),
    "9001695 L": ("left", "9001695"),
    "9001695-L": ("left", "9001695"),
    "9001695_left": ("left", "9001695"),
    "left_9001695": ("left", "9001695"),
    "L9001695": ("left", "9001695"),
    "9001695L_v00": ("left", "9001695"),
    "9001695 R (2)": ("right", "9001695"),
    "9001695_1": ("right", "9001695"),
    "9001695_2": ("left", "9001695"),
    "P01_L": ("left", "P01"),
    "P012_L": ("left", "P012"),
    "P12rt": ("right", "P12"),
    "P01L2": ("left", "P01"),
    "knee-left-07": ("left", "07"),
    "p14-Lt": ("left", "p14"),
    "subj5_KNEE_LEFT_AP": ("left", "subj5"),
    "R_0031": ("right", "0031"),
    "Right knee 4": ("right", "4"),
    "LT_knee_9": ("left", "9"),
    "KneeRight_12": ("right", "12"),
    "rightKnee07": ("right", "07"),
    "LKnee_5": ("left", "5"),
    "Doe_John_L": ("left", "Doe_John"),
    "P000_visit1_L": ("left", "P000"),
    "P000_visit 2_R": ("right", "P000"),
    "P01_12m_L": ("left", "P01"),
    "P3_V06_Rt": ("right", "P3"),
    "P01-baseline-L": ("left", "P01"),
    "P01_2020-01-05_L": ("left", "P01"),
    "P01_20210405_R": ("right", "P01"),
    "P01_rechts": ("right", "P01"),
    "P01_links": ("left", "P01"),
    "knie_re_12": ("right", "12"),
    "knie-li-12": ("left", "12"),
    "genou_gauche_4": ("left", "4"),
    "genou_d_4": ("right", "4"),
    "Jos\u00e9_droite": ("right", "Jose"),
    "rodilla_izquierda_P5": ("left", "P5"),
    "ginocchio_dx_7": ("right", "7"),
    "H\u00f6ger_12": ("right", "12"),
    "P7_\u5de6\u819d": ("left", "P7"),
    "9001695Lv01": ("left", "9001695"),
    "P01v2_R": ("right", "P01"),
    "P01post_RK": ("right", "P01"),
    "P02esq": ("left", "P02"),
    "sub-12_hemi-R": ("right", "sub_12"),
    "P000/2020-01-02/R": ("right", "P000"),
    "P000_day3_L": ("left", "P000"),
    "A01_D0_L": ("left", "A01"),
    "P001/2019/L": ("left", "P001"),
    "2019/L": ("left", "2019"),
    "12_dx": ("right", "12"),
    "12-sx": ("left", "12"),
    "12_dx_L": ("left", "12"),
    "9001695dx": ("right", "9001695"),
    "9001695DX": ("right", "9001695"),
    "P12_DX": ("", "P12"),
    "DX_001": ("", ""),
    "DX/P01_L": ("left", "P01"),
    "patient5/R": ("right", "5"),
    "patient 5/2019/L": ("left", "5"),
    "pat1/img2_L": ("left", "1"),
    "subject3/knee_07": ("", "3"),
    "img5_L": ("left", "5"),
    "D12/v2/L": ("left", "D12"),
    "P3_dex": ("right", "P3"),
    "P01_bilateral": ("both", "P01"),
    "P01_left_right": ("both", "P01"),
    "P01/V00/left": ("left", "P01"),
    "9001695/v00/L": ("left", "9001695"),
    "0012/L": ("left", "0012"),
    "left/001": ("left", "001"),
    "P01/left/img1": ("left", "P01"),
    "train/2/9001695L": ("left", "9001695"),
    "2/001_L": ("left", "001"),
}


@pytest.mark.parametrize("name", TOLD)
def test_side_and_patient_are_read_as_people_write_them(name):
    assert side_and_patient(name) == TOLD[name]


@pytest.mark.parametrize("name", ["film12", "IMG_0001", "scan_3", "0001", "tall", "wide_film", "upright", "copyright"])
def test_names_that_say_neither_say_nothing(name):
    assert side_and_patient(name) == ("", "")


@pytest.mark.parametrize("name", ["Wright_P7", "P7_upright_AP", "P7_cleft", "P7_sagittal", "P7_reli"])
def test_words_that_only_hold_the_letters_of_a_side_name_none(name):
    assert side_and_patient(name)[0] == ""


def test_two_letters_that_contradict_each_other_name_no_side():
    assert side_and_patient("P01_R_L") == ("", "P01")


def test_a_word_counts_more_than_a_letter_and_a_letter_before_a_number_least():
    assert side_and_patient("R01_left")[0] == side_and_patient("R01_L")[0] == "left"
    assert not read_name("R0031").sure and read_name("9001695R").sure


codes = st.from_regex(r"\A(P|OA|S)?[0-9]{3,7}\Z").filter(lambda code: not code.startswith(("19", "20")))
forms = st.sampled_from(["{}_{}", "{}-{}", "{} {}", "{}{}", "{}_visit1_{}", "{1}_{0}", "{}_v00_{}", "{}_knee_{}_AP"])


@settings(max_examples=200, deadline=None)
@given(codes, forms)
def test_both_sides_and_all_visits_of_a_name_are_one_patient(code, form):
    told = {side: side_and_patient(form.format(code, letter)) for side, letter in (("right", "R"), ("left", "L"))}
    assert {side for side, (read, _) in told.items() if read != side} == set()
    assert len({patient for _, patient in told.values()}) == 1
    assert side_and_patient(form.replace("1", "2", form.count("visit")).format(code, "L"))[1] == told["left"][1]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=24))
def test_any_text_is_read(text):
    side, patient = side_and_patient(text)
    assert side in ("", "right", "left", "both") and isinstance(patient, str)


def test_the_patient_of_an_id_made_of_a_path_is_that_of_the_file():
    assert patient_of_id("val_3_9001695R") == patient_of_id("9001695_2") == "9001695"
    assert patient_of_id("film12") == "film12"


BESIDE = """exam1 2019 201907 3mar2021 21-03-2020 post6m 24m follow-up pre-op screening wave2 consult1 control rep2
second smith encounter3"""


@pytest.mark.parametrize("visit", BESIDE.split())
def test_what_stands_beside_an_unmistakable_patient_is_no_part_of_it(visit):
    assert side_and_patient(f"A01_{visit}_L") == ("left", "A01")


@pytest.mark.parametrize(("name", "patient"), [("2019_L", "2019"), ("HOSP2_0031_L", "HOSP2_0031"), ("exam12_L", "12")])
def test_years_and_examinations_name_the_patient_where_nothing_else_does(name, patient):
    assert side_and_patient(name) == ("left", patient)


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("5/2019/R", "5"), ("5/2019/R/img", "5"), ("0/5/2019/R", "5"), ("7/2019-03-01/R", "7"), ("5/V01/R", "5"),
        ("9001695/2019/R", "9001695"), ("P5/2019/R", "P5"), ("2/9001695/R", "9001695"), ("2019/R", "2019"),
        ("3/7/R", ""), ("2/R", ""),
    ],
)  # fmt: skip
def test_a_number_above_the_folder_of_a_visit_is_the_patient(name, patient):
    assert side_and_patient(name) == ("right", patient)


def test_two_patients_of_one_year_stay_apart():
    assert side_and_patient("5/2019/R")[1] != side_and_patient("6/2019/R")[1]
    assert side_and_patient("5/2019/R")[1] == side_and_patient("5/2021/L")[1]
