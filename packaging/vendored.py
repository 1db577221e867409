"""What scripts/package must know of the libraries below a directory, from the metadata that pip left there.

vendored.py needed FILE         what pyproject.toml FILE says xskd needs, one requirement a line
vendored.py pins DIRECTORY      NAME==VERSION of each library
vendored.py licences DIRECTORY  a paragraph on each for Debian's copyright file
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

INSTALLED = Path("/usr/lib/xskd")  # where the directory will be
CLASSIFIER = "License :: OSI Approved :: "


def needed(project: Path) -> Iterator[str]:
    """Yield the requirements of the project itself."""
    yield from tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]


def libraries(directory: Path) -> list[Distribution]:
    """List everything in the directory but xskd, by name."""
    found = distributions(path=[str(directory)])
    return sorted((each for each in found if each.name != "xskd"), key=lambda each: each.name.lower())


def pins(directory: Path) -> Iterator[str]:
    """Yield what belongs into constraints.txt."""
    for each in libraries(directory):
        yield f"{each.name}=={each.version}"


def licences(directory: Path) -> Iterator[str]:
    """Yield name, licence and the files with its text; ValueError if a library comes without."""
    for each in libraries(directory):
        fields = {
            name: each.metadata.get_all(name, []) for name in ("License-Expression", "Classifier", "License")
        }
        fields["Classifier"] = [
            text.rpartition(" :: ")[2] for text in fields["Classifier"] if text.startswith(CLASSIFIER)
        ]
        said = next((", ".join(texts) for texts in fields.values() if texts), None)
        (home,) = directory.glob(f"{each.name.replace('-', '_')}-{each.version}.dist-info".lower())
        texts = sorted(file for file in home.rglob("*") if "LICENSE" in file.name.upper() and file.is_file())
        if not said or not texts:
            raise ValueError(f"{each.name}: it does not say under which licence it is, or has no text of it")
        yield f"  {each.name} {each.version}: {said}"
        yield from (f"    {INSTALLED / text.relative_to(directory)}" for text in texts)


if __name__ == "__main__":
    verb = {"needed": needed, "pins": pins, "licences": licences}[sys.argv[1]]
    print("\n".join(verb(Path(sys.argv[2]))))
