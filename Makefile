# make demo          everything once, in small: videos, shards, training, sampling (VIDEOS=dir takes your own videos)
# make test          the tests; as root on Debian it installs SLURM for those that need one
# make quick         the tests that need neither SLURM nor a training in several processes: minutes, for each change
# make soak          the fault trials at their full counts, hours (SOAK_SHARE=0.05 takes a twentieth of each)
# make lint          ruff (rules and format), the import contracts and mypy; .ci/run runs it too
# make docs          docs/reference/, written from the comments in the code
# make install       the environment .venv with the command mmldm
# make clean         removes .venv and what building left; not demo/ and runs/
#
# Needs Python 3.11. Which versions get installed: CONSTRAINTS=constraints-cu126.txt is the set for V100s.

PYTHON ?= python3.11
VENV := .venv
CONSTRAINTS ?= constraints.txt
VIDEOS ?=

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
APT := .ci/apt-install
CAN_APT = [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null

.PHONY: demo test quick soak lint docs install clean slurm
.DELETE_ON_ERROR:

demo: install
	./demo.sh $(if $(VIDEOS),"$(VIDEOS)")

test: $(VENV)/installed-dev slurm
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 3

QUICK := $(addprefix tests/,test_architecture.py test_apt_install.py test_cli.py common config diffusion models shards \
	media runs planning/test_report.py planning/test_allocations.py sampling/test_inputs.py sampling/test_gallery.py launch cluster/test_slurm.py doctor/test_findings.py \
	docs/test_links.py training/test_run_folder.py training/data/test_sample_stream.py training/monitoring training/engine/test_ema.py)

quick: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 3 -m "not slurm and not soak" $(QUICK)

soak: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -m soak --timeout=0 --capture=no tests/soak

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache --no-logo
	$(VENV)/bin/mypy

docs: $(VENV)/installed
	$(VENV)/bin/python -m mmldm_scale.config.reference docs/reference

install: $(VENV)/installed

# Stamps: pip runs once, and again when what is asked of it changes.
$(VENV)/installed: setup.cfg setup.py pyproject.toml $(wildcard constraints*.txt) | $(VENV)/bin/python
	$(PIP) install -c $(CONSTRAINTS) -e .
	touch $@
	@echo "installed; next: source $(VENV)/bin/activate, then mmldm --help, or make demo"

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install -c $(CONSTRAINTS) -e ".[dev]"
	touch $@

# Debian keeps the part of Python that makes environments in a package of its own.
$(VENV)/bin/python:
	@command -v $(PYTHON) > /dev/null || { \
		echo "make: $(PYTHON) not found; install Python 3.11, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip" 2> /dev/null || if $(CAN_APT); then $(APT) python3-venv; else \
		echo "make: $(PYTHON) has no ensurepip; install Debian's python3-venv (as root)" >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)

slurm:
	@if $(CAN_APT) && ! { command -v slurmctld && command -v slurmd && command -v sbatch; } > /dev/null; then \
		$(APT) slurm-wlm munge; fi

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
