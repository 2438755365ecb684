"""A certificate as JUnit XML: one test case for every figure, row and picture, and skipped ones."""

from typing import Any
from xml.etree import ElementTree

from ldmrt.runtime.certificate import Certificate


def to_junit(certificate: Certificate) -> bytes:
    """The XML file."""
    cases: list[tuple[str, str, Any]] = []
    cases += [(f"{one.component} {one.backend}", f"{one.case}: {one.output}", one) for one in certificate.figures]
    cases += [(f"rows {one.backend}", f"row {one.row}", one) for one in certificate.drifts]
    cases += [(f"picture {one.backend}", f"seed {one.seed}", one) for one in certificate.pictures]
    results = [("origin", "weights, graphs and configs", "; ".join(certificate.origin))]
    results += [(place, name, "" if one.within else one.failure) for place, name, one in cases]
    failed, skipped = sum(bool(failure) for *_, failure in results), certificate.left_out
    counts: dict[str, Any] = {"tests": str(len(results) + len(skipped)), "failures": str(failed), "errors": "0"}
    counts["skipped"] = str(len(skipped))
    suite = ElementTree.Element("testsuite", name="ldmrt verify", **counts)
    for place, name, failure in results:
        case = ElementTree.SubElement(suite, "testcase", classname=place, name=name, time="0")
        if failure:
            ElementTree.SubElement(case, "failure", message=failure).text = failure
    for one in skipped:
        case = ElementTree.SubElement(suite, "testcase", classname=f"{one.component} {one.backend}", name=one.case)
        ElementTree.SubElement(case, "skipped", message=one.why)
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
