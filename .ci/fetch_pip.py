"""Fetches pip's wheel from PyPI, for a Python that came without pip, and prints its path; pip runs from it as it is."""

import hashlib
import json
import sys
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import urlopen

ABOUT = "https://pypi.org/pypi/pip/json"
with urlopen(ABOUT) as answer:
    files = json.load(answer)["urls"]
found = next(file for file in files if file["packagetype"] == "bdist_wheel")
with urlopen(urljoin(ABOUT, found["url"])) as answer:  # a mirror of PyPI may name it relatively
    content = answer.read()
if hashlib.sha256(content).hexdigest() != found["digests"]["sha256"]:
    sys.exit("pip's wheel is not what PyPI says it is")
wheel = Path(sys.argv[1]) / found["filename"]
wheel.write_bytes(content)
print(wheel)
