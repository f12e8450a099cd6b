"""Side and patient as people write them into the names of files and folders.

Names are read word by word. What is no word for a side, a visit, a date, a view or a body part names the patient.
All of it is a guess that callers must be able to tell apart from knowledge: "" says that nothing was read. A table
patients.csv beside the data is knowledge.
"""

from __future__ import annotations

import itertools
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from osteograde.errors import UserError
from osteograde.tasks import tables

log = logging.getLogger(__name__)

RIGHT, LEFT, BOTH = "right", "left", "both"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Words of one side in several languages, accents removed; the last lines are words in other letters than ASCII.
_RIGHT_WORDS = _words(
    """right rechts rechte rechtes rechter droit droite derecha derecho der destra destro direita direito dexter dextra
    hoger hojre hoyre oikea prawy prawa prawe pravy prava prave desno desna
    \u53f3 \u53f3\u4fa7 \u53f3\u819d \u043f\u0440\u0430\u0432\u044b\u0439 \u043f\u0440\u0430\u0432\u043e\u0435"""
)
_LEFT_WORDS = _words(
    """left links linke linkes linker gauche izquierda izquierdo izq sinistra sinistro esquerda esquerdo esq sinister
    vanster venstre vasen lewy lewa lewe levy leva leve lijevo lijeva
    \u5de6 \u5de6\u4fa7 \u5de6\u819d \u043b\u0435\u0432\u044b\u0439 \u043b\u0435\u0432\u043e\u0435"""
)
_BOTH_WORDS = _words("both bilateral bilaterale bilat beide beider beidseits beidseitig ambas ambos ambedue deux")
_WORDS = dict.fromkeys(_RIGHT_WORDS, RIGHT) | dict.fromkeys(_LEFT_WORDS, LEFT) | dict.fromkeys(_BOTH_WORDS, BOTH)
_SHORT = {"r": RIGHT, "l": LEFT, "rt": RIGHT, "lt": LEFT, "rgt": RIGHT, "lft": LEFT,
          "rhs": RIGHT, "lhs": LEFT, "rk": RIGHT, "lk": LEFT, "rkn": RIGHT, "lkn": LEFT,
          "dex": RIGHT, "dext": RIGHT, "sin": LEFT, "sx": LEFT}  # fmt: skip
_SMALL = {"dx": RIGHT}  # in capitals it is the modality of a digital radiograph
_SHORT_BESIDE = {  # abbreviations that mean a side only beside a word of their language
    "knie": {"re": RIGHT, "li": LEFT}, "genou": {"d": RIGHT, "dt": RIGHT, "g": LEFT},
    "rodilla": {"d": RIGHT, "dcha": RIGHT, "i": LEFT, "izda": LEFT},
    "ginocchio": {"d": RIGHT, "dx": RIGHT, "s": LEFT, "sx": LEFT}, "joelho": {"d": RIGHT, "dir": RIGHT, "e": LEFT},
}  # fmt: skip
_SHOWN = _words(
    "knee knees knie genou rodilla ginocchio joelho leg joint side seite hemi lado lato cote limb ap pa lat lateral"
)
_FILLER = frozenset(_SHOWN) | frozenset(  # says what is shown and how, not of whom
    _words(
        """legs knae med medial frontal view xray xr x ray cr dr dx rx rg radiograph rontgen roentgen film films img
        image images im pic picture pict photo dsc dscn screenshot scan scans series frame oa kl grade crop crops
        cropped roi standing weightbearing wb bearing weight fixed flexion ff rosenberg upright supine copy final new
        patient patients pat subject subjects case id of the and data dataset set batch part fold site center centre
        group cohort train training val valid validation test testing auto public private png jpg jpeg dcm tif mri mr ct
        exam exams examen examination study studie wave round rep repeat acq acquisition enc encounter appt appointment
        consult consultation consulta control termin take run femur tibia patella"""
    )
)
_PERSON = frozenset(_words("patient pat subject subj case id pt"))  # the number behind it is a patient's
_VISIT_WORDS = (
    "visit visite visita besuch timepoint followup fu month months mth year years yr week weeks session ses day days"
)
_VISIT = re.compile(rf"(v|t|tp|d|m|mo|y|w|wk|{_VISIT_WORDS.replace(' ', '|')})\d{{1,3}}|\d{{1,3}}(m|mo|mth|y|yr|w|wk|d)"
                    rf"|(pre|post)?\d{{1,3}}({_VISIT_WORDS.replace(' ', '|')}|m|mo|y|w|d)")  # fmt: skip
