"""A certificate as JUnit XML: one test case for every figure, row and picture."""

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
    failed = sum(bool(failure) for *_, failure in results)
    counts: dict[str, Any] = {"tests": str(len(results)), "failures": str(failed), "errors": "0"}
    suite = ElementTree.Element("testsuite", name="ldmrt verify", **counts)
    for place, name, failure in results:
        case = ElementTree.SubElement(suite, "testcase", classname=place, name=name, time="0")
        if failure:
            ElementTree.SubElement(case, "failure", message=failure).text = failure
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
