# Short names for the scripts in tools/. `make` alone lists them.
.PHONY: help install check test test-fast test-slow demo
help:
	@grep -E '^[a-z-]+:.*#' $(MAKEFILE_LIST) | sed 's/:.*#/:/'
install: # .venv with everything that development needs
	bash -c '. tools/venv.sh dev'
check: # ruff, ruff format, mypy
	bash tools/check.sh
test: # check, and the default tests
	bash tools/test.sh
test-fast: # the tests that need no PyTorch, under a minute
	bash -c '. tools/venv.sh dev && python -m pytest -m "not slow and not oracle" tests/runtime/samplers tests/runtime/bundle tests/runtime/files tests/test_architecture.py'
test-slow: # the tests that take minutes each
	bash -c '. tools/venv.sh dev && python -m pytest -m slow'
demo: # export, verify and draw the shipped model
	bash tools/demo.sh
