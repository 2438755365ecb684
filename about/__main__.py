"""Run the command line as `python -m ldmrt`."""

from ldmrt.tools.cli import main

main()