_VISIT_ALONE = frozenset(
    _words(
        """baseline bl follow followup up fu pre post preop postop op initial screening enrol enroll
        enrolment enrollment first second third last"""
    )
)
_VISIT_BEFORE_NUMBER = frozenset({*_VISIT_WORDS.split(), "v", "t"})
_DATE = re.compile(r"(?<!\d)(19|20)\d\d[-._ ]?(0[1-9]|1[0-2])[-._ ]?(0[1-9]|[12]\d|3[01])(?!\d)")
_DAY_FIRST = re.compile(r"(?<!\d)(0[1-9]|[12]\d|3[01])[-._ ](0[1-9]|1[0-2])[-._ ](19|20)\d\d(?!\d)")
# 2019, 201907, 3mar2019
_YEAR = re.compile(
    r"(19[5-9]|20[0-4])\d(0[1-9]|1[0-2])?|\d\d?[a-z]{3}(19|20)\d\d", re.IGNORECASE
)  # 2019, 201907, 3mar2019
_CODED = re.compile(r"(?P<patient>[0-9]+)_(?P<side>[12])")  # of the Osteoarthritis Initiative: _1 right, _2 left
_CODED_DIGITS = 7  # of its patients; fewer digits are more likely a number of a patient and one of an image
_PART_FOLDER = re.compile(r"(?:(?:train|val|test|[0-9])_)+")  # in front of an id that was made of a path
_WORDLIKE = sorted((word for word in _WORDS if word.isascii() and len(word) >= 4), key=len, reverse=True)
_FOLDER_NUMBER = 2  # digits that make the name of a folder a patient's: one digit is a grade or a fold
_ENDINGS = r"v[0-9]{1,3}|visit[0-9]{1,3}|bl|fu|pre|post|baseline|followup"  # visits written behind a patient
_LONG_NUMBER = 5  # digits that make a number a patient's and not a counter's

_SIDE_SURE, _SIDE_LETTER, _SIDE_PREFIX = 3, 2, 1  # a word; a letter of its own or behind a number; a letter before one


@dataclass(frozen=True)
class Named:
    """What a name says. side: "right", "left", "both" or "". patient: "" where none was read. sure: whether the side
    is more than one letter in front of a number, which may mean something else. known: the side stands in a table."""

    side: str = ""
    patient: str = ""
    sure: bool = False
    known: bool = False


@dataclass(frozen=True)
class _Piece:
    """A part of a name: of a side, of a visit or date, or of the patient. strong: more than a counter."""

    kind: str  # "side", "visit" or "patient"
    text: str
    strong: bool = False
    weight: int = 0  # of a side
    counter: bool = False  # a number glued to a word that names no patient: knee07


def side_and_patient(name: str) -> tuple[str, str]:
    """(side, patient) of a file's stem, or of its path with "/" between folders; "" where none was read.

    >>> [side_and_patient(name) for name in ("9001695L", "P012_L", "knee-left-07", "LT_knee_9")]
    [('left', '9001695'), ('left', 'P012'), ('left', '07'), ('left', '9')]
    >>> [side_and_patient(name) for name in ("P01_visit2_R", "P7/baseline/rechts", "film12", "upright")]
    [('right', 'P01'), ('right', 'P7'), ('', ''), ('', '')]
    """
    named = read_name(name)
    return named.side, named.patient


def read_name(name: str) -> Named:
    """The same with how sure the side is. Folders count where the stem says nothing: the nearest one first."""
    *folders, stem = name.split("/")
    if coded := _CODED.fullmatch(stem):
        side = {"1": RIGHT, "2": LEFT}[coded["side"]] if len(coded["patient"]) == _CODED_DIGITS else ""
        return Named(side, coded["patient"], bool(side))
    own = _pieces(stem)
    above = [_pieces(folder) for folder in reversed(folders)]
    side, sure, place = _side(own)
    for pieces in above:
        if not side:
            side, sure, _ = _side(pieces)
    return Named(side, _patient(own, above, place, bool(side)), sure)


