"""Finds personal data in DICOM headers: tags that name persons, places or dates. Returns names of tags and no values.

Headers are not stored, so their personal data stays in the source files.
"""

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


def personal_tags(dataset: Any) -> list[str]:
    """Returns the names of the tags of a DICOM header that have a value and may name a person, a place or a date."""
    return [name for name in TAGS if name in dataset and not dataset[name].is_empty]


def says_burnt_in(dataset: Any, *, secondary_capture: bool) -> bool:
    """Returns whether a DICOM header says that text may be burnt into the pixels."""
    return secondary_capture or str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES"
