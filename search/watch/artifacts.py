"""Figures among a study's artifacts in the dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import optuna

PREFIX = "artifacts:"
"""Prefix of the study attributes in which Optuna describes artifacts; the rest of the name is the artifact's id."""

DELETED = json.dumps(None)
"""What optuna-dashboard stores in place of an artifact that was deleted. Optuna's own list of artifacts fails on it."""


def show_figures(study: optuna.Study, artifacts: Path, figures: Iterable[Path]) -> None:
    """Show figures under their file names; each replaces the one of the same name.

    Args:
        study: the study, owned by this process.
        artifacts: the dashboard's folder of artifacts.
        figures: image files. If a file does not exist, its figure is removed.
    """
    from optuna.artifacts import FileSystemArtifactStore, upload_artifact

    artifacts.mkdir(parents=True, exist_ok=True)
    store = FileSystemArtifactStore(artifacts)
    storage, study_id = study._storage, study._study_id
    stored = storage.get_study_system_attrs(study_id)
    kept = [json.loads(stored[key]) for key in stored if key.startswith(PREFIX) and stored[key] != DELETED]
    known = {artifact["filename"]: artifact["artifact_id"] for artifact in kept}
    for figure in figures:
        artifact = known.get(figure.name)
        if not figure.exists():
            if artifact is not None:
                storage.set_study_system_attr(study_id, PREFIX + artifact, DELETED)
                (artifacts / artifact).unlink(missing_ok=True)
        elif artifact is not None:
            with figure.open("rb") as file:
                store.write(artifact, file)
        else:
            upload_artifact(artifact_store=store, file_path=str(figure), study_or_trial=study)
