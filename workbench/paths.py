"""Where a checkout keeps its models and records.

(Only an editable install is supported: data/ lies beside the package.)
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
ORGANISM = DATA / "organism"  # the small models: ORGANISM / "3m", ...
STUDY = DATA / "study"  # the plan, learning rates, verdicts
RECORDS = STUDY / "runs"  # what the study left: one folder a cell
FIRST_STUDY = DATA / "archive" / "first_study"  # what the first study left, and its rates
