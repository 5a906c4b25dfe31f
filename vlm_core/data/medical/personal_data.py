"""Finds signs of personal data: tags of headers, by name, and parts of texts, by form. Returns no values.

Headers are not stored, so their personal data stays in the source files. Texts and pictures are stored and trained on:
a person has to check those that are counted here.
"""

import re
from typing import Any

# Of the tags that DICOM's Basic Application Level Confidentiality Profile removes or replaces (PS3.15, table E.1-1),
# those that name people, places, dates and records.
TAGS = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientBirthTime", "OtherPatientIDs",
    "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers",
    "MilitaryRank", "EthnicGroup", "Occupation", "PatientComments", "AdditionalPatientHistory", "MedicalRecordLocator",
    "PatientInsurancePlanCodeSequence", "CurrentPatientLocation", "PatientInstitutionResidence", "ResponsiblePerson",
    "AccessionNumber", "StudyID", "AdmissionID", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName",
    "ReferringPhysicianName", "PerformingPhysicianName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy",
    "RequestingPhysician", "OperatorsName", "StationName", "DeviceSerialNumber", "StudyDate", "SeriesDate",
    "AcquisitionDate", "ContentDate", "AcquisitionDateTime", "ImageComments",
)  # fmt: skip
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
PATTERNS = {
    "a date": re.compile(
        rf"\b(?:\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/.]\d{{1,2}}[-/.](?:19|20)\d{{2}}|"
        rf"\d{{1,2}}(?:st|nd|rd|th)? (?:{MONTHS})[a-z]*\.?,? (?:19|20)\d{{2}}|"
        rf"(?:{MONTHS})[a-z]* \d{{1,2}}(?:st|nd|rd|th)?,? (?:19|20)\d{{2}})\b",
        re.IGNORECASE,
    ),
    "a record number": re.compile(
        r"\b(?:MRN|medical record|record|accession|patient|case|file)(?: ?(?:no|number|nr|id|#))?\.?"
        r"[ :#=]{1,3}[A-Z]{0,3}\d{4,}\b",
        re.IGNORECASE,
    ),
    "a name after a title": re.compile(r"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Doctor)\b\.? [A-Z][a-z]+"),
    "an e-mail address": re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]+\b"),
    "a telephone number": re.compile(r"(?:\+\d{1,3}[ -]?)?\(?\b\d{3}\)?[ -]\d{3}[ -]\d{4}\b"),
}


def personal_tags(dataset: Any) -> list[str]:
    """Returns the names of the tags of a DICOM header that have a value and may name a person, a place or a date."""
    return [name for name in TAGS if name in dataset and not dataset[name].is_empty]


def says_burnt_in(dataset: Any, *, secondary_capture: bool) -> bool:
    """Returns whether a DICOM header says that text may be burnt into the pixels."""
    return secondary_capture or str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES"


def personal_patterns(text: str) -> list[str]:
    """Returns the kinds of personal data that a text may hold."""
    return [kind for kind, pattern in PATTERNS.items() if pattern.search(text)]
