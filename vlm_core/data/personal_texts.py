"""Finds signs of personal data in questions and answers by their form. Returns the kinds found, and no values.

A form is not proof: a person has to look at what is counted. Plain medical language (T2, L4-L5, 3 cm, grade 2/4, 1/2/3,
"ask the Dr.") is not counted. Repetitions in the patterns are bounded, so that a search takes linear time.
"""

import re
from collections.abc import Callable

_YEAR = r"(?:19|20)\d{2}"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0?[1-9]|1[0-2])"
_TWO_DIGITS = r"(?:[012]\d|[4-9]\d)"  # of a year
_MONTH_NAME = (
    r"(?:jan(?:uary|uar|vier)?|j[äa]nner|feb(?:ruary|ruar)?|f[ée]vr(?:ier)?|mar(?:ch|s)?|m[äa]rz|apr(?:il)?|avril|may|"
    r"mai|june?|juni|juin|july?|juli|juillet|aug(?:ust)?|ao[ûu]t|sept?(?:ember|embre)?|o[ck]t(?:ober|obre)?|"
    r"nov(?:ember|embre)?|de[cz](?:ember)?|d[ée]c(?:embre)?)\b\.?"
)
_FULL_MONTH = r"(?-i:January|February|March|April|June|July|August|September|October|November|December)"
_BIRTH = r"(?:dob|d\.o\.b\.|date of birth)"
_UNIT = r"(?!\s*(?:months?|weeks?|hours?|h|days?|years?|min|s|mm|cm|ml|mg|kg|%)\b)"
_TH = r"(?:st|nd|rd|th)"

NUMERIC_DATE = re.compile(
    "|".join(
        [
            rf"(?<![\w/.-]){_YEAR}([-/.]){_MONTH}\1{_DAY}(?!\d)",
            rf"(?<![\w/.-])(?:{_DAY}([-/.]){_MONTH}\2|{_MONTH}([-/.]){_DAY}\3){_YEAR}(?!\d)",
            rf"(?<![\w/.-]){_DAY}\. ?{_MONTH}\. ?{_YEAR}(?!\d)",
            rf"(?<![\w/.-])(?:{_DAY}/{_MONTH}|{_MONTH}/{_DAY})/{_TWO_DIGITS}(?![\w/.-]){_UNIT}",
            rf"(?<![\w/.-])[0-3]\d([-.])[01]\d\4{_TWO_DIGITS}(?![\w/-]|\.\d){_UNIT}",
            rf"(?<![\w.]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\w)",
            rf"(?<![\w/.])(?:0[1-9]|1[0-2])/{_YEAR}(?![\w/])",
            rf"{_YEAR}年{_MONTH}月",
        ]
    ),
    re.IGNORECASE,
)
WRITTEN_DATE = re.compile(
    "|".join(
        [
            rf"\b{_DAY}(?:{_TH}|\.)?(?: of)?[ -]{_MONTH_NAME},?[ -]?{_YEAR}\b",
            rf"\b{_DAY}-{_MONTH_NAME}-\d{{2}}\b",
            rf"\b{_MONTH_NAME} {_DAY}{_TH}?,? {_YEAR}\b",
            rf"\b{_MONTH_NAME}(?:,? (?:of )?|-){_YEAR}\b",
            rf"\b{_YEAR}[ -]{_MONTH_NAME}[ -]{_DAY}\b",
            rf"\b{_FULL_MONTH} {_DAY}{_TH}?\b(?![/.-]?\d){_UNIT}",
            rf"\b{_DAY}(?:{_TH}|\.)?(?: of)? {_FULL_MONTH}\b",
            rf"\b(?:(?-i:May) {_DAY}{_TH}|{_DAY}{_TH}(?: of)? (?-i:May))\b",
            rf"\b{_BIRTH}[ :=]{{0,3}}\d",
        ]
    ),
    re.IGNORECASE,
)
MONTH_OR_BIRTH = re.compile(rf"\b(?:{_MONTH_NAME}|{_BIRTH})", re.IGNORECASE)

_NUMBER = r"(?:no|nr|num|number|nummer|id|code)"
_VALUE = r"[A-Z]{0,4}[-/ ]?\d(?:[ /-]?\d){3,}\b"
RECORD_NUMBER = re.compile(
    "|".join(
        [
            rf"\b(?:MRN|SSN|NHS|UHID|PID|medical record|hospital|accession|insurance|social security)"
            rf"(?:[ .-]?{_NUMBER})?\b[ .:#=)-]{{0,4}}(?:is |was )?{_VALUE}",
            rf"\b(?:MR|acc|pat|patient|case|study|record|chart|file|admission|fall|akten?|reg|registration|hosp|exam|"
            rf"order|visit|episode|specimen|sample)[ .-]{{0,2}}{_NUMBER}\b"
            rf"[ .:#=)-]{{0,4}}(?:is |was )?{_VALUE}",
            rf"\b(?:MR|acc|patient|case|study|record|chart|file|id|identifier) ?[:#=] ?#?{_VALUE}",
            r"\b(?:patient|case|record|subject) [A-Z]{0,3}-?\d{5,}\b",
            r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])",
            r"(?<![\w.])[12]\.\d{1,3}(?:\.\d{1,20}){5,}",  # the UID of a study, series or image
        ]
    ),
    re.IGNORECASE,
)

