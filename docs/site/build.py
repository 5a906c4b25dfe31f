"""Builds the documentation's site into a directory: `python -m docs.site.build SITE`.

The pages lie where they lie in the repository, so that the same links work on both. A broken link, a broken anchor or a
page without a place in the navigation is an error.
"""

import argparse
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[2]
SHOWN = (
    "*.md", "LICENSE", "docs/*.md", "docs/*.png", "docs/*.svg", "docs/site/*.css", "docs/tutorials/*",
    "benchmarks/README.md", "benchmarks/results/full.*", "benchmarks/results/data.md",
    "benchmarks/results/quantization.md", "deployments/SCALING.md", "deployments/*.yaml",
)  # fmt: skip


def build_site(site: Path) -> None:
    """Builds the site; raises an error of MkDocs for a broken link."""
    with tempfile.TemporaryDirectory() as directory:
        for path in pages():
            copy = Path(directory) / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        config = load_config(str(ROOT / "mkdocs.yml"), docs_dir=directory, site_dir=str(site))
        build(config)


def pages() -> Iterator[Path]:
    """Yields the files of the site."""
    for pattern in SHOWN:
        yield from ROOT.glob(pattern)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="directory to write")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    site = parser.parse_args().site.resolve()
    build_site(site)
    print(f"open {site / 'index.html'}")


if __name__ == "__main__":
    main()
