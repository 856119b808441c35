"""An evaluation's files: results.json, plots and report.html."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from tfssl.downstream.report import page, plots
from tfssl.downstream.report.embedding_map import Map
from tfssl.downstream.report.table import table as table  # of finetune, too
from tfssl.downstream.report.view import View
from tfssl.downstream.results import Result
from tfssl.storage.files import write_file
from tfssl.version import __version__


def save(
    folder: str,
    results: list[Result],
    title: str = "",
    panels: Optional[Mapping[str, tuple[str, bytes]]] = None,
    maps: Optional[Mapping[str, Map]] = None,
    thumbnails: str = "",
    attention: Optional[Mapping[str, bytes]] = None,
    **facts: Any,
) -> list[str]:
    """Write an evaluation: results.json, results.png, results_curve.png where results have curves,
    and report.html.

    Args:
      folder: on any file system that TensorFlow knows.
      results: with module and `chosen`. Pictures are in report.html alone.
      title: of the plots.
      panels: {module: (endpoint, PNG's bytes)}, of nearest images, for report.html.
      maps, thumbnails: {module: its `Map`}, and the images on them, likewise.
      attention: {module: PNG's bytes}, of what vision transformers attend to, likewise.
      **facts: other entries of results.json; "baselines" and "modules" among them.

    Returns:
      list of the files' names.
    """
    first = {"chosen_on": results[0].chosen_on, "reported_on": results[0].reported_on}
    record = {"versions": versions(), **facts, **first}
    view = View.of(results, facts["baselines"], page.untrained(record))
    stem = os.path.join(folder, "results")
    files = {f"{stem}.png": plots.bars(view, title)}
    if any("curve" in r.details for r in results):
        files[f"{stem}_curve.png"] = plots.epochs(view, title)
    files[os.path.join(folder, "report.html")] = page.of_view(
        view, record, panels or {}, maps or {}, thumbnails, attention or {}
    ).encode()
    for path, content in files.items():
        write_file(path, content)
    write(f"{stem}.json", results, **record)  # last: what it says is finished is so
    return [f"{stem}.json", *files]


def versions() -> dict[str, str]:
    """{library: version}."""
    import numpy
    import scipy
    import tensorflow

    libraries = {m.__name__: m.__version__ for m in (tensorflow, numpy, scipy)}
    return {"python": platform.python_version(), "tfssl": __version__, **libraries}


def write(path: str, results: Iterable[Mapping[str, Any]], **facts: Any) -> None:
    """Write results.json (any file system that TensorFlow knows): `facts`, then the list
    "results"."""
    record = {"format": 1, **facts, "results": [dict(result) for result in results]}
    write_file(path, json.dumps(record, indent=1) + "\n")
