"""Certificates and samplers as HTML, SVG and JUnit XML."""
