# Short names for the scripts in tools/. `make` alone lists them.
.PHONY: help install check test test-fast test-slow demo docs
FAST = tests/test_architecture.py tests/test_glossary.py tests/runtime/test_errors.py tests/runtime/test_nearest.py \
  tests/runtime/test_public.py tests/runtime/samplers --ignore=tests/runtime/samplers/test_guidance_interval.py
help:
	@grep -E '^[a-z-]+:.*#' $(MAKEFILE_LIST) | sed 's/:.*#/:/'
install: # .venv with everything that development needs
	bash -ec '. tools/venv.sh dev'
check: # ruff, ruff format, mypy
	bash .ci/check.sh
test: # check, and the default tests
	bash tools/test.sh
test-fast: # the house's rules and the samplers without diffusers
	bash -ec '. tools/venv.sh dev; python -m pytest -m "not slow and not oracle" $(FAST)'
test-slow: # the tests that take minutes each
	bash -ec '. tools/venv.sh dev; python -m pytest -m slow'
demo: # export, verify and draw the shipped models
	bash tools/demo.sh
docs: # the documentation site in build/site, with warnings as errors
	bash -ec '. tools/venv.sh dev; mkdocs build --strict'