def patient_of_id(study_id: str) -> str:
    """The patient of a study's id, which may be made of a path; the id itself where none is named.

    >>> patient_of_id("9001695L"), patient_of_id("val_3_9001695R"), patient_of_id("film12")
    ('9001695', '9001695', 'film12')
    """
    inner = read_name(_PART_FOLDER.sub("", study_id, count=1)) if _PART_FOLDER.match(study_id) else Named()
    return inner.patient or read_name(study_id).patient or study_id


def _side(pieces: Sequence[_Piece]) -> tuple[str, bool, int]:
    """(side, sure, its place among the pieces): the surest word counts; two sides named alike are both or none."""
    told = [(piece.weight, -i, piece.text) for i, piece in enumerate(pieces) if piece.kind == "side"]
    if not told:
        return "", False, len(pieces)
    best = max(weight for weight, _, _ in told)
    sides = {text for weight, _, text in told if weight == best}
    place = min(-i for weight, i, _ in told if weight == best)
    if len(sides) == 1:
        return sides.pop(), best > _SIDE_PREFIX, place
    return (BOTH, True, place) if best == _SIDE_SURE else ("", False, place)


def _patient(own: Sequence[_Piece], above: Sequence[Sequence[_Piece]], place: int, sided: bool) -> str:
    stem = _identity(own, place)
    told = [found for pieces in above if (found := _identity(pieces, len(pieces), folder=True))]
    # P001/2019/L is P001; a folder that may be a year names the patient only where no other folder does
    folder = next((found for found in told if not all(_YEAR.fullmatch(piece.text) for piece in found)), [])
    folder = folder or _above_a_visit(above)
    folder = folder or next(iter(told), [])
    if folder and (not stem or (any(piece.strong for piece in folder) and not any(piece.strong for piece in stem))):
        return _joined(folder)
    visited = any(piece.kind == "visit" for piece in own)
    if stem and (sided or visited or any(piece.strong for piece in stem)):
        return _joined(stem)
    # D12_L and D12/L may be a donor's: what is called alike stays together, by the outermost folder
    visits = next((visits for pieces in (own, *reversed(above)) if (visits := _visits(pieces))), [])
    return _joined(visits) if sided else ""


def _above_a_visit(above: Sequence[Sequence[_Piece]]) -> list[_Piece]:
    """The number of a folder that holds the folder of a year or of another visit: 5/2019/R and 5/2019-03-01/R are of
    patient 5, though 5 alone may be a grade."""
    numbered = [pieces for pieces in above if any(piece.kind in ("patient", "visit") for piece in pieces)]
    for inner, outer in itertools.pairwise(numbered):
        own = [piece for piece in outer if piece.kind == "patient"]
        visit = all(piece.kind == "visit" or _YEAR.fullmatch(piece.text) for piece in inner)
        if visit and own and all(piece.text.isdigit() and not _YEAR.fullmatch(piece.text) for piece in own):
            return own
    return []


def _visits(pieces: Sequence[_Piece]) -> list[_Piece]:
    return [piece for piece in pieces if piece.kind == "visit"]


def _identity(pieces: Sequence[_Piece], place: int, folder: bool = False) -> list[_Piece]:
    """The pieces that name the patient: those in front of the side where a number is among them, else all."""
    every = [(i, piece) for i, piece in enumerate(pieces) if piece.kind == "patient"]
    if folder:
        told = any(piece.strong or len(piece.text) >= _FOLDER_NUMBER for _, piece in every if _has_digit(piece.text))
        return [piece for _, piece in every] if told else []
    if any(_has_digit(piece.text) and not piece.counter for _, piece in every):
        every = [(i, piece) for i, piece in every if not piece.counter]  # knee1 beside P07 is a counter
    if any(_tells_alone(piece) for _, piece in every):  # P07_2019 and P07_smith are P07
        every = [(i, piece) for i, piece in every if _has_digit(piece.text) and not _YEAR.fullmatch(piece.text)]
    before = [piece for i, piece in every if i < place]
    return before if any(_has_digit(piece.text) for piece in before) else [piece for _, piece in every]


