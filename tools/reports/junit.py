"""A certificate as JUnit XML: one test case for every figure, row and image, and skipped ones."""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from ldmrt.runtime.bundle.certificate import Certificate
from ldmrt.runtime.parity.compare import Comparison


def to_junit(certificate: Certificate, measured: Sequence[Comparison]) -> bytes:
    """Return the XML file. The time of a component, or of all rows, is shared equally among its cases."""
    origin = "; ".join(certificate.origin)
    cases = [_case("origin", "weights, graphs and configs", 0.0, origin)]
    for one in measured:
        found: list[tuple[str, str, Any]] = []
        found += [(f"{f.component} {f.backend}", f"{f.case}: {f.output}", f) for f in one.figures]
        found += [(f"rows {row.backend}", f"row {row.row}", row) for row in one.drifts]
        found += [(f"picture {image.backend}", f"seed {image.seed}", image) for image in one.pictures]
        share = one.seconds / max(1, len(found))
        cases += [_case(place, name, share, "" if it.within else it.failure) for place, name, it in found]
    skipped = [(f"{one.component} {one.backend}", one.case, one.why) for one in certificate.left_out]
    for place, name, why in skipped:
        case = ElementTree.Element("testcase", classname=place, name=name, time="0")
        ElementTree.SubElement(case, "skipped", message=why)
        cases.append(case)
    counts: dict[str, Any] = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": "0",
        "skipped": str(len(skipped)),
        "time": _seconds(sum(one.seconds for one in measured)),
    }
    suite = ElementTree.Element("testsuite", name="ldmrt verify", **counts)
    suite.extend(cases)
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)


def _case(place: str, name: str, seconds: float, failure: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=place, name=name, time=_seconds(seconds))
    if failure:
        ElementTree.SubElement(case, "failure", message=failure).text = failure
    return case


def _seconds(value: float) -> str:
    return f"{value:.6f}"
