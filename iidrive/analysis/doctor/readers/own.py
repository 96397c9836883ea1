"""Lines that belong to the table above them: summaries, the dict of averages, iidrive's counts of events and samples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from iidrive.analysis.doctor.readers.found import Tail
from iidrive.analysis.doctor.readers.lines import is_rule

_NUMBER = r"[-+]?(?:\d{1,40}\.\d{0,40}|\.\d{1,40}|\d{1,40})(?:[eE][-+]?\d{1,3})?|nan|inf"
_SUMMARY = re.compile(rf"(?<![\w'\"])(obj_box_col|L2)\s{{0,4}}:\s{{0,4}}({_NUMBER})\s?(%?)\s{{0,4}}$")
_AVERAGE = re.compile(rf"['\"](obj_col|obj_box_col|L2)['\"]\s{{0,4}}:\s{{0,4}}(?:[\w.]{{0,20}}\()?\s{{0,4}}({_NUMBER})")
_EVENTS = re.compile(r"(obj_col|obj_box_col) events per step, of (\d{1,40}) samples:([\d ]*)(\S?)")
_SCORED = re.compile(r"scored (\d{1,12}) samples;")
_SAID = re.compile(r"(?:[Tt]otal (?:of )?|[Pp]rocessed (?:total )?|[Ee]valuated (?:on )?)(\d{1,12}) samples")
_OWN = re.compile(r"scored \d{1,12} samples;|checksum: |predictions: |The cases file (?:carries|has) no|\d{1,12} boxes without")


def is_own_line(line: str) -> bool:
    """Whether iidrive prints this line below a table."""
    return " events per step, of " in line or _OWN.match(line.strip()) is not None


def read_tails(lines: Sequence[str]) -> Iterator[Tail]:
    """Such lines in order of appearance. Other lines are ignored."""
    for at, line in enumerate(lines):
        if not line:
            continue
        if is_rule(line):
            yield Tail("rule", at, {})
        elif ("'" in line or '"' in line) and (found := _AVERAGE.findall(line[:4000])):
            yield Tail("average", at, dict(found))
        elif ("L2" in line[-80:] or "obj_box_col" in line[-80:]) and (summary := _SUMMARY.search(line[-80:])):
            yield Tail("summary", at, {"row": summary[1], "value": summary[2], "percent": summary[3]})
        elif " events per step, of " in line and (events := _EVENTS.search(line)):
            few = events[3].split()
            good = len(few) == 6 and not events[4] and all(len(k) <= 12 for k in few) and len(events[2]) <= 12
            shown = {"row": events[1], "n": events[2], "events": " ".join(few), "text": line.strip()[:200]}
            yield Tail("events" if good else "unread events", at, shown)
        elif " samples" in line and (scored := _SCORED.match(line[:400].strip())):
            yield Tail("scored", at, {"n": scored[1]})
        elif " samples" in line and (said := _SAID.search(line[:400])):
            yield Tail("said", at, {"n": said[1]})
        elif _OWN.match(line.strip()):
            yield Tail("own", at, {})