def _tells_alone(piece: _Piece) -> bool:
    """Whether a piece names a patient whatever words and years stand beside it."""
    return piece.strong and not _YEAR.fullmatch(piece.text)


def _joined(pieces: Sequence[_Piece]) -> str:
    return "_".join(piece.text for piece in pieces)


def _has_digit(text: str) -> bool:
    return any(letter.isdigit() for letter in text)


def _pieces(name: str) -> list[_Piece]:
    """The pieces of a stem or of a folder's name, in order."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", plain)  # KneeLeft, LKnee
    dates = [match[0] for form in (_DATE, _DAY_FIRST) for match in form.finditer(plain)]
    words = re.findall(r"[^\W_]+", _DAY_FIRST.sub(" ", _DATE.sub(" ", plain)))
    lower = [word.lower() for word in words]
    short = dict(_SHORT)
    for marker in _SHORT_BESIDE:
        short |= _SHORT_BESIDE[marker] if any(word.startswith(marker) for word in lower) else {}
    found: list[_Piece] = []
    for i, word in enumerate(words):
        before = lower[i - 1] if word.isdigit() and i else ""
        if before in _VISIT_BEFORE_NUMBER:
            found.append(_Piece("visit", word))
        elif before in _PERSON:
            found.append(_Piece("patient", word, strong=True))
        else:
            found += _of_word(word, short)
    return found + [_Piece("visit", re.sub(r"\D", "", date)) for date in dates]


def _of_word(word: str, short: dict[str, str]) -> list[_Piece]:
    low = word.lower()
    if low in _WORDS:
        return [_Piece("side", _WORDS[low], weight=_SIDE_SURE)]
    if low in short:
        return [_Piece("side", short[low], weight=_SIDE_LETTER)]
    if word in _SMALL:
        return [_Piece("side", _SMALL[word], weight=_SIDE_PREFIX)]
    if low in _FILLER:
        return []
    if low in _VISIT_ALONE or low in _VISIT_BEFORE_NUMBER or _VISIT.fullmatch(low):
        return [_Piece("visit", word)]
    numbered = re.fullmatch(r"([a-z]+)([0-9]+)", low)
    if numbered and numbered[1] in _PERSON & _FILLER:  # patient5; pt5 is one word
        return [_Piece("patient", numbered[2], strong=True)]
    return _glued(word, short) or _compound(low) or [_identifier(word)]


def _glued(word: str, short: dict[str, str]) -> list[_Piece]:
    """A number and a side or a visit written together: 9001695L, P01left, L9001695, left07, P01v2."""
    sides = {**short, **{name: side for name, side in _WORDS.items() if name.isascii()}}
    if told := re.fullmatch(r"(.*[0-9])dx", word, re.IGNORECASE):  # as 12sx; a modality stands apart: 12_DX
        return [_identifier(told[1]), _Piece("side", RIGHT, weight=_SIDE_PREFIX)]
    either = "|".join(sorted(map(re.escape, sides), key=len, reverse=True))
    if told := re.fullmatch(rf"(.*[0-9])({either})([0-9]{{1,2}}|{_ENDINGS})?", word, re.IGNORECASE):
        return [_identifier(told[1]), _Piece("side", sides[told[2].lower()], weight=_SIDE_LETTER)]
    if told := re.fullmatch(rf"({either})([0-9]+)", word, re.IGNORECASE):
        weight = _SIDE_PREFIX if len(told[1]) == 1 else _SIDE_LETTER
        return [_Piece("side", sides[told[1].lower()], weight=weight), _identifier(told[2])]
    if told := re.fullmatch(rf"(.*[0-9])({_ENDINGS})", word, re.IGNORECASE):
        return [_identifier(told[1]), _Piece("visit", told[2])]
    return []


def _compound(low: str) -> list[_Piece]:
    """A side and a word that says nothing, written together: leftknee, kneer, rightknee07."""
    told = re.fullmatch(r"([a-z]+)([0-9]*)", low)
    if not told:
        return []
    letters, number = told[1], told[2]
    rest = [_Piece("patient", number, counter=True)] if number else []
    for name in (*_WORDLIKE, "r", "l"):
        for other in {letters.removeprefix(name), letters.removesuffix(name)} - {letters}:
            if other in _SHOWN and (len(name) > 1 or other.startswith(("knee", "knie", "genou", "rodilla"))):
                return [_Piece("side", _WORDS.get(name) or _SHORT[name], weight=_SIDE_SURE), *rest]
    if letters in _FILLER and number:
        return rest
    return []


def _identifier(word: str) -> _Piece:
    letters = re.fullmatch(r"([A-Za-z]+)[0-9]+", word)
    if letters and letters[1].lower() in _FILLER:
        return _Piece("patient", word[len(letters[1]) :], counter=True)
    mixed = _has_digit(word) and not word.isdigit()
    return _Piece("patient", word, strong=mixed or (word.isdigit() and len(word) >= _LONG_NUMBER))


PATIENTS = "patients.csv"  # beside the data: what it says counts more than any name
_IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "image_id", "study", "study_id", "name", "path")
_PATIENT_COLUMNS = ("patient", "patient_id", "patientid", "subject", "subject_id")
_SIDE_COLUMNS = ("side", "laterality")
_SIDE_CODES = {"1": RIGHT, "2": LEFT, "b": BOTH}  # of the Osteoarthritis Initiative; DICOM's B


@dataclass(frozen=True)
class People:
    """What patients.csv says: image -> (patient, side). path: where it lies; None where there is none."""

    path: Path | None = None
    told: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def of(self, called: Sequence[str]) -> tuple[str, str] | None:
        """(patient, side) of an image by the first of its names that the table has; None where it has none."""
        return next((self.told[name] for name in called if name in self.told), None)

    def fitted(self, called: Collection[str]) -> People:
        """The same with the images called as the files are, where leading zeros are all that differs; a log line counts
        the rows that speak of no file. called: every name that a file may have in the table."""
        same = tables.matched(self.told, called)
        told = {same.get(name, name): known for name, known in self.told.items()}
        if lost := [name for name in told if name not in called]:
            log.warning("%s: %d rows speak of no image here: %s", self.path, len(lost), tables.some(lost))
        return People(self.path, told)


def read_people(folders: Sequence[Path]) -> People:
    """patients.csv of the first folder that has one: columns image (or study, file, ...), patient and maybe side.

    UserError where a column is missing, a side is no side, or rows contradict each other.
    """
    path = next((folder / PATIENTS for folder in folders if (folder / PATIENTS).is_file()), None)
    if path is None:
        return People()
    header = [name.strip().lower() for name in tables.cells_of(path)[0][1]]
    chosen = [next((name for name in names if name in header), "") for names in (_IMAGE_COLUMNS, _PATIENT_COLUMNS)]
    if not all(chosen):
        raise UserError(f"{path}: columns are {header}; expected image and patient, and side where it is known")
    side = next((name for name in _SIDE_COLUMNS if name in header), "")
    table = tables.read_table(path, [*chosen, *filter(None, [side])], ids=())
    tables.refuse_conflicts(path, table, chosen[:1])
    table["side"] = [side_of_cell(cell) for cell in table[side]] if side else ""
    tables.refuse(path, table, table["side"] == "?", side or "side", "no side, expected left, right or both")
    keys = table[chosen[0]].str.replace("\\", "/").str.removeprefix("./")
    return People(path, dict(zip(keys, zip(table[chosen[1]], table["side"], strict=True), strict=True)))


def side_of_cell(cell: str) -> str:
    """The side that a cell names; "" where it is empty, "?" where it names none."""
    low = cell.strip().lower()
    return (_SIDE_CODES.get(low) or _SHORT.get(low) or _WORDS.get(low) or "?") if low else ""


def spellings(patients: Iterable[str]) -> list[list[str]]:
    """Names of patients that differ in capitals, leading zeros and signs alone.

    >>> spellings(["P012", "p12", "7", "007", "8"])
    [['P012', 'p12'], ['007', '7']]
    """
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for name in patients:
        plain = re.sub(r"(?<![0-9])0+(?=[0-9])", "", re.sub(r"[\W_]+", "", name.lower()))
        found[plain or name][name] = None
    return [sorted(group) for group in found.values() if len(group) > 1]