TITLED = re.compile(
    r"(?:\b(?P<before>\w+)\s+)?\b(?:Mr|Mrs|Ms|Mx|Miss|Drs?|Prof|Professor|Doctor|Herrn?|Frau|Mme|Mlle|Monsieur|Madame)\b"
    r"(?:[. ]{1,3}(?:Prof|Dr|med|habil|dent|rer|nat)\b){0,6}"
    r"(?:\.[ \t]{0,2}|[ \t]{1,2})(?:[^\W\d_]\.[ -]?){0,6}"
    r"(?:(?:van|von|der|den|de|la|le|di|da|du|al|el|bin|ten|zu|zur|del)[ -]){0,4}"
    r"(?P<name>[^\W\d_](?:['’-]?[^\W\d_]+)+)"
)
_NAME = r"(?-i:[A-Z])[a-z'’-]{1,40}"
LABELLED = re.compile(
    rf"\b(?:patient'?s? )?name ?[:=] ?{_NAME}|"
    rf"\b{_NAME} (?:(?-i:[A-Z])\.? )?{_NAME}, ?(?-i:M\.?D\b|D\.?O\b|FRCR|MBBS|PhD)",
    re.IGNORECASE,
)
ARTICLES = ("the", "a", "an", "your", "my", "his", "her", "our", "their", "this", "any", "each", "no")
_NO_NAMES = """
the a an he she it they we you i this that these those there here in on at of for to by from with is are was were be has
have had do does did what which who whose where when how why if no not and or but as any all some can could may might
should would will then than his her its their our your my see please after before during ct mri mr pet us ecg eeg iv icu
er cxr xr x-ray
"""
NO_NAMES = frozenset(_NO_NAMES.split())

E_MAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}\.[a-z]{2,24}\b", re.IGNORECASE)
TELEPHONE = re.compile(
    "|".join(
        [
            r"(?<![\w.])\+\d{1,3}[ .-]?\(?\d{1,4}\)?(?:[ .-]?\d{2,4}){2,4}\b",
            r"\(\d{3,5}\) ?\d{3}[ .-]?\d{3,4}\b",
            r"(?<![\w.-])\d{3}([-.])\d{3}\1\d{4}(?![\w-]|\.\d)",
            r"\b(?:tel|telephone|phone|fax|mobile|pager|call)\b\.?(?: ?(?:no|nr|number|me|us|at|on)\b\.?)?[ .:#]{0,3}"
            r"\+?\(?\d(?:[ ()./-]{0,2}\d){5,}",
        ]
    ),
    re.IGNORECASE,
)


def _names_a_person(text: str) -> bool:
    if LABELLED.search(text):
        return True
    return any(_is_name(found["name"], found["before"]) for found in TITLED.finditer(text))


def _is_name(word: str, before: str | None) -> bool:
    """Returns whether a word after a title is a name; `before` is the word before the title, as in "ask the Dr."."""
    return word[0].isupper() and word.casefold() not in NO_NAMES and (before or "").casefold() not in ARTICLES


DIGIT = re.compile(r"\d")
FOUR_DIGITS = re.compile(r"\d[\d ()./-]{2,}\d")  # or at least two, with signs between them
AT = re.compile("@")
# Kind -> pairs (what each text of this kind has and most texts lack: quick to find; the search).
KINDS: dict[str, list[tuple[tuple[re.Pattern[str], ...], Callable[[str], object]]]] = {
    "a date": [((FOUR_DIGITS,), NUMERIC_DATE.search), ((DIGIT, MONTH_OR_BIRTH), WRITTEN_DATE.search)],
    "a record number": [((FOUR_DIGITS,), RECORD_NUMBER.search)],
    "a name with a title": [((), _names_a_person)],
    "an e-mail address": [((AT,), E_MAIL.search)],
    "a telephone number": [((FOUR_DIGITS,), TELEPHONE.search)],
}
OWN_CASE = "the id of its case"
SHORTEST_ID = 4  # characters; shorter ids are also found in texts by chance


def personal_patterns(text: str) -> list[str]:
    """Returns the kinds of personal data that a text may hold."""
    return [
        kind
        for kind, searches in KINDS.items()
        if any(all(part.search(text) for part in parts) and search(text) for parts, search in searches)
    ]


def names_case(text: str, case: str) -> bool:
    """Returns whether a text has the id of its case as a separate word."""
    if len(case) < SHORTEST_ID or not any(map(str.isdigit, case)):
        return False
    if case.casefold() not in text.casefold():  # ten times as fast as the search
        return False
    return re.search(rf"(?<!\w){re.escape(case)}(?!\w)", text, re.IGNORECASE) is not None
