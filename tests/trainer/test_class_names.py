"""Names of classes in locales whose encoding is not UTF-8."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from folders import make_folder

ASKS = """
import json, sys
from trainer.config import DataConfig
from trainer.scan import scan
listing = scan(DataConfig(path=sys.argv[1], labels=sys.argv[2] if sys.argv[2:] else None))
print(json.dumps([sys.getfilesystemencoding(), sorted({one.class_name for one in listing.pictures})]))
"""


@pytest.mark.skipif(shutil.which("localedef") is None, reason="needs the program localedef")
@pytest.mark.parametrize(("language", "encoding"), [("de_DE", "ISO-8859-1"), ("zh_CN", "GBK")])
def test_names_of_classes_are_the_same_in_each_locale(tmp_path: Path, language: str, encoding: str) -> None:
    root = make_folder(tmp_path / "data", {"\u72ac": 1, "caf\u00e9": 1})
    place = tmp_path / f"{language}.{encoding}"
    made = subprocess.run(["localedef", "-c", "-i", language, "-f", encoding, place], capture_output=True, check=False)
    if made.returncode > 1:
        pytest.skip(f"the sources of {place.name} are not here")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONUTF8", "LC_CTYPE")}
    environment |= {"LOCPATH": str(tmp_path), "LC_ALL": place.name}
    (root / "l.csv").write_text("file,label\n\u72ac/000.png,\u72ac\ncaf\u00e9/000.png,caf\u00e9\n", encoding="utf-8")
    for table in ([], ["l.csv"]):
        command = [sys.executable, "-c", ASKS, str(root), *table]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        used, names = json.loads(done.stdout)
        assert used != "utf-8"
        assert names == ["caf\u00e9", "\u72ac"]
