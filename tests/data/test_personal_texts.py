"""Signs of personal data in questions and answers are found by their form; plain medical language is not counted."""

import time

import pytest

from vlm_core.data.personal_texts import names_case, personal_patterns

SIGNS = {
    "a date": [
        "2024-Mar-05", "Mar-2024", "2024年3月5日", "Jan. 5, 2021",
        "Seen on 2024-03-05.", "Seen on 5.3.2024", "on 05/03/2024", "03/25/2024", "seen 3 March 2024",
        "Mar 3rd, 2024", "3rd of March, 2024", "03-Mar-2024", "03-MAR-24", "5. 3. 2024", "3. März 2024",
        "le 3 mars 2024", "03/05/24", "3/5/24", "05.03.24", "20240305", "2024-03-05T10:15:00", "March 2024",
        "in sept. 2019", "03/2024", "on March 3", "the 3rd of June", "May 3rd", "DOB: 1942",
        "date of birth 3/4", "2024/3/5", "Dezember 1999",
    ],
    "a record number": [
        "Reg. No. 123456", "UHID 1234567", "Study UID 1.2.840.113619.2.55.3.604688", "specimen no. S12-3456",
        "MRN: 0012345", "MRN 12345", "MRN#A-12345", "patient id 884422", "Patient ID: AB-1234",
        "Accession No. A123456", "accession number is 7712345", "Acc# 99177", "case number 123456",
        "patient: 884422", "Patient 884422 was scanned", "NHS number 943 476 5919", "SSN 123-45-6789",
        "123-45-6789", "hospital no 55512", "Pat.-Nr. 12345", "medical record number: 12-34-56", "ID: AB-12345",
        "chart number 4455", "Fall-Nr. 20991",
    ],
    "a name with a title": [
        "Dr.Smith", "Dr  Smith", "read by John Q. Smith, M.D.", "Patient name: Jane", "Prof.Dr. Schmidt",
        "Reported by Dr. Smith", "Dr Smith agrees", "Mrs. O'Neil", "Prof. Dr. med. Müller", "Mr. J. Smith",
        "Ms Jones-Lee", "Dr. van der Berg", "DISCUSSED WITH Dr. SMITH", "Doctor Strange", "Herr Schmidt",
        "Frau Öztürk", "Miss Marple's scan", "with Professor Lee", "Mme Dupont", "Dr. Al-Hassan",
    ],
    "an e-mail address": [
        "mail jane@clinic.org", "Jane.Doe+ct@mail.hospital.co.uk",
    ],
    "a telephone number": [
        "call 555 123 4567", "555-123-4567", "(555) 123-4567", "+49 30 1234567", "Tel. 030/1234567",
        "phone: 0171 1234567", "fax no. 555 1234 99", "+1-555-123-4567",
    ],
}  # fmt: skip
PLAIN = [
    "what is the name of the organ?", "Name the Lobe", "name: aorta", "Brain MD", "IP 1.2.3.4", "section 1.2.3.4.5",
    "sample of 1234 cells", "order of 4 to 5", "exam 2024", "dr. who is right?", "Mr.", "the Dr.\nSmith fracture",
    "A 3.5 x 2.1 x 1.0 cm mass at T12, grade 2/3, 45-year-old, ratio 1/2",
    "The Dr of choice is a T2-weighted MR at 1.5 T; series 3, slice 12",
    "Case 4: what is shown in 1234 voxels?", "T2", "L4-L5", "3 cm", "grade 2/4", "T1/T2/FLAIR", "C3-4-5",
    "C5/6/7", "BP 120/80", "20/200 vision", "Gleason 3+4=7", "follow-up at 12/24/36 months",
    "at 06/12/24 months", "5-10-15 mm", "muscle strength 5/5/5", "dilution 1:2000",
    "b values of 500 800 1000 s/mm2", "matrix 512 x 512 x 1024", "BI-RADS 4", "ICD-10 C34.1", "since 2019",
    "in the 1990s", "may 3 lesions be seen?", "May 3 nodules be benign?", "the march of 10 years",
    "a mar 2 cm wide", "dec 5 mm", "HU of -1000 to 3000", "TR/TE 2000/100", "TE 10.5.2",
    "100 mg of 5% 2-3 times", "file 1024 x 768", "3.0 T MR 1234", "Ask the Dr. The scan shows a mass.",
    "Call your Dr. Is it benign?", "Dr. MRI", "the Dr. Recommended a CT", "Ms and MS are different: MS Plaques",
    "Miss the lesion", "DR grade 2", "Mr. of images", "multiple sclerosis (MS)", "Down syndrome",
    "Sister Mary Joseph nodule", "Hodgkin lymphoma", "patient aged 45", "patient 3 of 12", "case 12 of 40",
    "study 2024", "@ 1.5T", "T2*@3T", "cell count 1 000 000", "call 911", "IDH1 R132H", "HER2 3+",
    "Is there a 4x5 cm mass in segment 7/8?", "ratio 10.12.2", "p < 0.001", "95% CI 1.2-3.4",
    "Fall 2 weeks ago", "acc. to 3 readers 1234 images", "insurance", "sept 2 mm thick", "oct 3 scan", "S1-2",
    "1st of 12", "WHO grade IV",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in SIGNS.items() for text in texts])
def test_signs(kind: str, text: str) -> None:
    assert kind in personal_patterns(text)
    assert kind in personal_patterns(f"Q: {text}\nA: none")


@pytest.mark.parametrize("text", PLAIN)
def test_plain_language_has_none(text: str) -> None:
    assert personal_patterns(text) == []


def test_a_text_with_the_id_of_its_case() -> None:
    assert names_case("scan of ab-1234?", "AB-1234")
    assert not names_case("scan of AB-12345?", "AB-1234")
    assert not names_case("lesion 12 of anna", "12")
    assert not names_case("a mass", "mass")
    assert not names_case("a.b", "a1b2")


@pytest.mark.parametrize(
    "piece", ["a.", "1-", "Dr. ", "van ", "12/", "a@", "tel ", "+1 ", "0 ", "Mr. A.", "no ", "-", ". Dr.", "A-"]
)
def test_long_texts_take_linear_time(piece: str) -> None:
    start = time.process_time()
    personal_patterns(f"1234 {piece * 5000}")
    assert time.process_time() - start < 1
