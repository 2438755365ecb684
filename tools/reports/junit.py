"""Write a certificate as JUnit XML: a test case for every figure, row and image, and for skipped ones."""

from collections.abc import Sequence
from xml.etree import ElementTree

from ldmrt.runtime.bundle.certificate import Certificate, ImageSimilarity, RowError, TensorError
from ldmrt.runtime.parity.compare import Comparison


def to_junit(certificate: Certificate, measured: Sequence[Comparison]) -> bytes:
    """Return the XML file as bytes; the time of a component, or of all rows, is shared equally among its cases."""
    origin = "; ".join(certificate.origin)
    cases = [_case("origin", "weights, graphs and configs", 0.0, origin)]
    for comparison in measured:
        results: list[tuple[str, str, TensorError | RowError | ImageSimilarity]] = []
        results += [(f"{f.component} {f.backend}", f"{f.case}: {f.output}", f) for f in comparison.figures]
        results += [(f"rows {row.backend}", f"row {row.row}", row) for row in comparison.drifts]
        results += [(f"picture {image.backend}", f"seed {image.seed}", image) for image in comparison.pictures]
        share = comparison.seconds / max(1, len(results))
        cases += [_case(place, name, share, "" if r.within else r.failure) for place, name, r in results]
    skipped = [(f"{gap.component} {gap.backend}", gap.case, gap.why) for gap in certificate.left_out]
    for place, name, why in skipped:
        case = ElementTree.Element("testcase", classname=place, name=name, time="0")
        ElementTree.SubElement(case, "skipped", message=why)
        cases.append(case)
    attributes = {
        "name": "ldmrt verify",
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": "0",
        "skipped": str(len(skipped)),
        "time": _seconds(sum(comparison.seconds for comparison in measured)),
    }
    suite = ElementTree.Element("testsuite", attributes)
    suite.extend(cases)
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)


def _case(place: str, name: str, seconds: float, failure: str) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=place, name=name, time=_seconds(seconds))
    if failure:
        ElementTree.SubElement(case, "failure", message=failure).text = failure
    return case


def _seconds(value: float) -> str:
    return f"{value:.6f}"
