"""Number and models of the GPUs named in the text around a table."""

from __future__ import annotations

import re
from dataclasses import dataclass

from iidrive.analysis.doctor.findings.finding import Finding
from iidrive.analysis.doctor.table import Table

_WORDS = {c: i for i, c in enumerate("零一二三四五六七八九十")} | {
    "两": 2, "双": 2, "单": 1, "single": 1, "one": 1, "two": 2, "dual": 2, "three": 3, "four": 4, "five": 5, "six": 6,
    "seven": 7, "eight": 8, "ten": 10, "twelve": 12, "sixteen": 16, "thirty-two": 32,
}  # fmt: skip
_PROCESSES = r"(?:num[_ ]gpus?|n[_ ]?gpus?|gpus?|nproc[_-]per[_-]node|world[_ ]size|gpu[_ ]num)"
_MODEL = (
    r"(?:(?:nvidia|geforce|tesla|quadro|rtx|gtx|ascend|amd|instinct)[ -]{0,2}){0,4}"
    r"(?:titan(?: ?(?:xp|v|rtx|x))?|[ahvp]100|[ah]800|h200?|h20|gh200|gb200|b[23]00"
    r"|a10g?|a16|a30|a40|a[2456]000|l4|l40s?|l20|t4|k80|910[bc]?|mi[23]\d\dx?"
    r"|[1-5]0[5-9]0(?: ?ti| ?super| ?d)?)(?![0-9])"
)
_SIZE = r"(?:\d{2,3} ?gb?[ -]{0,2})?"
_COUNT = (
    rf"(?P<count>(?!{_MODEL})(?<![A-Za-z0-9_.,/])\d{{1,4}}|(?<![a-z])(?:single|one|two|dual|three|four|five|six|seven|eight|ten|twelve|sixteen|thirty-two)"
    r"|[一二两双单三四五六七八九十]{1,3})"
)
_UNIT = r"(?:gpus?|cards?|npus?|tpus?|dcus?|显卡|卡|gpu卡)"
_NO_TIME = r"(?![ -]{0,2}(?:hours?|hrs?|days?|小时|天|memory|mem\b))"
_BY = r" {0,2}[x×*] {0,2}"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?P<nodes>\d{{1,3}}) ?nodes?(?:{_BY}|,? (?:of|with|each with) ){_COUNT}[ -]{{0,2}}{_SIZE}(?:{_MODEL}s?|{_UNIT})",
        rf"{_COUNT}(?:{_BY}|[ -]{{0,2}}(?:张|块|片|卡)? ?){_SIZE}{_MODEL}s?{_NO_TIME}",
        rf"{_COUNT}(?:{_BY}|[ -]{{0,2}})(?:张|块|片)? ?{_UNIT}(?![a-z住]){_NO_TIME}",
        rf"{_MODEL}(?:[ -]{{0,2}}\d{{2,3}} ?gb?)?(?: {{0,2}}[(（]?[x×*] {{0,2}})(?P<count>\d{{1,3}})(?![\w.])(?! ?gb)",
        rf"{_MODEL}[ -]{{0,2}}{_COUNT} ?(?:张|块|卡)",
        rf"(?<![a-z_]){_PROCESSES}(?: {{0,2}}[=:x×*] {{0,2}}|(?<=--gpus) )(?P<count>\d{{1,4}})(?![\w.])(?! ?gb)",
    )
)
_NAMES = re.compile(rf"(?<![a-wyz0-9.]){_MODEL}(?=s?(?![a-z0-9]))", re.IGNORECASE)
_LONGEST = 600


@dataclass(frozen=True)
class Hardware:
    """Number of GPUs (None if not stated) and GPU models named in a text."""

    count: int | None
    models: tuple[str, ...]


def hardware(words: str) -> Hardware:
    """GPUs named in English or Chinese text: `8×A100`, `3 4090 GPUs`, `8张A100`, `single GPU (RTX 3070)`. The first number counts."""
    text = words[-_LONGEST:]
    found: list[tuple[int, int, int]] = []
    for rank, form in enumerate(_FORMS):
        match = form.search(text)
        if match:
            count = _number(match["count"].lower())
            count *= int(match["nodes"]) if "nodes" in match.groupdict() else 1
            if 0 < count <= 4096:
                found.append((match.start(), rank, count))
    models = dict.fromkeys(m[0].strip().upper() for m in _NAMES.finditer(text))
    return Hardware(min(found)[2] if found else None, tuple(models))


def _number(said: str) -> int:
    """The value of digits, an English word, or Chinese numerals up to ninety-nine."""
    if said.isascii():
        return int(said) if said.isdigit() else _WORDS[said]
    tens, ten, ones = said.rpartition("十")
    if not ten:
        return _WORDS.get(said, 0)
    return 10 * (_WORDS.get(tens, 0) if tens else 1) + (_WORDS.get(ones, 0) if ones else 0)


def gpus_named(words: str) -> int | None:
    """The number of GPUs named in a text; None if there is none."""
    return hardware(words).count


def hardware_named(table: Table) -> list[Finding]:
    """The hardware named above the table, if any."""
    named = hardware(table.heading)
    if named.count is None and not named.models:
        return []
    count = "an unnamed number of GPUs" if named.count is None else f"{named.count} GPU{'s' if named.count != 1 else ''}"
    models = f" ({', '.join(named.models)})" if named.models else ""
    return [Finding("hardware", f"the text above names {count}{models}.")]
