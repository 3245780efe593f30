"""Does `make test-fast` notice a broken line? Thirty lines, broken one at a time in a copy of the repository.

    python -m benchmarks.mutation_check [NUMBER ...]

Prints for each whether a test failed, and the lines that nothing noticed. The tests of the line's own folder are tried
first, and all fast ones where those pass. Not part of the suite: it takes a quarter of an hour.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FAST = "not ray and not s3 and not slow and not real"
# file, what stands there, what takes its place, and the tests to try first
LINES = [
    ("quality/findings.py", "if len(rows) > 1]", "if len(rows) > 2]", "quality"),
    ("quality/findings.py", "<= max_distance", "< max_distance", "quality"),
    ("quality/findings.py", "_bands(max_distance + 1)", "_bands(max_distance)", "quality"),
    ("quality/findings.py", ".casefold()", "", "quality"),
    ("quality/findings.py", 'len({labels[row] for row in rows} - {""}) > 1', "len({labels[row] for row in rows}) > 1",
     "quality"),
    ("quality/findings.py", "len({splits[row] for row in group}) > 1", "len({splits[row] for row in group}) > 2",
     "commands"),
    ("scoring/ledger.py", "partition by id order by row_id) > 1", "partition by id order by row_id) > 2", "scoring"),
    ("scoring/ledger.py", "left join listed l using (uri)\n            where {_FINAL} and (l.identity = k.identity",
     "left join listed l using (uri)\n            where {_FINAL} and (true", "scoring"),
    ("scoring/ledger.py", "c.sha256 in ('', o.sha256)", "true", "scoring"),
    ("scoring/ledger.py", "when o.pred_score < $abstain then 'abstain'", "when false then 'abstain'", "scoring"),
    ("scoring/ledger.py", "o.pred_score >= coalesce(t.accept, $accept)", "o.pred_score >= $accept", "scoring"),
    ("scoring/ledger.py", "else 1.0::float end as pred_score", "else o.pred_score end as pred_score", "scoring"),
    ("scoring/review.py", "and f.corrected_in is null", "", "scoring"),
    ("scoring/review.py", "1 - pred_score + {weighed}", "pred_score + {weighed}", "scoring"),
    ("scoring/drift.py", "((q - p) * np.log(q / p))", "((q - p) * np.log(p / q))", "scoring"),
    ("scoring/drift.py", "return max(0.0, self.psi - self.expected_psi)", "return self.psi", "scoring"),
    ("scoring/drift.py", "!= (LABELS, VALIDATION)", "!= (CONFIDENCE, VALIDATION)", "scoring"),
    ("storage/access.py", 'folder if folder.endswith("/") else f"{folder}/"', "folder", "storage"),
    ("storage/access.py", "return address.is_global and not address.is_multicast", "return True", "storage"),
    ("storage/access.py", "address = address.ipv4_mapped", "pass", "storage"),
    ("storage/stores.py", "except FileExistsError:  # the name is taken\n            return False",
     "except FileExistsError:  # the name is taken\n            return True", "storage"),
    ("storage/stores.py", "if self.get(path) != before:  # compared", "if False:  # compared", "storage"),
    ("storage/failures.py", "(429, 500, 503)", "(429, 500)", "storage"),
    ("storage/failures.py", "return status is None or status >= 500 or status in (408, 429)", "return status is None",
     "storage"),
    ("models/metrics.py", "ones, (of_truth, of_guess)", "ones, (of_guess, of_truth)", "models"),
    ("evaluation/compare.py", "np.quantile(draws, (0.025, 0.975))", "np.quantile(draws, (0.25, 0.75))", "evaluation"),
    ("evaluation/compare.py", "np.bincount(of_row, difference)", "difference", "evaluation"),
    ("evaluation/compare.py", '"only_champion": int((difference < 0).sum())',
     '"only_champion": int((difference > 0).sum())', "evaluation"),
    ("evaluation/trained_rows.py", "np.isin(fingerprints(uris), side.trained_on)", "False", "evaluation"),
    ("models/thresholds.py", "scipy.special.betaincinv(right, count - right + 1, alpha)", "right / count", "models"),
]  # fmt: skip


def fails(copy: Path, tests: str) -> bool:
    options = ["-o", "addopts=", "-x", "-q", "-m", FAST, "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    return done.returncode == 1


def main() -> None:
    chosen = [int(number) for number in sys.argv[1:]] or list(range(1, len(LINES) + 1))
    unnoticed = []
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "demo-run", "__pycache__"))
        for number in chosen:
            file, before, after, tests = LINES[number - 1]
            path = copy / "retailray" / file
            text = path.read_text()
            assert text.count(before) == 1, f"{number}: {file} has {text.count(before)} x {before!r}"
            path.write_text(text.replace(before, after))
            noticed = fails(copy, f"tests/{tests}") or fails(copy, "tests")
            path.write_text(text)
            print(
                f"{number:2} {file}: {before.splitlines()[0]!r}: {'noticed' if noticed else 'NOT NOTICED'}", flush=True
            )
            unnoticed += [] if noticed else [number]
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} noticed; not: {unnoticed}")


if __name__ == "__main__":
    main()
